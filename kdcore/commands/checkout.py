"""The checkout that the command works in, and the pipeline's modules, which are scripts in its folder `ci`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from kdcore.sources import repository_root

__all__ = ["pipeline", "root"]


def root() -> Path:
    """The checkout around the working directory, or the one that kdcore is installed from.

    Raises:
        ValueError: there is none; says what to do.

    Example:
        >>> (root() / "_toc.yml").exists()
        True
    """
    found = repository_root() or repository_root(Path(__file__))
    if found is None:
        raise ValueError(
            "kdcore runs chapters in a checkout, and there is none here: "
            "git clone https://github.com/kdcore/kdcore, then call it in that folder."
        )
    return found


def pipeline(name: str) -> ModuleType:
    """A module of the checkout's `ci`, by its file's name.

    Example:
        >>> pipeline("pages").chapters(root())[0]
        'foundations/kd'
    """
    folder = str(root() / "ci")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)
