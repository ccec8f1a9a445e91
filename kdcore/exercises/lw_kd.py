"""Checks of the chapter on light-weight distillation: what drawn targets teach on average."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.foundations import kd

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(2005), []
    for rows, classes, temperature in [(5, 4, 4.0), (7, 3, 2.0), (6, 10, 0.5)]:
        cases.append(
            {
                "student_logits": 2 * torch.randn(rows, classes, generator=generator),
                "labels": torch.randint(classes, (rows,), generator=generator),
                "mean_targets": torch.randn(classes, classes, generator=generator).softmax(dim=1),
                "temperature": temperature,
            }
        )
    return cases


def _right(student_logits: Tensor, labels: Tensor, mean_targets: Tensor, temperature: float) -> Tensor:
    leaf = student_logits.detach().requires_grad_()
    loss = kd.distillation_loss(leaf, temperature * mean_targets[labels].log(), temperature)
    return torch.autograd.grad(loss, leaf)[0]


def _soft(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(dim=1)


EXERCISES = {
    "lw_kd.1": Exercise(
        _cases(),
        _right,
        {
            "The factor τ is missing: (2) carries τ², and the softmax at τ has 1/τ inside.": lambda z, y, q, t: (
                (_soft(z, t) - q[y]) / len(y)
            ),
            "The factor is τ², but the softmax at τ has 1/τ inside: one τ is left.": lambda z, y, q, t: (
                t**2 * (_soft(z, t) - q[y]) / len(y)
            ),
            "The mean over the batch is missing: divide by B.": lambda z, y, q, t: t * (_soft(z, t) - q[y]),
            "The student's probabilities are those at temperature 1: soften them as the targets were.": (
                lambda z, y, q, t: t * (_soft(z, 1.0) - q[y]) / len(y)
            ),
            "The sign is turned round: this is the way downhill, not the gradient.": lambda z, y, q, t: (
                t * (q[y] - _soft(z, t)) / len(y)
            ),
            "The target is the same for all samples: look up each label's own row.": lambda z, y, q, t: (
                t * (_soft(z, t) - q.mean(dim=0)) / len(y)
            ),
            "The target is the label itself: the teacher's mean for this class is asked for.": lambda z, y, q, t: (
                t * (_soft(z, t) - torch.nn.functional.one_hot(y, z.shape[1])) / len(y)
            ),
        },
    ),
}
"""The checks, by name."""
