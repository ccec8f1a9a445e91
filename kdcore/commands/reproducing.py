"""`kdcore reproduce`: run again what a record says was run, and say whether the numbers are the same."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdcore.commands.checkout import pipeline, root
from kdcore.commands.comparing import complete_record
from kdcore.commands.recorded import find_record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "agreement", "environment_differences", "reproduce"]

EXAMPLES = (
    "kdcore reproduce cpu:spherical_kd",
    "kdcore reproduce results/quick/foundations/kd.json --results-dir again",
)

BIT_EQUAL, WITHIN, DIFFERENT = "bit-equal", "within the interval", "different"


def reproduce(
    record: Annotated[
        str, typer.Argument(help="A file, or a name such as cpu:spherical_kd.", autocompletion=complete_record)
    ],
    results_dir: Annotated[Path, typer.Option(help="Where the new record and notebook go.")] = Path(
        "_build/reproduced"
    ),
) -> None:
    """Run a record's chapter again with its profile, parameters and seeds, and compare every number.

    Exit status 0 if all numbers are equal to the last bit or within the recorded intervals, 1 if any is different.

    Args:
        record: of what was run.
        results_dir: a folder that the committed records are not in.

    Raises:
        ValueError: there is no such record, it is corrupt, or its chapter is not in this checkout.
        RuntimeError: the chapter fails.

    Example:
        >>> reproduce("cpu:no_such_method")
        Traceback (most recent call last):
        ValueError: no record 'cpu:no_such_method'...
    """
    path = find_record(record)
    from kdcore.study.records import read_record, record_path

    old = read_record(path)
    chapter, profile = old["chapter"], old["profile"]
    folder = results_dir.resolve()
    target = record_path(folder, chapter, profile)
    if target == path.resolve():
        raise ValueError(f"--results-dir {results_dir} is where the record lies; name another folder.")
    execute = pipeline("execute")
    given, left_out = _parameters(old)
    typer.echo(f"Running {chapter} at {profile}: {', '.join(f'{name}={value!r}' for name, value in given.items())}")
    for reason in left_out:
        typer.echo(f"  left out: {reason}")
    # Relative to the working folder of the notebook, so that no path of this machine comes into it.
    given["results_dir"] = os.path.relpath(folder, root())
    seconds = execute.execute(_page(chapter), target.with_suffix(".ipynb"), given)
    new = read_record(target)
    _report(old, new, seconds)


def agreement(old: Mapping[str, Any], new: Mapping[str, Any]) -> pd.DataFrame:
    """How a new record's numbers agree with an old one's, metric by metric and arm by arm.

    Returns:
        Columns `arm`, `metric`, `recorded` (mean, and half its 95 % interval), `here` (mean), `largest` (difference
        of a single seed) and `agreement`: "bit-equal"; "within the interval", if the new mean lies within the
        interval of the old one, or equals it to six digits; else "different", also where a number is on one side only.

    Example:
        >>> values = [("KD", seed, "accuracy", 90.0 + seed) for seed in range(3)]
        >>> old = {"results": [dict(zip(("arm", "seed", "metric", "value"), value)) for value in values]}
        >>> new = {"results": [row | {"value": row["value"] + 0.5} for row in old["results"]]}
        >>> agreement(old, new)[["arm", "largest", "agreement"]]
            arm  largest            agreement
        0    KD      0.5  within the interval
    """
    import pandas as pd

    tables = [
        pd.DataFrame(record["results"]).pivot_table(index=["arm", "metric"], columns="seed", values="value", sort=False)
        for record in (old, new)
    ]
    pairs = list(dict.fromkeys(key for table in tables for key in table.index))
    rows = [_agreement_of(*(_values(table, pair) for table in tables)) for pair in pairs]
    return pd.DataFrame([{"arm": arm, "metric": metric} | row for (arm, metric), row in zip(pairs, rows, strict=True)])


def environment_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs in code, versions, hardware and data of two records, one line each; dates and times do not count.

    Example:
        >>> old = {"provenance": {"versions": {"torch": "2.14.0"}, "date": "2026-01-01"}}
        >>> environment_differences(old, {"provenance": {"versions": {"torch": "2.15.0"}, "date": "2026-02-02"}})
        ['versions torch: 2.14.0 recorded, 2.15.0 here']
    """
    before, after = _flat(old["provenance"]), _flat(new["provenance"])
    return [
        f"{name}: {before.get(name, 'nothing')} recorded, {after.get(name, 'nothing')} here"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _page(chapter: str) -> str:
    """The page that makes a record: the closing page of a part lies in `book`."""
    return f"book/{chapter}" if chapter.startswith("parts/") else chapter


def _parameters(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The record's parameters as far as its chapter has them still, and why the others are left out."""
    import jupytext

    execute = pipeline("execute")
    notebook = jupytext.read(execute.source_path(_page(record["chapter"])))
    device = record["provenance"]["hardware"]["device"]
    recorded = {"profile": record["profile"], "device": device} | record["parameters"]
    given, left_out = {}, []
    for name, value in recorded.items():
        try:
            execute.check_parameters(notebook, {name: value})
            given[name] = value
        except ValueError as error:
            left_out.append(f"{name}={value!r}: {error}")
    return given, left_out


def _report(old: Mapping[str, Any], new: Mapping[str, Any], seconds: float) -> None:
    table = agreement(old, new)
    typer.echo(table.to_string(index=False))
    differences = environment_differences(old, new)
    typer.echo("What differs in the environment:" if differences else "The environment is the same.")
    for line in differences:
        typer.echo(f"  {line}")
    verdicts = {claim["id"]: claim["verdict"] for claim in old["claims"]}
    for claim in new["claims"]:
        if verdicts.get(claim["id"]) != claim["verdict"]:
            typer.echo(f"  claim {claim['id']}: {verdicts.get(claim['id'], 'none')} recorded, {claim['verdict']} here")
    counts = table["agreement"].value_counts()
    worst = next(kind for kind in (DIFFERENT, WITHIN, BIT_EQUAL) if kind in counts)
    said = {BIT_EQUAL: "bit-equal", WITHIN: "equal within the interval", DIFFERENT: "different"}[worst]
    shares = ", ".join(f"{counts[kind]} {kind}" for kind in (BIT_EQUAL, WITHIN, DIFFERENT) if kind in counts)
    typer.echo(f"{old['chapter']} at {old['profile']} is {said}: of {len(table)} means, {shares} ({seconds:.0f} s).")
    if worst == DIFFERENT:
        raise typer.Exit(1)


def _values(table: pd.DataFrame, pair: tuple[str, str]) -> dict[int, float]:
    return table.loc[pair].dropna().to_dict() if pair in table.index else {}


def _agreement_of(old: Mapping[int, float], new: Mapping[int, float]) -> dict[str, Any]:
    import numpy as np

    from kdcore.study.claims import paired_interval

    if set(old) != set(new):
        seeds = [f"{len(values)} seeds" if values else "not run" for values in (old, new)]
        return {"recorded": seeds[0], "here": seeds[1], "largest": math.nan, "agreement": DIFFERENT}
    before, after = (np.array([values[seed] for seed in old]) for values in (old, new))
    mean, low, high = paired_interval(before) if len(before) > 1 else (before[0],) * 3
    here = float(after.mean())
    inside = low <= here <= high or math.isclose(here, mean, rel_tol=1e-6, abs_tol=1e-9)
    return {
        "recorded": f"{mean:.6g} ± {high - mean:.3g}",
        "here": f"{here:.6g}",
        "largest": float(np.abs(after - before).max()),
        "agreement": BIT_EQUAL if (before == after).all() else WITHIN if inside else DIFFERENT,
    }


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Name → value, shortened where it is a digest; without what differs at every run."""
    flat: dict[str, str] = {}
    for name, value in provenance.items():
        if isinstance(value, Mapping):
            flat |= {f"{name} {inner}": str(own) for inner, own in value.items()}
        elif name not in ("date", "started", "wall_seconds") and value is not None:
            flat[name] = str(value)[:12] if name.endswith("digest") or name == "commit" else str(value)
    return flat
