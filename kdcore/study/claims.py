"""Claims written down before a run, and the one rule that judges them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from kdcore.checks import check_choice

__all__ = ["VERDICTS", "Claim", "Verdict", "judge", "paired_interval", "seeds_needed", "standardised", "verdict_of"]

VERDICTS = ("supported", "undecided", "contradicted")


@dataclass(frozen=True)
class Claim:
    """What a paper says, as a comparison of two arms that a run can refute.

    Attributes:
        id: short name, unique in its chapter.
        statement: the claim in a sentence.
        better: the arm that should win.
        than: the arm it should beat.
        metric: compared, seed by seed.
        source: where the paper says so.
        direction: "higher" if larger values of the metric are better, else "lower".
        paper: the paper's own figure, as text; "not stated" where it gives none.

    Raises:
        ValueError: unknown direction, or an arm compared with itself.

    Example:
        >>> Claim("wins", "KD beats labels", better="KD", than="CE", metric="accuracy", source="section 3").paper
        'not stated'
    """

    id: str
    statement: str
    better: str
    than: str
    metric: str
    source: str
    direction: str = "higher"
    paper: str = "not stated"

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, ("higher", "lower"))
        if self.better == self.than:
            raise ValueError(f"claim {self.id!r} compares arm {self.better!r} with itself.")


@dataclass(frozen=True)
class Verdict:
    """A claim and what the run says of it.

    Attributes:
        claim: the claim.
        difference: mean over seeds of the paired difference, positive where the claim holds.
        low, high: 95 % interval of that mean.
        pairs: number of seeds.
        verdict: "supported", "undecided" or "contradicted".

    Example:
        >>> claim = Claim("wins", "KD beats labels", better="KD", than="CE", metric="accuracy", source="section 3")
        >>> Verdict(claim, difference=1.2, low=-0.1, high=2.5, pairs=5, verdict="undecided").as_dict()["pairs"]
        5
    """

    claim: Claim
    difference: float
    low: float
    high: float
    pairs: int
    verdict: str

    def as_dict(self) -> dict[str, object]:
        """Flat and JSON-ready."""
        own = {name: getattr(self, name) for name in ("difference", "low", "high", "pairs", "verdict")}
        return asdict(self.claim) | own


def paired_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of paired differences and its Student t interval.

    Args:
        differences: one number per seed, at least two.
        level: coverage.

    Returns:
        Mean, lower end, upper end.

    Raises:
        ValueError: fewer than two differences, or one that is not finite.

    Example:
        >>> paired_interval(np.array([1.0, 2.0, 3.0]))
        (2.0, -0.484..., 4.484...)
    """
    differences = np.asarray(differences, dtype=float)
    if len(differences) < 2 or not np.isfinite(differences).all():
        raise ValueError(f"differences must be at least two finite numbers, got {differences.tolist()}.")
    mean = float(differences.mean())
    error = float(stats.sem(differences))
    if error == 0:
        return mean, mean, mean
    low, high = stats.t.interval(level, len(differences) - 1, mean, error)
    return mean, float(low), float(high)


def standardised(low: float, high: float, pairs: int, level: float = 0.95) -> float:
    """Mean of paired differences in units of their standard deviation, from their interval (Cohen's d for pairs).

    It compares effects on metrics of different units, and does not grow with the number of seeds.

    Args:
        low, high: ends of the interval, as `paired_interval` returns.
        pairs: number of differences, at least two.
        level: coverage of the interval.

    Returns:
        Mean divided by standard deviation; NaN where all differences are the same.

    Raises:
        ValueError: fewer than two pairs, or ends in the wrong order.

    Example:
        >>> mean, low, high = paired_interval(np.array([1.0, 2.0, 3.0]))
        >>> round(standardised(low, high, pairs=3), 6)
        2.0
    """
    deviation = _deviation(low, high, pairs, level)
    return (low + high) / 2 / deviation if deviation else float("nan")


def seeds_needed(low: float, high: float, pairs: int, half_width: float = 1.0, level: float = 0.95) -> int:
    """Paired seeds for an interval as narrow as wanted, if differences go on scattering as they did.

    Args:
        low, high: ends of the interval that was measured with `pairs` seeds, at least 2.
        half_width: what the mean difference is to be known to, above 0, in the interval's unit.
        level: that of both intervals.

    Returns:
        The smallest number n, at least 2, with t(level, n - 1) · deviation / sqrt(n) of at most the half width.

    Raises:
        ValueError: fewer than two pairs, ends in the wrong order, or a half width that is not above 0.

    Example:
        >>> seeds_needed(-1.5, 2.5, pairs=5)
        13
    """
    if not half_width > 0:
        raise ValueError(f"half_width must be above 0, got {half_width}.")
    deviation = _deviation(low, high, pairs, level)
    # The normal quantile is below every t: it gives the first number that is worth a look.
    first = max(2, math.ceil((float(stats.norm.ppf((1 + level) / 2)) * deviation / half_width) ** 2))
    return next(
        seeds
        for seeds in itertools.count(first)
        if float(stats.t.ppf((1 + level) / 2, seeds - 1)) * deviation <= half_width * math.sqrt(seeds)
    )


def _deviation(low: float, high: float, pairs: int, level: float) -> float:
    if pairs < 2 or low > high:
        raise ValueError(f"an interval of at least two pairs is wanted, got [{low}, {high}] of {pairs}.")
    return (high - low) / 2 / float(stats.t.ppf((1 + level) / 2, pairs - 1)) * math.sqrt(pairs)


def verdict_of(low: float, high: float) -> str:
    """The one rule: where an interval of differences lies.

    Args:
        low, high: ends of the interval, positive where the claim holds.

    Returns:
        "supported" above zero, "contradicted" below it, "undecided" where it holds zero.

    Example:
        >>> verdict_of(0.1, 2.0), verdict_of(-1.0, 2.0), verdict_of(-3.0, -0.5)
        ('supported', 'undecided', 'contradicted')
    """
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


def judge(claims: Iterable[Claim], results: pd.DataFrame) -> list[Verdict]:
    """Judge each claim on tidy results: paired over seeds, 95 % interval of the mean difference.

    Supported if the interval lies on the claimed side of zero, contradicted if on the other, else undecided.

    Args:
        claims: what to judge.
        results: columns `arm`, `seed`, `metric`, `value`.

    Raises:
        ValueError: an arm or metric that a claim names is not in the results, or seeds do not pair.

    Example:
        >>> claim = Claim("wins", "KD beats labels", better="KD", than="CE", metric="accuracy", source="section 3")
        >>> results = pd.DataFrame(
        ...     [(arm, k, "accuracy", base + k) for arm, base in (("CE", 90.0), ("KD", 92.0)) for k in range(3)],
        ...     columns=["arm", "seed", "metric", "value"],
        ... )
        >>> judge([claim], results)[0].verdict
        'supported'
    """
    return [_judge_one(claim, results) for claim in claims]


def _judge_one(claim: Claim, results: pd.DataFrame) -> Verdict:
    table = results[results["metric"] == claim.metric].pivot(index="seed", columns="arm", values="value")
    for arm in (claim.better, claim.than):
        if arm not in table or table[arm].isna().all():
            raise ValueError(f"claim {claim.id!r}: no {claim.metric!r} of arm {arm!r} in the results.")
    pair = table[[claim.better, claim.than]].dropna()
    if len(pair) < len(table[claim.better].dropna()):
        raise ValueError(f"claim {claim.id!r}: arms {claim.better!r} and {claim.than!r} were run with different seeds.")
    sign = 1 if claim.direction == "higher" else -1
    mean, low, high = paired_interval(sign * (pair[claim.better] - pair[claim.than]).to_numpy())
    return Verdict(claim, mean, low, high, len(pair), verdict_of(low, high))
