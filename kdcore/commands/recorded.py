"""Records as the command line reads them: found by name, checked for what is shown, without loading torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kdcore.commands.checkout import root

__all__ = ["find_record", "load_record", "record_files", "record_folders", "record_name"]

_CLAIM = {"id": str, "statement": str, "difference": float, "low": float, "high": float, "pairs": int, "verdict": str}
_ROW = {"arm": str, "seed": int, "metric": str, "value": float}
_RECORD = {"chapter": str, "profile": str, "parameters": dict, "results": list, "claims": list, "provenance": dict}


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
    """The file of a record that is named by its path or as `profile:chapter`.

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
    known = {record_name(path): path for path in record_files([*record_folders(), root() / "results"])}
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "A record is a file, or a name such as cpu:spherical_kd."
    raise ValueError(f"no record {name!r}. {hint}")


def load_record(path: Path) -> dict[str, Any]:
    """Read a record, from here or from elsewhere.

    Raises:
        ValueError: the file is truncated, no JSON, or no record; names the file and what is wrong.

    Example:
        >>> load_record(find_record("cpu:spherical_kd"))["chapter"]
        'logits/spherical_kd'
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"record {path} is corrupt ({error}); delete it and run its chapter again.") from error
    shapes = {"claims": _CLAIM, "results": _ROW}
    problem = _lacking(record, _RECORD)
    if not problem:
        found = (f"{part}: {_lacking(row, shapes[part])}" for part in shapes for row in record[part])
        problem = next((line for line in found if not line.endswith(": ")), "")
    if problem:
        raise ValueError(f"{path} is no record of kdcore: {problem}.")
    return record


def _lacking(content: Any, wanted: Mapping[str, type]) -> str:
    """What is missing or of another type, or nothing."""
    if not isinstance(content, dict):
        return f"a mapping is wanted, got {type(content).__name__}"
    for name, kind in wanted.items():
        if not isinstance(content.get(name), (int, float) if kind is float else kind):
            return f"{name} is missing or not of type {kind.__name__}"
    return ""
