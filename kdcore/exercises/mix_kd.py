"""Checks of the chapter on mixup in distillation: mixed targets, and the divergence of scaled logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.foundations import kd
from kdcore.logits import mix_kd

__all__ = ["EXERCISES"]


def _mixing_cases() -> list[dict]:
    """Batches in which images meet themselves, and others of their class."""
    generator, cases = torch.Generator().manual_seed(2211), []
    for rows, classes in [(6, 3), (12, 10), (9, 4), (20, 5)]:
        first, second = (torch.randperm(rows, generator=generator) for _ in range(2))
        second[: rows // 3] = first[: rows // 3]
        labels = torch.randint(classes, (rows,), generator=generator)
        weight = torch.rand(rows, generator=generator)
        cases.append({"labels": labels, "num_classes": classes, "first": first, "second": second, "weight": weight})
    return cases


def _logits_cases() -> list[dict]:
    """Logits that are neither centred nor of unit deviation; both ask for a gradient, only one may get it."""
    generator, cases = torch.Generator().manual_seed(3946), []
    for rows, classes in [(5, 4), (3, 10), (7, 3), (2, 100)]:
        student, teacher = (torch.randn(rows, classes, generator=generator) for _ in range(2))
        student, teacher = 2 * student + 1, 5 * teacher - 2
        cases.append({"student_logits": student.requires_grad_(), "teacher_logits": teacher.requires_grad_()})
    return cases


def _targets(labels: Tensor, num_classes: int, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    return mix_kd.mix_targets(labels, num_classes, mix_kd.Mixing(first, second, weight))


def _overwritten(labels: Tensor, num_classes: int, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    targets, rows = torch.zeros(len(labels), num_classes), torch.arange(len(labels))
    targets[rows, labels[first]] = weight
    targets[rows, labels[second]] = 1 - weight
    return targets


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Of logits that are scaled already."""
    return kd.distillation_loss(student, teacher, temperature=1.0)


def _unit(logits: Tensor, dim: int = 1, correction: int = 1) -> Tensor:
    return logits / logits.std(dim=dim, correction=correction, keepdim=True)


def _right(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return _divergence(mix_kd.scale_logits(student_logits), mix_kd.scale_logits(teacher_logits))


EXERCISES = {
    "mix_kd.1": Exercise(
        _mixing_cases(),
        _targets,
        {
            "The labels are those of the batch as it came: look up those of the two partners.": (
                lambda y, c, p, q, w: F.one_hot(y, c).to(w.dtype)
            ),
            "The first partner's label is not permuted: its image is, by the first permutation.": (
                lambda y, c, p, q, w: _targets(y, c, torch.arange(len(y)), q, w)
            ),
            "The second partner's label is not permuted: its image is, by the second permutation.": (
                lambda y, c, p, q, w: _targets(y, c, p, torch.arange(len(y)), w)
            ),
            "The weights are exchanged: λ belongs to the first partner.": lambda y, c, p, q, w: _targets(y, c, q, p, w),
            "Where both partners have one class the second assignment overwrites the first: add them.": _overwritten,
            "The target is a distribution over both classes, not the likelier one of them.": (
                lambda y, c, p, q, w: F.one_hot(_targets(y, c, p, q, w).argmax(dim=1), c).to(w.dtype)
            ),
            "One weight serves the whole batch: here each image has its own.": (
                lambda y, c, p, q, w: _targets(y, c, p, q, w[:1].expand_as(w))
            ),
        },
    ),
    "mix_kd.2": Exercise(
        _logits_cases(),
        _right,
        {
            "The deviation is the biased one, divided by C: equation (5) divides by C − 1.": lambda s, t: _divergence(
                _unit(s, correction=0), _unit(t, correction=0)
            ),
            "The deviation is that of a class over the batch (dimension 0): each image has its own.": (
                lambda s, t: _divergence(_unit(s, dim=0), _unit(t, dim=0))
            ),
            "The student is divided by the teacher's deviation: each network has its own.": lambda s, t: _divergence(
                s / t.std(dim=1, keepdim=True), _unit(t)
            ),
            "Only the teacher's logits are scaled.": lambda s, t: _divergence(s, _unit(t)),
            "Only the student's logits are scaled.": lambda s, t: _divergence(_unit(s), t),
            "The arguments are exchanged: the teacher is the first argument of the divergence.": (
                lambda s, t: F.kl_div(_unit(t).log_softmax(1), _unit(s).log_softmax(1), None, None, "batchmean", True)
            ),
            "The mean is taken over classes too: sum over classes, then average over the batch.": lambda s, t: (
                _right(s, t) / s.shape[1]
            ),
            "The values are right, but the student's deviation was detached: a radial part of the gradient is left.": (
                lambda s, t: _divergence(s / s.std(dim=1, keepdim=True).detach(), _unit(t))
            ),
            "It divides by the variance, not by its square root.": lambda s, t: _divergence(
                s / s.var(dim=1, keepdim=True), t / t.var(dim=1, keepdim=True)
            ),
        },
    ),
}
"""The checks, by name."""
