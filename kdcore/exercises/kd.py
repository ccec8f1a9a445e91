"""Checks of the chapter on knowledge distillation: its loss, and the loss's gradient by hand."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise, gradient_of
from kdcore.foundations import kd

__all__ = ["EXERCISES"]


def _cases(learned: bool) -> list[dict]:
    """Logits of several sizes and temperatures on both sides of 1; `learned` asks for gradients too."""
    generator, cases = torch.Generator().manual_seed(1503), []
    for rows, classes, temperature in [(5, 4, 3.0), (6, 3, 0.5), (1, 2, 8.0), (4, 10, 2.0)]:
        student, teacher = (2 * torch.randn(rows, classes, generator=generator) for _ in range(2))
        cases.append(
            {
                "student_logits": student.requires_grad_(learned),
                "teacher_logits": teacher.requires_grad_(learned),
                "temperature": temperature,
            }
        )
    return cases


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Of log-probabilities, summed over everything."""
    return (teacher.exp() * (teacher - student)).sum()


def _over_the_batch(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    logs = ((logits / temperature).log_softmax(dim=0) for logits in (student, teacher.detach()))
    return _divergence(*logs) / len(student) * temperature**2


def _reversed(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    first, second = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher.detach()))
    return _divergence(second, first) / len(student) * temperature**2


def _cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(student / temperature, (teacher.detach() / temperature).softmax(dim=1)) * temperature**2


def _teacher_alone_softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    logs = student.log_softmax(dim=1), (teacher.detach() / temperature).log_softmax(dim=1)
    return _divergence(*logs) / len(student) * temperature**2


def _no_logarithm(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    first, second = ((logits / temperature).softmax(dim=1) for logits in (student, teacher.detach()))
    return F.kl_div(first, second, reduction="batchmean") * temperature**2


def _gradient_over_the_batch(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    first, second = ((logits / temperature).softmax(dim=0) for logits in (student, teacher))
    return temperature * (first - second) / len(student)


def _gradient_at_one(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return temperature * (kd.soften(student) - kd.soften(teacher)) / len(student)


_loss, _gradient = kd.distillation_loss, gradient_of(kd.distillation_loss)

EXERCISES = {
    "kd.1": Exercise(
        _cases(learned=True),
        _loss,
        {
            "The factor τ² is missing: without it the loss fades as the temperature rises.": lambda s, t, tau: (
                _loss(s, t, tau) / tau**2
            ),
            "The factor is τ, it should be τ²: equation (4) shows where the two come from.": lambda s, t, tau: (
                _loss(s, t, tau) / tau
            ),
            "The softmax runs over the images of the batch (dimension 0), it should run over the classes.": (
                _over_the_batch
            ),
            "The mean is taken over the classes as well: sum over classes, average over the batch alone.": (
                lambda s, t, tau: _loss(s, t, tau) / s.shape[1]
            ),
            "The batch is summed: average over its rows.": lambda s, t, tau: _loss(s, t, tau) * len(s),
            "The divergence is the wrong way round: the teacher's probabilities are the weights of the sum.": _reversed,
            "This is the cross-entropy: its gradient is right, but it is not 0 where both agree. "
            "What does the divergence subtract?": _cross_entropy,
            "Only the teacher is softened: the student's logits are divided by τ too.": _teacher_alone_softened,
            "A logarithm is missing: F.kl_div takes the logarithm of the student's probabilities.": _no_logarithm,
        },
    ),
    "kd.2": Exercise(
        _cases(learned=False),
        _gradient,
        {
            "The factor τ² of equation (2) is missing: differentiating the softened softmax alone gives 1/τ.": (
                lambda s, t, tau: _gradient(s, t, tau) / tau**2
            ),
            "A factor τ is missing: of the τ² in equation (2) the chain rule takes one τ, not both.": (
                lambda s, t, tau: _gradient(s, t, tau) / tau
            ),
            "A factor τ is too much: the chain rule takes one of the two in equation (2).": (
                lambda s, t, tau: _gradient(s, t, tau) * tau
            ),
            "The average over the batch is missing.": lambda s, t, tau: _gradient(s, t, tau) * len(s),
            "The softmax runs over the images of the batch (dimension 0), it should run over the classes.": (
                _gradient_over_the_batch
            ),
            "The probabilities are those at temperature 1: both networks are softened by τ.": _gradient_at_one,
        },
    ),
}
"""The checks, by name."""
