"""Create the environment: uv if it is there or can be installed, else venv and pip; versions from constraints.txt.

    python ci/environment.py .venv

Uses the standard library only, since nothing is installed yet.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ["--editable", f"{ROOT}[book,test]", "--constraint", str(ROOT / "constraints.txt")]


def run(*command: str | Path) -> bool:
    """Whether the command succeeded."""
    return subprocess.run([str(part) for part in command], check=False).returncode == 0


def find_uv(venv: Path) -> Path | None:
    """The uv command, installed into the environment if it is not on the path."""
    found = shutil.which("uv")
    if found:
        return Path(found)
    if run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"):
        return venv / "bin" / "uv"
    return None


def main() -> int:
    venv = Path(sys.argv[1])
    print(f"Creating the environment in {venv} (a minute or two) …", flush=True)
    if not (venv / "bin" / "python").exists() and not run(sys.executable, "-m", "venv", venv):
        print("error: the environment could not be created; on Debian, install python3-venv.", file=sys.stderr)
        return 1
    uv = find_uv(venv)
    python = venv / "bin" / "python"
    installed = (
        run(uv, "pip", "install", "--quiet", "--python", python, *PACKAGE)
        if uv
        else run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGE)
    )
    if not installed:
        print("error: the packages could not be installed; is a Python package index reachable?", file=sys.stderr)
    return 0 if installed else 1


if __name__ == "__main__":
    sys.exit(main())
