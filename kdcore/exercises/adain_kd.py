"""Check of the chapter on distillation by adaptive instance normalization: the transplant."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.features import adain_kd

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    """Maps whose sizes differ between the networks, so that a mix-up shows in the shape."""
    generator, cases = torch.Generator().manual_seed(2003), []
    for batch, channels, (height, width), (rows, columns) in [
        (3, 2, (5, 5), (4, 4)),
        (2, 5, (2, 3), (6, 2)),
        (4, 3, (1, 2), (3, 3)),
    ]:
        student = 2 * torch.randn(batch, channels, height, width, generator=generator) + 1
        teacher = torch.randn(batch, channels, rows, columns, generator=generator) - 0.5
        cases.append({"student_map": student.requires_grad_(), "teacher_map": teacher.requires_grad_()})
    return cases


def _transplant(student: Tensor, teacher: Tensor, dims: tuple[int, ...] = (2, 3), correction: int = 0) -> Tensor:
    """Equation (3) with means and deviations over other dimensions, or unbiased ones."""
    teacher = teacher.detach()
    mean, spread = student.mean(dims, keepdim=True), student.std(dims, correction=correction, keepdim=True)
    unit = (teacher - teacher.mean(dims, keepdim=True)) / teacher.std(dims, correction=correction, keepdim=True)
    return spread * unit + mean


def _variance(student: Tensor, teacher: Tensor) -> Tensor:
    moved = adain_kd.adaptive_instance_norm(student, teacher, inject="mean")
    mean = adain_kd.channel_mean(student)[:, :, None, None]
    ratio = adain_kd.channel_std(student) / adain_kd.channel_std(teacher.detach())
    return mean + (moved - mean) * ratio.square()[:, :, None, None]


def _not_divided(student: Tensor, teacher: Tensor) -> Tensor:
    spread = adain_kd.channel_std(teacher.detach())[:, :, None, None]
    mean = adain_kd.channel_mean(student)[:, :, None, None]
    return (adain_kd.adaptive_instance_norm(student, teacher) - mean) * spread + mean


EXERCISES = {
    "adain_kd.1": Exercise(
        _cases(),
        adain_kd.adaptive_instance_norm,
        {
            "Only the mean is the student's: the deviation has to be exchanged as well.": lambda s, t: (
                adain_kd.adaptive_instance_norm(s, t, inject="mean")
            ),
            "Only the deviation is the student's: the mean has to be exchanged as well.": lambda s, t: (
                adain_kd.adaptive_instance_norm(s, t, inject="std")
            ),
            "The roles are exchanged: the pattern is the teacher's, the statistics are the student's.": lambda s, t: (
                adain_kd.adaptive_instance_norm(t, s)
            ),
            "The deviation is the unbiased one, divided by HW − 1: equation (1) divides by HW.": lambda s, t: (
                _transplant(s, t, correction=1)
            ),
            "The statistics are those of a channel over the whole batch: each image has its own.": lambda s, t: (
                _transplant(s, t, dims=(0, 2, 3))
            ),
            "The statistics are taken over the channels too: each channel has its own.": lambda s, t: _transplant(
                s, t, dims=(1, 2, 3)
            ),
            "The statistics are taken over the channels (dimension 1): average over the pixels instead.": (
                lambda s, t: _transplant(s.mean((2, 3), keepdim=True), t, dims=(1,))
            ),
            "The factor is a ratio of variances, it should be one of deviations.": _variance,
            "The teacher's pattern was centred but not divided by its deviation.": _not_divided,
        },
    ),
}
"""The checks, by name."""
