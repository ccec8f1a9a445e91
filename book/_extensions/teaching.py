"""Sphinx extension: `{teaching-table}` draws what a teacher plans with (goals, time, prerequisites) from papers.yml."""

from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def teaching_table(papers):
    """The papers as a Markdown list of goals and a table of times, as lines."""
    titles = {paper["slug"]: f"[{paper['title']}](../chapters/{paper['part']}/{paper['slug']})" for paper in papers}
    lines = ["| chapter | after | read (min) | run (min) | hardware |", "|---|---|---:|---:|---|"]
    for paper in papers:
        before = ", ".join(titles[slug] for slug in paper["prerequisites"]) or "–"
        minutes = paper["minutes"]
        lines.append(
            f"| {titles[paper['slug']]} | {before} | {minutes['read']} | {minutes['run']} | {paper['hardware']} |"
        )
    lines += ["", "After each chapter, students can:", ""]
    for paper in papers:
        lines += [f"- {titles[paper['slug']]}", *(f"  - {goal}" for goal in paper["goals"])]
    return lines


class TeachingTable(SphinxDirective):
    """Takes no arguments; reads book/papers.yml of the book's sources."""

    def run(self):
        path = Path(self.env.srcdir) / "book" / "papers.yml"
        self.env.note_dependency(str(path))
        papers = yaml.safe_load(path.read_text(encoding="utf-8"))["papers"]
        container = nodes.container()
        self.state.nested_parse(StringList(teaching_table(papers), source=str(path)), self.content_offset, container)
        return container.children


def setup(app):
    app.add_directive("teaching-table", TeachingTable)
    return {"parallel_read_safe": True}
