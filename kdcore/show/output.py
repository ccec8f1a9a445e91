"""What a chapter displays: sentences with numbers, tables, pictures with alternative text, source code."""

from __future__ import annotations

import base64
import html
import inspect
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["encode", "markdown_table", "picture", "say", "signed", "source", "table"]


def _display(item: Any) -> None:
    from IPython.display import display

    display(item)


def say(text: str) -> None:
    """Display a sentence, as Markdown; the way in which prose carries numbers of the run.

    Example:
        >>> say(f"The student reaches {91.234:.1f} %.")
        <IPython.core.display.Markdown object>
    """
    from IPython.display import Markdown

    _display(Markdown(inspect.cleandoc(text)))


def signed(value: float) -> str:
    """Three significant digits with a sign; what is zero but for rounding is zero.

    Example:
        >>> signed(1.23456), signed(-5.7e-15)
        ('+1.23', '+0')
    """
    return f"{round(value, 9) + 0.0:+.3g}"


def markdown_table(frame: pd.DataFrame, digits: int = 2) -> str:
    """A data frame as a Markdown table, floats with `digits` decimals, the index left out.

    Example:
        >>> print(markdown_table(pd.DataFrame({"arm": ["KD"], "accuracy": [91.234]}), digits=1))
        | arm | accuracy |
        |---|---:|
        | KD | 91.2 |
    """

    def cell(value: Any) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |"]
    lines.append("|" + "|".join("---:" if is_numeric else "---" for is_numeric in numeric) + "|")
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def table(frame: pd.DataFrame, digits: int = 2, caption: str = "") -> None:
    """Display a data frame as a table with an optional sentence above it.

    Example:
        >>> table(pd.DataFrame({"arm": ["KD"], "accuracy": [91.2]}), caption="Mean over seeds.")
        <IPython.core.display.Markdown object>
    """
    say((f"**{caption}**\n\n" if caption else "") + markdown_table(frame, digits))


def encode(figure: Figure, dpi: int = 144, colours: int = 0) -> str:
    """A figure as PNG in base64; with `colours`, reduced to a palette of that many, a fraction of the size.

    Example:
        >>> drawn = Figure(figsize=(1, 1))
        >>> base64.b64decode(encode(drawn))[1:4]
        b'PNG'
    """
    buffer = BytesIO()
    figure.set_dpi(dpi)
    figure.set_facecolor("white")
    FigureCanvasAgg(figure).print_png(buffer)  # unlike savefig, it does not lay the figure out twice
    if colours:
        from PIL import Image

        reduced = Image.open(buffer).convert("RGB").quantize(colours)
        buffer = BytesIO()
        reduced.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(figure: Figure, description: str) -> None:
    """Display a figure with a description for those who cannot see it.

    Args:
        figure: drawn with `show.figure` or by any function of `kdcore.show`.
        description: what the figure shows, in words.

    Raises:
        ValueError: the description is empty.

    Example:
        >>> picture(Figure(figsize=(1, 1)), "An empty square.")
        <IPython.core.display.HTML object>
        >>> picture(Figure(figsize=(1, 1)), "")
        Traceback (most recent call last):
        ValueError: description must say what the figure shows.
    """
    from IPython.display import HTML

    if not description.strip():
        raise ValueError("description must say what the figure shows.")
    width = round(figure.get_figwidth() * 96)
    image = (
        f'<img class="kdcore-figure" alt="{html.escape(description)}" width="{width}" '
        f'style="max-width:100%;height:auto" src="data:image/png;base64,{encode(figure, colours=128)}">'
    )
    grids = [axes.get_gridspec() for axes in figure.axes]
    side_by_side = any(grid is not None and grid.ncols > 1 for grid in grids)
    if side_by_side or figure.get_figwidth() > 8:  # too wide for a phone, where it scrolls
        image = f'<div class="kdcore-wide" tabindex="0" role="group" aria-label="figure">{image}</div>'
    _display(HTML(image))


def source(item: Any) -> None:
    """Display the source of a function, class or module as it is in the installed package.

    Example:
        >>> from kdcore.foundations import kd
        >>> source(kd.soften)
        <IPython.core.display.Markdown object>
    """
    say(f"```python\n{inspect.getsource(item).rstrip()}\n```")
