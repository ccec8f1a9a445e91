"""Shared fixtures: reference figures, one thread, the repository's root."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def reference_cases(slug: str) -> list:
    """The cases of `<slug>.json` in $KDCORE_REFERENCE (default tests/reference), as pytest parameters."""
    folder = Path(os.environ.get("KDCORE_REFERENCE", ROOT / "tests" / "reference"))
    cases = json.loads((folder / f"{slug}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
