"""`kdcore run`: execute chapters with other parameters, one after the other."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.commands.chapters import complete_chapter, complete_parameter, complete_part, knobs_of
from kdcore.commands.checkout import pipeline, root
from kdcore.commands.ledger import interval
from kdcore.commands.tables import show_table
from kdcore.study.records import read_record

__all__ = ["EXAMPLES", "run_chapters"]

EXAMPLES = (
    "kdcore run spherical_kd",
    "kdcore run spherical_kd --profile cpu -p temperature=2 -p n_seeds=10",
    "kdcore run kd dhkd -p n_seeds=10 --results-dir ten_seeds",
    "kdcore run --part adaptation --profile gpu",
)


def run_chapters(
    names: Annotated[
        list[str] | None, typer.Argument(help="Chapters, as `kdcore list` names them.", autocompletion=complete_chapter)
    ] = None,
    profile: Annotated[str | None, typer.Option(help="quick (the default), cpu or gpu.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="A parameter; repeatable.", autocompletion=complete_parameter),
    ] = None,
    part: Annotated[str | None, typer.Option(help="All chapters of this part.", autocompletion=complete_part)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All chapters.")] = False,
    output: Annotated[Path | None, typer.Option(help="The executed notebook; beside the record if left out.")] = None,
    results_dir: Annotated[
        Path | None, typer.Option(help="Where records go; results/NAME=VALUE,… in the checkout if left out.")
    ] = None,
) -> None:
    """Execute chapters, and show what became of their claims.

    All parameters are checked before anything runs. A chapter that fails does not keep the others from running.

    Raises:
        ValueError: no such chapter, an unknown parameter or a value that it does not take; says which.

    Example:
        >>> run_chapters(["spherical_kd"], parameter=["temprature=2"])
        Traceback (most recent call last):
        ValueError: unknown parameter 'temprature'; there are ... Did you mean 'temperature'?
        >>> run_chapters(["spherical_kd"], parameter=["n_seeds=1"])
        Traceback (most recent call last):
        ValueError: n_seeds must be an integer of at least 2, got 1.
    """
    pages = _pages(names or [], part, everything)
    if output is not None and len(pages) > 1:
        raise ValueError(f"--output names one notebook, and there are {len(pages)} chapters; use --results-dir.")
    given = pipeline("parameters").parse(parameter or []) | ({"profile": profile} if profile else {})
    for source in pages.values():
        pipeline("parameters").check(knobs_of(source), given)
    folder = (results_dir or root() / given.get("results_dir", f"results/{_setting(given)}")).resolve()
    given["results_dir"] = os.path.relpath(folder, root())  # no path of this machine in the notebook
    failed, verdicts = [], []
    for number, name in enumerate(pages, start=1):
        place = Path(given.get("profile", "quick")) / name
        notebook = (output or folder / place.with_suffix(".ipynb")).resolve()
        record = folder / place.with_suffix(".json")
        try:
            written = _run_one(f"[{number}/{len(pages)}] {name}", name, notebook, given, record)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed.append(name)
        else:
            verdicts += [{"chapter": name, **_row(claim)} for claim in read_record(record)["claims"]] if written else []
    show_table(verdicts)
    if failed:
        print(f"error: {len(failed)} of {len(pages)} chapters failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


def _pages(names: list[str], part: str | None, everything: bool) -> dict[str, Path]:
    """The pages asked for, name → source, in the order given; chapters of a part or of all in the book's order."""
    if not names and part is None and not everything:
        raise ValueError("say which chapters to run, or --part or --all; `kdcore list` names them.")
    papers = pipeline("papers").load(root()).by_part()
    if part is not None and part not in papers:
        raise ValueError(f"no part {part!r}; there are {', '.join(papers)}.")
    names = names + [paper.slug for name, group in papers.items() for paper in group if everything or name == part]
    sources = [pipeline("execute").source_path(name) for name in names]
    return {
        source.relative_to(root()).with_suffix("").as_posix().removeprefix("chapters/"): source for source in sources
    }


def _setting(given: Mapping[str, Any]) -> str:
    """A folder's name for parameters other than the profile, so that no setting overwrites another's results."""
    words = [f"{name}={value}" for name, value in sorted(given.items()) if name != "profile"]
    return re.sub(r"[^\w.=,+-]", "_", ",".join(words))


def _run_one(title: str, name: str, notebook: Path, given: dict[str, Any], record: Path) -> bool:
    """Execute a page and say where its notebook and record lie; whether it has written a record."""
    before = record.stat().st_mtime_ns if record.exists() else None
    with _progress(title):
        seconds = pipeline("execute").execute(name, notebook, given)
    written = record.exists() and record.stat().st_mtime_ns != before
    print(f"{title}: {seconds:.0f} s", f"  notebook {_shown(notebook)}", sep="\n")
    print(f"  record   {_shown(record)}" if written else "  no record", flush=True)
    return written


@contextmanager
def _progress(title: str) -> Iterator[None]:
    """What runs and for how long, in a terminal; elsewhere one line at the beginning."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    if not sys.stderr.isatty():
        print(f"{title} began at {time.strftime('%H:%M:%S')}", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(title, total=None)
        yield


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _row(claim: dict[str, Any]) -> dict[str, object]:
    return {
        "claim": claim["id"], "difference": interval(claim), "pairs": claim["pairs"], "verdict": claim["verdict"],
    }  # fmt: skip
