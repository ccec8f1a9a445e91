"""Checks of the chapter on spherical distillation: the sphere, and a gradient carried through it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.logits import spherical_kd

__all__ = ["EXERCISES"]


def _cases(learned: bool) -> list[dict]:
    """Logits that are neither centred nor of unit spread; with an outer gradient where none is asked for."""
    generator, cases = torch.Generator().manual_seed(2010), []
    for rows, classes, multiplier in [(5, 4, 1.5), (3, 10, 2.0), (7, 3, 0.7), (2, 100, 2.5)]:
        logits, outer = (torch.randn(rows, classes, generator=generator) for _ in range(2))
        logits = 3 * logits + 1
        case = {"logits": logits.requires_grad_(learned), "multiplier": multiplier}
        cases.append(case if learned else {**case, "gradient": outer})
    return cases


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=1, keepdim=True)


def _spread(logits: Tensor, correction: int = 0) -> Tensor:
    return logits.std(dim=1, correction=correction, keepdim=True)


def _over_the_batch(logits: Tensor, multiplier: float) -> Tensor:
    return multiplier * (logits - logits.mean(dim=0)) / logits.std(dim=0, correction=0)


def _whole_batch(logits: Tensor, multiplier: float) -> Tensor:
    return multiplier * (logits - logits.mean()) / logits.std(correction=0)


def _through(logits: Tensor, multiplier: float, gradient: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(spherical_kd.normalise(leaf, multiplier), leaf, gradient)[0]


def _without_mean(logits: Tensor, multiplier: float, gradient: Tensor) -> Tensor:
    return multiplier / _spread(logits) * _centred(gradient)


def _without_radius(logits: Tensor, multiplier: float, gradient: Tensor) -> Tensor:
    direction = torch.nn.functional.normalize(_centred(logits), dim=1)
    return multiplier / _spread(logits) * (gradient - (gradient * direction).sum(dim=1, keepdim=True) * direction)


def _raw_radius(logits: Tensor, multiplier: float, gradient: Tensor) -> Tensor:
    direction = torch.nn.functional.normalize(logits, dim=1)
    tangent = _centred(gradient) - (gradient * direction).sum(dim=1, keepdim=True) * direction
    return multiplier / _spread(logits) * tangent


EXERCISES = {
    "spherical_kd.1": Exercise(
        _cases(learned=True),
        spherical_kd.normalise,
        {
            "m is taken for the norm of a row: it is the standard deviation, the norm is m√C.": lambda z, m: (
                spherical_kd.normalise(z, m / z.shape[1] ** 0.5)
            ),
            "The variance is the unbiased one, divided by C − 1: equation (1) divides by C.": lambda z, m: (
                m * _centred(z) / _spread(z, correction=1)
            ),
            "The logits are not centred: subtract each row's mean first.": lambda z, m: m * z / _spread(z),
            "Mean and deviation are those of a class over the batch (dimension 0): each image has its own.": (
                _over_the_batch
            ),
            "Mean and deviation are those of the whole batch: each image has its own.": _whole_batch,
            "The values are right, but σ was detached: the radial part of the gradient is left in.": lambda z, m: (
                m * _centred(z) / _spread(z).detach()
            ),
            "It divides by the variance, not by its square root.": lambda z, m: m * _centred(z) / _spread(z) ** 2,
            "The multiplier m is missing.": lambda z, m: spherical_kd.normalise(z, 1.0),
        },
    ),
    "spherical_kd.2": Exercise(
        _cases(learned=False),
        _through,
        {
            "The factor m/σ is there, the bracket of (10) is not: two parts of the gradient must be removed.": (
                lambda z, m, g: m / _spread(z) * g
            ),
            "The radial part is still there: each row of the result is orthogonal to its logits.": _without_mean,
            "The part along (1, …, 1) is still there: each row of the result sums to zero.": _without_radius,
            "The radius is that of the raw logits: the direction to remove is the one of the centred logits.": (
                _raw_radius
            ),
            "The direction is right, the factor in front of the bracket is missing.": lambda z, m, g: (
                _through(z, m, g) * _spread(z) / m
            ),
            "The multiplier m is missing from the factor in front of the bracket.": lambda z, m, g: (
                _through(z, m, g) / m
            ),
            "The factor is turned round: a small spread makes the gradient large.": lambda z, m, g: (
                _through(z, m, g) * (_spread(z) / m) ** 2
            ),
            "The spread in the factor is the unbiased one, divided by C − 1: equation (1) divides by C.": (
                lambda z, m, g: _through(z, m, g) * _spread(z) / _spread(z, correction=1)
            ),
        },
    ),
}
"""The checks, by name."""
