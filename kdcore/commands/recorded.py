"""Records as the command line names them: by file, or by profile and chapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from kdcore.commands.checkout import root

__all__ = ["find_record", "record_files", "record_folders", "record_name"]


def record_folders() -> list[Path]:
    """Where the book's records are: committed ones, then those of the last build.

    Example:
        >>> [folder.name for folder in record_folders()]
        ['records', 'records']
    """
    return [root() / "book" / "records", root() / "_build" / "records"]


def record_files(folders: Iterable[Path]) -> Iterator[Path]:
    """The records in folders, which are laid out as `<profile>/<part>/<method>.json`.

    Example:
        >>> next(record_files(record_folders())).parts[-3]
        'cpu'
    """
    for folder in folders:
        yield from sorted(folder.glob("*/*/*.json"))


def record_name(path: Path) -> str:
    """The short name of a record, such as cpu:spherical_kd.

    Example:
        >>> record_name(Path("book/records/cpu/logits/spherical_kd.json"))
        'cpu:spherical_kd'
    """
    return f"{path.parts[-3]}:{path.stem}"


def find_record(name: str) -> Path:
    """The file of a record that is named by its path or as `profile:chapter`, with or without the part.

    Raises:
        ValueError: there is none; names the nearest.

    Example:
        >>> find_record("cpu:spherical_kd").name
        'spherical_kd.json'
        >>> find_record("cpu:sphercal_kd")
        Traceback (most recent call last):
        ValueError: no record 'cpu:sphercal_kd'. Did you mean 'cpu:spherical_kd'?
    """
    if Path(name).is_file():
        return Path(name)
    known: dict[str, Path] = {}
    for path in record_files([*record_folders(), root() / "results"]):
        known |= {record_name(path): path, f"{path.parts[-3]}:{path.parts[-2]}/{path.stem}": path}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "A record is a file, or a name such as cpu:spherical_kd."
    raise ValueError(f"no record {name!r}. {hint}")
