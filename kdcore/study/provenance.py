"""What a result was made with: versions, hardware."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["hardware", "versions"]

_REPORTED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on.

    Example:
        >>> sorted(versions())[:3]
        ['numpy', 'pandas', 'python']
    """
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _REPORTED}


def hardware(device: torch.device | str) -> dict[str, str | int]:
    """What the run ran on.

    Example:
        >>> hardware("cpu")["device"]
        'cpu'
    """
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
