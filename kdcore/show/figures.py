"""The figures that recur: scores, curves, verdicts, confusion, features, the plane, image grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from kdcore.show.output import signed
from kdcore.show.style import VERDICT_COLOURS, figure
from kdcore.study.claims import Verdict, paired_interval, verdict_of

__all__ = [
    "confusion_map",
    "curves",
    "differences",
    "embedding",
    "image_grid",
    "plane",
    "scores",
    "verdict_map",
    "verdicts",
]


def scores(
    results: pd.DataFrame,
    metric: str,
    colours: Mapping[str, str],
    *,
    label: str | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Every seed of every arm as a dot, the mean with its 95 % interval, and thin lines that join the same seed.

    Args:
        results: tidy, as `Study.run` returns.
        metric: which metric.
        colours: arm → colour, in the order from top to bottom (see `palette`); arms without results are an error.
        label: of the axis, with unit; the metric's name if left out.
        axes: panel to draw in; a new figure if left out.

    Example:
        >>> results = pd.DataFrame(
        ...     [(arm, k, "accuracy", base + k) for arm, base in (("CE", 90.0), ("KD", 92.0)) for k in range(3)],
        ...     columns=["arm", "seed", "metric", "value"],
        ... )
        >>> drawn = scores(results, "accuracy", {"CE": "#6b6b6b", "KD": "#0072B2"}, label="accuracy (%)")
        >>> drawn.axes[0].get_xlabel()
        'accuracy (%)'
    """
    if axes is None:
        _, (axes,) = figure(height=0.9 + 0.45 * len(colours))
    values = results[results["metric"] == metric].pivot(index="seed", columns="arm", values="value")[list(colours)]
    places = np.arange(len(colours))
    axes.plot(values.T.to_numpy(), places, color="#cccccc", linewidth=0.8, zorder=1)
    for place, (arm, colour) in zip(places, colours.items(), strict=True):
        column = values[arm].dropna().to_numpy()
        mean, low, high = paired_interval(column)
        axes.scatter(column, np.full(len(column), place), s=14, color=colour, alpha=0.55, zorder=2)
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5, zorder=3)
        axes.scatter([mean], [place], s=70, color=colour, edgecolor="white", zorder=4)
        axes.annotate(f"{mean:.1f}", (mean, place), (0, 8), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(places, list(colours))
    axes.set_ylim(len(colours) - 0.5, -0.7)
    axes.set_xlabel(label or metric)
    axes.grid(axis="y", visible=False)
    return axes.figure  # type: ignore[return-value]


def differences(table: pd.DataFrame, reference: str, label: str, *, axes: Axes | None = None) -> Figure:
    """Paired differences from a reference, the largest at the top; from 3 pairs on, with their 95 % intervals.

    Intervals above zero are green, those below it red, those that hold zero grey, as is what has none.

    Args:
        table: as `study.paired_differences` returns.
        reference: name of the arm at zero.
        label: of the axis, with unit.
        axes: panel to draw in; a new figure if left out.

    Example:
        >>> table = pd.DataFrame({"arm": ["DHKD"], "difference": [2.0], "low": [0.5], "high": [3.5], "pairs": [5]})
        >>> differences(table, "KD", "accuracy (points)").axes[0].get_xlabel()
        'accuracy (points), difference from KD'
    """
    if axes is None:
        _, (axes,) = figure(height=0.9 + 0.4 * len(table))
    for place, row in enumerate(table.to_dict("records")):
        known = row["pairs"] > 2  # the interval of two says nothing but that they are two
        colour = VERDICT_COLOURS[verdict_of(row["low"], row["high"]) if known else "undecided"]
        if known:
            axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.scatter([row["difference"]], [place], s=60, color=colour, edgecolor="white", zorder=3)
        axes.annotate(
            signed(row["difference"]),
            (row["difference"], place),
            (0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.axvline(0, color="#333333", linewidth=1)
    axes.set_yticks(range(len(table)), list(table["arm"]))
    axes.set_ylim(len(table) - 0.5, -0.7)
    axes.set_xlabel(f"{label}, difference from {reference}")
    axes.grid(axis="y", visible=False)
    return axes.figure  # type: ignore[return-value]


def curves(
    frame: pd.DataFrame,
    x: str,
    y: str,
    colours: Mapping[str, str],
    *,
    by: str = "arm",
    labels: tuple[str, str] | None = None,
    axes: Axes | None = None,
) -> Figure:
    """Mean over seeds against `x`, one line per arm, with its name; from 3 seeds on, the 95 % interval as a band.

    Args:
        frame: columns `by`, `x`, `y`, and one row per seed.
        x, y: column names.
        colours: arm → colour.
        by: column that holds the arm.
        labels: of the axes, with units.
        axes: panel to draw in; a new figure if left out.

    Example:
        >>> frame = pd.DataFrame({"arm": "KD", "epoch": [1, 2, 1, 2], "loss": [2.0, 1.0, 2.2, 1.1]})
        >>> curves(frame, "epoch", "loss", {"KD": "#0072B2"}).axes[0].get_xlabel()
        'epoch'
    """
    if axes is None:
        _, (axes,) = figure()
    ends = []
    for arm, colour in colours.items():
        grouped = frame[frame[by] == arm].groupby(x)[y]
        middle = grouped.mean()
        axes.plot(middle.index, middle, color=colour, marker="o" if len(middle) < 15 else None, markersize=4)
        if (grouped.count() > 2).all():
            ends_of_band = [paired_interval(values.to_numpy())[1:] for _, values in grouped]
            axes.fill_between(middle.index, *np.array(ends_of_band).T, color=colour, alpha=0.15, linewidth=0)
        ends.append((arm, colour, float(middle.index[-1]), float(middle.iloc[-1])))
    axes.set_xlabel((labels or (x, y))[0])
    axes.set_ylabel((labels or (x, y))[1])
    _name_lines(axes, ends)
    return axes.figure  # type: ignore[return-value]


def _name_lines(axes: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write each line's name at its end, moved apart where ends are close."""
    low, high = axes.get_ylim()
    gap, ends = 0.07 * (high - low), sorted(ends, key=lambda end: end[3])
    places = np.array([y for *_, y in ends])
    for above in range(1, len(places)):
        places[above] = max(places[above], places[above - 1] + gap)
    for from_top in range(len(places)):  # back into the panel, where many end near its upper edge
        places[-1 - from_top] = min(places[-1 - from_top], high - (from_top + 0.5) * gap)
    for place, (name, colour, x, y) in zip(places, ends, strict=True):
        axes.annotate(
            name, (x, y), (6, (place - y) / (high - low) * axes.bbox.height * 72 / axes.figure.dpi),
            textcoords="offset points", color=colour, fontsize=9, va="center", annotation_clip=False,
        )  # fmt: skip


def verdicts(judged: Sequence[Verdict]) -> Figure:
    """Paired differences with their 95 % intervals; right of zero is what the paper claims.

    Differences are divided by their interval's half width or size, whichever is larger, where claims use
    different metrics: the figure shows how clear a verdict is, the table how large the effect.

    Example:
        >>> from kdcore.study import Claim
        >>> claim = Claim("wins", "A wins", better="A", than="B", metric="accuracy", source="table 1")
        >>> drawn = verdicts([Verdict(claim, difference=1.5, low=0.5, high=2.5, pairs=5, verdict="supported")])
        >>> drawn.axes[0].texts[0].get_text()
        '+1.5  supported'
    """
    drawn, (axes,) = figure(height=0.8 + 0.5 * len(judged))
    for place, verdict in enumerate(judged):
        scale = max(abs(verdict.low), abs(verdict.high)) or 1.0
        low, mean, high = (value / scale for value in (verdict.low, verdict.difference, verdict.high))
        colour = VERDICT_COLOURS[verdict.verdict]
        axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axes.scatter([mean], [place], color=colour, s=50, zorder=3)
        text = f"{signed(verdict.difference)}  {verdict.verdict}"
        axes.annotate(text, (1.05, place), color=colour, fontsize=9, va="center", annotation_clip=False)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(judged)), [verdict.claim.id.replace("_", " ") for verdict in judged])
    axes.set_ylim(len(judged) - 0.5, -0.5)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xticks([-1, 0, 1], ["against\nthe claim", "0", "as\nclaimed"])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("paired difference, each scaled to its farther interval end")
    return drawn


def verdict_map(ledger: pd.DataFrame) -> Figure:
    """Claims × profiles, coloured by verdict, with the paired difference in each cell.

    Example:
        >>> ledger = pd.DataFrame(
        ...     [("a/b", "wins", "cpu", "supported", 1.5)],
        ...     columns=["chapter", "claim", "profile", "verdict", "difference"],
        ... )
        >>> [text.get_text() for text in verdict_map(ledger).axes[0].texts][0]
        '+1.5'
    """
    ledger = ledger.assign(row=ledger["chapter"] + ": " + ledger["claim"].str.replace("_", " "))
    rows = list(dict.fromkeys(ledger["row"]))
    profiles = [name for name in ("quick", "cpu", "gpu") if name in set(ledger["profile"])]
    drawn, (axes,) = figure(width=8.5, height=0.8 + 0.3 * len(rows))
    for entry in ledger.itertuples():
        place = profiles.index(str(entry.profile)), rows.index(str(entry.row))
        axes.add_patch(_tile(place, VERDICT_COLOURS[str(entry.verdict)]))
        axes.annotate(signed(entry.difference), place, ha="center", va="center", color="white", fontsize=8)
    axes.set_xlim(-0.5, len(profiles) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(profiles)), profiles)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    for count, (verdict, colour) in enumerate(VERDICT_COLOURS.items()):
        axes.annotate(
            f"■ {verdict}", (0.0 + 0.33 * count, -0.02), xycoords="axes fraction", color=colour, va="top", fontsize=9
        )
    return drawn


def _tile(place: tuple[int, int], colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((place[0] - 0.48, place[1] - 0.44), 0.96, 0.88, facecolor=colour)


def confusion_map(counts: np.ndarray, classes: Sequence[str], axes: Axes | None = None) -> Figure:
    """A confusion matrix (rows are labels) as shares of each row, in percent.

    Example:
        >>> drawn = confusion_map(np.array([[9, 1], [2, 8]]), classes=("cat", "dog"))
        >>> drawn.axes[0].get_ylabel()
        'label'
    """
    import seaborn as sns

    if axes is None:
        _, (axes,) = figure(width=5, height=4.2)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    sns.heatmap(
        shares, ax=axes, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False,
        xticklabels=classes, yticklabels=classes, annot_kws={"fontsize": 7},
    )  # fmt: skip
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    return axes.figure  # type: ignore[return-value]


def embedding(features: Tensor, labels: Tensor, classes: Sequence[str], axes: Axes | None = None) -> Figure:
    """Features (N, d) on their first two principal components, coloured and named by class.

    Example:
        >>> drawn = embedding(torch.randn(20, 5), torch.arange(20) % 2, classes=("even", "odd"))
        >>> [text.get_text() for text in drawn.axes[0].texts]
        ['even', 'odd']
    """
    from sklearn.decomposition import PCA

    if axes is None:
        _, (axes,) = figure(width=5, height=4.2)
    points = PCA(2, svd_solver="full").fit_transform(features.flatten(1).double().cpu().numpy())
    axes.scatter(points[:, 0], points[:, 1], c=labels.cpu().numpy(), cmap="tab10", s=8, alpha=0.6)
    for number, name in enumerate(classes):
        members = points[labels.cpu().numpy() == number]
        if len(members):
            axes.annotate(name, members.mean(axis=0), fontsize=11, weight="bold", ha="center", va="center")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second principal component")
    return axes.figure  # type: ignore[return-value]


def plane(model: nn.Module, points: Tensor, labels: Tensor, axes: Axes | None = None) -> Figure:
    """What a classifier of points in the plane (N, 2) predicts around them: class by colour, confidence by depth.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> drawn = plane(model, torch.randn(30, 2), torch.arange(30) % 3)
        >>> len(drawn.axes[0].images)
        1
    """
    if axes is None:
        _, (axes,) = figure(width=4.5, height=4)
    low, high = points.min(dim=0).values - 0.5, points.max(dim=0).values + 0.5
    first, second = (torch.linspace(float(a), float(b), 150) for a, b in zip(low, high, strict=True))
    grid = torch.cartesian_prod(first, second)
    with torch.no_grad():
        confidence, prediction = model(grid).softmax(dim=1).max(dim=1)
    import matplotlib as mpl

    colour = mpl.colormaps["tab10"](prediction.reshape(150, 150).T.numpy())
    colour[..., 3] = 0.5 * confidence.reshape(150, 150).T.numpy()
    axes.imshow(colour, origin="lower", extent=(float(low[0]), float(high[0]), float(low[1]), float(high[1])))
    axes.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", vmin=0, vmax=9, s=10, edgecolor="white", lw=0.3)
    axes.set_aspect("auto")
    axes.grid(visible=False)
    return axes.figure  # type: ignore[return-value]


def image_grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 10, side: float = 0.75) -> Figure:
    """Images (N, 1 or 3, H, W) in [0, 1], or class masks (N, H, W), side by side.

    Args:
        images: what to show.
        titles: one per image, small, above it.
        columns: images in a row.
        side: of an image, in inches.

    Example:
        >>> len(image_grid(torch.rand(6, 1, 8, 8), columns=3).axes)
        6
    """
    rows = -(-len(images) // columns)
    height = side * rows * (1.35 if titles else 1.0)
    drawn, panels = figure(columns, width=side * columns, height=height, rows=rows)
    for panel in panels:
        panel.axis("off")
    top = float(images.max()) if images.ndim == 3 else 1.0
    for number, (panel, image) in enumerate(zip(panels, images.cpu(), strict=False)):
        shown = image if image.ndim == 2 else image.permute(1, 2, 0).squeeze(-1)
        colour_map = "gray" if images.ndim == 4 else "tab10"
        panel.imshow(shown, cmap=colour_map, vmin=0, vmax=9 if images.ndim == 3 and top <= 9 else top)
        if titles:
            panel.set_title(titles[number], fontsize=8, loc="center")
    return drawn
