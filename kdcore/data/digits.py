"""Scikit-learn's handwritten digits: real, embedded, the default of every chapter."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.checks import check_positive
from kdcore.data.arrays import Arrays
from kdcore.data.dataset import Dataset

__all__ = ["DIGIT_CLASSES", "all_digits", "digits"]

DIGIT_CLASSES = tuple("0123456789")


@cache
def _pixels() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float().div(16).unsqueeze(1), torch.from_numpy(bunch.target).long()


def all_digits(size: int = 8, half: int | None = None) -> Arrays:
    """All 1,797 digits, or one of two fixed disjoint halves of them.

    Args:
        size: side of the square images; 8 is the original, others are resampled bilinearly.
        half: 0 or 1 for one of two class-balanced halves (source and target of an adaptation task share no
            digit then); None for all.

    Returns:
        Arrays with `inputs` (N, 1, size, size) in [0, 1] and `labels` (N,).

    Raises:
        ValueError: `size` is not positive or `half` is not 0, 1 or None.

    Example:
        >>> len(all_digits()), all_digits(size=16, half=0).inputs.shape
        (1797, torch.Size([898, 1, 16, 16]))
    """
    check_positive(size=size)
    if half not in (None, 0, 1):
        raise ValueError(f"half must be 0, 1 or None, got {half!r}.")
    images, labels = _pixels()
    if size != 8:
        images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
    data = Arrays(inputs=images, labels=labels)
    return data if half is None else data.split(len(data) // 2, len(data) // 2, seed=8)[half]


def digits(train_size: int = 1000, *, size: int = 8, seed: int = 0, device: torch.device | str = "cpu") -> Dataset:
    """Handwritten digits, 10 classes, 8×8 grey.

    Args:
        train_size: training images, drawn class by class; the rest is the test split.
        size: side of the images.
        seed: of the split.
        device: where the tensors lie.

    Raises:
        ValueError: `train_size` leaves no test image.

    Example:
        >>> data = digits(train_size=300)
        >>> data.train.inputs.shape, len(data.test)
        (torch.Size([300, 1, 8, 8]), 1497)
    """
    data = all_digits(size)
    if not 0 < train_size < len(data):
        raise ValueError(f"train_size must lie between 1 and {len(data) - 1}, got {train_size}.")
    train, test = data.split(train_size, len(data) - train_size, seed=seed)
    provenance = "Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), as shipped with scikit-learn"
    return Dataset("digits", DIGIT_CLASSES, train, test, provenance).to(device)
