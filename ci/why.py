"""Note what a page is made of when it is executed, so that a later build can say which file has changed since.

python ci/why.py chapters/foundations/kd _build/executed/chapters/foundations/kd.ipynb
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pages

_JOB = re.compile(r"^(?:local)?rule (\w+):$")
_FIELD = re.compile(r"^    (output|reason): (.+)$")
_MOST = 3  # files that a line names


def note(target: str, output: Path) -> None:
    """Keep the digests of what `target` is made of beside its output."""
    path = _noted(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(pages.files(target), indent=1), encoding="utf-8")


def planned(dry_run: str) -> Iterator[tuple[str, str]]:
    """Output and reason of each job that Snakemake's dry run lists."""
    found: dict[str, str] = {}
    for line in [*dry_run.splitlines(), "rule end:"]:
        if _JOB.match(line):
            if "output" in found:
                yield found["output"], found.get("reason", "")
            found = {}
        elif field := _FIELD.match(line):
            found[field[1]] = field[2]


def explain(build: Path, dry_run: str) -> list[str]:
    """One line for each page that would be run, and what for."""
    jobs = list(planned(dry_run))
    return [f"{_target(output)}: {_reason(build, output, reason)}" for output, reason in jobs]


def _target(output: str) -> str:
    return "site" if output == "site.done" else str(Path(output).relative_to("executed").with_suffix(""))


def _reason(build: Path, output: str, reason: str) -> str:
    """What has changed, if Snakemake says that something has; else its own reason in our words."""
    if "Params have changed" in reason:
        return _changes(_noted(build / output), pages.files(_target(output)))
    if "incomplete" in reason.lower():
        return "its last run was interrupted"
    if not (build / output).exists():
        failed = (build / output).with_suffix(".failed.ipynb").exists()
        return "failed when it was last run" if failed else "has not been run yet"
    if "updated by another job" in reason:
        return "pages that it shows are run again"
    return reason


def _changes(noted: Path, now: dict[str, str]) -> str:
    try:
        then = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "something has changed, but what it was made of is not noted"
    kinds = {
        "changed": [path for path in now if path in then and then[path] != now[path]],
        "new": [path for path in now if path not in then],
        "gone": [path for path in then if path not in now],
    }
    texts = [
        f"{', '.join(paths[:_MOST])}{f' and {len(paths) - _MOST} more' if len(paths) > _MOST else ''} {kind}"
        for kind, paths in kinds.items()
        if paths
    ]
    return "; ".join(texts) or "something changed while it was being run"


def _noted(output: Path) -> Path:
    return output.with_suffix(".sources.json")


if __name__ == "__main__":
    note(sys.argv[1], Path(sys.argv[2]))
