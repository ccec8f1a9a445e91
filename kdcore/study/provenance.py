"""Where a result came from: code by content, versions, hardware."""

from __future__ import annotations

import ast
import hashlib
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["code_digest", "hardware", "imported_files", "repository_root", "versions"]

_PACKAGE = Path(__file__).resolve().parent.parent
_REPORTED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "torchmetrics")


def repository_root(start: Path | None = None) -> Path | None:
    """The checkout around `start` (default: the working directory), or None outside of one."""
    here = (start or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / "_config.yml").exists()), None)


def imported_files(source: str, package: Path = _PACKAGE) -> list[Path]:
    """Files of kdcore that Python source code imports, directly or through one another, in sorted order.

    Static: the code is parsed, not run. A package's `__init__` counts along with its submodules' imports; lines
    that are not Python (notebook magics) are passed over.

    Args:
        source: Python code.
        package: folder of the package named kdcore.
    """
    found: set[Path] = set()
    waiting = _imports(source)
    while waiting:
        name = waiting.pop()
        for path in _files_of(name, package):
            if path not in found:
                found.add(path)
                waiting |= _imports(path.read_text(encoding="utf-8"))
    return sorted(found)


def code_digest(source: str) -> str:
    """SHA-256 over `source` and every kdcore file that it imports, by content and relative path."""
    digest = hashlib.sha256(source.encode())
    for path in imported_files(source):
        digest.update(str(path.relative_to(_PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _REPORTED}


def hardware(device: torch.device | str) -> dict[str, str | int]:
    """What the run ran on."""
    device = torch.device(device)
    found: dict[str, str | int] = {"device": device.type, "machine": platform.machine(), "cpu": _cpu_name()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {"threads": torch.get_num_threads()}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _imports(source: str) -> set[str]:
    """Dotted names under kdcore that the code imports; `from kdcore import data` gives kdcore.data."""
    python = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)  # notebook magics
    names: set[str] = set()
    for node in ast.walk(ast.parse(python)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "kdcore"}


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
