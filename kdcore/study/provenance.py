"""What a run runs on and was made with: hardware, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch

from kdcore.checks import check_positive

__all__ = ["announce", "hardware", "versions"]

_REPORTED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas", "torchmetrics")


def announce(minutes: float) -> None:
    """Print one sentence: what a chapter does if its parameters stay as they are, and the hardware found.

    Args:
        minutes: that the chapter takes at `quick` on one core; less than 1 is "under a minute".

    Raises:
        ValueError: minutes is not positive.

    Example:
        >>> announce(minutes=2)
        As it is, this chapter runs at profile "quick", which takes about 2 minutes; ...
    """
    check_positive(minutes=minutes)
    length = "under a minute" if minutes < 1 else "about a minute" if minutes == 1 else f"about {minutes:g} minutes"
    if torch.cuda.is_available():
        hint = f'{torch.cuda.get_device_name()} found: profile = "gpu" in the next cell makes use of it'
    else:
        hint = 'no GPU found, so "cpu" is the largest profile to choose in the next cell'
    print(f'As it is, this chapter runs at profile "quick", which takes {length}; {hint}.')


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
