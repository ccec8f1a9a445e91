"""Data as tensors on a device: no worker processes, batches by index."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Arrays"]


class Arrays:
    """Equally long tensors by name; a data set, a split of one, or a batch.

    Every tensor is an attribute: ``arrays.inputs``, ``arrays.labels``, ``arrays.teacher_logits``. Indexing with a
    tensor or slice gives the `Arrays` of those rows. Instances do not change; `with_` and `to` return new ones.

    Args:
        **tensors: tensors of equal length in their first dimension, on one device.

    Raises:
        ValueError: no tensor, unequal lengths, or more than one device.

    Example:
        >>> import torch
        >>> data = Arrays(inputs=torch.rand(5, 2), labels=torch.arange(5))
        >>> data[torch.tensor([4, 0])].labels
        tensor([4, 0])
    """

    __slots__ = ("_tensors",)
    _tensors: dict[str, Tensor]

    def __init__(self, **tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("Arrays needs at least one tensor.")
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"tensors must be equally long, got {lengths}.")
        if len({tensor.device for tensor in tensors.values()}) > 1:
            raise ValueError("tensors must lie on one device.")
        object.__setattr__(self, "_tensors", tensors)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise AttributeError(f"no tensor {name!r} here; there are {', '.join(self._tensors)}.") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Arrays do not change; use with_(name=tensor).")

    def __reduce__(self) -> tuple:
        return _rebuild, (self._tensors,)

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __getitem__(self, rows: Tensor | slice) -> Arrays:
        if isinstance(rows, slice):
            return _unchecked({name: tensor[rows] for name, tensor in self._tensors.items()})
        rows = rows.to(self.device)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().flatten()
        return _unchecked({name: tensor.index_select(0, rows) for name, tensor in self._tensors.items()})

    def batches(self, rows: Tensor, size: int) -> Iterator[Arrays]:
        """The given rows in batches of `size`, collected in one go: a batch is then a slice, several times cheaper.

        Example:
            >>> [batch.labels.tolist() for batch in Arrays(labels=torch.arange(9)).batches(torch.tensor([8, 0, 4]), 2)]
            [[8, 0], [4]]
        """
        collected = self[rows]
        return (collected[start : start + size] for start in range(0, len(rows), size))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{tuple(tensor.shape)}" for name, tensor in self._tensors.items())
        return f"Arrays({shapes}, {self.device})"

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    def with_(self, **tensors: Tensor) -> Arrays:
        """These tensors and the given ones; a given name replaces an existing one."""
        return Arrays(**{**self._tensors, **tensors})

    def to(self, device: torch.device | str) -> Arrays:
        """All tensors on `device`."""
        return Arrays(**{name: tensor.to(device) for name, tensor in self._tensors.items()})

    def split(self, *sizes: int, seed: int = 0) -> tuple[Arrays, ...]:
        """Disjoint random parts of the given sizes; what is left over is dropped.

        Where there are `labels` of shape (N,), the parts are drawn class by class so that each keeps the class
        frequencies up to rounding.

        Raises:
            ValueError: the sizes add up to more than there are rows.
        """
        if sum(sizes) > len(self):
            raise ValueError(f"sizes must add up to at most {len(self)}, got {sum(sizes)}.")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        if "labels" in self and self.labels.ndim == 1:
            order = _interleave_classes(self.labels.cpu()[order], order)
        return tuple(self[part] for part in order[: sum(sizes)].split(list(sizes)))

    def long_tailed(self, largest: int, ratio: float, seed: int = 0) -> Arrays:
        """A random part in which class frequencies fall exponentially from class 0 to the last.

        Class c of C keeps ⌊largest · ratio^(-c / (C - 1))⌋ rows (Cui et al. 2019, arXiv 1901.05555).

        Args:
            largest: rows of class 0.
            ratio: imbalance, of the first class to the last, at least 1; at 1 all classes keep `largest` rows.
            seed: of the draw.

        Raises:
            ValueError: there are no labels of shape (N,), fewer than two classes, `ratio` is below 1, or a class has
                too few rows or would keep none.

        Example:
            >>> rows = Arrays(labels=torch.arange(3).repeat(100))
            >>> rows.long_tailed(largest=100, ratio=25).labels.bincount()
            tensor([100,  20,   4])
        """
        if "labels" not in self or self.labels.ndim != 1 or len(self.labels.unique()) < 2:
            raise ValueError("a long tail needs labels of shape (N,) with at least two classes.")
        if not ratio >= 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        labels, classes, kept = self.labels.cpu()[order], int(self.labels.max()) + 1, []
        for label in range(classes):
            wanted = int(largest * ratio ** (-label / (classes - 1)) + 1e-9)  # 20, not 19.999...
            members = order[labels == label]
            if not 1 <= wanted <= len(members):
                raise ValueError(f"class {label} has {len(members)} rows, and {wanted} are asked for.")
            kept.append(members[:wanted])
        return self[torch.cat(kept)]


def _rebuild(tensors: dict[str, Tensor]) -> Arrays:
    return Arrays(**tensors)


def _unchecked(tensors: dict[str, Tensor]) -> Arrays:
    """Arrays of tensors that fit by construction: a loop makes thousands of batches."""
    arrays = object.__new__(Arrays)
    object.__setattr__(arrays, "_tensors", tensors)
    return arrays


def _interleave_classes(labels: Tensor, order: Tensor) -> Tensor:
    """Reorder so that every prefix holds each class in proportion to its frequency."""
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[position.argsort(stable=True)]
