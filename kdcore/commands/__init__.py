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

from kdcore.commands import chapters, sweeping

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
    "sweep",
    help="Run a chapter with every combination of values; finished jobs are not run again.",
    epilog="Examples: `kdcore sweep spherical_kd -p temperature=1,2,4,8 -p seed=0:25:5` · "
    "`kdcore sweep kd -p alpha=0.5,0.9 --profile cpu --snakemake-profile ci/profiles/slurm --dry-run`",
)(sweeping.sweep)


@app.callback()
def _group() -> None:
    """With a callback there are subcommands, however few."""


def main() -> None:
    """Run the command line; an expected error is one line and exit status 1.

    Example:
        >>> callable(main)
        True
    """
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal that knows no τ
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
