"""Checks of the chapter on relational self-distillation: a pair of two classes, and distances passed to all stages."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.foundations import kd
from kdcore.self_distillation import corsd

__all__ = ["EXERCISES"]


def _pair_cases() -> list[dict]:
    """Auxiliary logits of negative pairs, with both labels and another temperature each."""
    generator, cases = torch.Generator().manual_seed(2305), []
    for rows, classes, temperature in [(6, 5, 3.0), (4, 10, 2.0), (9, 3, 4.0), (5, 7, 1.5)]:
        logits = (2 * torch.randn(rows, classes, generator=generator)).requires_grad_()
        labels = torch.randint(classes, (rows,), generator=generator)
        others = (labels + torch.randint(1, classes, (rows,), generator=generator)) % classes
        cases.append({"pair_logits": logits, "labels": labels, "other_labels": others, "temperature": temperature})
    return cases


def _score_cases() -> list[dict]:
    """Distances of all stages, the deepest last, for positive and for negative pairs."""
    generator = torch.Generator().manual_seed(918)
    return [
        {"scores": torch.rand(*shape, generator=generator).requires_grad_()}
        for shape in [(3, 2, 6), (4, 2, 5), (2, 2, 9), (5, 2, 4)]
    ]


def _halves(labels: Tensor, others: Tensor, classes: int) -> Tensor:
    return corsd.pair_targets(labels, others, classes)


def _pair_loss(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    return kd.soft_cross_entropy(logits, _halves(labels, others, logits.shape[1]), temperature)


def _as_coded(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    targets = corsd.pair_targets(labels, others, logits.shape[1], as_coded=True, temperature=temperature)
    return kd.soft_cross_entropy(logits, targets, temperature)


def _divergence(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    return _pair_loss(logits, labels, others, temperature) - torch.tensor(2.0).log()


def _mixed_logits(logits: Tensor, labels: Tensor, others: Tensor, temperature: float) -> Tensor:
    softened = logits / temperature
    halves = _halves(labels, others, logits.shape[1])
    return -(halves * softened.softmax(dim=1)).sum(dim=1).log().mean()


def _transfer(scores: Tensor) -> Tensor:
    """Equation (8); twice the mean over both kinds of pairs is their sum."""
    return 2 * torch.stack([corsd.relation_loss(one, scores[-1]) for one in scores[:-1]]).sum()


def _to_the_next(scores: Tensor) -> Tensor:
    return 2 * torch.stack([corsd.relation_loss(*pair) for pair in pairwise(scores)]).sum()


def _free(scores: Tensor) -> Tensor:
    return 2 * torch.stack([corsd.relation_loss(one, scores[-1], detach=False) for one in scores[:-1]]).sum()


def _pupils_stopped(scores: Tensor) -> Tensor:
    return 2 * torch.stack([corsd.relation_loss(scores[-1], one) for one in scores[:-1]]).sum()


EXERCISES = {
    "corsd.1": Exercise(
        _pair_cases(),
        _pair_loss,
        {
            "The halves went through another softmax, the published code's slip: q is a distribution already.": (
                _as_coded
            ),
            "The target puts 1 on each of the two classes: its rows must sum to 1.": lambda u, y, o, t: (
                2 * _pair_loss(u, y, o, t)
            ),
            "The temperature is not used: divide the logits by τ before the softmax.": lambda u, y, o, t: _pair_loss(
                u, y, o, 1.0
            ),
            "There is no factor τ² in (5).": lambda u, y, o, t: t**2 * _pair_loss(u, y, o, t),
            "Only the anchor's class is asked for: half of the target belongs to the other one.": lambda u, y, o, t: (
                F.cross_entropy(u / t, y)
            ),
            "Only the other class is asked for: half of the target belongs to the anchor's.": lambda u, y, o, t: (
                F.cross_entropy(u / t, o)
            ),
            "The mean runs over classes too: sum over classes, average over pairs.": lambda u, y, o, t: (
                _pair_loss(u, y, o, t) / u.shape[1]
            ),
            "This is the divergence from q, smaller by its entropy log 2: (5) is a cross-entropy.": _divergence,
            "The logarithm is taken of the mean probability: (5) is the mean of two logarithms.": _mixed_logits,
        },
    ),
    "corsd.2": Exercise(
        _score_cases(),
        _transfer,
        {
            "The value is right, but the deepest stage gets a gradient: it must not move to the others.": _free,
            "The value is right, but the shallow stages are detached: it is they that are to move.": _pupils_stopped,
            "Both kinds of pairs are averaged: (8) is a sum over positive and negative pairs.": lambda r: (
                _transfer(r) / 2
            ),
            "The stages are averaged: (8) is a sum over them.": lambda r: _transfer(r) / (len(r) - 1),
            "Each stage learns from the next: in (8) all learn from the deepest.": _to_the_next,
            "The first stage teaches: the deepest one is the last.": lambda r: _transfer(r.flip(0)),
            "The sum runs over the pairs as well: average over the batch.": lambda r: _transfer(r) * r.shape[2],
            "The difference is not squared.": lambda r: (r[:-1] - r[-1].detach()).abs().mean(dim=2).sum(),
        },
    ),
}
"""The checks, by name."""
