"""The command `kdcore`: what there is, running it, and what came out; a module for each group of subcommands.

Nothing here runs a notebook or plans a job: papermill executes (`ci/execute.py`) and Snakemake decides what is run
(`ci/Snakefile`). The command needs a checkout, since the chapters are not part of the installed package.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from io import TextIOWrapper

try:
    import typer
except ImportError:  # pragma: no cover - the core package has no command line
    sys.exit("error: the command kdcore needs more packages: pip install 'kdcore[book]'")

from kdcore.commands import archiving, chapters, comparing, data, doctor, ledger, reproducing, running, sweeping

__all__ = ["app", "examples", "main"]


def examples(lines: Iterable[str]) -> str:
    """The end of a help page: commands as a user would type them.

    Example:
        >>> examples(["kdcore list", "kdcore ledger"]).splitlines()[2:]
        ['- `kdcore list`', '', '- `kdcore ledger`']
    """
    return "\n\n".join(["Examples:", *(f"- `{line}`" for line in lines)])


app = typer.Typer(
    help="Run the chapters of the book with other parameters, and look at what came out.",
    epilog="`kdcore COMMAND --help` shows examples.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list", help="List the chapters, or the parameters of some.", epilog=examples(chapters.EXAMPLES))(
    chapters.list_chapters
)
app.command("run", help="Execute chapters, with other parameters if you like.", epilog=examples(running.EXAMPLES))(
    running.run_chapters
)
app.command(
    "sweep",
    help="Run a chapter with every combination of values; finished jobs are not run again.",
    epilog=examples(sweeping.EXAMPLES),
)(sweeping.sweep)
app.command("ledger", help="Show what became of the claims.", epilog=examples(ledger.EXAMPLES))(ledger.show_ledger)
app.command("compare", help="Show what differs between two records.", epilog=examples(comparing.EXAMPLES))(
    comparing.compare_records
)
data_app = typer.Typer()
data_app.callback(
    invoke_without_command=True, help="Show which data sets are here, or get one.", epilog=examples(data.EXAMPLES)
)(data.show_data)
data_app.command("get", help="Get a data set, and check it.", epilog=examples(data.GET_EXAMPLES))(data.get_dataset)
app.add_typer(data_app, name="data")
app.command("doctor", help="Say what will run on this machine, and what will not.", epilog=examples(doctor.EXAMPLES))(
    doctor.check_machine
)
app.command(
    "reproduce",
    help="Run a record again and say whether the numbers are the same.",
    epilog=examples(reproducing.EXAMPLES),
)(reproducing.reproduce)
app.command(
    "archive",
    help="Pack records, executed notebooks and their environment into one zip, or check and unpack one.",
    epilog=examples(archiving.EXAMPLES),
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where the locale knows no τ
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
