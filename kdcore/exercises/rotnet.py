"""Checks of the chapter on predicting rotations: the batch of turned copies, in its order."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.self_distillation import rotnet

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    """Images that equal none of their turns or reflections, of several sizes, odd ones too."""
    generator = torch.Generator().manual_seed(1803)
    return [{"images": torch.rand(*shape, generator=generator)} for shape in [(3, 1, 4, 4), (2, 3, 5, 5), (5, 2, 3, 3)]]


def _copies(images: Tensor) -> Tensor:
    return rotnet.rotated_batch(images)[0]


def _stacked(*copies: Tensor) -> Tensor:
    """Copies of a batch, image by image."""
    return torch.stack(copies, dim=1).flatten(0, 1)


EXERCISES = {
    "rotnet.1": Exercise(
        _cases(),
        _copies,
        {
            "The copies come turn by turn; those of one image belong into rows 4i to 4i + 3.": lambda x: torch.cat(
                [x.rot90(turns, (2, 3)) for turns in range(4)]
            ),
            "The turns are clockwise: transpose, then reverse the rows, not the columns.": lambda x: _stacked(
                *[x.rot90(-turns, (2, 3)) for turns in range(4)]
            ),
            "The turns are clockwise, and the copies come turn by turn instead of image by image.": lambda x: torch.cat(
                [x.rot90(-turns, (2, 3)) for turns in range(4)]
            ),
            "These are reflections: a quarter turn is a transposition and a reversal of the rows.": lambda x: _stacked(
                x, x.transpose(2, 3), x.flip(2), x.flip(3)
            ),
            "The half turn reverses the rows only: reverse the columns as well.": lambda x: _stacked(
                x, x.rot90(1, (2, 3)), x.flip(2), x.rot90(3, (2, 3))
            ),
            "A quarter turn reverses the rows after the transposition; here nothing is reversed.": lambda x: _stacked(
                x, x.transpose(2, 3), x.flip(2, 3), x.transpose(2, 3).flip(2, 3)
            ),
            "The order of the turns is 0°, 90°, 180°, 270°; here the half turn comes second.": lambda x: _stacked(
                *[x.rot90(turns, (2, 3)) for turns in (0, 2, 1, 3)]
            ),
        },
    ),
}
