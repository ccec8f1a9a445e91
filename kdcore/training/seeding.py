"""The one place that sets seeds, threads and deterministic algorithms."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["deterministic", "pick_device", "seeded"]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch inside the block; restore their states after it.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(1)
        >>> with seeded(3):
        ...     bool(first == torch.rand(1))
        True
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state others use)
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def deterministic(threads: int = 1) -> None:
    """Deterministic algorithms and a fixed number of threads: same parameters, same machine, same bits.

    Args:
        threads: for the CPU; sums depend on how work is divided, so the number is part of the result.

    Example:
        >>> deterministic(threads=1)
        >>> torch.get_num_threads()
        1
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("warn")  # the same switch without importing a compiler for it
    # Filling each new tensor with NaN before it is written would cost a twentieth of a small network's step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def pick_device(device: str = "auto") -> torch.device:
    """The device named, or the best one present for "auto".

    Raises:
        ValueError: the name is no device, or the device is not present.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r} was asked for, but no CUDA GPU is present; use device='cpu' or 'auto'.")
    return chosen
