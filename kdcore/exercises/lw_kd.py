"""Checks of the chapter on Light-weight distillation: TODO what they ask for."""

from __future__ import annotations

import torch

from kdcore.exercises.checking import Exercise
from kdcore.logits import lw_kd

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(2))
    return [{"student_logits": student, "teacher_logits": teacher, "labels": torch.arange(5) % 4}]


EXERCISES = {
    "lw_kd.1": Exercise(
        _cases(),
        lw_kd.lw_kd_loss,
        {"TODO the hint to a usual mistake.": lambda *_: torch.zeros(())},
    ),
}
"""The checks, by name."""
