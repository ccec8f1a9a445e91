"""How a chapter reports: the table of arms, the table of claims, and what other profiles recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from kdcore.show.output import say, signed, table
from kdcore.study.claims import Verdict, paired_interval
from kdcore.study.records import committed_record

__all__ = ["claims", "recorded", "summary"]

_JOINED = "\N{NO-BREAK SPACE}"  # a cell breaks between numbers, not within one and its interval


def summary(results: pd.DataFrame, metrics: Mapping[str, str], arms: Sequence[str], caption: str = "") -> None:
    """Display one row per arm: the mean of each metric over seeds, ± half its 95 % interval.

    The interval of two seeds reaches six times their difference to either side: such a mean stands by itself.

    Args:
        results: tidy, as `Study.run` returns.
        metrics: metric → column heading, with unit.
        arms: rows, in order.
        caption: sentence above the table.

    Example:
        >>> results = pd.DataFrame(
        ...     [("KD", seed, "accuracy", 90.0 + seed) for seed in range(3)], columns=["arm", "seed", "metric", "value"]
        ... )
        >>> summary(results, {"accuracy": "accuracy (%)"}, ["KD"])
        <IPython.core.display.Markdown object>
    """
    rows = []
    for arm in arms:
        row: dict[str, str] = {"arm": arm}
        for metric, heading in metrics.items():
            chosen = results[(results["arm"] == arm) & (results["metric"] == metric)]["value"].to_numpy(dtype=float)
            row[heading] = _mean(chosen)
        rows.append(row)
    table(pd.DataFrame(rows), caption=caption)


def claims(judged: Sequence[Verdict]) -> None:
    """Display the verdicts: statement, the paper's figure, ours with its interval, seeds, verdict.

    Example:
        >>> from kdcore.study import Claim
        >>> claim = Claim("wins", "A wins", better="A", than="B", metric="accuracy", source="table 1")
        >>> claims([Verdict(claim, difference=1.5, low=0.5, high=2.5, pairs=5, verdict="supported")])
        <IPython.core.display.Markdown object>
    """
    rows = [
        {
            "claim": verdict.claim.statement,
            "paper": f"{verdict.claim.paper} ({verdict.claim.source})",
            "compared": f"{verdict.claim.better} against {verdict.claim.than}, {verdict.claim.metric}, "
            f"{verdict.claim.direction} is better",
            "difference [95 % interval]": _interval(verdict.difference, verdict.low, verdict.high),
            "seeds": verdict.pairs,
            "verdict": f"**{verdict.verdict}**",
        }
        for verdict in judged
    ]
    table(pd.DataFrame(rows))


def recorded(chapter: str, profile: str, metrics: Mapping[str, str]) -> None:
    """Display what is recorded for a chapter at a profile, with date, hardware and verdicts; or say that nothing is.

    Args:
        chapter: "part/method".
        profile: "cpu" or "gpu".
        metrics: metric → column heading, with unit.

    Example:
        >>> recorded("foundations/kd", "gpu", {"accuracy": "accuracy (%)"})
        <IPython.core.display.Markdown object>
    """
    record = committed_record(chapter, profile)
    if record is None:
        say(
            f"**No `{profile}` result is recorded for this chapter yet.** The same notebook run with "
            f'`profile="{profile}"` makes one.'
        )
        return
    where = record["provenance"]["hardware"]
    device = where.get("gpu", where["cpu"])
    results = pd.DataFrame(record["results"])
    shown = results[results["metric"].isin(list(metrics))]
    runs = shown.groupby(["arm", "metric"], sort=False).size()
    arms = list(dict.fromkeys(arm for (arm, _), count in runs.items() if count > 1))  # one run has no interval
    say(
        f"Recorded at profile `{profile}` on {record['provenance']['date']}: {len(record['seeds'])} seeds, "
        f"{device}, {record['provenance']['wall_seconds']:.0f} s; {record['provenance']['data']}."
    )
    summary(results, metrics, arms)
    rows = [
        {
            "claim": claim["statement"],
            "difference [95 % interval]": _interval(claim["difference"], claim["low"], claim["high"]),
            "verdict": f"**{claim['verdict']}**",
        }
        for claim in record["claims"]
    ]
    if rows:
        table(pd.DataFrame(rows))


def _mean(values: np.ndarray) -> str:
    if len(values) < 3:
        return f"{values.mean():.2f} (2 seeds)" if len(values) == 2 else "–"
    mean, _, high = paired_interval(values)
    return f"{mean:.2f}{_JOINED}±{_JOINED}{high - mean:.2f}"


def _interval(difference: float, low: float, high: float) -> str:
    return f"{signed(difference)} [{signed(low)},{_JOINED}{signed(high)}]"
