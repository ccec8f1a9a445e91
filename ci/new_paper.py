"""Lay out the three rooms of a new paper from templates; no check passes until they are filled in.

python ci/new_paper.py my_method logits "My method"
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from datetime import date
from pathlib import Path

from papers import load

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "ci" / "templates"

_MODULE = """
## `{method}`

```{{eval-rst}}
.. automodule:: kdcore.{part}.{method}
   :members:
```
"""
_CHECKS = """
## `{method}`

```{{eval-rst}}
.. automodule:: kdcore.exercises.{method}
```
"""
_ENTRY = """@misc{{{method},
  author = {{TODO}},
  title = {{{title}}},
  year = {{TODO}},
  note = {{arXiv TODO}}
}}
"""
_PAPER = """
  - slug: {method}
    part: {part}
    title: {title!r}
    paper: TODO
    authors: [TODO]
    year: {year}
    arxiv: TODO
    sentence: TODO
    prerequisites: []
    minutes: {{read: 25, run: 1}}
    hardware: any
    source_status: reconstructed
    tags: []
    goals: [TODO, TODO]
"""


def lay_out(method: str, part: str, title: str, root: Path = ROOT) -> list[Path]:
    """Write module, tests and chapter, and enter the paper in the lists: toc, API pages, bibliography, papers.

    Raises:
        ValueError: the name is no identifier, the part is unknown, or the paper is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", method):
        raise ValueError(f"NAME must be a lower-case identifier such as my_method, got {method!r}.")
    parts = load(root).parts
    if part not in parts:
        raise ValueError(f"PART must be one of {', '.join(parts)}, got {part!r}.")
    title = title or method.replace("_", " ").capitalize()
    rooms = {
        root / "kdcore" / part / f"{method}.py": "module.py.txt",
        root / "tests" / part / f"test_{method}.py": "tests.py.txt",
        root / "chapters" / part / f"{method}.md": "chapter.md.txt",
        root / "kdcore" / "exercises" / f"{method}.py": "exercises.py.txt",
    }
    taken = [path for path in rooms if path.exists()]
    if taken:
        raise ValueError(f"{taken[0].relative_to(root)} is there already.")
    for path, template in rooms.items():
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        for name, value in {"METHOD": method, "PART": part, "TITLE": title}.items():
            text = text.replace(f"@{name}@", value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    package = root / "kdcore" / part / "__init__.py"
    if not package.exists():
        package.write_text(f'"""{parts[part]["title"]}."""\n', encoding="utf-8")
    return [*rooms, *_enter(method, part, parts, title, root)]


def _enter(method: str, part: str, parts: dict[str, dict[str, str]], title: str, root: Path) -> list[Path]:
    """The entries in the lists of papers."""
    toc, bibliography, papers = root / "_toc.yml", root / "book" / "references.bib", root / "book" / "papers.yml"
    toc.write_text(_with_chapter(toc.read_text(encoding="utf-8"), method, part, parts), encoding="utf-8")
    reference = root / "book" / "api" / f"{part}.md"
    if not reference.exists():
        head = f"# `kdcore.{part}`\n\n*{parts[part]['title']}.* {parts[part]['question']}\n"
        reference.write_text(head, encoding="utf-8")
        row = f"| [`kdcore.{part}`](api/{part}.md) | {parts[part]['title']}: {parts[part]['question']} |\n"
        _insert(toc, "          - file: book/api/{}\n", f"          - file: book/api/{part}\n", part, parts)
        _insert(root / "book" / "api.md", "| [`kdcore.{}`]", row, part, parts)
    checks = root / "book" / "api" / "exercises.md"
    entries = {
        reference: _MODULE.format(part=part, method=method),
        checks: _CHECKS.format(method=method),
        bibliography: _ENTRY.format(method=method, title=title),
        papers: _PAPER.format(method=method, part=part, title=title, year=date.today().year),
    }
    for path, entry in entries.items():
        with path.open("a", encoding="utf-8") as file:
            file.write(entry)
    return [toc, *entries]


def _with_chapter(toc: str, method: str, part: str, parts: dict[str, dict[str, str]]) -> str:
    """The table of contents with a chapter behind its siblings; a part that was empty comes in the order of `parts`."""
    entry = f"      - file: chapters/{part}/{method}\n"
    siblings = re.findall(rf"^      - file: chapters/{part}/\w+\n", toc, flags=re.M)
    if siblings:
        return toc.replace(siblings[-1], siblings[-1] + entry, 1)
    captions = [f"  - caption: {parts[name]['title']}\n" for name in _later(part, parts)]
    following = next(line for line in [*captions, "  - caption: Reference\n"] if line in toc)
    return toc.replace(following, f"  - caption: {parts[part]['title']}\n    chapters:\n{entry}{following}", 1)


def _insert(path: Path, start: str, entry: str, part: str, parts: Iterable[str]) -> None:
    """Put a part's line before that of the next part that has one, or of the ground floor; lines begin with `start`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    starts = (start.format(name) for name in [*_later(part, parts), "data"])
    place = next(place for wanted in starts for place, line in enumerate(lines) if line.startswith(wanted))
    path.write_text("".join([*lines[:place], entry, *lines[place:]]), encoding="utf-8")


def _later(part: str, parts: Iterable[str]) -> list[str]:
    names = list(parts)
    return names[names.index(part) + 1 :]


def main() -> int:
    try:
        written = lay_out(*[*sys.argv[1:], "", "", ""][:3])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("Written or changed:", *(path.relative_to(ROOT) for path in written), sep="\n  ")
    print("Next: book/add_a_paper.md; `make test` lists what is missing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
