"""What goes wrong while chapters run: each fault is caused for real, and what is kept and said is checked."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import build_command, sweep_command, write_chapter, write_swept_chapter  # the one beside this file

_TRIES = """
import os, pathlib, signal
tries = pathlib.Path("tries")
with tries.open("a") as file:
    file.write("x")
"""


def run(project: Path, command: list[str], expect: int = 0, **options) -> str:
    options = {"cwd": project, "timeout": 400, **options}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def execute(project: Path, *arguments: str, expect: int = 0, **options) -> str:
    return run(project, [sys.executable, str(project / "ci" / "execute.py"), *arguments], expect, **options)


def written(project: Path, chapter: str) -> int:
    return (project / "_build" / "executed" / "chapters" / f"{chapter}.ipynb").stat().st_mtime_ns


def test_a_worker_killed_in_a_cell_is_tried_again(tiny_project):
    kill = "if tries.read_text() == 'x':\n    os.kill(os.getpid(), signal.SIGKILL)"
    write_chapter(tiny_project, "logits", "first", f"{_TRIES}{kill}")
    run(tiny_project, build_command(tiny_project))
    assert (tiny_project / "tries").read_text() == "xx"
    assert (tiny_project / "_build" / "html" / "index.html").exists()


def test_a_worker_killed_again_is_reported_and_a_cell_that_raises_is_not_repeated(tiny_project):
    write_chapter(tiny_project, "logits", "first", f"{_TRIES}os.kill(os.getpid(), signal.SIGKILL)")
    output = run(tiny_project, build_command(tiny_project), expect=1)
    assert "logits/first: code cell 2 lost its process: something killed it; perhaps memory ran out" in output
    assert (tiny_project / "tries").read_text() == "xx"
    (tiny_project / "tries").unlink()
    write_chapter(tiny_project, "logits", "first", f"{_TRIES}raise ValueError('always')")
    output = run(tiny_project, build_command(tiny_project), expect=1)
    assert "logits/first: code cell 2 failed with ValueError: always" in output
    assert (tiny_project / "tries").read_text() == "x"


def test_a_notebook_that_hangs_is_stopped_and_named(tiny_project):
    write_chapter(tiny_project, "logits", "first", "import time\ntime.sleep(600)")
    output = execute(tiny_project, "first", "--time-limit", "0.05", expect=1)
    assert "error: logits/first: code cell 2 was stopped at the time limit of 0.05 minutes" in output
    assert "first.failed.ipynb" in output

    write_swept_chapter(tiny_project, "import time\ntime.sleep(600 if seed == 1 else 0)")
    output = run(tiny_project, sweep_command("-p", "seed=0:2", "--time-limit", "0.1", "--retries", "0"), expect=1)
    assert "seed=1: logits/first: code cell 2 was stopped at the time limit of 0.1 minutes" in output
    assert "1 records" in output


def test_a_full_disk_leaves_the_old_record_whole(tiny_project):
    code = """
import resource
from kdcore import study
record = study.read_record(f"{results_dir}/quick/logits/first.json")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a write beyond fails as on a full disk
study.write_record(record | {"results": 50 * record["results"]}, results_dir)
"""
    write_swept_chapter(tiny_project)
    execute(tiny_project, "first", "--results-dir", "kept")
    record = tiny_project / "kept" / "quick" / "logits" / "first.json"
    before = record.read_text()
    write_chapter(tiny_project, "logits", "first", code)
    output = execute(tiny_project, "first", "--results-dir", "kept", expect=1)
    assert "logits/first: code cell 2 failed with OSError: [Errno 27] File too large" in output
    assert record.read_text() == before
    assert list(record.parent.iterdir()) == [record]


def test_a_full_disk_leaves_the_old_notebook_whole(tiny_project):
    execute(tiny_project, "first", "--output", "kept.ipynb")
    before = (tiny_project / "kept.ipynb").read_text()

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    output = execute(tiny_project, "first", "--output", "kept.ipynb", expect=1, preexec_fn=full)
    assert "error: [Errno 27] File too large" in output
    assert (tiny_project / "kept.ipynb").read_text() == before
    assert not list(tiny_project.glob(".partial-*"))


def test_a_corrupt_record_of_a_build_is_named_and_its_chapter_run_again(tiny_project):
    write_swept_chapter(tiny_project)
    run(tiny_project, build_command(tiny_project))
    first, second = written(tiny_project, "logits/first"), written(tiny_project, "features/second")
    record = tiny_project / "_build" / "records" / "quick" / "logits" / "first.json"
    whole = record.read_text()
    record.write_text(whole[:300])
    output = run(tiny_project, build_command(tiny_project))
    assert f"record {record} is corrupt" in output
    assert "its page is run again" in output
    assert record.read_text() == whole
    assert written(tiny_project, "logits/first") != first
    assert written(tiny_project, "features/second") == second


def test_a_killed_sweep_goes_on_where_it_stopped(tiny_project):
    write_swept_chapter(
        tiny_project, "import time\nwhile seed == 1 and not pathlib.Path('go').exists():\n    time.sleep(1)"
    )
    command = sweep_command("-p", "seed=0:2", "--jobs", "2")
    process = subprocess.Popen(
        command, cwd=tiny_project, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    folder = tiny_project / "_build" / "sweeps" / "quick" / "logits" / "first"
    deadline = time.monotonic() + 300
    while "1 of 3 steps" not in _snakemake_log(folder):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (done,) = folder.glob("jobs/*/executed.ipynb")
    finished = done.stat().st_mtime_ns
    # Snakemake outlives the command and still holds its folder.
    process.kill()
    process.wait()
    assert "another build is running" in run(tiny_project, command, expect=1)
    os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(["pkill", "-9", "-f", str(tiny_project)], check=False)  # kernels, in sessions of their own
    (tiny_project / "go").write_text("")
    output = run(tiny_project, command)
    assert "1 jobs run in" in output
    assert "2 records" in output
    assert done.stat().st_mtime_ns == finished


def _snakemake_log(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob(".snakemake/log/*.log"))


def test_a_clock_that_goes_backwards(tiny_project):
    backwards = """
import datetime, runpy, sys
from papermill.engines import NotebookExecutionManager
clock = iter(datetime.datetime(2026, 1, 1) - datetime.timedelta(hours=hour) for hour in range(1000))
NotebookExecutionManager.now = lambda self: next(clock)
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, "ci")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    script = tiny_project / "ci" / "execute.py"
    run(tiny_project, [sys.executable, "-c", backwards, str(script), "first", "--output", "out.ipynb"])
    content = json.loads((tiny_project / "out.ipynb").read_text())
    times = [cell["metadata"]["kdcore"]["seconds"] for cell in content["cells"] if "kdcore" in cell["metadata"]]
    assert times
    assert min(times) >= 0
    assert content["metadata"]["kdcore"]["seconds"] >= 0

    run(tiny_project, build_command(tiny_project))
    for path in tiny_project.rglob("*.*"):  # all sources newer than what was made of them, which is from 1990
        os.utime(path, (650_000_000,) * 2 if "_build" in path.parts else None)
    assert run(tiny_project, [*build_command(tiny_project), "--why"]).startswith("Nothing has changed")


def test_a_locale_that_knows_no_unicode(tiny_project):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    plain |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    write_chapter(tiny_project, "logits", "first", "print('τ → ∞, é')")
    run(tiny_project, build_command(tiny_project), env=plain)
    page = tiny_project / "_build" / "html" / "chapters" / "logits" / "first.html"
    assert "τ → ∞, é" in page.read_text(encoding="utf-8")

    write_swept_chapter(tiny_project, "if seed == 1:\n    raise ValueError('τ ≤ 0')")
    output = run(tiny_project, sweep_command("-p", "seed=0:2", "-p", "note=é"), expect=1, env=plain)
    assert "1 records" in output
    assert "code cell 2 failed with ValueError: \\u03c4 \\u2264 0" in output


def test_a_checkout_that_is_not_written_to(tiny_project, tmp_path):
    write_swept_chapter(tiny_project)
    # Nothing of this process's own keeps Python from writing caches into the checkout.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = _listing(tiny_project)
    elsewhere = tmp_path / "else where"
    run(tiny_project, [*build_command(tiny_project), "--build-dir", str(elsewhere / "_build")], env=environment)
    assert (elsewhere / "_build" / "html" / "index.html").exists()
    assert _listing(tiny_project) == before
    executable, *rest = sweep_command("-p", "seed=0:2", "--results-dir", str(elsewhere / "sweeps"))
    run(tiny_project, [executable, "-B", *rest], env=environment)
    assert list((elsewhere / "sweeps").rglob("results.csv"))
    assert _listing(tiny_project) == before


def _listing(project: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in project.rglob("*") if path.is_file()}


def test_the_build_folder_has_the_name_that_jupyter_book_gives_it(tiny_project, tmp_path):
    output = run(tiny_project, [*build_command(tiny_project), "--build-dir", str(tmp_path / "site")], expect=1)
    assert "error: the build folder must be named _build, got 'site'" in output


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_parameters_from_a_file_that_is_no_object(tiny_project, text):
    (tiny_project / "given.json").write_text(text)
    output = execute(tiny_project, "first", "--parameters", "given.json", expect=1)
    assert "error: given.json must hold a JSON object of parameters" in output
