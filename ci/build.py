"""Build the book: execute the chapters that are out of date, two side by side, and render the site.

python ci/build.py [--build-dir _build] [--why]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_STEP = re.compile(r"(\d+) of (\d+) steps")
_PROBLEM = re.compile(r"^error:| failed with |is kept at|WARNING|ERROR|Exception|Error:")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOISE = re.compile(r"IPKernelApp|frozen modules|Debugger warning|PYDEVD")


def snakemake(build: Path, *arguments: str) -> list[str]:
    """The command line that runs the workflow in the build folder."""
    return [
        sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "ci" / "Snakefile"), "--directory", str(build),
        "--cores", str(os.cpu_count() or 1), "--rerun-triggers", "params", "--rerun-incomplete", "--nolock",
        "--keep-going", *arguments,
    ]  # fmt: skip


def report(lines: Iterable[str]) -> list[str]:
    """Print progress from Snakemake's output; return what went wrong, in order."""
    began = time.monotonic()
    problems: list[str] = []
    recent: list[str] = []
    for line in lines:
        line = _COLOUR.sub("", line).rstrip()
        recent = [*recent[-60:], line]
        if re.match(r"^\S+/\S+: \d+ s, ", line):
            print("  " + line.split(", ")[0], flush=True)
        elif found := _STEP.search(line):
            done, total = map(int, found.groups())
            gone = time.monotonic() - began
            left = gone * (total - done) / done
            print(f"[{done}/{total}] {gone:.0f} s gone, about {left:.0f} s left", flush=True)
        elif _PROBLEM.search(line) and not _NOISE.search(line):
            problems.append(line)
    return list(dict.fromkeys(problems)) or recent[-15:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build-dir", type=Path, default=ROOT / "_build")
    parser.add_argument("--why", action="store_true", help="only say what would be run and why")
    options = parser.parse_args()
    build = options.build_dir.resolve()
    build.mkdir(parents=True, exist_ok=True)
    with (build / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: another build is running in {build}; wait for it to finish.", file=sys.stderr)
            return 1
        if options.why:
            return subprocess.run(snakemake(build, "--dry-run"), check=False).returncode
        for leftover in build.glob("executed/**/.partial-*"):  # of a build that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        process = subprocess.Popen(
            snakemake(build), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        problems = report(process.stdout)
        if process.wait() != 0:
            print("The book could not be built:", *problems, sep="\n  ", file=sys.stderr)
            return 1
    print(f"The book is at {build / 'html' / 'index.html'}; `make serve` opens it in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
