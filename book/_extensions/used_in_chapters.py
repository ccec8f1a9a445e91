"""Sphinx extension: the reference says of each function and class in which chapters it is used."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path


def names_used(code: str) -> set[str]:
    """Dotted names under kdcore that the code reads: `kd.soften` after `from kdcore.foundations import kd`, …"""
    tree = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE))
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdcore":
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    used = set(known.values())
    for node in ast.walk(tree):
        chain = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name) and node.id in known:
            used.add(".".join([known[node.id], *reversed(chain)]))
    return used


def resolve(name: str) -> tuple[str, str] | None:
    """Module and qualified name of what a dotted name stands for, where it is defined; None for a module."""
    head, *rest = name.split(".")
    item = importlib.import_module(head)
    for part in rest:
        try:
            item = getattr(item, part) if hasattr(item, part) else importlib.import_module(f"{item.__name__}.{part}")
        except (ImportError, AttributeError):
            return None
    place = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    return place if all(place) else None


@cache
def chapters_by_name(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Chapters (as documents of the book) by the place of what they use."""
    import nbformat

    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted((folder / "chapters").glob("*/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for place in {place for place in map(resolve, names_used(code)) if place}:
            found.setdefault(place, []).append(f"/chapters/{path.parent.name}/{path.stem}")
    return found


def _add_chapters(app, what, name, item, options, lines):
    place = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    chapters = chapters_by_name(Path(app.srcdir)).get(place, [])
    if what in ("function", "class") and chapters:
        links = ", ".join(f":doc:`{chapter.rsplit('/', 1)[1]} <{chapter}>`" for chapter in chapters)
        lines += ["", f"*Used in* {links}.", ""]


def setup(app):
    # After napoleon, which would take the line for part of the last section.
    app.connect("autodoc-process-docstring", _add_chapters, priority=900)
    return {"parallel_read_safe": True}
