"""Batch augmentation on the device, drawn from a CPU generator so that it depends on the seed alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kdcore.checks import check_positive

__all__ = ["flip", "rotations", "shift"]


def shift(pixels: int) -> Callable[[Tensor, Generator], Tensor]:
    """Augmentation that moves each image by up to `pixels` in both directions, zeros coming in.

    Returns:
        Function of (inputs (B, c, H, W), generator) for `fit(augment=…)`.

    Example:
        >>> shift(1)(torch.ones(2, 1, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 4, 4])
    """
    check_positive(pixels=pixels)

    def apply(inputs: Tensor, generator: Generator) -> Tensor:
        batch, _, height, width = inputs.shape
        moves = torch.randint(2 * pixels + 1, (2, batch, 1), generator=generator).to(inputs.device)
        rows = moves[0] + torch.arange(height, device=inputs.device)
        columns = moves[1] + torch.arange(width, device=inputs.device)
        padded = F.pad(inputs, [pixels] * 4)
        image = torch.arange(batch, device=inputs.device).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

    return apply


def flip(inputs: Tensor, generator: Generator) -> Tensor:
    """Mirror each image (B, c, H, W) from left to right with probability one half.

    Example:
        >>> sorted(flip(torch.tensor([[[[0.0, 1.0]]]]), torch.Generator().manual_seed(0)).flatten().tolist())
        [0.0, 1.0]
    """
    mirrored = (torch.rand(len(inputs), 1, 1, 1, generator=generator) < 0.5).to(inputs.device)
    return torch.where(mirrored, inputs.flip(-1), inputs)


def rotations(images: Tensor) -> Tensor:
    """Every image four times, turned counter-clockwise by 0°, 90°, 180° and 270°, without interpolation.

    Args:
        images: (B, c, H, H).

    Returns:
        (4B, c, H, H), image by image: row 4i + j is image i after j quarter turns.

    Raises:
        ValueError: the images are not square or have no four axes.

    Example:
        >>> rotations(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))[1, 0]
        tensor([[2., 4.],
                [1., 3.]])
    """
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square, of shape (B, c, H, H), got {tuple(images.shape)}.")
    return torch.stack([images.rot90(turns, (2, 3)) for turns in range(4)], dim=1).flatten(0, 1)
