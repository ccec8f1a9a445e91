"""The pipeline on a small project: it builds, reruns only what changed, resumes after a kill, and fails clearly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import build_command, write_chapter  # the one beside this file


def build(project: Path, expect: int = 0) -> str:
    done = subprocess.run(build_command(project), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def executed(project: Path) -> dict[str, float]:
    """When each executed notebook was written."""
    folder = project / "_build" / "executed" / "chapters"
    return {path.stem: path.stat().st_mtime_ns for path in folder.glob("[a-z]*/*.ipynb")}


def test_build_reruns_exactly_what_changed(tiny_project):
    output = build(tiny_project)
    assert "[1/3]" in output
    assert "left" in output
    assert re.search(r"^  logits/first: \d+ s \(\d+ s of CPU time\)$", output, re.MULTILINE)
    assert (tiny_project / "_build" / "html" / "index.html").exists()
    first = executed(tiny_project)

    for path in (tiny_project / "chapters").rglob("*.md"):
        os.utime(path)  # touched, not changed
    assert "[1/" not in build(tiny_project)
    assert executed(tiny_project) == first

    copied = tiny_project / "_build" / "executed" / "chapters" / "features" / "second.ipynb"
    copied.with_suffix(".sources.json").unlink()  # of which nothing here says what it was made of
    build(tiny_project)
    assert executed(tiny_project)["second"] != first["second"]
    first = executed(tiny_project)

    (tiny_project / "kdcore" / "logits" / "first.py").write_text("VALUE = 2\n")
    build(tiny_project)
    second = executed(tiny_project)
    assert second["first"] != first["first"]
    assert second["second"] == first["second"]
    page = (tiny_project / "_build" / "html" / "chapters" / "logits" / "first.html").read_text()
    assert ">2\n</pre>" in page

    assert "leads to" in page

    # The ledger's claims are new, no page of Markdown is: the index is read again all the same.
    index = tiny_project / "_build" / "html" / "book" / "index.html"
    assert "1 claims" not in index.read_text()
    claim = {"chapter": "logits/first", "profile": "quick", "verdict": "undecided"}
    ledger = tiny_project / "_build" / "records" / "ledger.json"
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_text(json.dumps([claim]))
    subprocess.run([sys.executable, tiny_project / "ci" / "render.py", tiny_project / "_build"], check=True)
    assert "1 claims at" in index.read_text()

    notebook = json.loads((tiny_project / "_build" / "executed" / "chapters" / "logits" / "first.ipynb").read_text())
    assert notebook["metadata"]["kdcore"]["page"] == "logits/first"
    assert str(tiny_project) not in json.dumps(notebook)


def test_killed_build_resumes_without_rerunning_finished_chapters(tiny_project):
    write_chapter(
        tiny_project,
        "features",
        "second",
        "import time\ntime.sleep(600 if not __import__('os').path.exists('go') else 0)",
    )
    process = subprocess.Popen(build_command(tiny_project), stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stdout:
        if "[1/3]" in line:  # one chapter is done and noted as done; the other is in its long cell
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-9", "-f", str(tiny_project)], check=False)  # its kernels, in sessions of their own
    finished = executed(tiny_project)
    assert set(finished) == {"first"}
    (tiny_project / "go").write_text("")
    build(tiny_project)
    assert executed(tiny_project)["first"] == finished["first"]
    assert set(executed(tiny_project)) == {"first", "second"}


def test_failing_cell_fails_the_build_and_names_chapter_and_cell(tiny_project):
    write_chapter(tiny_project, "logits", "first", "print('before')\nraise ValueError('the labels are wrong')")
    output = build(tiny_project, expect=1)
    assert "logits/first: code cell 2 failed with ValueError: the labels are wrong" in output
    kept = tiny_project / "_build" / "executed" / "chapters" / "logits" / "first.failed.ipynb"
    assert str(kept) in output
    assert "before" in kept.read_text()
    assert set(executed(tiny_project)) - {"first.failed"} == {"second"}


def test_rendering_warning_fails_the_build(tiny_project):
    (tiny_project / "book" / "index.md").write_text("# Index\n\n[nowhere](missing_page)\n")
    for _ in range(2):  # also when nothing has changed since the failure
        output = build(tiny_project, expect=1)
        assert "missing_page" in output


def test_two_builds_at_once_in_one_tree(tiny_project):
    import fcntl

    (tiny_project / "_build").mkdir()
    with (tiny_project / "_build" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another build is running" in build(tiny_project, expect=1)


def execute(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(project / "ci" / "execute.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frist"], "error: no chapter 'frist'. Did you mean 'first'?"),
        (["first", "-p", "temprature=2"], "Did you mean 'temperature'?"),
        (["first", "--profile", "huge"], "error: profile must be one of quick, cpu, gpu, got 'huge'."),
        (["first", "-p", "temperature"], "error: parameters are given as name=value"),
    ],
)
def test_mistaken_calls_are_one_line(tiny_project, arguments, message):
    done = execute(tiny_project, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_parameters_reach_the_notebook(tiny_project):
    write_chapter(tiny_project, "logits", "first", "print(profile, temperature * 2, results_dir)")
    done = execute(tiny_project, "first", "--profile", "cpu", "-p", "temperature=3.5", "--results-dir", "else where")
    assert done.returncode == 0, done.stderr
    notebook = (tiny_project / "_build" / "runs" / "cpu" / "logits" / "first.ipynb").read_text()
    assert "cpu 7.0" in notebook
