"""What a run runs on and was made with: hardware, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

from kdcore.checks import check_positive
from kdcore.versions import versions

__all__ = ["announce", "hardware", "versions"]


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


def hardware(device: torch.device | str) -> dict[str, str | int]:
    """What the run ran on.

    Returns:
        `device`, `machine`, `cpu`, `cores` (that this process may use), `threads`, and where they are known
        `memory_gib`; on a GPU also `gpu`, `gpu_memory_gib`, `cuda` and `driver`.

    Example:
        >>> sorted(hardware("cpu"))[:3]
        ['cores', 'cpu', 'device']
    """
    device = torch.device(device)
    found: dict[str, str | int] = {"device": device.type, "machine": platform.machine(), "cpu": _cpu_name()}
    found |= {"cores": _cores(), "threads": torch.get_num_threads()} | _memory()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30)}
        found |= {"cuda": torch.version.cuda or "unknown", "driver": _driver()}
    return found


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _memory() -> dict[str, int]:
    try:
        return {"memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)}
    except (AttributeError, ValueError, OSError):  # Windows
        return {}


def _driver() -> str:
    """Version of NVIDIA's driver, by the tool that comes with it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout.split() or ["unknown"])[0]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
