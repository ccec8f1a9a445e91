"""What a chapter needs at a profile: one table, for the workflow's resources and for the time limit of a cell.

The figures are limits, several times what the recorded runs took; a cluster reserves them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Needs:
    """Attributes: minutes until it counts as hanging, memory of the process in MB, GPUs, cores."""

    minutes: int
    mem_mb: int
    gpus: int = 0
    cores: int = 1


_BY_PROFILE = {
    "quick": Needs(minutes=20, mem_mb=3000),
    "cpu": Needs(minutes=90, mem_mb=6000, cores=2),
    "gpu": Needs(minutes=1440, mem_mb=24000, gpus=1, cores=4),  # residual networks on CIFAR-10 take hours
}
# What differs from the rest of its profile, by chapter and profile.
_OTHERWISE = {
    ("adaptation/maxsquare", "cpu"): {"mem_mb": 8000},  # maps of classes for whole images
    ("adaptation/alda", "gpu"): {"minutes": 240},
    ("adaptation/maxsquare", "gpu"): {"minutes": 240},
    ("graphs_and_text/ff_g2m", "cpu"): {"minutes": 180},
    ("graphs_and_text/ff_g2m", "gpu"): {"minutes": 240},
}


def needs(chapter: str, profile: str, attempt: int = 1) -> Needs:
    """What to reserve for a chapter; each further attempt gets as much memory again."""
    found = replace(_BY_PROFILE[profile], **_OTHERWISE.get((chapter, profile), {}))
    return replace(found, mem_mb=found.mem_mb * attempt)
