"""Checks of the chapter on feature norm and direction: the ND loss, and its gradient by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise, gradient_of
from kdcore.features import nd_kd

__all__ = ["EXERCISES"]


def _cases(learned: bool) -> list[dict]:
    """In each case some features are shorter than the teacher's and some longer; means have different lengths."""
    generator, cases = torch.Generator().manual_seed(2305), []
    for rows, width, classes in [(6, 4, 3), (8, 3, 5), (5, 7, 2), (9, 2, 4)]:
        student, teacher = (torch.randn(rows, width, generator=generator) for _ in range(2))
        student = F.normalize(student, dim=1) * teacher.norm(dim=1, keepdim=True)
        student = student * torch.linspace(0.3, 2.2, rows).unsqueeze(1)
        means = 3 * torch.randn(classes, width, generator=generator)
        labels = torch.randint(classes, (rows,), generator=generator)
        names = ("student_features", "teacher_features", "means")
        tensors = (tensor.requires_grad_(learned) for tensor in (student, teacher, means))
        cases.append(dict(zip(names, tensors, strict=True)) | {"labels": labels})
    return cases


def _projection(student: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """Length of each feature along its class's direction, (B)."""
    return (student * F.normalize(means.detach(), dim=1)[labels]).sum(dim=1)


def _norms(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return student.norm(dim=1), teacher.detach().norm(dim=1)


def _divided(student: Tensor, means: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    """Equation (2) with another denominator."""
    return (1 - _projection(student, means, labels) / lengths).mean()


def _detached(s: Tensor, t: Tensor, m: Tensor, y: Tensor) -> Tensor:
    return _divided(s, m, y, torch.maximum(s.norm(dim=1).detach(), t.detach().norm(dim=1)))


def _raw_means(s: Tensor, t: Tensor, m: Tensor, y: Tensor) -> Tensor:
    return (1 - (s * m.detach()[y]).sum(dim=1) / torch.maximum(*_norms(s, t))).mean()


def _teacher_s_own_direction(s: Tensor, t: Tensor, m: Tensor, y: Tensor) -> Tensor:
    unit = F.normalize(t.detach(), dim=1)
    return (1 - (s * unit).sum(dim=1) / torch.maximum(*_norms(s, t))).mean()


def _parts(s: Tensor, t: Tensor, m: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit target (B, d), unit feature (B, d), and the norms of student and teacher, (B, 1) each."""
    norm, teacher_norm = (lengths.unsqueeze(1) for lengths in _norms(s, t))
    return F.normalize(m, dim=1)[y], s / norm, norm, teacher_norm


def _gradient(s: Tensor, t: Tensor, m: Tensor, y: Tensor, change: str = "") -> Tensor:
    """The gradient of (2), branch by branch, with one thing wrong."""
    target, unit, norm, teacher_norm = _parts(s, t, m, y)
    turning = target - (target * unit).sum(dim=1, keepdim=True) * unit
    short = -target / teacher_norm
    long = -(target if change == "radial part left" else turning) / (teacher_norm if change == "by teacher" else norm)
    longer = norm <= teacher_norm if change == "branches swapped" else norm > teacher_norm
    return torch.where(longer, long, short) / (1 if change == "sum" else len(s))


EXERCISES = {
    "nd_kd.1": Exercise(
        _cases(learned=True),
        nd_kd.nd_loss,
        {
            "The student's feature was normalised first. That is the direction alone: its length is never rewarded.": (
                lambda s, t, m, y: nd_kd.direction_loss(s, m, y)
            ),
            "It divides by the teacher's norm throughout, so that long features are rewarded without end.": (
                lambda s, t, m, y: _divided(s, m, y, t.detach().norm(dim=1))
            ),
            "It divides by the smaller of the two norms; it should be the larger.": lambda s, t, m, y: _divided(
                s, m, y, torch.minimum(*_norms(s, t))
            ),
            "It divides by the product of both norms, as for a cosine with the teacher.": lambda s, t, m, y: _divided(
                s, m, y, s.norm(dim=1) * t.detach().norm(dim=1)
            ),
            "The class means are not brought to length 1.": _raw_means,
            "It points at the teacher's feature of the image; it should point at the mean of the image's class.": (
                _teacher_s_own_direction
            ),
            "The sum over the batch was taken: equation (2) has the mean.": lambda s, t, m, y: (
                len(s) * nd_kd.nd_loss(s, t, m, y)
            ),
            "The constant 1 is missing: an aligned, long feature should cost 0.": lambda s, t, m, y: (
                nd_kd.nd_loss(s, t, m, y) - 1
            ),
            "The values are right, but the student's norm was detached: a long feature would go on growing.": _detached,
        },
    ),
    "nd_kd.2": Exercise(
        _cases(learned=False),
        gradient_of(nd_kd.nd_loss),
        {
            "That is the short branch for all features: one longer than the teacher's is only turned.": (
                lambda s, t, m, y: -_parts(s, t, m, y)[0] / _parts(s, t, m, y)[3] / len(s)
            ),
            "That is the gradient of the direction alone: a feature shorter than the teacher's is pulled as a whole.": (
                lambda s, t, m, y: gradient_of(nd_kd.direction_loss)(s, m, y)
            ),
            "In the long branch the part along the feature is still there.": lambda s, t, m, y: _gradient(
                s, t, m, y, "radial part left"
            ),
            "In the long branch it divides by the teacher's norm; the derivative of a cosine has the feature's own.": (
                lambda s, t, m, y: _gradient(s, t, m, y, "by teacher")
            ),
            "The branches are swapped.": lambda s, t, m, y: _gradient(s, t, m, y, "branches swapped"),
            "The factor 1/B of the mean over the batch is missing.": lambda s, t, m, y: _gradient(s, t, m, y, "sum"),
        },
    ),
}
"""The checks, by name."""
