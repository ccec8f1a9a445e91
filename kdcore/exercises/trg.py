"""Checks of the chapter on token-level relationship graphs: the graph, and the context within an image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.features import trg

__all__ = ["EXERCISES"]


def _node_cases() -> list[dict]:
    generator = torch.Generator().manual_seed(2306)
    return [
        {"nodes": torch.randn(*shape, generator=generator).requires_grad_(), "neighbours": k, "bandwidth": sigma}
        for shape, k, sigma in [((6, 3), 2, 1.5), ((9, 2), 3, 0.7), ((12, 5), 4, 3.0), ((7, 4), 2, 2.2)]
    ]


def _token_cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(12442), []
    for images, places, narrow, wide in [(3, 4, 2, 6), (2, 9, 5, 3), (4, 5, 3, 8), (2, 6, 4, 7)]:
        student = torch.randn(images, places, narrow, generator=generator).requires_grad_()
        teacher = torch.randn(images, places, wide, generator=generator).requires_grad_()
        cases.append({"student_tokens": student, "teacher_tokens": teacher})
    return cases


def _graph(neighbours: int, weights: Tensor, distances: Tensor) -> Tensor:
    """Weights (M, M) at the `neighbours` smallest entries of each row of `distances`, and zero elsewhere."""
    index = distances.detach().topk(neighbours, dim=1, largest=False).indices
    return torch.zeros_like(weights).scatter(1, index, weights.gather(1, index))


def _squared(nodes: Tensor) -> Tensor:
    return (nodes.unsqueeze(1) - nodes).square().sum(dim=2)


def _without_self(squared: Tensor) -> Tensor:
    return squared + torch.diag(torch.full((len(squared),), torch.inf))


def _itself(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    squared = _squared(nodes)
    return _graph(neighbours, (-squared / (2 * bandwidth)).exp(), squared)


def _one_short(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    found = _itself(nodes, neighbours, bandwidth)
    return found - torch.diag(found.diagonal())


def _farthest(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    squared = _squared(nodes)
    return _graph(neighbours, (-squared / (2 * bandwidth)).exp(), -squared)


def _not_squared(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    squared = _squared(nodes)
    return _graph(neighbours, (-squared.clamp(min=1e-12).sqrt() / (2 * bandwidth)).exp(), _without_self(squared))


def _symmetric(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    found = trg.token_graph(nodes, neighbours, bandwidth)
    return torch.maximum(found, found.T)


def _all_pairs(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    return (-_without_self(_squared(nodes)) / (2 * bandwidth)).exp()


def _attention(tokens: Tensor, width: float) -> Tensor:
    return (tokens @ tokens.transpose(1, 2) / width**0.5).softmax(dim=2)


def _free(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(_attention(student, student.shape[2]), _attention(teacher, teacher.shape[2]))


def _with_widths(student: Tensor, teacher: Tensor, widths: tuple[float, float]) -> Tensor:
    return F.mse_loss(_attention(student, widths[0]), _attention(teacher.detach(), widths[1]))


EXERCISES = {
    "trg.1": Exercise(
        _node_cases(),
        trg.token_graph,
        {
            "Every node is its own nearest neighbour: take the diagonal out before you look for the nearest.": _itself,
            "The diagonal is zero, but a row has k − 1 edges: take it out before the search.": _one_short,
            "These are the farthest nodes: topk takes the largest unless told otherwise.": _farthest,
            "The distance is not squared in the exponent.": _not_squared,
            "The graph is symmetric: row i of (1) has the neighbours of i alone, chosen back or not.": _symmetric,
            "All pairs have an edge: only the k nearest have one.": _all_pairs,
            "The columns hold the neighbours: node i belongs to row i.": lambda x, k, s: trg.token_graph(x, k, s).T,
            "(1) has σ, not its square.": lambda x, k, s: trg.token_graph(x, k, s**2),
            "The 2 of 2σ is missing.": lambda x, k, s: trg.token_graph(x, k, s / 2),
        },
    ),
    "trg.2": Exercise(
        _token_cases(),
        trg.contextual_loss,
        {
            "The value is right, but the teacher gets a gradient: it is a constant.": _free,
            "Both contexts are divided by the root of the student's width: each network has its own D.": lambda s, t: (
                _with_widths(s, t, (s.shape[2], s.shape[2]))
            ),
            "Both contexts are divided by the root of the teacher's width: each network has its own D.": lambda s, t: (
                _with_widths(s, t, (t.shape[2], t.shape[2]))
            ),
            "The products are not divided by √D.": lambda s, t: _with_widths(s, t, (1.0, 1.0)),
            "The products are divided by D, not by its root.": lambda s, t: _with_widths(
                s, t, (s.shape[2] ** 2, t.shape[2] ** 2)
            ),
            "The tokens are normalised: (6) has products, which know how long a token is.": lambda s, t: (
                trg.contextual_loss(F.normalize(s, dim=2), F.normalize(t, dim=2))
            ),
            "The softmax is missing: S is a distribution over the tokens of the image.": lambda s, t: F.mse_loss(
                s @ s.transpose(1, 2) / s.shape[2] ** 0.5, t.detach() @ t.detach().transpose(1, 2) / t.shape[2] ** 0.5
            ),
            "The squares are summed over places: average over rows and columns.": lambda s, t: (
                s.shape[1] ** 2 * trg.contextual_loss(s, t)
            ),
        },
    ),
}
"""The checks, by name."""
