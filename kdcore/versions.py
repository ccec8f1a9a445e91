"""What the code is: versions of the libraries, and the git commit of kdcore.

Loads no library: an executed notebook is marked with these by a process that computes nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import kdcore
from kdcore.sources import repository_root

__all__ = ["revision", "versions"]

_REPORTED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "torchmetrics")
_IF_USED = {"torch_geometric": "torch-geometric", "transformers": "transformers"}
_UNKNOWN: dict[str, str | bool | None] = {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """Versions of Python, of kdcore, and of the libraries that numbers depend on.

    Example:
        >>> list(versions())[:3]
        ['python', 'kdcore', 'torch']
    """
    names = [*_REPORTED, *(name for module, name in _IF_USED.items() if module in sys.modules)]
    own = {"python": platform.python_version(), "kdcore": kdcore.__version__}
    return own | {name: metadata.version(name) for name in names}


def revision(package: Path | None = None) -> dict[str, str | bool | None]:
    """The git commit that the package is of, and whether the files around it differ from it.

    In a checkout git is asked; new or changed records do not count as a difference, since no number depends on them.
    A package that pip installed from a git address knows its commit.

    Args:
        package: the package's folder; kdcore's own if left out.

    Returns:
        `commit` (40 hexadecimal digits) and `dirty`; both None where neither is known.

    Example:
        >>> sorted(revision(Path("/nowhere/kdcore")).items())
        [('commit', None), ('dirty', None)]
    """
    package = (package or Path(__file__).parent).resolve()
    root = repository_root(package.parent)
    if root == package.parent:
        return _of_checkout(root)
    return _of_installation() if package == Path(__file__).resolve().parent else dict(_UNKNOWN)


def _of_checkout(root: Path) -> dict[str, str | bool | None]:
    try:
        # A tarball unpacked inside of somebody else's repository is not of that repository's commit.
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return dict(_UNKNOWN)
        changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)book/records")
        return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet, a repository of another user
        return dict(_UNKNOWN)


def _git(root: Path, *arguments: str) -> str:
    # Git would run the program that a repository's own configuration names as its monitor.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE")}
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", check=True, timeout=60, env=environment
    )  # fmt: skip
    return done.stdout.strip()


def _of_installation() -> dict[str, str | bool | None]:
    try:
        origin = metadata.distribution("kdcore").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        origin = None
    commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "dirty": False} if commit else dict(_UNKNOWN)
