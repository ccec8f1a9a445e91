"""Sphinx extension: each chapter ends with how to cite it, and where its paper stands in the bibliography."""

import html
import re
from pathlib import Path

import yaml
from docutils import nodes

_ENTRY = """@incollection{{kdcore-{method},
  author = {{{author}}},
  title = {{{title}}},
  booktitle = {{{book}}},
  year = {{{year}}},
  note = {{Version {version}}},
  url = {{{repository}/blob/main/{document}.ipynb}}
}}"""

_BOX = """<details class="kdcore-cite"><summary>Cite this chapter</summary>
<pre tabindex="0">{entry}</pre>
<p>The paper that it reproduces is <a href="{link}">in the bibliography</a>.</p></details>"""


def chapter_entry(document: str, title: str, citation: dict) -> str:
    """BibTeX of a chapter, from the book's own CITATION.cff."""
    return _ENTRY.format(
        method=document.rsplit("/", 1)[1],
        author=" and ".join(author["name"] for author in citation["authors"]),
        title=title,
        book=citation["title"],
        year=str(citation["date-released"])[:4],
        version=citation["version"],
        repository=citation["repository-code"],
        document=document,
    )


def place_in_bibliography(citations, arxiv: str) -> str:
    """The anchor of the entry that names an arXiv id."""
    for one in citations:
        if arxiv in one.entry.fields.get("note", "") or arxiv == one.entry.fields.get("eprint"):
            return one.citation_id
    raise ValueError(f"the bibliography must have an entry with arXiv {arxiv} in its note.")


def _append(app, doctree, document):
    has_bibliography = "book/bibliography" in app.env.found_docs
    if not (document.startswith("chapters/") and has_bibliography and app.builder.format == "html"):
        return
    links = [link.get("refuri", "") for link in doctree.findall(nodes.reference)]
    arxiv = next(found.group(1) for found in (re.search(r"arxiv.org/abs/(\d+\.\d+)", link) for link in links) if found)
    citation = yaml.safe_load((Path(app.srcdir) / "CITATION.cff").read_text(encoding="utf-8"))
    title = next(iter(doctree.findall(nodes.title))).astext()
    anchor = place_in_bibliography(app.env.get_domain("cite").citations, arxiv)
    box = _BOX.format(
        entry=html.escape(chapter_entry(document, title, citation)),
        link=app.builder.get_relative_uri(document, "book/bibliography") + "#" + anchor,
    )
    next(iter(doctree.findall(nodes.section))).append(nodes.raw("", box, format="html"))


def _repair_list(app, pagename, templatename, context, doctree):
    """Docutils calls the bibliography a list but its entries something else, which a screen reader cannot follow."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def setup(app):
    app.connect("doctree-resolved", _append)
    app.connect("html-page-context", _repair_list)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
