"""A chapter's notebook runs where only its first cell was obeyed, without any other chapter's files.

All chapters take longer with each paper, so each run draws some; what their first cells must install is also
compared with what they import, for all of them, in `test_environments.py`.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "ci"))
import environment
from check_chapters import ROOT, installed_extras

CHAPTERS = sorted((ROOT / "chapters").glob("*/*.ipynb"))
_MORE = 2  # chapters beyond one for each set of extras


def install(extras: str, folder: Path) -> Path:
    """Python of a new environment that holds `kdcore[extras]` from this checkout and what that requires."""
    sources = folder / "checkout"  # a copy, since building a package leaves files beside its sources
    shutil.copytree(ROOT / "kdcore", sources / "kdcore", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    requirement = f"kdcore[{extras}] @ {sources.as_uri()}"
    problem = environment.create(folder / "venv", requirement, "--constraint", str(ROOT / "constraints.txt"))
    if problem:
        pytest.fail(f"kdcore[{extras}] is not installed: {problem}")
    return folder / "venv" / "bin" / "python"


def register_kernel(name: str, python: Path, folder: Path) -> None:
    """Let Jupyter find the environment's kernel; nothing of the calling environment reaches it."""
    spec = {
        "argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": name,
        "language": "python",
        "env": {"PYTHONPATH": "", "KDCORE_STATIC": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    }
    (folder / "kernels" / name).mkdir(parents=True)
    (folder / "kernels" / name / "kernel.json").write_text(json.dumps(spec))


def problem_of(chapter: Path, kernel: str, folder: Path) -> str:
    """Run one notebook top to bottom in its own empty folder; return the error, or nothing."""
    folder.mkdir()
    began = time.perf_counter()
    done = subprocess.run(  # a process of its own, since papermill changes the working folder of all threads
        [sys.executable, "-m", "papermill", str(chapter), str(folder.with_suffix(".ipynb")), "-p", "n_seeds", "2",
         "--kernel", kernel, "--cwd", str(folder), "--no-progress-bar"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(f"{chapter.stem}: {time.perf_counter() - began:.0f} s")
    if done.returncode:
        return f"{chapter.stem} failed:\n{done.stderr[-2000:]}"
    record = folder / "results" / "quick" / chapter.parent.name / f"{chapter.stem}.json"
    return "" if record.exists() else f"{chapter.stem} wrote no record below results/"


def problems_of(chapters: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What fails among these chapters, run two at a time in this order."""
    monkeypatch.setenv("JUPYTER_PATH", str(folder))
    extras = {chapter: installed_extras(chapter) for chapter in chapters}
    kernels = {wanted: wanted.replace(",", "-") for wanted in extras.values()}
    for wanted, kernel in kernels.items():
        register_kernel(kernel, install(wanted, folder / kernel), folder)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(problem_of, one, kernels[extras[one]], folder / one.stem) for one in chapters]
    return [job.result() for job in jobs if job.result()]


def drawn(seed: int) -> list[Path]:
    """Some chapters in an order drawn by lot: one for each set of extras, and a few more."""
    shuffled = random.Random(seed).sample(CHAPTERS, len(CHAPTERS))
    first = {installed_extras(chapter): chapter for chapter in shuffled}
    others = [chapter for chapter in shuffled if chapter not in first.values()]
    chosen = {*first.values(), *others[:_MORE]}
    return [chapter for chapter in shuffled if chapter in chosen]


def test_every_set_of_extras_is_drawn():
    for seed in range(5):
        chosen = drawn(seed)
        assert {*map(installed_extras, chosen)} == {*map(installed_extras, CHAPTERS)}
        assert len(set(chosen)) == len(chosen) >= _MORE
    assert {chapter for seed in range(200) for chapter in drawn(seed)} == set(CHAPTERS)


def test_chapters_run_in_any_order_with_what_their_first_cell_installs(tmp_path, monkeypatch):
    seed = random.SystemRandom().randrange(1000)
    order = drawn(seed)
    print(f"drawn by seed {seed}: {', '.join(chapter.stem for chapter in order)}")
    assert problems_of(order, tmp_path, monkeypatch) == []
