"""Checks of the chapter on Token-level relationship graph: TODO what they ask for."""

from __future__ import annotations

import torch

from kdcore.features import trg
from kdcore.exercises.checking import Exercise

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator).requires_grad_() for _ in range(2))
    return [{"student_logits": student, "teacher_logits": teacher, "labels": torch.arange(5) % 4}]


EXERCISES = {
    "trg.1": Exercise(
        _cases(),
        trg.trg_loss,
        {"TODO the hint to a usual mistake.": lambda *_: torch.zeros(())},
    ),
}
"""The checks, by name."""
