"""Checks of the chapter on ScaleKD: the distance in the view without constant part, and the attention's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.features import scalekd

__all__ = ["EXERCISES"]


def _map_cases() -> list[dict]:
    """Maps with a large constant part, of different heights and widths, so that a mixed-up axis shows."""
    generator, cases = torch.Generator().manual_seed(2411), []
    for batch, channels, height, width in [(3, 4, 2, 5), (2, 6, 3, 3), (5, 3, 4, 2)]:
        maps = torch.randn(2, batch, channels, height, width, generator=generator)
        maps = maps + 2 * torch.randn(2, batch, channels, 1, 1, generator=generator)
        student, teacher = (one.clone().requires_grad_() for one in maps)
        cases.append({"student_map": student, "teacher_map": teacher})
    return cases


def _rest_distance(student: Tensor, teacher: Tensor) -> Tensor:
    return scalekd.view_distance(scalekd.alternative_view(student), scalekd.alternative_view(teacher))


def _between(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher.detach()).square().sum() / len(student)


def _normalised_first(student: Tensor, teacher: Tensor) -> Tensor:
    first, second = (scalekd.alternative_view(scalekd.unit_channels(one)) for one in (student, teacher))
    return _between(first, second)


def _over(dims: tuple[int, ...]):
    """Vectors of length 1 over other axes than the channels."""

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        first, second = (scalekd.alternative_view(one) for one in (student, teacher))
        return _between(*(one / one.square().sum(dims, keepdim=True).sqrt() for one in (first, second)))

    return distance


def _channel_mean_removed(student: Tensor, teacher: Tensor) -> Tensor:
    return scalekd.view_distance(*(one - one.mean(dim=1, keepdim=True) for one in (student, teacher)))


def _attention_cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(6786), []
    for batch, asked, read, width, heads, sharpness in [
        (2, 4, 6, 8, 2, 5.0),
        (3, 5, 3, 6, 3, 2.0),
        (1, 2, 7, 12, 2, 0.5),
    ]:
        queries = torch.randn(batch, asked, width, generator=generator)
        keys = torch.randn(batch, read, width, generator=generator)
        cases.append({"queries": queries, "keys": keys, "heads": heads, "sharpness": sharpness})
    return cases


def _scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    first, second = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (queries, keys))
    return first @ second.transpose(2, 3)


def _attention(queries: Tensor, keys: Tensor, heads: int, sharpness: float) -> Tensor:
    """Equation (2): the weights A, shape (B, h, queries, keys)."""
    return (sharpness * (queries.shape[2] // heads) ** -0.5 * _scores(queries, keys, heads)).softmax(dim=3)


def _interleaved(queries: Tensor, keys: Tensor, heads: int, sharpness: float) -> Tensor:
    """Heads take every h-th channel."""
    first, second = (part.unflatten(2, (-1, heads)).transpose(2, 3).flatten(2) for part in (queries, keys))
    return _attention(first, second, heads, sharpness)


EXERCISES = {
    "scalekd.1": Exercise(
        _map_cases(),
        _rest_distance,
        {
            "The constant part is still there: subtract each channel's mean over the positions.": scalekd.view_distance,
            "The mean is taken over the channels: the constant part is the mean over the positions.": (
                _channel_mean_removed
            ),
            "The vectors are normalised before the mean is removed: it is the other way round.": _normalised_first,
            "Each channel is normalised over the positions: it is each position, over the channels.": _over((2, 3)),
            "The whole map is brought to length 1: it is the vector at each position.": _over((1, 2, 3)),
            "Nothing is normalised: each position's vector is brought to length 1 first.": lambda s, t: _between(
                scalekd.alternative_view(s), scalekd.alternative_view(t)
            ),
            "The mean over all entries is taken: it is their sum, divided by the batch size only.": lambda s, t: (
                _rest_distance(s, t) / s[0].numel()
            ),
            "The mean over positions is taken: it is their sum, divided by the batch size only.": lambda s, t: (
                _rest_distance(s, t) / s[0, 0].numel()
            ),
            "The batch is summed: divide by its size.": lambda s, t: _rest_distance(s, t) * len(s),
            "This is the sum of 1 − cos: the squared distance is twice that.": lambda s, t: _rest_distance(s, t) / 2,
        },
    ),
    "scalekd.2": Exercise(
        _attention_cases(),
        _attention,
        {
            "The factor is that of all channels: d is the width of one head.": lambda q, k, h, g: _attention(
                q, k, h, g * h**-0.5
            ),
            "The sharpness γ is missing.": lambda q, k, h, g: _attention(q, k, h, 1.0),
            "The factor 1/√d is missing.": lambda q, k, h, g: _attention(q, k, h, g * (q.shape[2] // h) ** 0.5),
            "It divides by γ: a large γ makes the attention sharp.": lambda q, k, h, g: _attention(q, k, h, 1 / g),
            "γ multiplies the weights after the softmax: it belongs inside.": lambda q, k, h, g: (
                g * _attention(q, k, h, 1.0)
            ),
            "The softmax runs over the queries: each query shares its attention out among the keys.": (
                lambda q, k, h, g: (g * (q.shape[2] // h) ** -0.5 * _scores(q, k, h)).softmax(dim=2)
            ),
            "A head takes every h-th channel: it takes a block of d neighbours.": _interleaved,
        },
    ),
}
"""The checks, by name."""
