"""Shared fixtures: one thread, the repository's root."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: one worker is busy with them for as long as the other is with all the rest."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
