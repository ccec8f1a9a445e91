"""Checks of the chapter on dual-head distillation: a loss on logit differences, and the aligned gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.logits import dhkd

__all__ = ["EXERCISES"]


def _logit_cases() -> list[dict]:
    """The last case has differences whose hyperbolic cosine overflows."""
    generator, cases = torch.Generator().manual_seed(2411), []
    for rows, classes, temperature, scale in [
        (5, 4, 2.0, 3.0),
        (3, 10, 1.0, 3.0),
        (7, 3, 4.0, 1.0),
        (2, 6, 1.5, 300.0),
    ]:
        student, teacher = (scale * torch.randn(rows, classes, generator=generator) for _ in range(2))
        case = {"student_logits": student.requires_grad_(), "teacher_logits": teacher.requires_grad_()}
        cases.append(case | {"temperature": temperature})
    return cases


def _gradient_cases() -> list[dict]:
    """Two pairs in conflict and two that agree."""
    generator, cases = torch.Generator().manual_seed(8937), []
    for size, agree in [(4, False), (7, True), (3, False), (12, True)]:
        leading, other = torch.randn(2, size, generator=generator)
        sign = 1 if bool(leading @ other > 0) == agree else -1
        cases.append({"leading": leading, "other": sign * other})
    return cases


def _scaled(student: Tensor, teacher: Tensor, temperature: float, scale: float) -> Tensor:
    """The loss with another factor in front of d / τ."""
    x = scale * (student - teacher.detach()) / temperature
    return (x - F.logsigmoid(2 * x) - torch.log(torch.tensor(2.0))).sum() * temperature**2 / len(student)


def _projected(first: Tensor, second: Tensor) -> Tensor:
    """The second vector without its part along the first, if the two disagree."""
    return second - (first @ second).clamp(max=0) / (first @ first) * first


EXERCISES = {
    "dhkd.1": Exercise(
        _logit_cases(),
        dhkd.binary_kl_norm,
        {
            "The difference is divided by τ, but not by 2: σ is compared with a fair coin.": lambda s, t, tau: _scaled(
                s, t, tau, 1.0
            ),
            "The factor τ² is missing.": lambda s, t, tau: dhkd.binary_kl_norm(s, t, tau) / tau**2,
            "The mean runs over classes as well: equation (2) sums over them.": lambda s, t, tau: (
                dhkd.binary_kl_norm(s, t, tau) / s.shape[1]
            ),
            "The sum runs over samples: equation (2) takes their mean.": lambda s, t, tau: (
                dhkd.binary_kl_norm(s, t, tau) * len(s)
            ),
            "This is BinaryKL, equation (1), which sees the levels and not only the difference.": dhkd.binary_kl,
            "This is the limit of high temperature, an eighth of the squared difference.": lambda s, t, tau: (
                (s - t.detach()).square().sum() / (8 * len(s))
            ),
            "The published clamp is still there: far from the teacher the gradient is zero.": lambda s, t, tau: (
                dhkd.binary_kl_norm(s, t, tau, 1e-8)
            ),
        },
    ),
    "dhkd.2": Exercise(
        _gradient_cases(),
        lambda leading, other: dhkd.merge_gradients([leading], [other])[0],
        {
            "It projects in any case: where the gradients agree, nothing is to be changed.": lambda g, h: (
                g + h - (g @ h) / (g @ g) * g
            ),
            "Both gradients are projected: alignment is one-sided, the leading one stays.": lambda g, h: (
                _projected(g, h) + _projected(h, g)
            ),
            "The wrong one is projected: the leading gradient stays as it is.": lambda g, h: h + _projected(h, g),
            "The result is the projected gradient alone: the leading one is to be added.": _projected,
            "The inner product is divided by the length of the leading gradient, not by its square.": lambda g, h: (
                g + h - (g @ h).clamp(max=0) / g.norm() * g
            ),
            "The inner product is divided by the square of the other gradient's length.": lambda g, h: (
                g + h - (g @ h).clamp(max=0) / (h @ h) * g
            ),
            "The sign of the correction is turned round: it makes the conflict worse.": lambda g, h: (
                g + h + (g @ h).clamp(max=0) / (g @ g) * g
            ),
            "This is the plain sum: where the gradients disagree, something is to be done.": lambda g, h: g + h,
        },
    ),
}
"""The checks, by name."""
