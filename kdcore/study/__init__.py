"""Studies: profiles, arms and seeds, claims, verdicts, records, the ledger.

Names load on first use, so that whoever reads a record does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # also what decides which files a chapter's digest covers
    from kdcore.sources import code_digest, imported_files, notebook_code, repository_root
    from kdcore.study.claims import (
        VERDICTS,
        Claim,
        Verdict,
        judge,
        paired_interval,
        seeds_needed,
        standardised,
        verdict_of,
    )
    from kdcore.study.comparison import paired_differences, relative_costs
    from kdcore.study.provenance import announce
    from kdcore.study.records import committed_record, ledger, read_record, record_path, write_record
    from kdcore.study.runner import PROFILES, Study, by_profile

__all__ = [
    "PROFILES",
    "VERDICTS",
    "Claim",
    "Study",
    "Verdict",
    "announce",
    "by_profile",
    "code_digest",
    "committed_record",
    "imported_files",
    "judge",
    "ledger",
    "notebook_code",
    "paired_differences",
    "paired_interval",
    "read_record",
    "record_path",
    "relative_costs",
    "repository_root",
    "seeds_needed",
    "standardised",
    "verdict_of",
    "write_record",
]

_HOMES = {
    "kdcore.sources": ("code_digest", "imported_files", "notebook_code", "repository_root"),
    "kdcore.study.claims": (
        "VERDICTS", "Claim", "Verdict", "judge", "paired_interval", "seeds_needed", "standardised", "verdict_of",
    ),
    "kdcore.study.comparison": ("paired_differences", "relative_costs"),
    "kdcore.study.provenance": ("announce",),
    "kdcore.study.records": ("committed_record", "ledger", "read_record", "record_path", "write_record"),
    "kdcore.study.runner": ("PROFILES", "Study", "by_profile"),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'kdcore.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
