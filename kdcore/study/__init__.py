"""Studies: profiles, arms and seeds, claims, verdicts, records, the ledger."""

from kdcore.sources import code_digest, imported_files, notebook_code, repository_root
from kdcore.study.claims import VERDICTS, Claim, Verdict, judge, paired_interval, standardised, verdict_of
from kdcore.study.comparison import paired_differences, relative_costs
from kdcore.study.provenance import announce
from kdcore.study.records import ledger, read_record, record_path, write_record
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
    "standardised",
    "verdict_of",
    "write_record",
]
