"""From the shape of one network's features to that of another's: maps, tokens, vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice

__all__ = ["Projector", "to_map", "to_tokens"]

_SHAPES = {1: "a vector (d)", 2: "tokens (n, d)", 3: "a map (C, H, W)"}


def to_tokens(features: Tensor) -> Tensor:
    """The pixels of a map (B, C, H, W) as tokens (B, H·W, C), row by row; tokens and vectors as they are.

    Raises:
        ValueError: `features` has another number of axes than 2, 3 or 4.

    Example:
        >>> import torch
        >>> to_tokens(torch.arange(4.0).reshape(1, 1, 2, 2))[0, :, 0]
        tensor([0., 1., 2., 3.])
    """
    if not 2 <= features.ndim <= 4:
        raise ValueError(f"features must have shape (B, C, H, W), (B, n, d) or (B, d), got {tuple(features.shape)}.")
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def to_map(tokens: Tensor) -> Tensor:
    """Tokens (B, n, d) of a square grid, row by row, as a map (B, d, √n, √n); a map as it is.

    Raises:
        ValueError: `tokens` has another number of axes, or n is no square.

    Example:
        >>> import torch
        >>> to_map(torch.zeros(2, 16, 5)).shape
        torch.Size([2, 5, 4, 4])
    """
    if tokens.ndim == 4:
        return tokens
    if tokens.ndim != 3 or math.isqrt(tokens.shape[1]) ** 2 != tokens.shape[1]:
        raise ValueError(f"tokens must have shape (B, n, d) with n a square number, got {tuple(tokens.shape)}.")
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)


class Projector(nn.Module):
    """Makes one network's features comparable to another's: the same width and as many positions.

    Positions are averaged (a map or square tokens to a smaller grid, all of them to a vector), then each position's
    channels go through the same layers; on a map this is a 1×1 convolution.

    Args:
        source: shape of one sample's features, as they come: (C, H, W), (n, d) or (d,).
        target: shape of one sample's features, as they are wanted.
        kind: "linear", or "mlp": a hidden layer of the target's width with ReLU.

    Raises:
        ValueError: a shape is none of the three or not positive, `kind` is unknown, the target has more positions
            than the source, or the source's tokens form no square and their number changes.

    Shape: ``(B, *source)`` to ``(B, *target)``.

    Example:
        >>> import torch
        >>> Projector((8, 4, 4), (16, 32))(torch.zeros(2, 8, 4, 4)).shape  # a map to tokens
        torch.Size([2, 16, 32])
    """

    def __init__(self, source: Sequence[int], target: Sequence[int], kind: Literal["linear", "mlp"] = "linear") -> None:
        super().__init__()
        for name, shape in {"source": source, "target": target}.items():
            if len(shape) not in _SHAPES or min(shape) < 1:
                raise ValueError(f"{name} must be the shape of {', '.join(_SHAPES.values())}, got {tuple(shape)}.")
        check_choice("kind", kind, ("linear", "mlp"))
        self.source, self.target = tuple(source), tuple(target)
        self._check_grids()
        wide = _width(target)
        self.layers = nn.Sequential(nn.Linear(_width(source), wide))
        if kind == "mlp":
            self.layers.extend([nn.ReLU(), nn.Linear(wide, wide)])

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, *source)`` in the target's shape ``(B, *target)``.

        Raises:
            ValueError: `features` has another shape than ``(B, *source)``.
        """
        if tuple(features.shape[1:]) != self.source:
            wanted = ", ".join(map(str, ("B", *self.source)))
            raise ValueError(f"features must have shape ({wanted}), got {tuple(features.shape)}.")
        projected = self.layers(self._pooled(features))
        return projected.transpose(1, 2).reshape(-1, *self.target) if len(self.target) == 3 else projected

    def _pooled(self, features: Tensor) -> Tensor:
        """Tokens with as many positions as the target has; for a vector, none."""
        if len(self.target) == 1:
            tokens = to_tokens(features)
            return tokens.mean(dim=1) if tokens.ndim == 3 else tokens
        if _positions(self.source) == _positions(self.target):
            return to_tokens(features)
        return to_tokens(F.adaptive_avg_pool2d(to_map(features), _grid(self.target)))

    def _check_grids(self) -> None:
        have, want = _grid(self.source), _grid(self.target)
        if want[0] > have[0] or want[1] > have[1]:
            raise ValueError(f"target must have at most the source's {have} positions, got {want}.")
        pooled = len(self.target) > 1 and _positions(self.source) != _positions(self.target)
        if pooled and any(math.prod(_grid(shape)) != _positions(shape) for shape in (self.source, self.target)):
            raise ValueError(f"tokens must form a square to be pooled, got {self.source} for {self.target}.")


def _width(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _positions(shape: Sequence[int]) -> int:
    return math.prod(shape[1:]) if len(shape) == 3 else math.prod(shape[:-1])


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the positions; for tokens, of the square that they form."""
    side = math.isqrt(_positions(shape))
    return (shape[1], shape[2]) if len(shape) == 3 else (side, side)
