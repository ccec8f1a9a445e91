"""Records: what was run, what came out, and where; JSON files, checked by a schema, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdcore.study.claims import standardised

__all__ = ["SCHEMA", "ledger", "read_record", "record_path", "write_record"]

_NUMBER = {"type": "number"}
_TEXT = {"type": "string", "minLength": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema", "chapter", "profile", "parameters", "seeds", "results", "claims", "provenance"],
    "properties": {
        "schema": {"const": 1},
        "chapter": {"type": "string", "pattern": "^[a-z_]+/[a-z0-9_]+$"},
        "profile": {"enum": ["quick", "cpu", "gpu"]},
        "parameters": {"type": "object"},
        "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
        "results": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["arm", "seed", "metric", "value"],
                "properties": {"arm": _TEXT, "seed": {"type": "integer"}, "metric": _TEXT, "value": _NUMBER},
            },
        },
        "claims": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["id", "statement", "better", "than", "metric", "source", "difference", "verdict"],
                "properties": {
                    "difference": _NUMBER,
                    "low": _NUMBER,
                    "high": _NUMBER,
                    "pairs": {"type": "integer", "minimum": 2},
                    "verdict": {"enum": ["supported", "undecided", "contradicted"]},
                },
            },
        },
        "provenance": {
            "type": "object",
            "required": ["date", "wall_seconds", "hardware", "versions", "code_digest", "data"],
            "properties": {"wall_seconds": _NUMBER, "code_digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"}},
        },
    },
}


def record_path(folder: str | Path, chapter: str, profile: str) -> Path:
    """`<folder>/<profile>/<part>/<method>.json`.

    Example:
        >>> record_path("book/records", "foundations/kd", "cpu").as_posix()
        'book/records/cpu/foundations/kd.json'
    """
    return Path(folder) / profile / f"{chapter}.json"


def write_record(record: Mapping[str, Any], folder: str | Path) -> Path:
    """Check a record against the schema and put it in place in one step; an old one stays whole until then.

    Raises:
        ValueError: the record does not fit the schema; names the place.
        OSError: the disk is full or the folder cannot be written.

    Example:
        >>> write_record({"chapter": "foundations/kd"}, "results")
        Traceback (most recent call last):
        ValueError: the new record does not fit the schema at top level: ...
    """
    _validate(record, "the new record")
    path = record_path(folder, record["chapter"], record["profile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record and check it.

    Raises:
        ValueError: the file is truncated, no JSON, or does not fit the schema; names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "kd.json"
        >>> _ = path.write_text('{"schema": 1')
        >>> read_record(path)
        Traceback (most recent call last):
        ValueError: record ...kd.json is corrupt (...); delete it and run its chapter again.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"record {path} is corrupt ({error}); delete it and run its chapter again.") from error
    _validate(record, f"record {path}")
    return record


def ledger(folders: Iterable[str | Path]) -> pd.DataFrame:
    """All claims of all records below the folders, one row each; of two records of one chapter and profile, the
    one in the later folder counts.

    Returns:
        Columns `chapter`, `profile`, `claim`, `statement`, `metric`, `difference`, `effect` (see
        `standardised`), `low`, `high`, `pairs`, `verdict`, `paper`, `source`, `device`, `date`.

    Example:
        >>> import tempfile
        >>> ledger([tempfile.mkdtemp()]).empty
        True
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(Path(folder).glob("*/*/*.json")):
            record = read_record(path)
            found[record["chapter"], record["profile"]] = record
    rows = [
        {"chapter": chapter, "profile": profile}
        | {"claim": claim["id"]}
        | {name: claim[name] for name in ("statement", "metric", "difference")}
        | {"effect": standardised(claim["low"], claim["high"], claim["pairs"])}
        | {name: claim[name] for name in ("low", "high", "pairs", "verdict")}
        | {"paper": claim["paper"], "source": claim["source"]}
        | {"device": record["provenance"]["hardware"]["device"], "date": record["provenance"]["date"]}
        for (chapter, profile), record in sorted(found.items())
        for claim in record["claims"]
    ]
    return pd.DataFrame(rows)


def _validate(record: Mapping[str, Any], name: str) -> None:
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise ImportError("records are checked by jsonschema: pip install 'kdcore[notebook]'") from error
    problem = next(Draft202012Validator(SCHEMA).iter_errors(record), None)
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path)) or "top level"
        raise ValueError(f"{name} does not fit the schema at {place}: {problem.message[:200]}")
