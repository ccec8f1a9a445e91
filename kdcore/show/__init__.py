"""Figures, tables, sentences with numbers, and sliders, in one style."""

from kdcore.show.figures import (
    confusion_map,
    curves,
    differences,
    embedding,
    image_grid,
    plane,
    scores,
    verdict_map,
    verdicts,
)
from kdcore.show.output import markdown_table, picture, say, signed, source, table
from kdcore.show.reports import claims, recorded, summary
from kdcore.show.slider import slider, slider_html
from kdcore.show.style import VERDICT_COLOURS, figure, palette, use_style

__all__ = [
    "VERDICT_COLOURS",
    "claims",
    "confusion_map",
    "curves",
    "differences",
    "embedding",
    "figure",
    "image_grid",
    "markdown_table",
    "palette",
    "picture",
    "plane",
    "recorded",
    "say",
    "scores",
    "signed",
    "slider",
    "slider_html",
    "source",
    "summary",
    "table",
    "use_style",
    "verdict_map",
    "verdicts",
]
