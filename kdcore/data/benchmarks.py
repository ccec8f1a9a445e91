"""MNIST, USPS, CIFAR-10 and CIFAR-100: found on disk, or downloaded by torchvision, or a clear error."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from kdcore.checks import check_choice
from kdcore.data.arrays import Arrays
from kdcore.data.dataset import Dataset, MissingDataError, data_folders, verify_file
from kdcore.data.digits import DIGIT_CLASSES, digits

__all__ = ["CIFAR10_CLASSES", "DATASETS", "cifar10", "cifar100", "load", "mnist", "usps"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_MNIST_FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_USPS_FILES = {
    "usps.bz2": "1844e72ec4c38333f35ee61fa1e3d473f9ad417b878cf6bd5591c0aa17fe3296",
    "usps.t.bz2": "22bb89593ed8a6c80fbd69e16bc34c935f462e7c8531a812fc3d2a141d17c298",
}
_CIFAR10_ZIPS = {
    "cifar10-jpeg-train.zip": "55fbbf78e2b3a5973bbe89b512c7bbbf30ed8be981ee07c11719e0e9e34bb37a",
    "cifar10-jpeg-test.zip": "d232e50ed864bc7ef492738a9dfa579c80c8ff45e6c66fc0c36ae3bad6550002",
}


def mnist(data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> Dataset:
    """MNIST: 60,000 + 10,000 handwritten digits, 28×28 grey.

    Args:
        data_dir: folder that holds `MNIST/raw/…` (torchvision's layout); see `data_folders` for the others tried.
        device: where the tensors lie.

    Raises:
        MissingDataError: not on disk, and the download failed.
        ValueError: a file is corrupt.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "MNIST/raw").mkdir(parents=True, exist_ok=True)
        >>> for name in _MNIST_FILES:
        ...     _ = (folder / "MNIST/raw" / name).write_bytes(b"not the original")
        >>> mnist(folder)
        Traceback (most recent call last):
        ValueError: ...train-images-idx3-ubyte is corrupt (...); delete it and try again.
    """
    from torchvision.datasets import MNIST

    root = _find("MNIST", data_dir, [f"MNIST/raw/{name}" for name in _MNIST_FILES], lambda to: MNIST(to, download=True))
    for name, sha256 in _MNIST_FILES.items():
        verify_file(root / "MNIST" / "raw" / name, sha256)
    train, test = (MNIST(str(root), train=part) for part in (True, False))
    splits = [Arrays(inputs=part.data.unsqueeze(1).float().div(255), labels=part.targets) for part in (train, test)]
    train_split, test_split = splits
    return Dataset(
        "mnist", DIGIT_CLASSES, train_split, test_split, f"MNIST (LeCun et al. 1998), from {root.name}/MNIST/raw"
    ).to(device)


def usps(data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> Dataset:
    """USPS: 7,291 + 2,007 handwritten digits, 16×16 grey.

    Args and errors as in `mnist`; the files are `usps.bz2` and `usps.t.bz2`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".").mkdir(parents=True, exist_ok=True)
        >>> for name in _USPS_FILES:
        ...     _ = (folder / "." / name).write_bytes(b"not the original")
        >>> usps(folder)
        Traceback (most recent call last):
        ValueError: ...usps.bz2 is corrupt (...); delete it and try again.
    """
    from torchvision.datasets import USPS

    def download(root: str) -> None:
        for train in (True, False):
            USPS(root, train=train, download=True)

    root = _find("USPS", data_dir, list(_USPS_FILES), download)
    for name, sha256 in _USPS_FILES.items():
        verify_file(root / name, sha256)
    splits = []
    for train in (True, False):
        part = USPS(str(root), train=train)
        images = torch.from_numpy(np.asarray(part.data)).unsqueeze(1).float().div(255)
        splits.append(Arrays(inputs=images, labels=torch.as_tensor(part.targets).long()))
    train_split, test_split = splits
    return Dataset(
        "usps", DIGIT_CLASSES, train_split, test_split, f"USPS (Hull 1994), libsvm form, from {root.name}"
    ).to(device)


def cifar10(data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> Dataset:
    """CIFAR-10: 50,000 + 10,000 images, 32×32 colour.

    Reads torchvision's `cifar-10-batches-py`, else the zip files `cifar10-jpeg-train.zip` and
    `cifar10-jpeg-test.zip` of images in `<split>/<class>/` (JPEG: close to the original, not bit-equal), else an
    unpacked folder of the same layout. Args and errors as in `mnist`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".").mkdir(parents=True, exist_ok=True)
        >>> for name in _CIFAR10_ZIPS:
        ...     _ = (folder / "." / name).write_bytes(b"not the original")
        >>> cifar10(folder)
        Traceback (most recent call last):
        ValueError: ...cifar10-jpeg-train.zip is corrupt (...); delete it and try again.
    """
    from torchvision.datasets import CIFAR10

    for folder in data_folders(data_dir):
        if all((folder / name).exists() for name in _CIFAR10_ZIPS):
            splits = [_read_image_zip(folder / name, sha256) for name, sha256 in _CIFAR10_ZIPS.items()]
            provenance = "CIFAR-10 (Krizhevsky 2009), JPEG copy: not bit-equal to the original"
            train_split, test_split = splits
            return Dataset("cifar10", CIFAR10_CLASSES, train_split, test_split, provenance).to(device)
        if (folder / "train" / CIFAR10_CLASSES[0]).is_dir() and (folder / "test").is_dir():
            splits = [_read_image_folder(folder / part) for part in ("train", "test")]
            train_split, test_split = splits
            return Dataset(
                "cifar10", CIFAR10_CLASSES, train_split, test_split, "CIFAR-10 (Krizhevsky 2009), image folder"
            ).to(device)
    files = ["cifar-10-batches-py/batches.meta"]
    train_split, test_split, _ = _cifar("CIFAR-10", CIFAR10, data_dir, files)
    return Dataset(
        "cifar10", CIFAR10_CLASSES, train_split, test_split, "CIFAR-10 (Krizhevsky 2009), by torchvision"
    ).to(device)


def cifar100(data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> Dataset:
    """CIFAR-100: 50,000 + 10,000 images of a hundred classes (the fine labels), 32×32 colour.

    Reads torchvision's `cifar-100-python`. Args and errors as in `mnist`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "cifar-100-python").mkdir()
        >>> for name in ("meta", "train", "test"):
        ...     _ = (folder / "cifar-100-python" / name).write_bytes(b"not the original")
        >>> cifar100(folder)
        Traceback (most recent call last):
        ValueError: CIFAR-100 in ... is corrupt (...); delete it and try again.
    """
    from torchvision.datasets import CIFAR100

    files = [f"cifar-100-python/{name}" for name in ("meta", "train", "test")]
    train_split, test_split, classes = _cifar("CIFAR-100", CIFAR100, data_dir, files)
    provenance = "CIFAR-100 (Krizhevsky 2009), by torchvision"
    return Dataset("cifar100", classes, train_split, test_split, provenance).to(device)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "usps": usps,
    "cifar10": cifar10,
    "cifar100": cifar100,
}


def load(name: str, data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> Dataset:
    """A data set by name: "digits", "mnist", "usps", "cifar10" or "cifar100".

    Raises:
        ValueError: unknown name, or corrupt data.
        MissingDataError: the data are neither on disk nor to be had by download.

    Example:
        >>> load("digits").name
        'digits'
    """
    check_choice("dataset", name, tuple(DATASETS))
    return digits(device=device) if name == "digits" else DATASETS[name](data_dir, device=device)


def _find(title: str, data_dir: str | Path | None, files: Iterable[str], download: Callable[[str], object]) -> Path:
    """The first folder that holds all `files`; else download into the last."""
    files = list(files)
    folders = data_folders(data_dir)
    for folder in folders:
        if all((folder / file).exists() for file in files):
            return folder
    try:
        folders[-1].mkdir(parents=True, exist_ok=True)
        download(str(folders[-1]))
    except Exception as error:  # no network, a full disk, a mirror that is down: whatever it was, say what to do
        raise MissingDataError(
            f"{title} is not on this machine and could not be downloaded ({type(error).__name__}). Put "
            f"{', '.join(files)} into {folders[0]}, or name their folder by data_dir or KDCORE_DATA."
        ) from error
    return folders[-1]


def _cifar(
    title: str, source: Callable[..., Any], data_dir: str | Path | None, files: Iterable[str]
) -> tuple[Arrays, Arrays, tuple[str, ...]]:
    """Training split, test split and classes of one of torchvision's two CIFAR sets."""
    root = _find(title, data_dir, files, lambda to: source(to, download=True))
    splits = []
    for train in (True, False):
        try:
            part = source(str(root), train=train)
        except RuntimeError as error:  # torchvision compares checksums here, before it unpickles
            raise ValueError(f"{title} in {root} is corrupt ({error}); delete it and try again.") from error
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).float().div(255)
        splits.append(Arrays(inputs=images.contiguous(), labels=torch.as_tensor(part.targets)))
    return splits[0], splits[1], tuple(part.classes)


def _read_image_zip(path: Path, sha256: str) -> Arrays:
    verify_file(path, sha256)
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        pairs = [(archive.read(name), name.split("/")[-2]) for name in tqdm(names, desc=path.name, leave=False)]
    return _decode(pairs)


def _read_image_folder(folder: Path) -> Arrays:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return _decode([(path.read_bytes(), path.parent.name) for path in tqdm(files, desc=folder.name, leave=False)])


def _decode(pairs: list[tuple[bytes, str]]) -> Arrays:
    from io import BytesIO

    from PIL import Image

    images = np.stack([np.asarray(Image.open(BytesIO(content)).convert("RGB")) for content, _ in pairs])
    labels: Tensor = torch.tensor([CIFAR10_CLASSES.index(name) for _, name in pairs])
    return Arrays(inputs=torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255).contiguous(), labels=labels)
