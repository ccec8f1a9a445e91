"""Create the environment: uv if it is there or can be installed, else venv and pip; versions from constraints.txt.

    python ci/environment.py .venv

Uses the standard library only, since nothing is installed yet.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ["--editable", f"{ROOT}[book,teach,test]", "--constraint", str(ROOT / "constraints.txt")]


def run(*command: str | Path) -> bool:
    """Whether the command succeeded."""
    return subprocess.run([str(part) for part in command], check=False).returncode == 0


def find_uv(venv: Path) -> Path | None:
    """The uv command, installed into the environment if it is not on the path."""
    found = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    if found:
        return Path(found)
    if run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"):
        return venv / "bin" / "uv"
    return None


def create(venv: Path, *packages: str) -> str:
    """Create a virtual environment that holds these packages; return what went wrong, or nothing."""
    if not (venv / "bin" / "python").exists() and not run(sys.executable, "-m", "venv", venv):
        return "the environment could not be created; on Debian, install python3-venv."
    uv, python = find_uv(venv), venv / "bin" / "python"
    installer = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
    if not run(*installer, "--quiet", *packages):
        return "the packages could not be installed; is a Python package index reachable?"
    return ""


def main() -> int:
    venv = Path(sys.argv[1])
    os.environ["UV_COMPILE_BYTECODE"] = "1"  # as pip does: once, and not whenever a page first imports something
    print(f"Creating the environment in {venv} (a minute or two) …", flush=True)
    problem = create(venv, *PACKAGE)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
