"""What came out of a sweep: one table of all its records, the verdicts over it, what failed and what it cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcore.study.records import read_record

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Course", "corrupt", "failures", "finished", "label", "record_path", "report", "table", "verdicts"]

_SHOWN = 40  # lines of verdicts, or of failures, that a terminal gets


@dataclass
class Course:
    """How Snakemake's run of a sweep went.

    Attributes:
        seconds: by the clock.
        workers: jobs at once; None on a cluster.
        memory: of Snakemake's own process in MB, as (seconds since the start, MB).
        complaint: its last lines if it did not end well.

    Example:
        >>> Course(seconds=10.0, workers=2).memory
        []
    """

    seconds: float
    workers: int | None
    memory: list[tuple[float, float]] = field(default_factory=list)
    complaint: str = ""


def record_path(folder: Path, plan: Mapping[str, Any], name: str) -> Path:
    """Where the job of that name puts its record.

    Example:
        >>> record_path(Path("s"), {"profile": "cpu", "chapter": "foundations/kd"}, "a1").as_posix()
        's/jobs/a1/cpu/foundations/kd.json'
    """
    return folder / "jobs" / name / plan["profile"] / f"{plan['chapter']}.json"


def finished(folder: Path, plan: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The jobs that have an executed notebook and a record, with what tells this notebook from a later one.

    Example:
        >>> finished(Path("nowhere"), {"jobs": {"a1": {}}})
        {}
    """
    found = {}
    for name in plan["jobs"]:
        executed = _executed(folder, name)
        if executed.exists() and record_path(folder, plan, name).exists():
            found[name] = (executed.stat().st_ino, executed.stat().st_mtime_ns)
    return found


def corrupt(folder: Path, plan: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with the records that are no good, by job; records that are not there do not count.

    Example:
        >>> corrupt(Path("nowhere"), {"jobs": {"a1": {}}, "profile": "cpu", "chapter": "foundations/kd"})
        {}
    """
    there = [name for name in plan["jobs"] if record_path(folder, plan, name).exists()]
    return {name: read for name in there if isinstance(read := _read(folder, plan, name), str)}


def label(plan: Mapping[str, Any], name: str) -> str:
    """A job by those of its parameters that differ within the sweep.

    Example:
        >>> label({"jobs": {"a": {"seed": 0, "alpha": 1}, "b": {"seed": 1, "alpha": 1}}}, "b")
        'seed=1'
    """
    jobs = plan["jobs"]
    varied = [key for key, value in jobs[name].items() if any(job[key] != value for job in jobs.values())]
    return ", ".join(f"{key}={jobs[name][key]}" for key in varied or jobs[name])


def failures(folder: Path, plan: Mapping[str, Any]) -> dict[str, str]:
    """Why a job has no result, by job, from what it logged last.

    Example:
        >>> failures(Path("nowhere"), {"jobs": {"a1": {}}, "profile": "cpu", "chapter": "foundations/kd"})
        {'a1': 'was not started, or killed at once'}
    """
    there = finished(folder, plan)
    return {name: _reason(folder / "jobs" / name / "log.txt") for name in plan["jobs"] if name not in there}


def table(records: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]) -> pd.DataFrame:
    """One row per job, arm, seed and metric, with the record's parameters as columns `parameters.…`.

    Args:
        records: by job name.
        plan: as `kdcore.commands.sweeping.plan_sweep` makes it; its values are columns even where a chapter does
            not record them.

    Example:
        >>> row = {"arm": "CE", "seed": 0, "metric": "accuracy", "value": 0.9}
        >>> record = {"profile": "quick", "parameters": {"seed": 0}, "results": [row]}
        >>> table({"a1": record}, {"jobs": {"a1": {"alpha": 0.5}}}).columns.tolist()
        ['job', 'profile', 'parameters.seed', 'parameters.alpha', 'arm', 'seed', 'metric', 'value']
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, record in records.items():
        parameters = {f"parameters.{key}": value for key, value in (record["parameters"] | plan["jobs"][name]).items()}
        head = {"job": name, "profile": record["profile"]} | parameters
        rows += [head | dict(row) for row in record["results"]]
    return pd.DataFrame(rows)


def verdicts(records: Mapping[str, Mapping[str, Any]], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each claim judged anew for each combination of the other parameters, over the seeds of all its jobs.

    Jobs whose seeds overlap ran the same pairs; such a pair counts once.

    Returns:
        Rows of `parameters` (a dict without the seed), `claim`, `verdict`, `difference`, `low`, `high`, `pairs`.

    Example:
        >>> verdicts({}, {"jobs": {}})
        []
    """
    groups: dict[str, list[str]] = {}
    for name in records:
        rest = {key: value for key, value in plan["jobs"][name].items() if key != "seed"}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(name)
    return [
        {"parameters": json.loads(rest), "claim": verdict.claim.id}
        | {key: getattr(verdict, key) for key in ("verdict", "difference", "low", "high", "pairs")}
        for rest, names in groups.items()
        for verdict in _judged([records[name] for name in names])
    ]


def report(folder: Path, plan: Mapping[str, Any], before: Mapping[str, Any], course: Course) -> None:
    """Write the table and the summary of a sweep that has ended, and print verdicts, cost and failures.

    Args:
        folder, plan: of the sweep.
        before: what `finished` gave before it began.
        course: how it went.

    Raises:
        RuntimeError: a job failed or its record is corrupt; names it. The rest is in the table.

    Example:
        >>> import tempfile
        >>> plan = {"jobs": {"a1": {"seed": 0}}, "profile": "quick", "chapter": "foundations/kd"}
        >>> report(Path(tempfile.mkdtemp()), plan, {}, Course(seconds=1.0, workers=1))
        Traceback (most recent call last):
        RuntimeError: 1 of 1 jobs have no result; the same command tries them again:
          seed=0: was not started, or killed at once
    """
    after = finished(folder, plan)
    read = {name: _read(folder, plan, name) for name in after}
    records = {name: record for name, record in read.items() if not isinstance(record, str)}
    problems = failures(folder, plan) | {name: record for name, record in read.items() if isinstance(record, str)}
    if records:
        frame = table(records, plan)
        frame.to_csv(folder / "results.csv.partial", index=False)
        (folder / "results.csv.partial").replace(folder / "results.csv")
        _print_verdicts(verdicts(records, plan))
        print(f"{len(records)} records, {len(frame)} rows: {folder / 'results.csv'}")
    ran = [name for name, notebook in after.items() if before.get(name) != notebook]
    _print_cost(folder, ran, course)
    if problems:
        lines = [f"{label(plan, name)}: {problem}" for name, problem in problems.items()]
        hidden = [f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        complaint = [course.complaint] if course.complaint and not ran else []
        raise RuntimeError(
            f"{len(lines)} of {len(plan['jobs'])} jobs have no result; the same command tries them again:\n  "
            + "\n  ".join([*lines[:_SHOWN], *hidden, *complaint])
        )


def _executed(folder: Path, name: str) -> Path:
    return folder / "jobs" / name / "executed.ipynb"


def _read(folder: Path, plan: Mapping[str, Any], name: str) -> dict[str, Any] | str:
    """A job's record, or what is wrong with it."""
    path = record_path(folder, plan, name)
    try:
        record = read_record(path)
    except ValueError as error:
        return str(error).split("; delete it")[0]
    if (record["chapter"], record["profile"]) != (plan["chapter"], plan["profile"]):
        return f"record {path} is of {record['chapter']} at {record['profile']}"
    return record


def _reason(log: Path) -> str:
    """The error that a job logged, or how it ended without one."""
    if not log.exists() or not log.stat().st_size:
        return "was not started, or killed at once"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    if any("s of CPU time" in line for line in lines):
        return f"ran and left no record; see {log}"
    return f"ended without a word; it was killed, perhaps because memory ran out; see {log}"


def _judged(records: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The claims of records that differ in their seeds only, judged over all their pairs."""
    import pandas as pd

    from kdcore import study

    frames: list[pd.DataFrame] = []
    claims: list[study.Claim] = []
    for record in records:
        frames.append(pd.DataFrame(record["results"]))
        claims = claims or [
            study.Claim(**{key: claim[key] for key in study.Claim.__dataclass_fields__ if key in claim})
            for claim in record["claims"]
        ]
    return study.judge(claims, pd.concat(frames).drop_duplicates(["arm", "seed", "metric"]))


def _print_verdicts(rows: list[dict[str, Any]]) -> None:
    """How each claim fared over the sweep, and where there is room, in each combination."""
    for claim in dict.fromkeys(row["claim"] for row in rows):
        found = [row["verdict"] for row in rows if row["claim"] == claim]
        counts = ", ".join(f"{found.count(verdict)} {verdict}" for verdict in dict.fromkeys(found))
        print(f"{claim}: {counts}")
    for row in rows if len(rows) <= _SHOWN else []:
        place = " ".join(f"{key}={value}" for key, value in row["parameters"].items())
        interval = f"{row['difference']:+.3g} [{row['low']:.3g}, {row['high']:.3g}] over {row['pairs']} seeds"
        print(f"  {place:30} {row['claim']:28} {row['verdict']:12} {interval}")


def _print_cost(folder: Path, ran: list[str], course: Course) -> None:
    """Print and keep what the run cost beyond the cells themselves."""
    contents = [json.loads(_executed(folder, name).read_text(encoding="utf-8")) for name in ran]
    cells = sum(cell["metadata"].get("kdcore", {}).get("seconds", 0.0) for each in contents for cell in each["cells"])
    summary: dict[str, Any] = {"jobs_run": len(ran), "seconds": round(course.seconds, 1), "workers": course.workers}
    text = f"{len(ran)} jobs run in {course.seconds:.0f} s"
    if ran and course.workers:
        overhead = max(0.0, course.seconds * course.workers - cells) / len(ran)
        summary |= {"seconds_in_cells": round(cells, 1), "overhead_seconds_per_job": round(overhead, 3)}
        text += (
            f", {course.workers} at once: {cells / len(ran):.2f} s in the cells and {overhead:.2f} s around them each"
        )
    if course.memory:
        text += f"; Snakemake took up to {max(size for _, size in course.memory):.0f} MB"
    print(text + ".", file=sys.stderr)
    (folder / "summary.json").write_text(json.dumps(summary | {"memory_mb": course.memory}), encoding="utf-8")
