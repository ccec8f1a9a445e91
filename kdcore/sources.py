"""Which code a piece of code is made of, by content: the static import graph within kdcore.

Standard library only, so that deciding what is out of date loads nothing.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["code_digest", "imported_files", "notebook_code", "repository_root"]

_PACKAGE = Path(__file__).resolve().parent


def repository_root(start: Path | None = None) -> Path | None:
    """The checkout around `start` (default: the working directory), or None outside of one.

    Example:
        >>> repository_root(Path("/")) is None
        True
    """
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "_config.yml").exists()), None)


def notebook_code(markdown: str) -> str:
    """The code cells of a MyST notebook, joined, without cell options.

    Example:
        >>> fence, newline = 3 * "`", chr(10)
        >>> notebook_code(newline.join(["A title", fence + "{code-cell} ipython3", "x = 1", fence])).strip()
        'x = 1'
    """
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)
    options = re.compile(r"\A(?:---\n.*?^---\n|(?::[^\n]*\n)+)", flags=re.MULTILINE | re.DOTALL)
    return "\n".join(options.sub("", cell) for cell in cells)


def imported_files(source: str, package: Path | None = None) -> list[Path]:
    """Files of kdcore that Python source code imports, directly or through one another, in sorted order.

    Static: the code is parsed, not run. A package's `__init__` counts along with its submodules' imports; lines
    that are not Python (notebook magics) are passed over.

    Args:
        source: Python code.
        package: folder of the package named kdcore; the installed one if left out.

    Example:
        >>> [path.name for path in imported_files("from kdcore.foundations import kd")]
        ['__init__.py', 'checks.py', '__init__.py', 'kd.py', 'precision.py']
    """
    package = package or _PACKAGE
    found: set[Path] = set()
    waiting = set(_imports(source))
    while waiting:
        name = waiting.pop()
        for path in _files_of(name, package):
            if path not in found:
                found.add(path)
                waiting |= _imports(path.read_text(encoding="utf-8"))
    return sorted(found)


def code_digest(source: str) -> str:
    """SHA-256 over `source` and every kdcore file that it imports, by content and relative path.

    Example:
        >>> code_digest("from kdcore.foundations import kd") == code_digest("from kdcore.foundations import hints")
        False
    """
    digest = hashlib.sha256(source.encode())
    for path in imported_files(source):
        digest.update(str(path.relative_to(_PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _imports(source: str) -> frozenset[str]:
    """Dotted names under kdcore that the code imports; `from kdcore import data` gives kdcore.data."""
    python = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)  # notebook magics
    names: set[str] = set()
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == "kdcore")


def _files_of(name: str, package: Path) -> Iterable[Path]:
    """The files that importing a dotted name runs: the packages on its way, and the module if it is one."""
    folder = package
    yield package / "__init__.py"
    for part in name.split(".")[1:]:
        if (folder / part).is_dir():
            folder = folder / part
            yield folder / "__init__.py"
        else:
            if (folder / f"{part}.py").exists():
                yield folder / f"{part}.py"
            return
