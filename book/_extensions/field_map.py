"""Where things go on the map of the field: a band per part, its papers in rows, arrows in the gaps between them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from papers import Curriculum, Paper

_HEIGHT = 86  # of a paper's box
_GAP = 30  # below a row; arrows leave through it
_HEADING = 26  # above the first row of a part
_LINE = 18  # of text
_LETTER, _LINK = 7.7, 95  # widths, in pixels: a letter of a part's title, the link beside it
_LANES = 5  # side by side in a gap, so that arrows from different papers can be told apart


@dataclass(frozen=True)
class Box:
    """A paper on the map, in pixels."""

    paper: Paper
    lines: list[str]
    x: float
    y: float


@dataclass(frozen=True)
class Arrow:
    """From a paper to one that builds on it; `path` is SVG path data."""

    start: str
    end: str
    path: str


@dataclass(frozen=True)
class FieldMap:
    """Everything that is drawn: `bands` are (part, title, y of its baseline, y of its link's baseline, boxes)."""

    width: int
    height: int
    box_width: float
    box_height: int
    bands: list[tuple[str, str, float, float, list[Box]]]
    arrows: list[Arrow]


def arrange(curriculum: Curriculum, width: int, columns: int, gutter: int, letters: int) -> FieldMap:
    """Lay out all papers.

    Args:
        curriculum: papers and parts.
        width: of the map in pixels.
        columns: papers side by side.
        gutter: pixels left of each column, where arrows run down.
        letters: that fit on a line in a box; a title has three lines at most.
    """
    box_width = (width - columns * gutter) / columns
    bands, boxes, y = [], {}, 0.0
    for part, papers in curriculum.by_part().items():
        title = curriculum.parts[part]["title"]
        # Where title and link don't fit on a line, the link has one of its own.
        below = _LINE if part in curriculum.closing and len(title) * _LETTER + _LINK > width - gutter else 0
        baseline, y = y + _LINE, y + _HEADING + below
        for place, paper in enumerate(papers):
            row, column = divmod(place, columns)
            lines = textwrap.wrap(paper.short, letters, max_lines=3, placeholder=" …")
            x = gutter + column * (box_width + gutter)
            boxes[paper.slug] = Box(paper, lines, x, y + row * (_HEIGHT + _GAP))
        y += -(-len(papers) // columns) * (_HEIGHT + _GAP)
        bands.append((part, title, baseline, baseline + below, [boxes[paper.slug] for paper in papers]))
    starts = [slug for slug in boxes if curriculum.leads_to(slug)]
    arrows = [
        Arrow(start, end.slug, _path(boxes[start], boxes[end.slug], box_width, gutter, lane % _LANES))
        for lane, start in enumerate(starts)
        for end in curriculum.leads_to(start)
    ]
    return FieldMap(width, round(y), box_width, _HEIGHT, bands, arrows)


def _path(start: Box, end: Box, box_width: float, gutter: int, lane: int) -> str:
    """From the bottom of one box through gap and gutter to the left side of the other, never across a third."""
    middle = end.y + _HEIGHT / 2
    if start.y == end.y and end.x - start.x == box_width + gutter:  # neighbours
        return f"M{start.x + box_width:g} {middle:g}H{end.x - 7:g}"
    gap = start.y + _HEIGHT + 7 + 4 * lane
    across = end.x - gutter + 3 + lane * (gutter - 13) / (_LANES - 1)
    return f"M{start.x + box_width / 2:g} {start.y + _HEIGHT:g}V{gap:g}H{across:g}V{middle:g}H{end.x - 7:g}"
