"""Checks of the chapter on layered self-distillation: reading a branch, and what one branch teaches the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.self_distillation import lsskd

__all__ = ["EXERCISES"]


def _branch_cases() -> list[dict]:
    """Joint logits of one branch: more classes than rotations, and fewer."""
    generator = torch.Generator().manual_seed(2506)
    return [
        {"branch_logits": (2 * torch.randn(rows, 4 * classes, generator=generator)).requires_grad_()}
        for rows, classes in [(5, 3), (4, 10), (7, 2), (3, 6)]
    ]


def _layer_cases() -> list[dict]:
    """Logits of all branches, the deepest last, with another temperature each."""
    generator = torch.Generator().manual_seed(7055)
    return [
        {"branch_logits": (3 * torch.randn(*shape, generator=generator)).requires_grad_(), "temperature": temperature}
        for shape, temperature in [((3, 8, 12), 3.0), ((4, 4, 8), 1.5), ((2, 12, 40), 4.0), ((5, 8, 20), 2.0)]
    ]


def _layers(branch_logits: Tensor, temperature: float) -> Tensor:
    return lsskd.cross_layer_loss(list(branch_logits), temperature)


def _divergence(pupil: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Equation (4) for one pair, with the gradient left in the teacher."""
    ours, theirs = (F.log_softmax(logits / temperature, dim=1) for logits in (pupil, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def _not_stopped(branch_logits: Tensor, temperature: float) -> Tensor:
    return torch.stack([_divergence(one, branch_logits[-1], temperature) for one in branch_logits[:-1]]).sum()


def _turned_round(branch_logits: Tensor, temperature: float) -> Tensor:
    last = branch_logits[-1].detach()
    return torch.stack([_divergence(last, one, temperature) for one in branch_logits[:-1]]).sum()


def _pupil_stopped(branch_logits: Tensor, temperature: float) -> Tensor:
    last = branch_logits[-1]
    return torch.stack([_divergence(one.detach(), last, temperature) for one in branch_logits[:-1]]).sum()


def _first_teaches(branch_logits: Tensor, temperature: float) -> Tensor:
    return _layers(branch_logits.flip(0), temperature)


EXERCISES = {
    "lsskd.1": Exercise(
        _branch_cases(),
        lsskd.class_log_probabilities,
        {
            "Logits are summed over rotations: that is the parent's measure, not the marginal of (7).": (
                lsskd.summed_logits
            ),
            "These are sums of logits, normalised: a product of probabilities over rotations, not their sum.": (
                lambda u: lsskd.summed_logits(u).log_softmax(dim=1)
            ),
            "Columns are grouped by rotation: (1) puts the four rotations of one class side by side.": lambda u: (
                u.log_softmax(dim=1).unflatten(1, (4, -1)).logsumexp(dim=1)
            ),
            "The softmax runs over each class's four rotations: it must run over all columns at once.": lambda u: (
                u.unflatten(1, (-1, 4)).log_softmax(dim=2).logsumexp(dim=2)
            ),
            "These are probabilities: the logarithm is asked for.": lambda u: lsskd.class_log_probabilities(u).exp(),
            "The log-sum-exp over rotations is right, but the rows are not normalised: their exponentials sum to 1.": (
                lambda u: u.unflatten(1, (-1, 4)).logsumexp(dim=2)
            ),
            "The mean over rotations is taken where the marginal has their sum: log 4 is missing.": lambda u: (
                lsskd.class_log_probabilities(u) - torch.tensor(4.0).log()
            ),
            "Only the rotation of 0° is read: the marginal sums over all four.": lambda u: u.log_softmax(
                dim=1
            ).unflatten(1, (-1, 4))[:, :, 0],
        },
    ),
    "lsskd.2": Exercise(
        _layer_cases(),
        _layers,
        {
            "The value is right, but the deepest branch gets a gradient: it must not move towards the others.": (
                _not_stopped
            ),
            "The factor τ² is missing.": lambda u, t: _layers(u, t) / t**2,
            "The branches are averaged: (4) is a sum over them.": lambda u, t: _layers(u, t) / (len(u) - 1),
            "The two arguments of the divergence are exchanged: the teacher comes first.": _turned_round,
            "The value is right, but the pupils are detached: they are to move, the deepest branch is not.": (
                _pupil_stopped
            ),
            "The first branch teaches: the deepest one is the last.": _first_teaches,
            "Each branch learns from the next: in (4) all learn from the deepest.": (
                lambda u, t: lsskd.cross_layer_loss(list(u), t, "next")
            ),
            "The mean runs over classes too: sum over classes, average over rows.": lambda u, t: (
                _layers(u, t) / u.shape[2]
            ),
        },
    ),
}
"""The checks, by name."""
