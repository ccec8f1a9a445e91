"""How the subcommands print: tables in the terminal, whole lines where the output goes into a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

__all__ = ["show_json", "show_table"]


def show_table(rows: Sequence[Mapping[str, object]], title: str = "") -> None:
    """Print rows as a table whose columns are the keys of the first row; no rows, no table.

    Example:
        >>> show_table([{"name": "alpha", "range": "in [0, 1]"}])
        name    range
        ─────────────────
        alpha   in [0, 1]
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    # Into a file or a pipe a row is one line, however long, so that other programs can read it.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, show_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(value)) for value in row.values()))
    console.print(table)


def show_json(content: object) -> None:
    """Print something as JSON, letters of all alphabets as they are.

    Example:
        >>> show_json({"name": "α"})
        {
         "name": "α"
        }
    """
    print(json.dumps(content, indent=1, ensure_ascii=False))


def _plain(value: object) -> str:
    """As text; what would steer a terminal, in a record from elsewhere, is shown as a question mark."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return "".join(letter if letter.isprintable() else "?" for letter in text)
