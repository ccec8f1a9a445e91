"""Sphinx extension: the map of the field, cards, tags and 'needs / leads to', drawn from `papers.yml` and the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from field_map import arrange
from jinja2 import Environment, FileSystemLoader
from papers import Curriculum, Paper, load
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

VERDICTS = ("supported", "undecided", "contradicted")
PROFILES = ("quick", "cpu", "gpu")
_TAGS_PAGE = "book/tags"
_FOLDER = Path(__file__).parent
_SOURCES = ("curriculum.py", "field_map.py", "papers.py", "curriculum.html.jinja")


class Block(nodes.General, nodes.Element):
    """Stands for one of the template's macros until links can be resolved."""


class _Directive(SphinxDirective):
    """`{field-map}`, `{paper-cards}`, `{tag-list}`, `{verdict-counts}`: no arguments, no content."""

    def run(self) -> list[nodes.Node]:
        _depend(self.env, ledger=True)
        return [Block(macro=self.name.replace("-", "_"))]


def counts(claims: list[dict[str, Any]], profile: str, chapter: str | None = None) -> dict[str, int]:
    """How many claims have which verdict at a profile, of one chapter ("part/method") or of all."""
    found = [
        claim["verdict"]
        for claim in claims
        if claim["profile"] == profile and chapter in (None, claim["chapter"])
    ]
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def render(macro: str, curriculum: Curriculum, claims: list[dict[str, Any]], link: Callable[[str], str], **more) -> str:
    """HTML of one macro of `curriculum.html.jinja`.

    Args:
        macro: its name.
        curriculum: papers, parts and tags.
        claims: rows of the ledger.
        link: page → address, seen from the page that is drawn.
        more: arguments of the macro.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "curriculum": curriculum,
        "profiles": [profile for profile in PROFILES if any(claim["profile"] == profile for claim in claims)],
        "verdicts": lambda paper, profile: counts(claims, profile, f"{paper.part}/{paper.slug}"),
        "all_verdicts": lambda profile: counts(claims, profile),
        "link": link,
        "tag_link": lambda tag: f"{link(_TAGS_PAGE)}#{anchor(tag)}",
        "anchor": anchor,
        "arrange": arrange,
    }
    return getattr(environment.get_template("curriculum.html.jinja").module, macro)(**more)


def anchor(tag: str) -> str:
    """The id of a tag's section."""
    return f"tag-{tag.replace(' ', '-')}"


def _depend(env, ledger: bool) -> None:
    """The page that is being read has to be read again when the papers, the ledger or this extension change."""
    for name in ("papers.yml", *(["ledger.json"] if ledger else [])):
        env.note_dependency(f"book/{name}")
    for name in _SOURCES:
        env.note_dependency(f"_extensions/{name}")


def _load(app) -> None:
    root = Path(app.srcdir)
    try:
        app.curriculum = load(root)
    except ValueError as error:
        raise ExtensionError(str(error)) from None
    ledger = root / "book" / "ledger.json"
    app.claims = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else []


def _paper_at(app, docname: str) -> Paper | None:
    return next((paper for paper in app.curriculum.papers.values() if paper.page == docname), None)


def _note(app, _) -> None:
    if _paper_at(app, app.env.docname):
        _depend(app.env, ledger=False)


def _resolve(app, doctree, docname: str) -> None:
    def raw(macro: str, **more) -> nodes.raw:
        def link(page: str) -> str:
            return app.builder.get_relative_uri(docname, page)

        return nodes.raw("", render(macro, app.curriculum, app.claims, link, **more), format="html")

    for block in list(doctree.findall(Block)):
        block.replace_self(raw(block["macro"]))
    paper = _paper_at(app, docname)
    title = next(doctree.findall(nodes.title), None)
    if paper and title:
        title.parent.insert(title.parent.index(title) + 1, raw("ways", paper=paper))


def setup(app):
    for name in ("field-map", "paper-cards", "tag-list", "verdict-counts"):
        app.add_directive(name, _Directive)
    app.add_node(Block)
    app.connect("builder-inited", _load)
    app.connect("doctree-read", _note)
    app.connect("doctree-resolved", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
