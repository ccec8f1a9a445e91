"""Checks of the chapter on ScaleKD: a vision transformer as teacher: TODO what they ask for."""

from __future__ import annotations

import torch

from kdcore.features import scalekd
from kdcore.exercises.checking import Exercise

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(2))
    return [{"student_logits": student, "teacher_logits": teacher, "labels": torch.arange(5) % 4}]


EXERCISES = {
    "scalekd.1": Exercise(
        _cases(),
        scalekd.scalekd_loss,
        {"TODO the hint to a usual mistake.": lambda *_: torch.zeros(())},
    ),
}
"""The checks, by name."""
