"""Snakemake's scheduler looks again once, however many jobs ask for it."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import SimpleNamespace


def test_looks_that_are_asked_for_while_one_is_due_are_one_look(root: Path):
    source = importlib.util.spec_from_file_location("engine", root / "ci" / "engine.py")
    engine = importlib.util.module_from_spec(source)
    source.loader.exec_module(engine)
    looks, looked = [], threading.Event()

    def release() -> None:
        looks.append("look")
        looked.set()

    scheduler = SimpleNamespace(_open_jobs=SimpleNamespace(release=release))
    for _ in range(50):
        engine.look_again(scheduler, 0.2)
    assert looked.wait(10)
    assert len(looks) == 1
    looked.clear()
    engine.look_again(scheduler, 0.0)
    assert looked.wait(10)
    assert len(looks) == 2
