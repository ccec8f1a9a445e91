"""Figures computed with published code, as test cases."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def reference_cases(slug: str) -> list:
    """The cases of `<slug>.json` in $KDCORE_REFERENCE (default tests/reference), as pytest parameters."""
    folder = Path(os.environ.get("KDCORE_REFERENCE", ROOT / "tests" / "reference"))
    cases = json.loads((folder / f"{slug}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]
