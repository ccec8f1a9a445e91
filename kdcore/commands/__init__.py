"""The command `kdcore`: what there is, running it, and what came out; a module for each group of subcommands.

Nothing here runs a notebook or plans a job: papermill executes (`ci/execute.py`) and Snakemake decides what is run
(`ci/Snakefile`). The command needs a checkout, since the chapters are not part of the installed package.
"""

from __future__ import annotations

import sys

try:
    import typer
except ImportError:  # pragma: no cover - the core package has no command line
    sys.exit("error: the command kdcore needs more packages: pip install 'kdcore[book]'")

from kdcore.commands import archiving, chapters, reproducing

__all__ = ["app", "main"]

app = typer.Typer(
    help="Run the chapters of the book with other parameters, and look at what came out.",
    epilog="`kdcore COMMAND --help` shows examples.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list", help="List the chapters, part by part.")(chapters.list_chapters)
app.command(
    "reproduce",
    help="Run a record again and say whether the numbers are the same.",
    epilog="""Examples:

    kdcore reproduce cpu:spherical_kd

    kdcore reproduce results/quick/foundations/kd.json --results-dir again
    """,
)(reproducing.reproduce)
app.command(
    "archive",
    help="Pack records, executed notebooks and their environment into one zip, or check and unpack one.",
    epilog="""Examples:

    kdcore archive --output book.zip

    kdcore archive spherical_kd kd

    kdcore archive --read book.zip --into unpacked
    """,
)(archiving.archive)


@app.callback()
def _group() -> None:
    """With a callback there are subcommands, however few."""


def main() -> None:
    """Run the command line; an expected error is one line and exit status 1.

    Example:
        >>> callable(main)
        True
    """
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
