"""Checks of the chapter on data pruning: the length of a prediction's error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.logits import data_pruning_kd

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(2403), []
    for rows, classes in [(5, 4), (8, 3), (6, 10)]:
        logits = 2 * torch.randn(rows, classes, generator=generator)
        cases.append({"logits": logits, "labels": torch.randint(classes, (rows,), generator=generator)})
    return cases


def _error(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(dim=1) - F.one_hot(labels, logits.shape[1])


EXERCISES = {
    "data_pruning_kd.1": Exercise(
        _cases(),
        data_pruning_kd.el2n_score,
        {
            "Only the label's probability is looked at: the others are part of the error's length, too.": lambda z, y: (
                1 - z.softmax(dim=1).gather(1, y[:, None])[:, 0]
            ),
            "The square root is missing: this is the length squared.": lambda z, y: _error(z, y).square().sum(dim=1),
            "This is the sum of absolute errors: equation (2) takes the Euclidean length.": lambda z, y: (
                _error(z, y).abs().sum(dim=1)
            ),
            "The label is subtracted from the logits: take their softmax first.": lambda z, y: (
                z - F.one_hot(y, z.shape[1])
            ).norm(dim=1),
            "This is the cross-entropy of each sample, which has no upper bound.": lambda z, y: F.cross_entropy(
                z, y, reduction="none"
            ),
            "The softmax runs over the samples (dimension 0): it belongs over the classes.": lambda z, y: (
                z.softmax(dim=0) - F.one_hot(y, z.shape[1])
            ).norm(dim=1),
            "The length is taken over the samples: each sample has its own.": lambda z, y: _error(z, y).norm(dim=0),
        },
    ),
}
"""The checks, by name."""
