"""Half precision is for layers; losses that square, divide or take logarithms compute in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it has half precision, as autocast gives it; else unchanged.

    Args:
        tensor: floating point, of any shape.

    Returns:
        The same values; float64 stays float64.

    Example:
        >>> import torch
        >>> at_least_float32(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
