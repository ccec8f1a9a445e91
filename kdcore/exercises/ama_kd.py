"""Checks of the chapter on adapted activation maps: the hint and its stop, and what a fixed hint leaves unexplained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.features import ama_kd

__all__ = ["EXERCISES"]


def _pairs() -> list[dict]:
    """Pairs of maps after a ReLU; the gradient at both is compared."""
    generator, cases = torch.Generator().manual_seed(2010), []
    for shape in [(3, 2, 4, 4), (2, 5, 3, 1), (4, 3, 2, 5)]:
        student, adapted = (torch.randn(shape, generator=generator).relu() for _ in range(2))
        cases.append({"student_map": student.requires_grad_(), "adapted_map": adapted.requires_grad_()})
    return cases


def _maps() -> list[dict]:
    """Maps whose channels have means and spreads of their own."""
    generator, cases = torch.Generator().manual_seed(13500), []
    for (batch, channels, height, width), kept in [((6, 5, 3, 2), 2), ((4, 3, 4, 4), 1), ((9, 4, 1, 3), 3)]:
        spread = torch.arange(1.0, channels + 1).view(-1, 1, 1)
        maps = spread * torch.randn(batch, channels, height, width, generator=generator) + spread
        cases.append({"teacher_map": maps, "channels": kept})
    return cases


def _spectrum(rows: Tensor, centred: bool = True) -> Tensor:
    """Eigenvalues of the covariance of the columns, the largest first."""
    rows = rows.double() - (rows.double().mean(dim=0) if centred else 0)
    return torch.linalg.eigvalsh(rows.T @ rows).flip(0)


def _pixels(maps: Tensor) -> Tensor:
    return maps.movedim(1, 3).flatten(0, 2)


def _tail(spectrum: Tensor, kept: int) -> Tensor:
    return (spectrum[kept:].sum() / spectrum.sum()).float()


EXERCISES = {
    "ama_kd.1": Exercise(
        _pairs(),
        ama_kd.adapted_hint_loss,
        {
            "The gradient flows into the adapted map: it is to be a target.": lambda s, a: F.mse_loss(s, a),
            "The stop is on the wrong side: it is the student that is to move.": lambda s, a: F.mse_loss(s.detach(), a),
            "This is the sum over all elements: (3) divides by their number.": lambda s, a: F.mse_loss(
                s, a.detach(), reduction="sum"
            ),
            "This is the sum over a map, averaged over the batch: (3) divides by all four sizes.": lambda s, a: (
                F.mse_loss(s, a.detach(), reduction="sum") / len(s)
            ),
            "The norm is not squared.": lambda s, a: F.l1_loss(s, a.detach()),
            "The maps are averaged over pixels first: (3) compares them pixel by pixel.": lambda s, a: F.mse_loss(
                s.mean((2, 3)), a.detach().mean((2, 3))
            ),
        },
    ),
    "ama_kd.2": Exercise(
        _maps(),
        ama_kd.unexplained_share,
        {
            "The channels were not centred: the regressor has a bias.": lambda maps, kept: _tail(
                _spectrum(_pixels(maps), centred=False), kept
            ),
            "This is the share that is explained.": lambda maps, kept: 1 - ama_kd.unexplained_share(maps, kept),
            "The smallest eigenvalues were kept, not the largest.": lambda maps, kept: _tail(
                _spectrum(_pixels(maps)).flip(0), kept
            ),
            "These are shares of standard deviations: the spectrum is that of the covariance.": lambda maps, kept: (
                _tail(_spectrum(_pixels(maps)).clamp(min=0).sqrt(), kept)
            ),
            "Pixels and channels were taken for one long vector: the regressor sees channels, pixel by pixel.": (
                lambda maps, kept: _tail(_spectrum(maps.flatten(1)).clamp(min=0), kept)
            ),
            "The maps were averaged over pixels first.": lambda maps, kept: _tail(_spectrum(maps.mean((2, 3))), kept),
        },
    ),
}
"""The checks, by name."""
