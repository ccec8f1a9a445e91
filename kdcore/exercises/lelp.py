"""Checks of the chapter on learning embedding linear projections: subclass targets, and the null space."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.logits import lelp

__all__ = ["EXERCISES"]


def _target_cases() -> list[dict]:
    """Classes and subclasses differ in number, so that a wrong order of the outputs shows."""
    generator, cases = torch.Generator().manual_seed(2409), []
    for rows, classes, subclasses, beta, temperature in [(5, 2, 5, 0.5, 4.0), (3, 4, 2, 2.0, 2.0), (6, 3, 4, 3.0, 1.5)]:
        logits = 2 * torch.randn(rows, classes, generator=generator)
        scores = torch.randn(rows, classes, subclasses, generator=generator)
        cases.append({"teacher_logits": logits, "scores": scores, "beta": beta, "temperature": temperature})
    return cases


def _embedding_cases() -> list[dict]:
    """Last layers whose rows are neither of unit length nor at right angles."""
    generator, cases = torch.Generator().manual_seed(20449), []
    for rows, classes, width in [(5, 2, 6), (4, 3, 8), (7, 2, 5)]:
        weight = 1.5 * torch.randn(classes, width, generator=generator)
        cases.append({"embeddings": torch.randn(rows, width, generator=generator), "weight": weight})
    return cases


def _targets(teacher_logits: Tensor, scores: Tensor, beta: float, temperature: float) -> Tensor:
    return lelp.subclass_targets(teacher_logits, lelp.subclass_shares(scores, beta), temperature)


def _joint(teacher_logits: Tensor, scores: Tensor, beta: float, temperature: float) -> Tensor:
    return (teacher_logits.unsqueeze(2) / temperature + scores / beta).flatten(1).softmax(dim=1)


def _to_null_space(embeddings: Tensor, weight: Tensor) -> Tensor:
    return (embeddings.double() @ lelp.null_space_projection(weight)).to(embeddings)


def _without(embeddings: Tensor, directions: Tensor) -> Tensor:
    """The projection as it would be if the rows of `directions` were orthonormal."""
    return embeddings - embeddings @ directions.T @ directions


EXERCISES = {
    "lelp.1": Exercise(
        _target_cases(),
        _targets,
        {
            "One softmax of everything: large scores raise the class's own probability, which must stay.": _joint,
            "The class probabilities are taken at temperature 1 in place of τ.": lambda z, a, beta, tau: _targets(
                z, a, beta, 1.0
            ),
            "The shares are taken at β = 1.": lambda z, a, beta, tau: _targets(z, a, 1.0, tau),
            "The scores are multiplied by β: they are divided by it.": lambda z, a, beta, tau: _targets(
                z, a, 1 / beta, tau
            ),
            "β and τ are exchanged: τ belongs to the classes, β to the subclasses.": lambda z, a, beta, tau: _targets(
                z, a, tau, beta
            ),
            "The softmax of the scores runs over classes, not over the subclasses of one.": lambda z, a, beta, tau: (
                (z / tau).softmax(1).unsqueeze(2) * (a / beta).softmax(1)
            ).flatten(1),
            "The order of the outputs is (s, c): subclasses of one class stand together.": lambda z, a, beta, tau: (
                _targets(z, a, beta, tau).unflatten(1, a.shape[1:]).transpose(1, 2).flatten(1)
            ),
            "The class probabilities are missing: these are the shares alone.": lambda z, a, beta, tau: (
                lelp.subclass_shares(a, beta).flatten(1)
            ),
        },
    ),
    "lelp.2": Exercise(
        _embedding_cases(),
        _to_null_space,
        {
            "The inverse of W Wᵀ is missing: the rows of W are not orthonormal.": _without,
            "The rows are brought to length 1, but they are not at right angles to each other.": lambda f, w: _without(
                f, w / w.norm(dim=1, keepdim=True)
            ),
            "This is the part that moves the logits: it is to be taken away.": lambda f, w: f - _to_null_space(f, w),
            "Only the difference of the rows is left out: (1) leaves out all rows of W.": lambda f, w: _to_null_space(
                f, w - w.mean(dim=0)
            ),
            "The sign is wrong: the part along the rows was added.": lambda f, w: 2 * f - _to_null_space(f, w),
        },
    ),
}
"""The checks, by name."""
