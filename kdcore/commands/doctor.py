"""`kdcore doctor`: what of the book will run on this machine, what will not, and why."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated, Any

import typer

from kdcore.commands.checkout import pipeline, root
from kdcore.commands.data import Source, locate, sources
from kdcore.commands.tables import show_json, show_table

__all__ = ["EXAMPLES", "check_machine", "examine"]

EXAMPLES = ("kdcore doctor", "kdcore doctor --json")
_TOOLS = {
    "git": (("git",), "no provenance by commit"),
    "make": (("make",), "no `make book`, no `make test`"),
    "Chromium": (("chromium", "chromium-browser", "google-chrome"), "no PDF, no tests of the site"),
}
_DATASET = re.compile(r'^name = study\.by_profile\(profile, quick="(.*?)", cpu="(.*?)", gpu="(.*?)"\)', flags=re.M)


def check_machine(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Examine environment, GPU, memory, disk, tools and data, and say for each profile what will run.

    The exit status is 1 if a chapter cannot run at profile `quick`, which needs neither data nor a GPU.

    Example:
        >>> check_machine()
        what ...
        profile ...
    """
    findings, profiles = list(examine()), [_profile(name) for name in pipeline("parameters").PROFILES]
    if as_json:
        show_json({"findings": findings, "profiles": profiles})
    else:
        show_table(findings)
        print()
        lists = ("downloads first", "will not")
        show_table([row | {name: "; ".join(row[name]) or "–" for name in lists} for row in profiles])
    if profiles[0]["will not"]:
        raise typer.Exit(1)


def examine() -> Iterator[dict[str, str]]:
    """What was found, one row each: `what`, `state` ("ok", "note" or "missing") and `details`.

    Example:
        >>> next(examine())["what"]
        'Python'
    """
    yield _finding("Python", "ok", f"{platform.python_version()} in {sys.prefix}")
    yield _packages()
    yield from _extras()
    yield from _hardware()
    writable = os.access(root(), os.W_OK)
    yield _finding(
        "checkout", "ok" if writable else "note",
        f"{root()}, " + ("writable" if writable else "read-only: give --results-dir to `kdcore run`"),
    )  # fmt: skip
    for tool, (commands, without) in _TOOLS.items():
        found = next(filter(None, map(shutil.which, commands)), None)
        yield _finding(tool, "ok" if found else "note", found or f"not found: {without}")
    listed = subprocess.run(["fc-list"], capture_output=True, check=False).stdout if shutil.which("fc-list") else b""
    fonts = len(listed.splitlines())
    yield _finding("fonts", "ok" if fonts else "note", f"{fonts}, for the PDF; figures bring their own")
    for source in _sources().values():
        place = locate(source)
        state = "ok" if place or not source.layouts else "note"
        yield _finding(f"data: {source.name}", state, str(place[0]) if place else source.comes_from)


def _finding(what: str, state: str, details: str) -> dict[str, str]:
    return {"what": what, "state": state, "details": details}


def _packages() -> dict[str, str]:
    """Installed versions against the pinned ones."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", (root() / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    installed = {name: _version(name) for name, _ in pins}
    other = [f"{name} {installed[name]} (pinned {pin})" for name, pin in pins if installed[name] not in ("", pin)]
    there = sum(map(bool, installed.values()))
    details = f"{there - len(other)} of {there} installed ones as pinned in constraints.txt"
    return _finding(
        "versions", "note" if other else "ok", "; ".join([details, *other[:8], *(["…"] if other[8:] else [])])
    )


def _extras() -> Iterator[dict[str, str]]:
    """The package itself and each of its extras: complete, or what it lacks."""
    for name, missing in _missing().items():
        state = "ok" if not missing else "note" if name else "missing"
        advice = f"; pip install 'kdcore[{name}]'" if name else ""
        yield _finding(
            f"packages: {name or 'kdcore'}", state, f"missing: {', '.join(missing)}{advice}" if missing else "complete"
        )


def _hardware() -> Iterator[dict[str, str]]:
    """torch, GPU, memory and disk."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield _finding("torch", "missing", f"cannot be imported: {error}")
    else:
        yield _finding("torch", "ok", f"{torch.__version__}, {os.cpu_count()} CPU cores")
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        yield _finding("GPU", "ok" if name else "note", name or "none that CUDA knows")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield _finding("memory", "ok" if memory >= 4 else "note", f"{memory:.0f} GB; 4 GB are enough for a chapter")
    free = shutil.disk_usage(root()).free / 1e9
    yield _finding("disk", "ok" if free >= 2 else "note", f"{free:.0f} GB free; a build takes less than 1 GB")


def _profile(profile: str) -> dict[str, Any]:
    """What runs at a profile, what it downloads first, and what does not run and why."""
    texts = {
        paper.slug: (root() / f"{paper.page}.md").read_text(encoding="utf-8")
        for paper in pipeline("papers").load(root()).papers.values()
    }
    general, missing = _obstacle(profile), _missing()
    reasons, downloads = {}, set()
    for slug, text in texts.items():
        absent = _absent(text, profile)
        extras = re.search(r'pip install -q "kdcore\[([\w,]+)\]', text)
        packages = [name for extra in (extras[1].split(",") if extras else []) for name in missing.get(extra, [])]
        files = [source.name for source in absent if not source.downloads]
        lacking = [f"packages {', '.join(packages)}"] * bool(packages) + [f"data {', '.join(files)}"] * bool(files)
        if lacking:
            reasons[slug] = " and ".join(lacking)
        downloads |= {source.name for source in absent if source.downloads}
    why = [
        f"{', '.join(slug for slug in reasons if reasons[slug] == it)}: {it} missing" for it in set(reasons.values())
    ]
    return {
        "profile": profile,
        "will run": f"{0 if general else len(texts) - len(reasons)} of {len(texts)} chapters",
        "downloads first": sorted(downloads),
        "will not": [f"all: {general}"] if general else why,
    }


def _obstacle(profile: str) -> str:
    """What keeps every chapter from running, or nothing."""
    missing = [*_missing()[""], *(name for name in ("ipykernel", "papermill", "jupytext") if not _version(name))]
    if missing:
        return f"packages {', '.join(missing)} missing"
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"torch cannot be imported: {error}"
    return "no GPU that CUDA knows" if profile == "gpu" and not torch.cuda.is_available() else ""


def _absent(chapter: str, profile: str) -> list[Source]:
    """The data sets that a chapter uses at a profile and that are not here."""
    found = _DATASET.search(chapter)
    used = dict(zip(("quick", "cpu", "gpu"), found.groups(), strict=True))[profile].split() if found else []
    return [source for name, source in _sources().items() if name in used and source.layouts and not locate(source)]


def _sources() -> dict[str, Source]:
    """The data sets; none where torch, and with it kdcore.data, cannot be imported."""
    try:
        return sources()
    except (ImportError, OSError):
        return {}


def _missing() -> dict[str, list[str]]:
    """Extra → its packages that are not installed; the package's own requirements under the empty name."""
    project = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    names = {extra: [re.split(r"[<>=!\[ ;]", item, maxsplit=1)[0] for item in items] for extra, items in groups.items()}
    return {extra: [name for name in wanted if not _version(name)] for extra, wanted in names.items()}


def _version(name: str) -> str:
    """The installed version of a package, or nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
