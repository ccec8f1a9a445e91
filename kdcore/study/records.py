"""Records: what was run, what came out, and where; JSON files, checked by a schema, written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.sources import repository_root

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SCHEMA", "committed_record", "ledger", "parse_record", "read_record", "record_path", "write_record"]

_NUMBER = {"type": "number", "minimum": -1e300, "maximum": 1e300}
_SEED = {"type": "integer", "minimum": 0, "maximum": 2**62}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 2000}
_DIGEST = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
# What a page might take for more than text: an HTML tag, a line's end (a directive begins a line), a MyST role, an
# address that is a program. Records come from others, and what is refused here need not be escaped in five places.
_MARKUP = re.compile(
    r"<[A-Za-z/!?]|[\x00-\x1f\x7f-\x9f\u2028\u2029]|\{[^{}]*\}`|(?:java|vb)script\s*:|data\s*:\s*(?:text|image|application)/",
    re.I,
)
_CLAIM_TEXTS = ("id", "statement", "better", "than", "metric", "source", "paper")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema", "chapter", "profile", "parameters", "seeds", "results", "claims", "provenance"],
    "properties": {
        "schema": {"const": 1},
        "chapter": {"type": "string", "pattern": r"^[a-z_]+/[a-z0-9_]+$(?!\n)"},
        "profile": {"enum": ["quick", "cpu", "gpu"]},
        "parameters": {"type": "object"},
        "seeds": {"type": "array", "items": _SEED, "minItems": 1},
        "results": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["arm", "seed", "metric", "value"],
                "properties": {"arm": _TEXT, "seed": _SEED, "metric": _TEXT, "value": _NUMBER},
            },
        },
        "claims": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [*_CLAIM_TEXTS, "difference", "low", "high", "pairs", "verdict"],
                "properties": {
                    **dict.fromkeys(_CLAIM_TEXTS, _TEXT),
                    "difference": _NUMBER,
                    "low": _NUMBER,
                    "high": _NUMBER,
                    "pairs": {"type": "integer", "minimum": 2, "maximum": 10**6},
                    "verdict": {"enum": ["supported", "undecided", "contradicted"]},
                },
            },
        },
        "provenance": {
            "type": "object",
            "required": ["date", "wall_seconds", "hardware", "versions", "code_digest", "data"],
            "properties": {
                "date": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\d$"},
                "started": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$"},
                "wall_seconds": _NUMBER,
                "hardware": {
                    "type": "object",
                    "required": ["device", "cpu"],
                    "additionalProperties": {"type": ["string", "integer"]},
                },
                "versions": {"type": "object", "additionalProperties": _TEXT},
                "code_digest": _DIGEST,
                "notebook_digest": {"anyOf": [_DIGEST, {"type": "null"}]},
                "commit": {"type": ["string", "null"], "pattern": "^[0-9a-f]{40,64}$"},
                "dirty": {"type": ["boolean", "null"]},
                "data": _TEXT,
            },
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
        ValueError: the file is truncated, no JSON, or does not fit the schema, or a text in it holds markup; names the
            file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "kd.json"
        >>> _ = path.write_text('{"schema": 1')
        >>> read_record(path)
        Traceback (most recent call last):
        ValueError: record ...kd.json is corrupt (...); delete it and run its chapter again.
    """
    return parse_record(Path(path).read_bytes(), f"record {path}")


def committed_record(chapter: str, profile: str) -> dict[str, Any] | None:
    """The record that the book keeps of a chapter at a profile; None where there is none, or no checkout.

    Raises:
        ValueError: as `read_record`.

    Example:
        >>> committed_record("logits/nobody_wrote_this", "cpu") is None
        True
    """
    root = repository_root()
    path = record_path(root / "book" / "records", chapter, profile) if root else None
    return read_record(path) if path and path.exists() else None


def parse_record(content: bytes, name: str) -> dict[str, Any]:
    """A record from its bytes, checked as `read_record` does; `name` is what an error calls it.

    Example:
        >>> parse_record(b'{"schema": NaN}', "record a.json")
        Traceback (most recent call last):
        ValueError: record a.json is corrupt (NaN is no number of a record); delete it and run its chapter again.
    """
    try:
        record = json.loads(content.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # also digits or brackets without end
        raise ValueError(f"{name} is corrupt ({error}); delete it and run its chapter again.") from error
    _validate(record, name)
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
    import pandas as pd

    from kdcore.study.claims import standardised

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
    for text in _texts(record):
        found = _MARKUP.search(text)
        if found:
            raise ValueError(f"{name} holds {found.group()!r} in the text {text[:80]!r}; a record holds plain text.")
    for claim in record["claims"]:
        if claim["low"] > claim["high"]:
            raise ValueError(f"{name} has an interval that ends before it begins, of the claim {claim['id']!r}.")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of a record")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _texts(item: Any) -> Iterator[str]:
    """Every text in a JSON value, names of fields included."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, Mapping):
        for name, value in item.items():
            yield str(name)
            yield from _texts(value)
    elif isinstance(item, list | tuple):
        for value in item:
            yield from _texts(value)
