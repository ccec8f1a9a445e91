"""When to stop before the budget is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcore.checks import check_positive

__all__ = ["EarlyStopping"]


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a score has not been reached again for a number of epochs; keep the weights of its best epoch.

    A tie counts as an improvement: of several epochs with the highest score the last one is kept, and the waiting
    starts anew. The rule has no state of its own, it reads the history; one instance serves any number of runs.

    Attributes:
        monitor: column of the history, where higher is better; usually one that `evaluate` returns.
        patience: epochs without reaching the best score again, at least 1, after which training stops.

    Raises:
        ValueError: `patience` is not positive.

    Example:
        >>> rule = EarlyStopping("validation", patience=2)
        >>> rows = [{"validation": score} for score in (70.0, 80.0, 80.0, 75.0)]
        >>> rule.best(rows), rule.finished(rows), rule.finished([*rows, {"validation": 79.0}])
        (2, False, True)
    """

    monitor: str
    patience: int = 50

    def __post_init__(self) -> None:
        check_positive(patience=self.patience)

    def best(self, rows: Sequence[Mapping[str, float]]) -> int:
        """Index of the last row with the highest score.

        Raises:
            ValueError: no row, a row without the column, or a score that is not a number.
        """
        if not rows:
            raise ValueError("rows must hold at least one epoch, got none.")
        scores = [row.get(self.monitor, math.nan) for row in rows]
        if any(map(math.isnan, scores)):
            raise ValueError(
                f"monitor must name a column of the history ({', '.join(rows[-1])}) that holds a number in "
                f"every epoch, got {self.monitor!r}."
            )
        return len(scores) - 1 - scores[::-1].index(max(scores))

    def finished(self, rows: Sequence[Mapping[str, float]]) -> bool:
        """Whether the last `patience` rows stay below the best one before them."""
        return len(rows) > self.patience and len(rows) - 1 - self.best(rows) >= self.patience
