"""The workflows on a cluster: a submit script that starts local processes, with faults; and the shipped profiles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.cli import parse_args
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import build_command, sweep_command, write_swept_chapter  # the one beside this file

_SUBMIT = """
import os, pathlib, signal, subprocess, sys, time
state, faults, *resources, script = sys.argv[1:]
state = pathlib.Path(state)
number = len(list(state.glob("*.submitted"))) + 1
(state / f"{number}.submitted").write_text(" ".join(resources))
fault = dict(enumerate(faults.split(","), 1)).get(number, faults if faults == "refused" else "none")
if fault == "refused":
    sys.exit("the queue is closed")
run = f'bash "{script}" > "{state}/{number}.log" 2>&1; echo $? > "{state}/{number}.status"'
process = subprocess.Popen(["bash", "-c", run], start_new_session=True, stdout=subprocess.DEVNULL)
(state / f"{number}.pid").write_text(str(process.pid))
if fault == "dies":
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
(state / f"{number}.fault").write_text(fault)
print(number)
"""
_STATUS = """
import os, pathlib, sys
state, number = pathlib.Path(sys.argv[1]), sys.argv[2]
ended = state / f"{number}.status"
if (state / f"{number}.fault").read_text() == "reported":
    print("failed")
elif ended.exists() and ended.read_text():
    print("success" if ended.read_text().strip() == "0" else "failed")
else:
    try:  # a process that was killed stays a name in the table of its parent, which is gone: none is left here
        alive = pathlib.Path("/proc", (state / f"{number}.pid").read_text(), "stat").read_text().split()[2] != "Z"
    except OSError:
        alive = False
    print("running" if alive else "failed")
"""


def cluster(folder: Path, faults: str) -> Path:
    """A Snakemake profile whose cluster is this machine; `faults` lists what happens to each submission in turn."""
    (folder / "state").mkdir(parents=True)
    (folder / "submit.py").write_text(_SUBMIT)
    (folder / "status.py").write_text(_STATUS)
    resources = "{resources.mem_mb} {resources.runtime} {resources.gpu}"
    profile = {
        "executor": "cluster-generic",
        "jobs": 2,
        "latency-wait": 10,
        "seconds-between-status-checks": 1,
        "cluster-generic-submit-cmd": f"{sys.executable} '{folder}/submit.py' '{folder}/state' {faults} {resources}",
        "cluster-generic-status-cmd": f"{sys.executable} '{folder}/status.py' '{folder}/state'",
        "default-resources": {"gpu": 0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(profile))
    return folder


def run(project: Path, command: list[str], expect: int) -> str:
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_jobs_that_a_cluster_loses_are_submitted_again(tiny_project):
    write_swept_chapter(tiny_project)
    profile = cluster(tiny_project / "cluster", "refused,dies,reported")
    arguments = ["-p", "seed=0:3", "--snakemake-profile", str(profile), "--retries", "3"]
    output = run(tiny_project, sweep_command(*arguments), expect=0)
    assert "3 records" in output
    state = profile / "state"
    submitted = sorted(state.glob("*.submitted"), key=lambda path: int(path.stem))
    assert len(submitted) == 6  # three went wrong
    assert {path.read_text() for path in state.glob("*.fault")} == {"dies", "reported", "none"}
    assert submitted[0].read_text() == "3000 20 0"
    assert {path.read_text() for path in submitted} >= {"3000 20 0", "6000 20 0"}  # a second attempt gets more memory


def test_jobs_that_never_run_are_reported(tiny_project):
    write_swept_chapter(tiny_project)
    profile = cluster(tiny_project / "cluster", "refused")
    arguments = ["-p", "seed=0:2", "--snakemake-profile", str(profile), "--retries", "1"]
    output = run(tiny_project, sweep_command(*arguments), expect=1)
    assert "error: 2 of 2 jobs have no result" in output
    assert "seed=1: was not started, or killed at once" in output
    assert "the queue is closed" in output
    assert len(list((profile / "state").glob("*.submitted"))) == 4


def test_a_book_is_built_on_a_cluster(tiny_project):
    profile = cluster(tiny_project / "cluster", "none,dies")
    command = [*build_command(tiny_project), "--snakemake-profile", str(profile)]
    (profile / "config.yaml").write_text((profile / "config.yaml").read_text() + "retries: 1\n")
    run(tiny_project, command, expect=0)
    assert (tiny_project / "_build" / "html" / "index.html").exists()
    assert len(list((profile / "state").glob("*.submitted"))) == 3
    assert run(tiny_project, [*build_command(tiny_project), "--why"], expect=0).startswith("Nothing has changed")


PROFILES = sorted((Path(__file__).resolve().parents[2] / "ci" / "profiles").glob("*/config.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_shipped_profiles_are_what_snakemake_and_its_plug_ins_take(path, root):
    command = ["--profile", str(path.parent), "--snakefile", str(root / "ci" / "Snakefile")]
    _, options = parse_args(command)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert options.executor == path.parent.name
    assert options.jobs == given["jobs"]
    plugin = ExecutorPluginRegistry().get_plugin(options.executor)
    known = {option for action in _options(plugin) for option in action}
    own = {f"--{name}" for name in given if name.startswith(options.executor)}
    assert own <= known
    assert {"mem_mb", "runtime"} <= set(given["default-resources"])


def _options(plugin) -> list[list[str]]:
    from argparse import ArgumentParser

    parser = ArgumentParser()
    plugin.register_cli_args(parser, "executor")
    return [action.option_strings for action in parser._actions]


def test_an_option_that_no_plug_in_knows_is_noticed(tmp_path, root):
    (tmp_path / "config.yaml").write_text("executor: slurm\nslurm-no-such-option: 1\n")
    with pytest.raises(SystemExit):
        parse_args(["--profile", str(tmp_path), "--snakefile", str(root / "ci" / "Snakefile")])


def test_needs_of_a_chapter_by_profile(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "ci"))
    from needs import needs

    quick, cpu, gpu = (needs("logits/kd", profile) for profile in ("quick", "cpu", "gpu"))
    assert quick.minutes < cpu.minutes < gpu.minutes
    assert (quick.gpus, cpu.gpus, gpu.gpus) == (0, 0, 1)
    assert needs("logits/kd", "quick", attempt=2).mem_mb == 2 * quick.mem_mb
    recorded = [json.loads(path.read_text()) for path in (root / "book" / "records").glob("*/*/*.json")]
    for record in recorded:  # what was recorded stays far below its limit
        limit = needs(record["chapter"], record["profile"]).minutes
        assert record["provenance"]["wall_seconds"] < 60 * limit / 2, record["chapter"]
