"""`kdcore ledger`: what became of the papers' claims."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.commands.chapters import complete_chapter
from kdcore.commands.checkout import pipeline
from kdcore.commands.recorded import record_files, record_folders
from kdcore.commands.tables import show_json, show_table
from kdcore.study.records import read_record

__all__ = ["EXAMPLES", "interval", "show_ledger"]

EXAMPLES = (
    "kdcore ledger",
    "kdcore ledger --chapter spherical_kd --profile cpu",
    "kdcore ledger --verdict contradicted --json",
    "kdcore ledger results",
)
_VERDICTS = ("supported", "undecided", "contradicted")


def show_ledger(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders of records; the book's if left out.", exists=True)
    ] = None,
    chapter: Annotated[
        list[str] | None, typer.Option(help="Only these chapters.", autocompletion=complete_chapter)
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Only quick, cpu or gpu.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only supported, undecided or contradicted.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Show each claim of each record: the difference with its 95 % interval, and the verdict.

    A record that cannot be read is named and left out, and the exit status is 1.

    Raises:
        ValueError: unknown chapter, profile or verdict.

    Example:
        >>> show_ledger(chapter=["kd"], profile="cpu")
        chapter ...
        4 claims: 4 supported, 0 undecided, 0 contradicted
    """
    if profile not in (None, *pipeline("parameters").PROFILES):
        raise ValueError(f"profile must be one of {', '.join(pipeline('parameters').PROFILES)}, got {profile!r}.")
    if verdict not in (None, *_VERDICTS):
        raise ValueError(f"verdict must be one of {', '.join(_VERDICTS)}, got {verdict!r}.")
    pages = [pipeline("execute").source_path(name) for name in chapter or []]
    wanted = {f"{page.parent.name}/{page.stem}" for page in pages}
    records, corrupt = _records(folders or record_folders())
    rows = [
        {"chapter": record["chapter"], "profile": record["profile"]}
        | claim
        | {"date": record["provenance"].get("date", "unknown")}
        for record in records
        for claim in record["claims"]
        if (not wanted or record["chapter"] in wanted)
        and profile in (None, record["profile"])
        and verdict in (None, claim["verdict"])
    ]
    if as_json:
        show_json(rows)
    else:
        show_table([_row(claim) for claim in rows])
        counts = ", ".join(f"{sum(row['verdict'] == name for row in rows)} {name}" for name in _VERDICTS)
        print(f"{len(rows)} claims: {counts}")
    if corrupt:
        print(*corrupt, sep="\n", file=sys.stderr)
        raise typer.Exit(1)


def interval(claim: dict[str, Any]) -> str:
    """A difference with its interval, such as +1.2 [-0.1, +2.5].

    Example:
        >>> interval({"difference": 1.2, "low": -0.1, "high": 2.5})
        '+1.2 [-0.1, +2.5]'
    """
    return f"{claim['difference']:+.3g} [{claim['low']:+.3g}, {claim['high']:+.3g}]"


def _records(folders: list[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """The records in the folders; of two of one chapter and profile, the later folder's. And what is corrupt."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    corrupt = []
    for path in record_files(folders):
        try:
            record = read_record(path)
        except ValueError as error:
            corrupt.append(f"error: {error}")
        else:
            found[record["chapter"], record["profile"]] = record
    return [record for _, record in sorted(found.items())], corrupt


def _row(claim: dict[str, Any]) -> dict[str, object]:
    return {
        "chapter": claim["chapter"],
        "profile": claim["profile"],
        "claim": claim["id"],
        "difference": interval(claim),
        "pairs": claim["pairs"],
        "verdict": claim["verdict"],
        "date": claim["date"],
    }
