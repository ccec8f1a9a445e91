"""Check of the chapter on the maximum squares loss: its gradient by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdcore.adaptation import maxsquare
from kdcore.exercises.checking import Exercise, gradient_of

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator = torch.Generator().manual_seed(1909)
    sizes = [(2, 3, 4, 5), (1, 2, 1, 1), (3, 5, 2, 2), (2, 2, 3, 3)]
    return [{"logits": 2 * torch.randn(size, generator=generator)} for size in sizes]


def _softmax_over(dim: int) -> Callable[..., Tensor]:
    return gradient_of(lambda logits: -logits.softmax(dim=dim).square().mean() / 2)


def _by_probability(logits: Tensor) -> Tensor:
    return -logits.softmax(dim=1) / logits.numel()


def _uncoupled(logits: Tensor) -> Tensor:
    """The diagonal of the softmax's derivative alone."""
    p = logits.softmax(dim=1)
    return -p * p * (1 - p) / logits.numel()


def _lost_factor(logits: Tensor) -> Tensor:
    p = logits.softmax(dim=1)
    return -(p - p.square().sum(dim=1, keepdim=True)) / logits.numel()


_gradient = gradient_of(lambda logits: maxsquare.maximum_squares_loss(logits.softmax(dim=1)))

EXERCISES = {
    "maxsquare.1": Exercise(
        _cases(),
        _gradient,
        {
            "The sign is turned round: the loss is negative.": lambda z: -_gradient(z),
            "This is the gradient with respect to p: the softmax has to be differentiated too.": _by_probability,
            "The softmax couples the classes of a pixel: a logit changes all their probabilities, not its own alone.": (
                _uncoupled
            ),
            "A factor p is missing in front of the bracket: no probability, no gradient.": _lost_factor,
            "It is twice too large: the ½ of (4) cancels the 2 of the square only once.": lambda z: 2 * _gradient(z),
            "The division by the number of classes C is missing.": lambda z: _gradient(z) * z.shape[1],
            "The division by the number of images N is missing.": lambda z: _gradient(z) * len(z),
            "The division by the number of pixels M is missing.": lambda z: _gradient(z) * z[0, 0].numel(),
            "The division by N·C·M is missing.": lambda z: _gradient(z) * z.numel(),
            "The softmax runs over the last dimension, it should run over the classes (dimension 1).": _softmax_over(3),
            "The softmax runs over the images (dimension 0), it should run over the classes (dimension 1).": (
                _softmax_over(0)
            ),
        },
    ),
}
"""The checks, by name."""
