"""`kdcore data`: which data sets are here, which are missing, and getting one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.commands.tables import show_json, show_table

__all__ = ["EXAMPLES", "GET_EXAMPLES", "Source", "complete_dataset", "get_dataset", "locate", "show_data", "sources"]

EXAMPLES = ("kdcore data", "kdcore data --data-dir ~/datasets", "kdcore data --json", "kdcore data get mnist")
GET_EXAMPLES = ("kdcore data get mnist", "kdcore data get usps --data-dir ~/datasets")
_NAMES = ("digits", "mnist", "usps", "cifar10", "cifar100", "sst2", "cora")
_DataDir = Annotated[Path | None, typer.Option(help="Looked in first.")]


@dataclass(frozen=True)
class Source:
    """Where a data set is looked for and where it would come from.

    Attributes:
        name: as `kdcore data get` takes it.
        layouts: lists of files or folders below a data folder; one list is enough.
        digests: SHA-256 of the files that have one.
        downloads: whether torchvision fetches it when it is first used.
        megabytes: on disk, about.
        load: reads it, after a download where there is one.

    Example:
        >>> sources()["sst2"].layouts[0][0], sources()["sst2"].comes_from
        ('SST2/train.tsv', 'nobody downloads it; put the files there')
    """

    name: str
    layouts: tuple[tuple[str, ...], ...]
    downloads: bool
    megabytes: float
    load: Callable[..., Any]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def comes_from(self) -> str:
        """Who would provide it, as a phrase."""
        if not self.layouts:
            return "comes with scikit-learn"
        return "torchvision downloads it" if self.downloads else "nobody downloads it; put the files there"


def sources() -> dict[str, Source]:
    """The data sets that the chapters use, by name.

    Example:
        >>> list(sources())
        ['digits', 'mnist', 'usps', 'cifar10', 'cifar100', 'sst2', 'cora']
    """
    from kdcore.data import benchmarks, digits, graphs, text

    mnist = {f"MNIST/raw/{name}": digest for name, digest in benchmarks._MNIST_FILES.items()}
    cora = {f"planetoid/{name}": digest for name, digest in graphs._CORA_FILES.items()}
    usps, zips, sst2 = benchmarks._USPS_FILES, benchmarks._CIFAR10_ZIPS, text._SST2_FILES
    batches = ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
    original = tuple(f"cifar-10-batches-py/{name}" for name in batches)
    fine = tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test"))
    folders = ("test", *(f"train/{name}" for name in benchmarks.CIFAR10_CLASSES))
    found = (
        Source("digits", (), False, 0.1, lambda data_dir: digits()),
        Source("mnist", (tuple(mnist),), True, 55, benchmarks.mnist, mnist),
        Source("usps", (tuple(usps),), True, 2.3, benchmarks.usps, usps),
        Source("cifar10", (original, tuple(zips), folders), True, 340, benchmarks.cifar10, zips),
        Source("cifar100", (fine,), True, 340, benchmarks.cifar100),
        Source("sst2", (tuple(sst2),), False, 1, text.sst2, sst2),
        Source("cora", (tuple(cora),), False, 0.6, graphs.cora, cora),
    )
    return {source.name: source for source in found}


def locate(source: Source, data_dir: Path | None = None) -> tuple[Path, tuple[str, ...]] | None:
    """The first folder that holds the files of a data set, and which they are; None if it is missing.

    Example:
        >>> locate(sources()["digits"]) is None
        True
    """
    from kdcore.data import data_folders

    for folder in data_folders(data_dir):
        for files in source.layouts:
            if all((folder / file).exists() for file in files):
                return folder, files
    return None


def complete_dataset(incomplete: str) -> list[str]:
    """Data sets whose name begins so.

    Example:
        >>> complete_dataset("ci")
        ['cifar10', 'cifar100']
    """
    return [name for name in _NAMES if name.startswith(incomplete)]


def show_data(
    context: typer.Context,
    data_dir: _DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Show each data set: whether it is here, how large it is, where it would come from.

    Example:
        >>> show_data(typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None))))
        data set ...
        Looked in ...
    """
    if context.invoked_subcommand:
        return
    from kdcore.data import data_folders

    rows = [_row(source, data_dir) for source in sources().values()]
    folders = [str(folder) for folder in data_folders(data_dir)]
    if as_json:
        show_json({"folders": folders, "data": rows})
        return
    show_table(rows)
    print(f"\nLooked in {', then '.join(folders)}; downloads go to the last.")


def get_dataset(
    name: Annotated[str, typer.Argument(help="A name that `kdcore data` shows.", autocompletion=complete_dataset)],
    data_dir: _DataDir = None,
) -> None:
    """Get a data set as a chapter would: find it, else download it where that is possible; then check it.

    Raises:
        ValueError: unknown name, or a file is corrupt.
        MissingDataError: it is not here and cannot be downloaded; says which files to put where.

    Example:
        >>> get_dataset("digits")
        digits: ...scikit-learn...
    """
    from kdcore.checks import check_choice

    source = sources()[check_choice("NAME", name, _NAMES)]
    loaded = source.load(data_dir=data_dir)
    print(f"{name}: {getattr(loaded, 'provenance', 'complete, and every file is the original')}")
    if found := locate(source, data_dir):
        print(f"  in {found[0]}, {_size(found[0], found[1]):.1f} MB")


def _row(source: Source, data_dir: Path | None) -> dict[str, object]:
    """What the table says of a data set."""
    from kdcore.data.dataset import verify_file

    found = locate(source, data_dir)
    state, place, size = "there", "scikit-learn", f"{source.megabytes:g} MB"
    if source.layouts and not found:
        state, place, size = "missing", _files(source), f"about {source.megabytes:g} MB"
    elif found:
        place, size = str(found[0]), f"{_size(*found):.1f} MB"
        try:
            for file in found[1]:
                if file in source.digests:
                    verify_file(found[0] / file, source.digests[file])
        except ValueError as error:
            state, place = "corrupt", str(error)
    return {"data set": source.name, "state": state, "size": size, "where": place, "comes from": source.comes_from}


def _files(source: Source) -> str:
    """The files that would be there, below a data folder."""
    folders = {Path(file).parent.as_posix() for file in source.layouts[0]}
    folder = folders.pop()
    return ", ".join(source.layouts[0]) if folder == "." else f"{folder}/ ({len(source.layouts[0])} files)"


def _size(folder: Path, files: tuple[str, ...]) -> float:
    """Megabytes of the files, and of what folders among them hold."""
    places = [folder / file for file in files]
    inside = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    return sum(path.stat().st_size for path in inside if path.is_file()) / 1e6
