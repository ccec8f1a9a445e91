"""Check of the chapter on prototype-guided cross-task distillation: the descriptor of an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.features import proc_kd

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    """Tokens of several lengths, so that it shows where they should have been normalised."""
    generator, cases = torch.Generator().manual_seed(2212), []
    for batch, count, width, prototypes in [(2, 5, 4, 3), (3, 4, 2, 6), (1, 7, 3, 2)]:
        tokens = 3 * torch.randn(batch, count, width, generator=generator)
        weight = 2 * torch.randn(prototypes, width, generator=generator)
        centres = torch.rand(prototypes, width, generator=generator)
        cases.append(
            {
                "tokens": tokens.requires_grad_(),
                "weight": weight.requires_grad_(),
                "prototypes": centres.requires_grad_(),
            }
        )
    return cases


def _descriptor(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    """The vector v of equation (4), from tokens, the rows of the assignment, and prototypes."""
    shares = proc_kd.prototype_assignment(tokens, weight)
    return proc_kd.stacked_residuals(proc_kd.prototype_residuals(tokens, shares, prototypes))


def _parts(tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised tokens, and their scores before the softmax."""
    directions = F.normalize(tokens, dim=2)
    return directions, directions @ weight.T


def _softmax_over_tokens(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    _, scores = _parts(tokens, weight)
    return proc_kd.stacked_residuals(proc_kd.prototype_residuals(tokens, scores.softmax(dim=1), prototypes))


def _raw_scores(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    shares = (tokens @ weight.T).softmax(dim=2)
    return proc_kd.stacked_residuals(proc_kd.prototype_residuals(tokens, shares, prototypes))


def _raw_residuals(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    shares = proc_kd.prototype_assignment(tokens, weight).transpose(1, 2)
    return proc_kd.stacked_residuals(shares @ tokens - shares.sum(dim=2, keepdim=True) * prototypes)


def _raw_throughout(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    shares = (tokens @ weight.T).softmax(dim=2).transpose(1, 2)
    return proc_kd.stacked_residuals(shares @ tokens - shares.sum(dim=2, keepdim=True) * prototypes)


def _subtracted_once(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    directions, scores = _parts(tokens, weight)
    return proc_kd.stacked_residuals(scores.softmax(dim=2).transpose(1, 2) @ directions - prototypes)


def _normalised_once(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    shares = proc_kd.prototype_assignment(tokens, weight)
    return F.normalize(proc_kd.prototype_residuals(tokens, shares, prototypes).flatten(1), dim=1)


def _not_subtracted(tokens: Tensor, weight: Tensor, prototypes: Tensor) -> Tensor:
    return _descriptor(tokens, weight, torch.zeros_like(prototypes))


EXERCISES = {
    "proc_kd.1": Exercise(
        _cases(),
        _descriptor,
        {
            "The softmax runs over tokens: each token shares itself out among the prototypes.": _softmax_over_tokens,
            "Neither the scores nor the residuals see normalised tokens: in (2) and (3) both do.": _raw_throughout,
            "The scores of (2) are taken of tokens that were not normalised.": _raw_scores,
            "The residuals of (3) are taken of tokens that were not normalised.": _raw_residuals,
            "Each prototype is subtracted once: in (3) it goes Σ a times, the sum of its shares.": _subtracted_once,
            "Only the whole is of unit length: before it is stacked, each residual is as well.": _normalised_once,
            "The prototypes are not subtracted.": _not_subtracted,
        },
    ),
}
"""The checks, by name."""
