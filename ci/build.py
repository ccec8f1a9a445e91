"""Build the book: execute the chapters that are out of date, two side by side, and render the site.

python ci/build.py [--build-dir elsewhere/_build] [--why] [--snakemake-profile ci/profiles/slurm]
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_STEP = re.compile(r"(\d+) of (\d+) steps")
_EXECUTED = re.compile(r"^\S+/\S+: \d+ s \(\d+ s of CPU time\), ")  # as ci/execute.py says it
_PROBLEM = re.compile(r"^error:| failed with |is kept at|WARNING|ERROR|Exception|Error:")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"IPKernelApp|frozen modules|Debugger warning|PYDEVD")


def snakemake(
    workflow: str,
    folder: Path,
    *arguments: str,
    profile: Path | None = None,
    jobs: int | None = None,
    retries: int | None = None,
) -> list[str]:
    """The command line that runs a workflow of this folder in another folder, here or by a profile's executor.

    What is left out is up to the profile; without one it is a job per core, and one retry.
    """
    if profile is None:
        where = ["--cores", str(jobs or os.cpu_count() or 1)]
        retries = 1 if retries is None else retries
    else:
        where = ["--profile", str(profile.resolve())] + (["--jobs", str(jobs)] if jobs else [])
    where += [] if retries is None else ["--retries", str(retries)]
    ci = ROOT / "ci"
    return [  # -P: Snakemake finds its own modules, not those of this folder
        sys.executable, "-P", str(ci / "engine.py"), "--snakefile", str(ci / workflow), "--directory", str(folder),
        "--rerun-triggers", "params", "--rerun-incomplete", "--nolock", "--keep-going", "--scheduler", "greedy",
        *where, *arguments,
    ]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """For what runs in a folder: one outside of the checkout leaves the checkout as it is, Python's caches included."""
    outside = ROOT not in folder.resolve().parents
    return os.environ | ({"PYTHONPYCACHEPREFIX": str(folder / ".pycache")} if outside else {})


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Have a folder to oneself; gives the lock's descriptor, which keeps it for a process that inherits it.

    Raises:
        RuntimeError: another build or sweep is running in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another build is running in {folder}; wait for it to finish.") from None
        yield lock.fileno()


def forget_corrupt_records(build: Path) -> None:
    """Name the records of earlier runs that are no JSON, and remove them and their pages, which are then run again."""
    for path in sorted((build / "records").glob("*/*/*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            print(f"record {path} is corrupt ({error}); its page is run again.", file=sys.stderr)
            page = path.relative_to(build / "records" / path.parts[-3]).with_suffix(".ipynb")
            for executed in (build / "executed" / "chapters" / page, build / "executed" / "book" / page):
                executed.unlink(missing_ok=True)
            (build / "site.done").unlink(missing_ok=True)  # or Snakemake would miss nothing
            path.unlink()


def forget_unaccounted(build: Path) -> None:
    """Remove executed pages of which nothing here says what they were made of: copied ones, for instance.

    Snakemake takes an output that it knows nothing about for up to date.
    """
    for page in (build / "executed").glob("**/*.ipynb"):
        if not page.name.endswith(".failed.ipynb") and not page.with_suffix(".sources.json").exists():
            page.unlink()
            (build / "site.done").unlink(missing_ok=True)  # see above


def report(lines: Iterable[str]) -> list[str]:
    """Print progress from Snakemake's output; return what went wrong, in order."""
    began = time.monotonic()
    problems: list[str] = []
    recent: list[str] = []
    for line in lines:
        line = _COLOUR.sub("", line).rstrip()
        recent = [*recent[-60:], line]
        if _EXECUTED.match(line):
            print("  " + line.split(", ")[0], flush=True)
        elif found := _STEP.search(line):
            done, total = map(int, found.groups())
            gone = time.monotonic() - began
            left = gone * (total - done) / done
            print(f"[{done}/{total}] {gone:.0f} s gone, about {left:.0f} s left", flush=True)
        elif _PROBLEM.search(line) and not _NOISE.search(line):
            problems.append(line)
    return list(dict.fromkeys(problems)) or recent[-15:]


def why(build: Path) -> int:
    """Say what would be run, and why, in one line each."""
    sys.path.insert(0, str(ROOT))
    from why import explain

    command = snakemake("Snakefile", build, "--dry-run")
    done = subprocess.run(
        command, env=environment(build), capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        raise RuntimeError(f"Snakemake could not plan the build:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    lines = explain(build, done.stdout + done.stderr)
    print(*(lines or ["Nothing has changed: everything is up to date."]), sep="\n")
    return 0


def run(build: Path, profile: Path | None, lock: int) -> int:
    """Run what is out of date; Snakemake holds the lock, too, should it outlive this process."""
    for leftover in build.glob("executed/**/.partial-*"):  # of a build that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    forget_corrupt_records(build)
    forget_unaccounted(build)
    process = subprocess.Popen(
        snakemake("Snakefile", build, profile=profile), env=environment(build),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        pass_fds=[lock],
    )  # fmt: skip
    assert process.stdout is not None
    problems = report(process.stdout)
    if process.wait() != 0:
        print("The book could not be built:", *problems, sep="\n  ", file=sys.stderr)
        return 1
    print(f"The book is at {build / 'html' / 'index.html'}; `make serve` opens it in a browser.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-dir", type=Path, default=ROOT / "_build", help="a folder named _build")
    parser.add_argument("--why", action="store_true", help="only say what would be run and why")
    parser.add_argument("--snakemake-profile", type=Path, help="a folder such as ci/profiles/slurm")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no τ
    build = options.build_dir.resolve()
    try:
        if build.name != "_build":  # Jupyter Book chooses the name
            raise ValueError(f"the build folder must be named _build, got {build.name!r}: {build / '_build'} would do.")
        sys.dont_write_bytecode = ROOT not in build.parents  # as in `environment`
        with locked(build) as lock:
            return why(build) if options.why else run(build, options.snakemake_profile, lock)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
