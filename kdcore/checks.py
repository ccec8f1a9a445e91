"""Argument checks shared by all methods: one `ValueError` that names the argument, what it got and what it wants.

Shapes and types are always checked. Values (label range, finiteness) are read only where that is free of side
effects: on the CPU, outside `torch.compile` and `torch.func` transforms. On a GPU reading a value would stall
the stream at every step. `kdcore.training.fit` looks for a loss that is not finite by itself and leaves out the
look at what the loss is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_finite",
    "check_fraction",
    "check_labels",
    "check_logits",
    "check_maps",
    "check_not_negative",
    "check_positive",
    "check_same_shape",
    "finiteness_left_to_loss",
    "readable",
]

_LEFT_TO_LOSS: ContextVar[bool] = ContextVar("finiteness_left_to_loss", default=False)


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`; else raise `ValueError` with the nearest valid name.

    Example:
        >>> check_choice("profile", "cup", ("quick", "cpu", "gpu"))
        Traceback (most recent call last):
        ValueError: profile must be one of 'quick', 'cpu', 'gpu', got 'cup'. Did you mean 'cpu'?
    """
    if value in choices:
        return value
    from difflib import get_close_matches

    near = get_close_matches(str(value), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.{hint}")


def check_positive(**values: float) -> None:
    """Raise `ValueError` unless every value is a finite number above zero.

    Example:
        >>> check_positive(temperature=0.0)
        Traceback (most recent call last):
        ValueError: temperature must be a positive number, got 0.0.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}.")


def check_not_negative(**values: float) -> None:
    """Raise `ValueError` unless every value is a finite number of at least zero.

    Example:
        >>> check_not_negative(weight=-0.1)
        Traceback (most recent call last):
        ValueError: weight must be a number of at least 0, got -0.1.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}.")


def check_fraction(**values: float) -> None:
    """Raise `ValueError` unless every value lies in [0, 1].

    Example:
        >>> check_fraction(alpha=1.5)
        Traceback (most recent call last):
        ValueError: alpha must lie in [0, 1], got 1.5.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise `ValueError` unless all tensors have the shape of the first.

    Example:
        >>> check_same_shape(first=torch.zeros(2, 3), second=torch.zeros(3, 2))
        Traceback (most recent call last):
        ValueError: second must have the shape of first, (2, 3), got (3, 2).
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {tuple(reference.shape)}, got {tuple(tensor.shape)}."
            )


@contextmanager
def finiteness_left_to_loss() -> Iterator[None]:
    """Within, `check_finite` passes everything: for a loop that stops by itself at a loss that is not finite.

    Example:
        >>> with finiteness_left_to_loss():
        ...     check_finite(logits=torch.tensor([0.0, float("nan")]))
    """
    token = _LEFT_TO_LOSS.set(True)
    try:
        yield
    finally:
        _LEFT_TO_LOSS.reset(token)


def check_finite(**tensors: Tensor) -> None:
    """Raise `ValueError` if a tensor holds NaN or infinity, unless within `finiteness_left_to_loss`.

    Example:
        >>> check_finite(logits=torch.tensor([0.0, float("nan")]))
        Traceback (most recent call last):
        ValueError: logits must be finite, got 1 NaN or infinite values.
    """
    if _LEFT_TO_LOSS.get():
        return
    for name, tensor in tensors.items():
        # A finite sum has finite summands, at a fifth of the cost of isfinite; a sum may overflow, so look again.
        if not readable(tensor) or math.isfinite(tensor.detach().sum().item()):
            continue
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise ValueError(f"{name} must be finite, got {wrong} NaN or infinite values.")


def check_logits(**logits: Tensor) -> None:
    """Raise `ValueError` unless all tensors are finite logits of one shape (B, C) with C ≥ 2 and at least one row.

    Example:
        >>> check_logits(student_logits=torch.zeros(4, 10), teacher_logits=torch.zeros(4, 100))
        Traceback (most recent call last):
        ValueError: teacher_logits must have the shape of student_logits, (4, 10), got (4, 100).
    """
    for name, tensor in logits.items():
        if tensor.ndim != 2 or tensor.shape[0] < 1 or tensor.shape[1] < 2:
            raise ValueError(
                f"{name} must have shape (B, C) with C >= 2 and at least one row, got {tuple(tensor.shape)}."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
    check_same_shape(**logits)
    check_finite(**logits)


def check_maps(**maps: Tensor) -> None:
    """Raise `ValueError` unless all are finite maps (B, C, H, W) of one batch size and number of channels.

    Heights and widths may differ; no size may be 0.

    Example:
        >>> import torch
        >>> check_maps(student_map=torch.zeros(2, 4, 8, 8), teacher_map=torch.zeros(2, 16, 8, 8))
        Traceback (most recent call last):
        ValueError: teacher_map must have the batch size and channels of student_map, (2, 4), got (2, 16).
    """
    for name, features in maps.items():
        if features.ndim != 4 or features.numel() == 0:
            raise ValueError(
                f"{name} must have shape (B, C, H, W) with at least one pixel, got {tuple(features.shape)}."
            )
        if not features.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {features.dtype}.")
    (first, reference), *others = maps.items()
    for name, features in others:
        if features.shape[:2] != reference.shape[:2]:
            raise ValueError(
                f"{name} must have the batch size and channels of {first}, {tuple(reference.shape[:2])}, "
                f"got {tuple(features.shape[:2])}."
            )
    check_finite(**maps)


def check_labels(labels: Tensor, batch: int, classes: int, name: str = "labels") -> None:
    """Raise `ValueError` unless `labels` is an integer tensor of shape (batch,) with values in [0, classes).

    Example:
        >>> check_labels(torch.tensor([0, 3]), batch=2, classes=3)
        Traceback (most recent call last):
        ValueError: labels must lie in [0, 3), got values from 0 to 3.
    """
    if labels.shape != (batch,):
        raise ValueError(f"{name} must have shape ({batch},), got {tuple(labels.shape)}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integer class numbers, got {labels.dtype}.")
    if readable(labels) and batch:
        least, largest = (int(bound) for bound in labels.aminmax())
        if least < 0 or largest >= classes:
            raise ValueError(f"{name} must lie in [0, {classes}), got values from {least} to {largest}.")


def readable(tensor: Tensor) -> bool:
    """Whether values of `tensor` may be read without stalling a device or breaking a transform.

    Example:
        >>> readable(torch.zeros(1))
        True
        >>> torch.func.vmap(lambda row: row * readable(row))(torch.ones(2))
        tensor([0., 0.])
    """
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )
