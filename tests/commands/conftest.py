"""The small project of the pipeline's tests, and the command in it or in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline.conftest import tiny_project, write_study
from typer.testing import CliRunner

from kdcore.commands import app

__all__ = ["tiny_project"]


def invoke(*arguments: str):
    """A subcommand in this process and checkout."""
    return CliRunner().invoke(app, list(arguments))


def kdcore(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """The command as a user calls it in a checkout."""
    code = "import sys; sys.argv[0] = 'kdcore'; from kdcore.commands import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=project, capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment,
    )  # fmt: skip


@pytest.fixture
def study_project(tiny_project) -> Path:
    """A small project whose first chapter writes a record."""
    write_study(tiny_project, "logits", "first")
    return tiny_project
