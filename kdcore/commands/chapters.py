"""`kdcore list`: the papers, part by part, and the parameters of each; and completion of both at the prompt."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from kdcore.commands.checkout import pipeline, root
from kdcore.commands.recorded import record_folders
from kdcore.commands.tables import show_json, show_table

__all__ = ["EXAMPLES", "complete_chapter", "complete_parameter", "complete_part", "knobs_of", "list_chapters"]

EXAMPLES = ("kdcore list", "kdcore list spherical_kd", "kdcore list --part adaptation --json")


def complete_chapter(incomplete: str) -> list[tuple[str, str]]:
    """Chapters whose name begins so, with their titles.

    Example:
        >>> complete_chapter("sph")
        [('spherical_kd', 'Spherical knowledge distillation')]
    """
    papers = pipeline("papers").load(root()).papers
    return [(slug, paper.title) for slug, paper in papers.items() if slug.startswith(incomplete)]


def complete_part(incomplete: str) -> list[tuple[str, str]]:
    """Parts whose name begins so, with their titles.

    Example:
        >>> complete_part("log")
        [('logits', 'Learning from outputs')]
    """
    curriculum = pipeline("papers").load(root())
    return [(part, curriculum.parts[part]["title"]) for part in curriculum.by_part() if part.startswith(incomplete)]


def complete_parameter(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Parameters of the chapters on the command line; after the equals sign, the choices.

    Example:
        >>> context = typer.Context(typer.main.get_command(typer.Typer(callback=lambda: None)))
        >>> context.params = {"names": ["spherical_kd"]}
        >>> complete_parameter(context, "temp")
        [('temperature=', 'of the distillation term')]
        >>> complete_parameter(context, "device=c")
        [('device=cpu', ''), ('device=cuda', '')]
    """
    # After a bare -p the line does not parse, and the chapters are left over in `args`.
    names = context.params.get("names") or context.args or [slug for slug, _ in complete_chapter("")]
    found: dict[str, Any] = {}
    for name in [names] if isinstance(names, str) else names:
        found |= knobs_of(pipeline("execute").source_path(name))
    chosen, equals, _ = incomplete.partition("=")
    if equals and chosen in found:
        offered = [(f"{chosen}={choice}", "") for choice in found[chosen].choices]
    else:
        offered = [(f"{knob.name}=", knob.meaning) for knob in found.values()]
    return [(text, meaning) for text, meaning in offered if text.startswith(incomplete)]


def list_chapters(
    names: Annotated[
        list[str] | None, typer.Argument(help="Chapters whose parameters are shown.", autocompletion=complete_chapter)
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Only the chapters of this part.", autocompletion=complete_part)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """List the chapters, part by part, or the parameters of some.

    Raises:
        ValueError: no such chapter or part; names the nearest.

    Example:
        >>> list_chapters(["spherical_kd"])
        Spherical knowledge distillation (logits/spherical_kd)
        parameter     default     ...
        >>> list_chapters(["sphercal_kd"])
        Traceback (most recent call last):
        ValueError: no chapter 'sphercal_kd'. Did you mean 'spherical_kd'?
    """
    curriculum = pipeline("papers").load(root())
    papers = _chosen(curriculum, names or [], part)
    if as_json:
        show_json([_described(paper) for paper in papers])
    elif names:
        for paper in papers:
            print(f"{paper.title} ({paper.part}/{paper.slug})")
            show_table(_parameters(paper))
            print()
    else:
        for folder in dict.fromkeys(paper.part for paper in papers):
            print(f"{curriculum.parts[folder]['title']} ({folder})")
            show_table([_overview(paper) for paper in papers if paper.part == folder])
            print()
        print("`kdcore list NAME` shows the parameters of a chapter.")


def knobs_of(source: Path) -> dict[str, Any]:
    """The parameters of a page, by name.

    Example:
        >>> knobs_of(root() / "chapters/foundations/kd.md")["alpha"].range
        'in [0, 1]'
    """
    return pipeline("parameters").knobs(source.read_text(encoding="utf-8"))


def _chosen(curriculum: Any, names: list[str], part: str | None) -> list[Any]:
    """The papers asked for, in the order of the table of contents."""
    if part is not None and part not in curriculum.by_part():
        near = get_close_matches(part, curriculum.by_part(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no part {part!r}; there are {', '.join(curriculum.by_part())}.{hint}")
    slugs = []
    for name in names:
        slug = pipeline("execute").source_path(name).stem
        if slug not in curriculum.papers:
            raise ValueError(f"{name!r} is no chapter but another page; see `kdcore list`.")
        slugs.append(slug)
    return [
        paper
        for paper in curriculum.papers.values()
        if (not slugs or paper.slug in slugs) and part in (None, paper.part)
    ]


def _recorded(paper: Any) -> list[str]:
    """The profiles that there are records of."""
    places = [folder.glob(f"*/{paper.part}/{paper.slug}.json") for folder in record_folders()]
    found = {path.parts[-3] for place in places for path in place}
    return [profile for profile in pipeline("parameters").PROFILES if profile in found]


def _overview(paper: Any) -> dict[str, object]:
    minutes = f"{paper.minutes['read']} read, {paper.minutes['run']} run"
    return {"chapter": paper.slug, "title": paper.title, "minutes": minutes, "recorded": ", ".join(_recorded(paper))}


def _parameters(paper: Any) -> list[dict[str, object]]:
    """A row for each parameter: what it may be, and what it means."""
    return [
        {"parameter": knob.name, "default": repr(knob.default), "wanted": knob.wanted, "meaning": knob.meaning}
        for knob in knobs_of(root() / f"{paper.page}.md").values()
    ]


def _described(paper: Any) -> dict[str, object]:
    """Everything about a chapter, JSON-ready."""
    knobs = [
        {name: getattr(knob, name) for name in ("name", "default", "type", "range", "choices", "meaning")}
        for knob in knobs_of(root() / f"{paper.page}.md").values()
    ]
    fields = {name: getattr(paper, name) for name in ("slug", "part", "title", "paper", "arxiv", "minutes", "hardware")}
    return fields | {"recorded": _recorded(paper), "parameters": knobs}
