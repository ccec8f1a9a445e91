"""A data set with its splits, and where data files are looked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcore.data.arrays import Arrays

__all__ = ["Dataset", "MissingDataError", "data_folders", "verify_file"]


class MissingDataError(FileNotFoundError):
    """Data are not on this machine and could not be downloaded; the message says what to put where.

    Example:
        >>> issubclass(MissingDataError, FileNotFoundError)
        True
    """


@dataclass(frozen=True)
class Dataset:
    """A classification or segmentation data set on one device.

    Attributes:
        name: as given to `load`.
        classes: name of each class, in the order of the label numbers.
        train: training split; `inputs` are float32 in [0, 1] of shape (N, channels, H, W), `labels` int64.
        test: test split, disjoint from `train`.
        provenance: where the data came from, in a sentence.

    Example:
        >>> from kdcore.data import digits
        >>> images = digits(train_size=1000)
        >>> images.name, len(images.train), len(images.test)
        ('digits', 1000, 797)
    """

    name: str
    classes: tuple[str, ...]
    train: Arrays
    test: Arrays
    provenance: str

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on `device`."""
        return Dataset(self.name, self.classes, self.train.to(device), self.test.to(device), self.provenance)


def data_folders(data_dir: str | Path | None = None) -> list[Path]:
    """Folders to look in for data, in order; the last is where downloads go.

    `data_dir` if given, then ``$KDCORE_DATA``, then `data/` of the repository (if run inside one), else
    ``~/.cache/kdcore``.

    Example:
        >>> data_folders("somewhere")[0].name
        'somewhere'
    """
    folders = [Path(data_dir)] if data_dir else []
    if os.environ.get("KDCORE_DATA"):
        folders.append(Path(os.environ["KDCORE_DATA"]))
    here = Path.cwd().resolve()
    roots = [folder for folder in (here, *here.parents) if (folder / "_config.yml").exists()]
    folders.append(roots[0] / "data" if roots else Path.home() / ".cache" / "kdcore")
    return folders


def verify_file(path: Path, sha256: str) -> None:
    """Raise `ValueError` unless the file has the given SHA-256.

    Example:
        >>> verify_file(Path(__file__), "0" * 64)
        Traceback (most recent call last):
        ValueError: ...dataset.py is corrupt (SHA-256 ..., expected 000000000000…); delete it and try again.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is corrupt (SHA-256 {found[:12]}…, expected {sha256[:12]}…); delete it and try again."
        )
