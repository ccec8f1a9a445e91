"""kdcore: knowledge transfer between neural networks, one tested file per paper.

Submodules load on first use, so that ``import kdcore`` costs next to nothing beyond torch.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

_GROUND_FLOOR = ("checks", "data", "metrics", "models", "precision", "show", "sources", "study", "training", "versions")

_TOP_FLOOR = ("commands", "exercises")

PARTS = tuple(
    sorted({path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")} - {*_GROUND_FLOOR, *_TOP_FLOOR})
)
"""Packages that hold one file per paper; the other submodules lie below or above the methods."""

__all__ = ["PARTS", "__version__", *_GROUND_FLOOR, *PARTS, *_TOP_FLOOR]


def __getattr__(name: str) -> ModuleType:
    if name in (*_GROUND_FLOOR, *PARTS, *_TOP_FLOOR):
        return import_module(f"kdcore.{name}")
    raise AttributeError(f"module 'kdcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
