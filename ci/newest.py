"""Try the newest versions of all dependencies, and report: what fails, and which versions differ from constraints.txt.

python ci/newest.py report.md                    # run the tests and the chapters, write the report
python ci/newest.py report.md --issue            # and open, update or close the repository's issue about it
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TITLE = "The newest versions of the dependencies break something"
STEPS = {
    "unit tests": ["-m", "pytest", "-n", "auto", "--ignore", "tests/site", "--ignore", "tests/pipeline"],
    "chapters and site": ["ci/build.py"],
}
_FAILURE = re.compile(r"^(?:FAILED|ERROR|error:|E  )|failed with", re.MULTILINE)
_MOST_LINES = 40


@dataclass(frozen=True)
class Outcome:
    """What a step came to; `output` is all that it printed."""

    name: str
    passed: bool
    output: str


def differences(pinned: str, installed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Name, pinned and installed version of every package that constraints.txt pins to another version."""
    pins = dict(line.split("==") for line in pinned.splitlines() if "==" in line and not line.startswith("#"))
    found = {_normal(name): version for name, version in installed.items()}
    return [
        (name, version, found[_normal(name)])
        for name, version in pins.items()
        if found.get(_normal(name), version) != version
    ]


def report(outcomes: list[Outcome], newer: list[tuple[str, str, str]]) -> str:
    """The report in Markdown; what a step printed stands in a fence that it cannot close."""
    lines = ["| step | outcome |", "|---|---|"]
    lines += [f"| {outcome.name} | {'passed' if outcome.passed else '**failed**'} |" for outcome in outcomes]
    for outcome in outcomes:
        if not outcome.passed:
            said = [line for line in outcome.output.splitlines() if _FAILURE.search(line)]
            shown = (said or outcome.output.splitlines())[-_MOST_LINES:]
            fenced = [line.replace("~~~", "~ ~ ~")[:300] for line in shown]
            lines += ["", f"### {outcome.name}", "", "~~~text", *fenced, "~~~"]
    lines += ["", f"### Versions that differ from constraints.txt: {len(newer)}", ""]
    if newer:
        lines += ["| package | pinned | newest |", "|---|---|---|"]
        lines += [f"| {name} | {old} | {new} |" for name, old, new in newer]
    return "\n".join(lines) + "\n"


def run_steps() -> list[Outcome]:
    """Run every step, also after one has failed."""
    outcomes = []
    for name, arguments in STEPS.items():
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, errors="replace", check=False
        )
        print(done.stdout, done.stderr, sep="\n", flush=True)
        outcomes.append(Outcome(name, done.returncode == 0, done.stdout + done.stderr))
    return outcomes


def publish(path: Path, passed: bool) -> None:
    """One issue at most: opened or rewritten while something fails, closed once nothing does. By GitHub's `gh`."""
    listed = _gh("issue", "list", "--state", "open", "--search", f'in:title "{TITLE}"', "--json", "number,title")
    numbers = [str(issue["number"]) for issue in json.loads(listed) if issue["title"] == TITLE]
    if passed:
        for number in numbers:
            _gh("issue", "close", number, "--comment", "All steps pass with the newest versions.")
    elif numbers:
        _gh("issue", "edit", numbers[0], "--body-file", str(path))
    else:
        _gh("issue", "create", "--title", TITLE, "--body-file", str(path))


def _gh(*arguments: str) -> str:
    return subprocess.run(["gh", *arguments], capture_output=True, text=True, check=True).stdout


def _normal(name: str) -> str:
    """Package indexes take these for the same name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--issue", action="store_true", help="open, update or close the issue")
    options = parser.parse_args()
    outcomes = run_steps()
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    text = report(outcomes, differences((ROOT / "constraints.txt").read_text(encoding="utf-8"), installed))
    options.report.write_text(text, encoding="utf-8")
    passed = all(outcome.passed for outcome in outcomes)
    if options.issue:
        publish(options.report, passed)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
