"""`kdcore sweep`: a chapter with every combination of some values; planned here, run by Snakemake (`ci/sweep.smk`)."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.commands import collecting
from kdcore.commands.chapters import complete_chapter
from kdcore.commands.checkout import pipeline, root

__all__ = ["EXAMPLES", "combinations", "job_name", "plan_sweep", "sweep", "values"]

EXAMPLES = (
    "kdcore sweep spherical_kd -p temperature=1,2,4,8 -p seed=0:25:5",
    "kdcore sweep kd -p alpha=0.5,0.9 --profile cpu --snakemake-profile ci/profiles/slurm --dry-run",
)
_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")
_STEP = re.compile(r"(\d+) of (\d+) steps")
_SHOWN = 20  # jobs that a dry run lists


def values(text: str) -> list[Any]:
    """The values that a text lists: by comma, integer ranges by colon; what is no number is text.

    Args:
        text: such as `1,2.5`, `0:5`, `0:20:5`, `mnist,usps`, or one Python literal such as `[8, 16]`.

    Raises:
        ValueError: a range that holds nothing.

    Example:
        >>> values("1,2.5"), values("0:3"), values("mnist,usps"), values("[8, 16]")
        ([1, 2.5], [0, 1, 2], ['mnist', 'usps'], [[8, 16]])
    """
    try:
        literal = ast.literal_eval(text)
        return list(literal) if isinstance(literal, tuple) else [literal]
    except (ValueError, SyntaxError):
        return [value for piece in text.split(",") for value in _piece(piece)]


def combinations(given: Iterable[str]) -> list[dict[str, Any]]:
    """The cross product of what `name=values` pairs list, each combination once; the last name varies fastest.

    Raises:
        ValueError: a pair without equals sign, a name given twice, or an empty range.

    Example:
        >>> combinations(["temperature=1,4", "seed=0:2"])[1]
        {'temperature': 1, 'seed': 1}
    """
    grid: dict[str, list[Any]] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"parameters are given as name=values, got {pair!r}.")
        if name in grid:
            raise ValueError(f"{name} is given twice; list its values by comma: {name}=…,….")
        if name in ("profile", "results_dir"):
            raise ValueError(f"{name} is the same for the whole sweep; give it as --{name.replace('_', '-')}.")
        # Where the locale knows no Unicode, Python hands over bytes in disguise.
        grid[name] = values(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    product = [dict(zip(grid, chosen, strict=True)) for chosen in itertools.product(*grid.values())]
    return list({job_name(parameters): parameters for parameters in product}.values())


def job_name(parameters: Mapping[str, Any]) -> str:
    """The folder of a combination: the same whatever else the sweep holds, so that a wider sweep reruns nothing.

    Example:
        >>> job_name({"seed": 1, "temperature": 4}) == job_name({"temperature": 4, "seed": 1})
        True
    """
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]


def plan_sweep(chapter: str, given: Iterable[str], profile: str, minutes: float | None = None) -> dict[str, Any]:
    """What a sweep consists of, with every combination checked against the chapter's parameters.

    Args:
        chapter: "part/method" or "method".
        given: `name=values` pairs.
        profile: of all jobs.
        minutes: that a cell may take; by chapter and profile if left out.

    Returns:
        `chapter`, `profile`, `digest` of the code, `minutes` and `jobs`, the parameters by job name.

    Raises:
        ValueError: unknown chapter or parameter, or a value that the chapter does not take.

    Example:
        >>> list(plan_sweep("spherical_kd", ["temperature=2"], "quick")["jobs"].values())
        [{'temperature': 2}]
    """
    parameters, pages = pipeline("parameters"), pipeline("pages")
    source = pipeline("execute").source_path(chapter)
    if source.parent.parent.name != "chapters":
        raise ValueError(f"{chapter} is no chapter; `kdcore list` shows them.")
    name = f"{source.parent.name}/{source.stem}"
    knobs = parameters.knobs(source.read_text(encoding="utf-8"))
    parameters.check(knobs, {"profile": profile})
    jobs = combinations(given)
    for combination in jobs:
        parameters.check(knobs, combination)
    return {
        "chapter": name,
        "profile": profile,
        "digest": pages.combined(pages.code_files(name, root())),
        "minutes": minutes or pipeline("needs").needs(name, profile).minutes,
        "jobs": {job_name(combination): combination for combination in jobs},
    }


def sweep(
    chapter: Annotated[str, typer.Argument(help="The chapter: its method's name.", autocompletion=complete_chapter)],
    parameters: Annotated[
        list[str], typer.Option("--parameter", "-p", help="name=values: 1,2,4 or 0:5 or 0:20:5 or text,text.")
    ],
    profile: Annotated[str, typer.Option(help="quick, cpu or gpu.")] = "quick",
    jobs: Annotated[int | None, typer.Option(help="Jobs at once; as many as there are cores if left out.")] = None,
    retries: Annotated[
        int | None, typer.Option(help="How often a failed job is tried again; once if left out.")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Minutes that a cell may take.")] = None,
    snakemake_profile: Annotated[
        Path | None, typer.Option(help="A folder such as ci/profiles/slurm, to run on a cluster.")
    ] = None,
    results_dir: Annotated[Path | None, typer.Option(help="Where everything goes; _build/sweeps if left out.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
) -> None:
    """Run a chapter with every combination of values; finished jobs are not run again.

    Raises:
        ValueError: something in the plan is mistaken; nothing has been run.
        RuntimeError: jobs failed or left corrupt records; names them. The others are complete.

    Example:
        >>> sweep("spherical_kd", ["temperature=1,2", "seed=0:3"], dry_run=True)
        6 jobs of logits/spherical_kd at profile quick, in ...
          temperature=1 seed=0 ...
    """
    plan = plan_sweep(chapter, parameters, profile, time_limit)
    folder = (results_dir or root() / "_build" / "sweeps").resolve() / profile / plan["chapter"]
    if dry_run:
        _show(plan, folder)
        return
    build = pipeline("build")
    with build.locked(folder) as lock:
        _lay_out(plan, folder)
        for name, problem in collecting.corrupt(folder, plan).items():
            print(f"{collecting.label(plan, name)}: {problem}; it is run again.", file=sys.stderr)
            collecting.record_path(folder, plan, name).unlink()
        before = collecting.finished(folder, plan)
        one_gpu = [] if snakemake_profile else ["--resources", "gpu=1"]
        command = build.snakemake("sweep.smk", folder, *one_gpu, profile=snakemake_profile, jobs=jobs, retries=retries)
        course = _drive(command, build.environment(folder), lock)
        course.workers = None if snakemake_profile else jobs or os.cpu_count() or 1
        collecting.report(folder, plan, before, course)


def _piece(text: str) -> list[Any]:
    """A range, a literal or a text."""
    found = _RANGE.fullmatch(text.strip())
    if found:
        start, stop, step = int(found[1]), int(found[2]), int(found[3] or 1)
        numbers = list(range(start, stop, step)) if step else []
        if not numbers:
            raise ValueError(f"{text!r} holds no numbers; a range is start:stop or start:stop:step, without its stop.")
        return numbers
    try:
        return [ast.literal_eval(text.strip())]
    except (ValueError, SyntaxError):
        return [text]


def _show(plan: Mapping[str, Any], folder: Path) -> None:
    """The plan, in the terminal."""
    done = collecting.finished(folder, plan)
    print(f"{len(plan['jobs'])} jobs of {plan['chapter']} at profile {plan['profile']}, in {folder}")
    for combination in list(plan["jobs"].values())[:_SHOWN]:
        print("  " + " ".join(f"{name}={value}" for name, value in combination.items()))
    if len(plan["jobs"]) > _SHOWN:
        print(f"  … and {len(plan['jobs']) - _SHOWN} more")
    print(f"{len(done)} have a result already; it is kept where the code has not changed since.")


def _lay_out(plan: Mapping[str, Any], folder: Path) -> None:
    """Write the plan, and each job's parameters into its folder."""
    for leftover in folder.glob("jobs/*/.partial-*"):  # of a sweep that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    for name, combination in plan["jobs"].items():
        path = folder / "jobs" / name / "parameters.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(combination, indent=1), encoding="utf-8")
    (folder / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")


def _drive(command: list[str], environment: Mapping[str, str], lock: int) -> collecting.Course:
    """Run Snakemake and show how far it is; it holds the lock, too, should it outlive this process."""
    began = shown = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        env=environment, pass_fds=[lock],
    )  # fmt: skip
    memory: list[tuple[float, float]] = []
    sampler = threading.Thread(target=_sample, args=(process, began, memory), daemon=True)
    sampler.start()
    assert process.stdout is not None
    last: list[str] = []
    for line in process.stdout:
        last = [*last[-15:], line.rstrip()]
        found = _STEP.search(line)
        if found and (time.monotonic() - shown > 5 or found[1] == found[2]):
            shown = time.monotonic()
            print(f"[{found[1]}/{found[2]}] {shown - began:.0f} s gone", flush=True)
    complaint = "\n  ".join(last) if process.wait() else ""
    sampler.join()
    return collecting.Course(time.monotonic() - began, None, memory, complaint)


def _sample(process: subprocess.Popen[str], began: float, memory: list[tuple[float, float]]) -> None:
    """Note the memory of Snakemake's own process, every second while it runs, where /proc tells it."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
        except OSError:
            return
        if found:
            memory.append((round(time.monotonic() - began, 1), round(int(found[1]) / 1024, 1)))
        time.sleep(1)
