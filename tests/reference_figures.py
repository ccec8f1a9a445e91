"""Figures computed with published code, as test cases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def reference_cases(slug: str) -> list:
    """The cases of `<slug>.json` in $KDCORE_REFERENCE (default tests/reference), as pytest parameters."""
    folder = Path(os.environ.get("KDCORE_REFERENCE", ROOT / "tests" / "reference"))
    cases = json.loads((folder / f"{slug}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]


def assert_published(computed: Mapping[str, torch.Tensor], case: Mapping, decimals: int = 12) -> None:
    """Every output of the case is computed, and equal to 1e-6 of itself or to half a unit of its last decimal.

    Entries near 0 carry the rounding of the file, an absolute error that no relative bound covers.
    """
    published = case["outputs"]
    assert published
    assert published.keys() <= computed.keys()
    for name, value in published.items():
        found = computed[name].detach()
        wanted = torch.tensor(value, dtype=found.dtype)
        torch.testing.assert_close(
            found, wanted, rtol=1e-6, atol=0.6 * 10**-decimals, msg=lambda text, name=name: f"{name}: {text}"
        )
