"""The list of papers, `book/papers.yml`: read, checked, and compared with the chapters.

python ci/papers.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

SOURCE_STATUS = ("read from the authors' code", "read from a re-implementation", "reconstructed")
_OPTIONAL = ("venue",)


@dataclass(frozen=True)
class Paper:
    """One entry: a chapter and the paper that it is about.

    Attributes:
        slug, part: the chapter is `chapters/<part>/<slug>.md`.
        title, paper: of the chapter and of the paper.
        authors: names as the chapter writes them.
        year, arxiv: of the paper's first version, the number as text.
        sentence: what the paper proposes, without a capital or a full stop.
        prerequisites: slugs of chapters that this one builds on.
        minutes: `read` and `run` (at profile `quick`).
        hardware: what `quick` needs.
        source_status: how the content is known, one of `SOURCE_STATUS`.
        tags: of the closed list in the same file.
        goals: two or three, one clause each, beginning with a verb.
        venue: where it was published, if it was.
    """

    slug: str
    part: str
    title: str
    paper: str
    authors: list[str]
    year: int
    arxiv: str
    sentence: str
    prerequisites: list[str]
    minutes: dict[str, int]
    hardware: str
    source_status: str
    tags: list[str]
    goals: list[str]
    venue: str = ""

    @property
    def page(self) -> str:
        """The chapter's page, without extension."""
        return f"chapters/{self.part}/{self.slug}"

    @property
    def short(self) -> str:
        """The title up to a colon, for where there is little room."""
        return self.title.split(":")[0]


@dataclass(frozen=True)
class Curriculum:
    """Everything in `book/papers.yml`, the papers in the order of the table of contents.

    Attributes:
        parts: name → `title` and `question`, in order.
        tags: name → meaning.
        papers: slug → paper.
        closing: parts whose papers a page `book/parts/<part>` sets side by side.
    """

    parts: dict[str, dict[str, str]]
    tags: dict[str, str]
    papers: dict[str, Paper]
    closing: frozenset[str] = frozenset()

    def needs(self, slug: str) -> list[Paper]:
        """The papers that a paper builds on."""
        return [self.papers[name] for name in self.papers[slug].prerequisites]

    def leads_to(self, slug: str) -> list[Paper]:
        """The papers that build on a paper, in the order of the table of contents."""
        return [paper for paper in self.papers.values() if slug in paper.prerequisites]

    def by_part(self) -> dict[str, list[Paper]]:
        """Part → its papers; parts without papers are left out."""
        grouped = {part: [paper for paper in self.papers.values() if paper.part == part] for part in self.parts}
        return {part: papers for part, papers in grouped.items() if papers}

    def tagged(self) -> dict[str, list[Paper]]:
        """Tag → its papers; tags without papers are left out."""
        grouped = {tag: [paper for paper in self.papers.values() if tag in paper.tags] for tag in self.tags}
        return {tag: papers for tag, papers in grouped.items() if papers}


def toc_files(root: Path) -> list[str]:
    """All pages of `_toc.yml`, in order, as paths without extension."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    below = ([entry, *entry.get("sections", [])] for entry in entries)
    return [toc["root"], *(page["file"] for pages in below for page in pages)]


def load(root: Path) -> Curriculum:
    """Read and check `book/papers.yml` of a project, or of the sources that a build has laid out.

    Raises:
        ValueError: the file is not there or no YAML, or an entry is wrong; one line per problem.
    """
    path, pages = root / "book" / "papers.yml", toc_files(root)
    content = _content(path)
    found = _problems(content, pages)
    if found:
        raise ValueError("\n".join(f"{path.name}: {problem}" for problem in found))
    order = {page: place for place, page in enumerate(pages)}
    papers = sorted((Paper(**entry) for entry in content["papers"]), key=lambda paper: order[paper.page])
    closing = frozenset(page.removeprefix("book/parts/") for page in pages if page.startswith("book/parts/"))
    return Curriculum(content["parts"], content["tags"], {paper.slug: paper for paper in papers}, closing)


def problems(root: Path) -> list[str]:
    """What is wrong with the project's list of papers, or differs from its chapters; one line each."""
    try:
        curriculum = load(root)
    except ValueError as error:
        return str(error).splitlines()
    found = []
    for paper in curriculum.papers.values():
        text = (root / f"{paper.page}.md").read_text(encoding="utf-8")
        found += [f"papers.yml: {paper.slug} {problem}" for problem in disagreements(paper, text)]
    return found


def disagreements(paper: Paper, chapter: str) -> list[str]:
    """Where an entry and its chapter's title and At-a-glance table differ."""
    title = re.search(r"^# (.+)$", chapter, flags=re.M)
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", chapter, flags=re.M))
    linked = re.findall(r"\]\([^)]*?(\w+)\.ipynb\)", rows.get("prerequisites", ""))
    wanted = {
        "paper": [f"{', '.join(paper.authors)}: *{paper.paper}*", str(paper.year), f"[arXiv {paper.arxiv}]"],
        "in a sentence": [paper.sentence],
        "time": [f"{paper.minutes['read']} minutes to read"],
        "hardware": [paper.hardware],
    }
    found = [
        f"says {text!r}, which is not in the chapter's row {row!r}: {rows.get(row, 'no such row')!r}"
        for row, texts in wanted.items()
        for text in texts
        if not re.search(rf"(?<!\w){re.escape(text)}", rows.get(row, ""))  # 5 minutes are not 25
    ]
    if title is None or title.group(1) != paper.title:
        found.append(f"has the title {paper.title!r}, the chapter {title.group(1) if title else None!r}")
    if sorted(linked) != sorted(paper.prerequisites):
        found.append(f"has the prerequisites {paper.prerequisites}, the chapter's row links {linked}")
    if not paper.tags:
        found.append("has no tags")
    if "TODO" in f"{paper}":
        found.append("still holds a TODO")
    return found


def _content(path: Path) -> Mapping[str, Any]:
    """The file's content, with its three parts."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path.name} is not there; it must list every chapter.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from None
    for key, kind in {"parts": dict, "tags": dict, "papers": list}.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise ValueError(f"{path.name} must have the keys parts, tags (mappings) and papers (a list).")
    return content


def _problems(content: Mapping[str, Any], pages: list[str]) -> list[str]:
    """What is wrong in the file itself, and against the pages of the table of contents."""
    entries = content["papers"]
    found = [problem for entry in entries for problem in _shape(entry)]
    if found:
        return found  # the rest would stumble over what is missing
    slugs = [entry["slug"] for entry in entries]
    found += [f"{slug} is listed twice" for slug in dict.fromkeys(slugs) if slugs.count(slug) > 1]
    for entry in entries:
        for kind, names, known in (
            ("part", [entry["part"]], content["parts"]),
            ("tag", entry["tags"], content["tags"]),
            ("prerequisite", entry["prerequisites"], slugs),
            ("source_status", [entry["source_status"]], SOURCE_STATUS),
        ):
            found += [f"{entry['slug']}: {_unknown(kind, name, list(known))}" for name in names if name not in known]
    listed = {f"chapters/{entry['part']}/{entry['slug']}" for entry in entries}
    chapters = {page for page in pages if page.startswith("chapters/")}
    found += [f"{page} is in the table of contents and has no entry" for page in sorted(chapters - listed)]
    found += [f"{page} has an entry and is not in the table of contents" for page in sorted(listed - chapters)]
    try:
        TopologicalSorter({entry["slug"]: entry["prerequisites"] for entry in entries}).prepare()
    except CycleError as error:
        found.append(f"prerequisites go round in a circle: {' → '.join(error.args[1])}")
    return found


def _shape(entry: Any) -> list[str]:
    """Fields that an entry lacks, has too much, or has of another kind."""
    if not isinstance(entry, dict):
        return [f"a paper must be a mapping of fields, got {entry!r}"]
    name = entry.get("slug", "an entry without slug")
    kinds = {field.name: str(field.type) for field in fields(Paper)}
    found = [f"{name} lacks {field}" for field in kinds if field not in entry and field not in _OPTIONAL]
    found += [f"{name}: {_unknown('field', field, list(kinds))}" for field in entry if field not in kinds]
    for field, value in entry.items():
        kind = kinds.get(field, "").split("[")[0]
        if kind and type(value).__name__ != kind:
            found.append(f"{name}: {field} must be of type {kind}, got {value!r}")
    if isinstance(entry.get("minutes"), dict) and set(entry["minutes"]) != {"read", "run"}:
        found.append(f"{name}: minutes must have read and run, got {entry['minutes']}")
    if isinstance(entry.get("goals"), list) and len(entry["goals"]) not in (2, 3):
        found.append(f"{name}: goals must be two or three, got {len(entry['goals'])}")
    return found


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f", did you mean {near[0]!r}?" if near else "")


def main() -> int:
    found = problems(Path(__file__).resolve().parent.parent)
    print(*found, f"{len(found)} problems in the list of papers", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
