"""Half precision is for layers; losses that square, divide or take logarithms compute in float32 at least."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["at_least_float32", "full_precision"]

P = ParamSpec("P")
T = TypeVar("T")


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


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a function whose matrix products must not be rounded to half precision by the loop around it.

    Under autocast a product of float32 matrices is computed in half precision all the same. Inside the function
    autocast is off, and floating point tensors among its arguments come as `at_least_float32` gives them.

    Args:
        function: takes at least one tensor.

    Example:
        >>> import torch
        >>> @full_precision
        ... def gram(rows):
        ...     return rows @ rows.T
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     gram(torch.eye(2)).dtype
        torch.float32
    """

    @functools.wraps(function)
    def lifted(*args: P.args, **kwargs: P.kwargs) -> T:
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device, enabled=False):
            return function(*map(_lift, args), **{name: _lift(value) for name, value in kwargs.items()})

    return lifted


def _lift(value: Any) -> Any:
    return at_least_float32(value) if isinstance(value, Tensor) and value.is_floating_point() else value
