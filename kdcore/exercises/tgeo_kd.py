"""Checks of the chapter on trilateral geometry: a loss with a weight per sample, and the slope of the held-out loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.logits import tgeo_kd

__all__ = ["EXERCISES"]


def _loss_cases() -> list[dict]:
    """Weights and teacher logits with a graph, which must not be used."""
    generator, cases = torch.Generator().manual_seed(2312), []
    for rows, classes, temperature in [(5, 4, 2.0), (3, 10, 1.5), (8, 3, 4.0)]:
        student, teacher = (2 * torch.randn(rows, classes, generator=generator) for _ in range(2))
        case = {
            "alpha": torch.rand(rows, generator=generator).requires_grad_(),
            "student_logits": student.requires_grad_(),
            "teacher_logits": teacher.requires_grad_(),
            "labels": torch.randint(classes, (rows,), generator=generator),
        }
        cases.append(case | {"temperature": temperature})
    return cases


def _slope_cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(15112), []
    for rows, weights, temperature, step_size in [(4, 6, 2.0, 0.1), (7, 3, 1.5, 0.5), (2, 9, 3.0, 0.05)]:
        soft, hard = torch.randn(2, rows, weights, generator=generator)
        case = {"pull": torch.randn(weights, generator=generator), "soft_gradients": soft, "hard_gradients": hard}
        cases.append(case | {"temperature": temperature, "step_size": step_size})
    return cases


def _loss(alpha: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    terms = tgeo_kd.sample_terms(student, teacher, labels, temperature)
    return tgeo_kd.weighted_loss(alpha.detach(), *terms, temperature)


def _softmax_twice(alpha: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    soft, _ = tgeo_kd.sample_terms(student, teacher, labels, temperature)
    hard = F.cross_entropy(student.softmax(dim=1), labels, reduction="none")
    return tgeo_kd.weighted_loss(alpha.detach(), soft, hard, temperature)


def _mean_weight(alpha: Tensor, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    return _loss(alpha.mean().expand_as(alpha), student, teacher, labels, temperature)


def _slope(pull: Tensor, soft: Tensor, hard: Tensor, temperature: float, step_size: float) -> Tensor:
    return -step_size / len(soft) * (temperature**2 * soft - hard) @ pull


EXERCISES = {
    "tgeo_kd.1": Exercise(
        _loss_cases(),
        _loss,
        {
            "The values are right, but the weights are not detached.": lambda a, s, t, y, tau: tgeo_kd.weighted_loss(
                a, *tgeo_kd.sample_terms(s, t, y, tau), tau
            ),
            "The factor τ² of the distillation term is missing.": lambda a, s, t, y, tau: tgeo_kd.weighted_loss(
                a.detach(), *tgeo_kd.sample_terms(s, t, y, tau), 1.0
            ),
            "The weights are turned round: α belongs to the teacher, 1 − α to the label.": lambda a, s, t, y, tau: (
                _loss(1 - a, s, t, y, tau)
            ),
            "The cross-entropy takes a softmax itself, so it wants logits: this is the release's slip.": _softmax_twice,
            "Each sample has a weight of its own: the mean over samples comes after weighting.": _mean_weight,
            "The sum runs over samples: equation (3) takes their mean.": lambda a, s, t, y, tau: (
                _loss(a, s, t, y, tau) * len(a)
            ),
            "The cross-entropy has no weight: it gets 1 − α.": lambda a, s, t, y, tau: (
                _loss(a, s, t, y, tau) + (a.detach() * F.cross_entropy(s, y, reduction="none")).mean()
            ),
        },
    ),
    "tgeo_kd.2": Exercise(
        _slope_cases(),
        _slope,
        {
            "The sign is turned round: where distillation agrees with held-out samples, a larger weight lowers "
            "their loss.": lambda g, s, h, tau, eta: -_slope(g, s, h, tau, eta),
            "The factor τ² of the distillation term is missing.": lambda g, s, h, tau, eta: _slope(g, s, h, 1.0, eta),
            "The loss of the student is a mean: 1/B is missing.": lambda g, s, h, tau, eta: (
                _slope(g, s, h, tau, eta) * len(s)
            ),
            "The step size η is missing.": lambda g, s, h, tau, eta: _slope(g, s, h, tau, 1.0),
            "A larger α also takes weight from the label: its gradient is missing.": lambda g, s, h, tau, eta: _slope(
                g, s, torch.zeros_like(h), tau, eta
            ),
            "The gradient of the label is to be subtracted: its weight is 1 − α.": lambda g, s, h, tau, eta: _slope(
                g, s, -h, tau, eta
            ),
        },
    ),
}
"""The checks, by name."""
