"""`kdcore sweep`: planned and checked before anything runs, resumed, collected; and a thousand jobs of it."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore.commands import collecting, sweeping

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import sweep_command, write_swept_chapter  # the one beside this file


def sweep(project: Path, *arguments: str, expect: int = 0, **options) -> str:
    done = subprocess.run(
        sweep_command(*arguments),
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        **{"timeout": 400, **options},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def folder(project: Path) -> Path:
    return project / "_build" / "sweeps" / "quick" / "logits" / "first"


def executed(project: Path) -> dict[str, int]:
    """When each job's notebook was written, by its parameters."""
    return {
        path.with_name("parameters.json").read_text(): path.stat().st_mtime_ns
        for path in folder(project).glob("jobs/*/executed.ipynb")
    }


def rows(project: Path) -> list[dict[str, str]]:
    with (folder(project) / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1,2,4", [1, 2, 4]),
        ("0:5", [0, 1, 2, 3, 4]),
        ("0:20:5", [0, 5, 10, 15]),
        ("3:0:-1", [3, 2, 1]),
        ("0:2,7", [0, 1, 7]),
        ("0.5", [0.5]),
        ("mnist,usps", ["mnist", "usps"]),
        ("mnist", ["mnist"]),
        ("'a,b'", ["a,b"]),
        ("[8, 16]", [[8, 16]]),
        ("True,False", [True, False]),
        ("1e-3,1e-2", [0.001, 0.01]),
    ],
)
def test_values_of_a_text(text, wanted):
    assert sweeping.values(text) == wanted


@pytest.mark.parametrize("text", ["5:0", "0:0", "0:5:0"])
def test_a_range_that_holds_nothing_is_refused(text):
    with pytest.raises(ValueError, match="holds no numbers"):
        sweeping.values(text)


def test_combinations_are_the_cross_product_each_once():
    found = sweeping.combinations(["a=1,2,1", "b=x,y"])
    assert found == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["temprature=1,2"], "Did you mean 'temperature'"),
        (["temperature=1,warm"], "temperature must be a positive number, got 'warm'"),
        (["temperature=1,0"], "temperature must be a positive number, got 0"),
        (["temperature"], "name=values"),
        (["temperature=1", "temperature=2"], "given twice"),
        (["profile=quick,cpu"], "give it as --profile"),
    ],
)
def test_every_combination_is_checked_before_anything_runs(given, message):
    with pytest.raises(ValueError, match=message):
        sweeping.plan_sweep("spherical_kd", given, "quick")


def test_a_sweep_is_of_a_chapter():
    with pytest.raises(ValueError, match="book/ledger is no chapter"):
        sweeping.plan_sweep("book/ledger", [], "quick")
    with pytest.raises(ValueError, match="profile must be one of"):
        sweeping.plan_sweep("kd", [], "huge")


def test_a_sweep_runs_collects_and_grows(tiny_project):
    write_swept_chapter(tiny_project)
    arguments = ("-p", "temperature=1,2", "-p", "seed=0,1")
    assert "4 jobs of logits/first" in sweep(tiny_project, *arguments, "--dry-run")
    assert not folder(tiny_project).exists()

    output = sweep(tiny_project, *arguments, "--jobs", "2")
    assert "wins: 2 supported" in output
    assert "over 3 seeds" in output  # 0 and 1, 1 and 2: the pair of seed 1 counts once
    assert "4 jobs run in" in output
    assert "s around them each" in output
    found = rows(tiny_project)
    assert len(found) == 16
    assert {(row["parameters.temperature"], row["parameters.seed"]) for row in found} == {
        (temperature, seed) for temperature in "12" for seed in "01"
    }
    assert all(float(row["value"]) == 0 for row in found if row["arm"] == "CE")
    first = executed(tiny_project)

    for path in (tiny_project / "kdcore").rglob("*.py"):
        os.utime(path)
    output = sweep(tiny_project, "-p", "temperature=1,2,3", "-p", "seed=0,1")
    assert "2 jobs run in" in output
    second = executed(tiny_project)
    assert {job: when for job, when in second.items() if job in first} == first
    assert len(second) == 6

    assert "another build is running" in _while_locked(tiny_project, *arguments)


def _while_locked(project: Path, *arguments: str) -> str:
    import fcntl

    with (folder(project) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return sweep(project, *arguments, expect=1)


def test_failed_jobs_are_tried_again_then_named_and_the_rest_completes(tiny_project):
    write_swept_chapter(
        tiny_project,
        "tries = pathlib.Path(results_dir, 'tries')\n"
        "tries.parent.mkdir(parents=True, exist_ok=True)\n"
        "with tries.open('a') as file:\n    file.write('x')\n"
        "if seed == 1:\n    raise ValueError('seed 1 is unlucky')\n"
        "if seed == 2 and tries.read_text() == 'x':\n    raise ValueError('the first time')",
    )
    output = sweep(tiny_project, "-p", "seed=0:3", "--retries", "2", expect=1)
    assert "error: 1 of 3 jobs have no result" in output
    assert "seed=1: logits/first: code cell 2 failed with ValueError: seed 1 is unlucky" in output
    assert {row["parameters.seed"] for row in rows(tiny_project)} == {"0", "2"}
    assert sorted(path.read_text() for path in folder(tiny_project).glob("jobs/*/tries")) == ["x", "xx", "xxx"]


def test_a_corrupt_record_is_named_run_again_and_never_averaged_in(tiny_project):
    write_swept_chapter(tiny_project)
    sweep(tiny_project, "-p", "seed=0:3")
    whole = executed(tiny_project)
    victim = folder(tiny_project) / "jobs" / sweeping.job_name({"seed": 1}) / "quick" / "logits" / "first.json"
    victim.write_text(victim.read_text()[:200])  # cut short
    other = folder(tiny_project) / "jobs" / sweeping.job_name({"seed": 2}) / "quick" / "logits" / "first.json"
    other.write_text(other.read_text().replace('"value": 4.0}', '"value": "four"}'))
    plan = json.loads((folder(tiny_project) / "plan.json").read_text())
    with pytest.raises(RuntimeError, match="2 of 3 jobs have no result") as caught:
        collecting.report(folder(tiny_project), plan, {}, collecting.Course(1.0, 1))
    assert str(victim) in str(caught.value)
    assert {row["parameters.seed"] for row in rows(tiny_project)} == {"0"}

    output = sweep(tiny_project, "-p", "seed=0:3")
    assert "seed=1: record " in output
    assert "seed=2: record " in output
    assert "it is run again" in output
    assert {row["parameters.seed"] for row in rows(tiny_project)} == {"0", "1", "2"}
    again = executed(tiny_project)
    assert [job for job in whole if again[job] == whole[job]] == [json.dumps({"seed": 0}, indent=1)]


def test_out_of_memory_in_one_seed_fails_that_job_alone(tiny_project):
    write_swept_chapter(
        tiny_project,
        "import os, resource, signal\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "if seed == 1:\n    bytearray(2**34)\n"
        "if seed == 2:\n    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out",
    )
    output = sweep(tiny_project, "-p", "seed=0:4", "--retries", "0", expect=1)
    assert "seed=1: logits/first: code cell 2 failed with MemoryError" in output
    assert "seed=2: logits/first: code cell 2 lost its process: something killed it; perhaps memory ran out" in output
    assert {row["parameters.seed"] for row in rows(tiny_project)} == {"0", "3"}


def test_values_never_reach_a_shell(tiny_project):
    write_swept_chapter(tiny_project)
    note = "$(touch stolen); `touch stolen` \" ' & touch stolen"
    sweep(tiny_project, "-p", f"note={note!r}")
    assert not list(tiny_project.rglob("stolen"))
    assert {row["parameters.note"] for row in rows(tiny_project)} == {note}


def test_a_job_without_a_record_is_named(tiny_project):
    write_swept_chapter(tiny_project, "if seed == 1:\n    results_dir = 'elsewhere'")
    output = sweep(tiny_project, "-p", "seed=0:2", "--retries", "0", expect=1)
    assert "seed=1: ran and left no record" in output


@pytest.mark.long
def test_a_thousand_jobs_complete_and_the_driver_stays_flat(tiny_project, record_property):
    write_swept_chapter(tiny_project)
    # Python's caches where they are surely written: without them each job would compile all that it imports.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tiny_project / "caches")
    output = sweep(tiny_project, "-p", "temperature=1:101", "-p", "seed=0:20:2", env=environment, timeout=5000)
    assert "1000 jobs run in" in output
    assert "wins: 100 supported" in output
    assert len(rows(tiny_project)) == 4000
    summary = json.loads((folder(tiny_project) / "summary.json").read_text())
    memory = [size for _, size in summary["memory_mb"]]
    quarter = len(memory) // 4
    second, last = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    assert last < 1.5 * second + 50
    for name in ("seconds", "workers", "overhead_seconds_per_job"):
        record_property(name, summary[name])
        print(f"{name}: {summary[name]}")
    print(f"memory of Snakemake: {second} MB in the second quarter, {last} MB in the last")
