"""Lay out the three rooms of a new paper from templates; no check passes until they are filled in.

python ci/new_paper.py my_method logits "My method"
"""

from __future__ import annotations

import re
import sys
from datetime import date
from pathlib import Path

from papers import load

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = ROOT / "ci" / "templates"

_MODULE = """### `kdcore.{name}`

```{{eval-rst}}
.. automodule:: kdcore.{name}
   :members:
```

"""
_CHECKS = """### `kdcore.exercises.{method}`

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
    """Write module, tests and chapter, and enter the paper in the lists: toc, API page, bibliography, papers.

    Raises:
        ValueError: the name is no identifier, the part is unknown, or the paper is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", method):
        raise ValueError(f"NAME must be a lower-case identifier such as my_method, got {method!r}.")
    parts = {name: entry["title"] for name, entry in load(root).parts.items()}
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
        package.write_text(f'"""{parts[part]}."""\n', encoding="utf-8")
    return [*rooms, *_enter(method, part, parts, title, root)]


def _enter(method: str, part: str, parts: dict[str, str], title: str, root: Path) -> list[Path]:
    """The entries in the lists of papers."""
    toc, api, bibliography = root / "_toc.yml", root / "book" / "api.md", root / "book" / "references.bib"
    text = toc.read_text(encoding="utf-8")
    entry = f"      - file: chapters/{part}/{method}\n"
    siblings = re.findall(rf"^      - file: chapters/{part}/\w+\n", text, flags=re.M)
    if siblings:
        text = text.replace(siblings[-1], siblings[-1] + entry, 1)
    else:
        names = list(parts)
        later = [*(parts[name] for name in names[names.index(part) + 1 :]), "Reference"]
        following = next(line for title in later if (line := f"  - caption: {title}\n") in text)
        text = text.replace(following, f"  - caption: {parts[part]}\n    chapters:\n{entry}{following}", 1)
    toc.write_text(text, encoding="utf-8")
    page = api.read_text(encoding="utf-8")
    page = page.replace("## Data\n", _MODULE.format(name=f"{part}.{method}") + "## Data\n", 1)
    page = page.replace("## Checks\n", _CHECKS.format(method=method) + "## Checks\n", 1)
    api.write_text(page, encoding="utf-8")
    with bibliography.open("a", encoding="utf-8") as file:
        file.write(_ENTRY.format(method=method, title=title))
    papers = root / "book" / "papers.yml"
    with papers.open("a", encoding="utf-8") as file:
        file.write(_PAPER.format(method=method, part=part, title=title, year=date.today().year))
    return [toc, api, bibliography, papers]


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
