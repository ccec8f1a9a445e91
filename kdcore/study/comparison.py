"""Many methods under one protocol: paired differences from a reference, and what a step of each costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import pandas as pd

from kdcore.checks import check_positive
from kdcore.study.claims import paired_interval

__all__ = ["paired_differences", "relative_costs"]


def paired_differences(results: pd.DataFrame, metric: str, reference: str) -> pd.DataFrame:
    """How each arm differs from a reference arm: mean over paired seeds, and its 95 % interval.

    Args:
        results: tidy, as `Study.run` returns: columns `arm`, `seed`, `metric`, `value`.
        metric: which metric.
        reference: the arm that the others are compared with.

    Returns:
        One row per other arm, the largest difference first: `arm`, `mean` of its own values, `difference`, `low`,
        `high`, `pairs`.

    Raises:
        ValueError: there are no results of the metric or of the reference, or an arm shares fewer than two seeds
            with it.

    Example:
        >>> results = pd.DataFrame(
        ...     [(arm, k, "accuracy", base + k * step) for arm, base, step in (("KD", 90, 1), ("DHKD", 92, 2))
        ...      for k in range(3)],
        ...     columns=["arm", "seed", "metric", "value"],
        ... )
        >>> paired_differences(results, "accuracy", "KD")[["arm", "difference", "pairs"]]
            arm  difference  pairs
        0  DHKD         3.0      3
    """
    table = results[results["metric"] == metric].pivot(index="seed", columns="arm", values="value")
    if reference not in table:
        raise ValueError(f"no {metric!r} of the reference {reference!r} in the results, there is {list(table)}.")
    rows = []
    for arm in table.columns.drop(reference):
        pairs = table[[arm, reference]].dropna()
        if len(pairs) < 2:
            raise ValueError(f"arm {arm!r} must share at least two seeds with {reference!r}, got {len(pairs)}.")
        difference, low, high = paired_interval((pairs[arm] - pairs[reference]).to_numpy())
        rows.append(
            {"arm": arm, "mean": pairs[arm].mean(), "difference": difference, "low": low, "high": high}
            | {"pairs": len(pairs)}
        )
    return pd.DataFrame(rows).sort_values("difference", ascending=False, kind="stable", ignore_index=True)


def relative_costs(runs: Mapping[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Time of each run in units of the first one's.

    The runs take turns, so that a busy machine slows all of them; the first round warms up and is not counted.

    Args:
        runs: by name, for instance a few training steps each; the first is the unit.
        rounds: how often each is timed.

    Returns:
        Median over rounds of the ratio to the first run of the same round, by name; 1 for the first.

    Raises:
        ValueError: no run, or `rounds` is not positive.

    Example:
        >>> costs = relative_costs({"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.04)}, rounds=2)
        >>> 2 < costs["long"] < 6
        True
    """
    check_positive(rounds=rounds)
    if not runs:
        raise ValueError("runs must name at least one function, got none.")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    unit = next(iter(times.values()))
    return {
        name: statistics.median(own / first for own, first in zip(taken[1:], unit[1:], strict=True))
        for name, taken in times.items()
    }
