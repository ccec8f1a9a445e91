"""One look for all figures: colours that survive colour blindness and grey print, the same arm in the same colour."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["VERDICT_COLOURS", "figure", "palette", "use_style"]

_BASELINES = {
    "CE": "#6b6b6b",
    "source only": "#6b6b6b",
    "MLP": "#6b6b6b",
    "teacher": "#000000",
    "KD": "#0072B2",
    "DANN": "#0072B2",
    "entropy": "#0072B2",
    "GLNN": "#0072B2",
}
_METHOD = "#D55E00"
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D", "#117733", "#882255", "#999933")
VERDICT_COLOURS = {"supported": "#117733", "undecided": "#6b6b6b", "contradicted": "#AA2222"}
"""Of verdicts, everywhere."""


def use_style() -> None:
    """Set matplotlib's defaults for the book.

    Example:
        >>> use_style()
        >>> mpl.rcParams["axes.titlelocation"]
        'left'
    """
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font="DejaVu Sans")
    mpl.rcParams.update(
        {
            "figure.dpi": 120,
            "figure.constrained_layout.use": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "image.cmap": "viridis",
        }
    )


def palette(arms: Sequence[str], method: str) -> dict[str, str]:
    """A colour for each arm: the paper's own method and the usual baselines have the same one in every chapter.

    Args:
        arms: names in the order of the figure.
        method: the arm that is the paper's method.

    Example:
        >>> palette(["CE", "KD", "SKD"], method="SKD")["SKD"]
        '#D55E00'
    """
    others = iter(_OTHERS * (1 + len(arms) // len(_OTHERS)))
    return {arm: _METHOD if arm == method else _BASELINES.get(arm) or next(others) for arm in arms}


def figure(columns: int = 1, width: float = 7.5, height: float = 3.2, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure in the book's style and its panels, row by row.

    Built without pyplot, so it need not be closed and shows only where `show.picture` is called.

    Example:
        >>> drawn, panels = figure(columns=2)
        >>> len(panels)
        2
    """
    use_style()
    drawn = Figure(figsize=(width, height))
    axes = drawn.subplots(rows, columns, squeeze=False)
    return drawn, list(axes.flat)
