"""Slides of an executed chapter: reveal.js by nbconvert, with every asset beside them.

python ci/slides.py kd

A slide shows what can be read from a seat: of each paragraph the first sentence, and equations, tables, figures and
sliders in full. The paragraphs themselves are the speaker's notes (key S).
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pages import REPOSITORY, ROOT, chapter_path, title

WIDTH, HEIGHT = 1280, 760
_LINES = 14  # that a slide holds below its heading
_ABOVE_PICTURE = 3  # lines that leave room for a figure
_DOCSTRING = re.compile(r'"""(.+?)\n.*?"""', flags=re.S)
_SENTENCE = re.compile(r"^\| in a sentence \| (.+) \|$", flags=re.M)
_DETAILS = re.compile(r"<details>.*?</details>", flags=re.S)
_SENTENCE_END = re.compile(r"[.?!](?:\*\*|[”\")])?(?=\s+[A-ZÄÖÜ`*$\[(])")
_NOT_SHOWN = {"hide-input", "remove-input", "hide-cell", "remove-cell"}


@dataclass
class Slide:
    """What one slide shows below the heading of its section, and what the speaker says."""

    section: str
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    output: NotebookNode | None = None
    used: float = 0.0

    def add(self, shown: str, notes: str = "") -> None:
        self.shown.append(shown)
        self.used += height(shown)
        self.notes += [notes] if notes else []


def blocks(markdown: str) -> list[str]:
    """Paragraphs, equations, tables, lists, headings and fenced code of a text without its folded parts."""
    found: list[str] = []
    fenced = False
    for piece in re.split(r"\n\s*\n", _DETAILS.sub("", markdown).strip()):
        if fenced:
            found[-1] += f"\n\n{piece}"
        elif piece.strip():
            found.append(piece.strip())
        fenced ^= piece.count("```") % 2 == 1
    return found


def height(block: str) -> float:
    """Lines that a block takes on a slide, roughly."""
    if block.startswith("$$"):
        return 2.2
    if block.startswith("```"):
        return 0.53 * sum(1 + len(line) // 120 for line in block.splitlines()[1:-1]) + 0.5
    if block.startswith("|"):
        return sum(0.65 * math.ceil(len(row) / 100) + 0.25 for row in block.splitlines()) + 0.5
    # A link's address is not seen, and a command of mathematics is about one letter wide.
    seen = re.sub(r"\\[A-Za-z]+|[{}^_$]", "", re.sub(r"\]\([^)]*\)", "", block))
    return sum(math.ceil(len(line) / 78) for line in seen.splitlines()) + 0.5


def halves(block: str) -> list[str]:
    """A table too long for a slide as several, each with the heading; any other block as it is."""
    rows = block.splitlines()
    if not block.startswith("|") or height(block) <= _LINES or len(rows) < 4:
        return [block]
    middle = 2 + (len(rows) - 2) // 2
    return [part for half in (rows[:middle], rows[:2] + rows[middle:]) for part in halves("\n".join(half))]


def first_sentence(paragraph: str) -> str:
    """The first sentence of a paragraph; after a question in bold, the one that follows it, too."""
    lead = re.match(r"\*\*[^*]+\*\*\s*", paragraph)
    start = lead.end() if lead else 0
    for found in _SENTENCE_END.finditer(paragraph, start):
        before = paragraph[start : found.end()]
        if before.count("$") % 2 == 0 and before.count("`") % 2 == 0 and before.count("(") == before.count(")"):
            return paragraph[: found.end()]
    return paragraph


def prose(slide: Slide, block: str) -> Iterator[Slide]:
    """Add a block to the slide, or begin another; yields what is full."""
    is_text = not block.startswith(("$$", "|", "```", "- ", "#", "*Your")) and not re.match(r"\d+\. ", block)
    shown = first_sentence(" ".join(block.split())) if is_text else block
    leads = block.startswith("**") and slide.used > _LINES / 3
    if leads or (slide.shown and slide.used + height(shown) > _LINES):
        yield slide
        slide = Slide(slide.section)
    slide.add(shown, block if is_text else "")
    yield slide


class Deck:
    """The slides of a chapter, in order."""

    def __init__(self) -> None:
        self.slides: list[Slide] = []

    @property
    def section(self) -> str:
        return self.slides[-1].section if self.slides else ""

    def text(self, markdown: str) -> None:
        """Go on with a text; a heading of the second level begins a section."""
        for block in blocks(markdown):
            if block.startswith("## "):
                self.slides.append(Slide(block.removeprefix("## ")))
            elif block.startswith("# "):
                self.slides.append(Slide(""))
                self.slides[-1].add(block)
            elif self.section:  # the badges below the title stay out
                for part in halves(block):
                    *full, self.slides[-1] = prose(self._open(), part)
                    self.slides[-1:-1] = full

    def picture(self, output: NotebookNode) -> None:
        """A figure or slider, below a sentence or two, or on a slide of its own."""
        if self.slides[-1].output is not None or self.slides[-1].used > _ABOVE_PICTURE:
            self.slides.append(Slide(self.section))
        self.slides[-1].output = output

    def _open(self) -> Slide:
        """The last slide if text can be added to it, else a new one."""
        if self.slides[-1].output is not None:
            self.slides.append(Slide(self.section))
        return self.slides[-1]


def deck(notebook: NotebookNode) -> list[Slide]:
    """The slides of an executed chapter; its references and the code that only makes results stay out."""
    made = Deck()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if idea := _SENTENCE.search(cell.source):
                made.slides[0].add(idea[1])
            made.text(cell.source.split("## References")[0])
            continue
        tags = set(cell.metadata.get("tags", []))
        if made.section == "Code" and not tags & _NOT_SHOWN and "show." not in cell.source:
            made.text(f"```python\n{cell.source}\n```")
        for output in cell.outputs if made.section else []:
            data = output.get("data", {})
            if "text/markdown" in data:
                made.text(_DOCSTRING.sub(r'"""\1"""', "".join(data["text/markdown"])))
            elif "text/html" in data:
                made.picture(output)
            elif output.output_type == "execute_result" and made.section == "Code":
                made.text(f"```\n{''.join(data['text/plain'])}\n```")
    return [slide for slide in made.slides if slide.shown or slide.output is not None]


def slide_cells(slide: Slide, new_section: bool) -> list[NotebookNode]:
    """The cells of a slide as nbconvert wants them: what begins a slide, what goes on, what the speaker sees."""

    def cell(text: str, kind: str) -> NotebookNode:
        return new_markdown_cell(text, metadata={"slideshow": {"slide_type": kind}})

    heading = [f"## {slide.section}"] if slide.section else []
    cells = [cell("\n\n".join([*heading, *slide.shown]), "slide" if new_section else "subslide")]
    if slide.output is not None:
        cells.append(new_code_cell("", outputs=[slide.output], metadata={"transient": {"remove_source": True}}))
    return [*cells, *([cell("\n\n".join(slide.notes), "notes")] if slide.notes else [])]


def slideshow(notebook: NotebookNode, name: str, part: str) -> str:
    """The slides of an executed chapter as one HTML page, which looks for its assets in `../assets`."""
    cells: list[NotebookNode] = []
    section = None
    for slide in deck(notebook):
        cells += slide_cells(slide, slide.section != section)
        section = slide.section
    for cell in cells:  # beside the slides there are no other chapters
        base = f"{REPOSITORY}/blob/main/chapters/"
        cell.source = re.sub(r"\]\(\.\./(\w+/\w+\.ipynb)", rf"]({base}\1", cell.source)
        cell.source = re.sub(r"\]\((\w+\.ipynb)", rf"]({base}{part}/\1", cell.source)
    exporter = SlidesExporter(
        template_name="slides",
        extra_template_basedirs=[str(ROOT / "ci" / "templates")],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        reveal_url_prefix="../assets/reveal",
        reveal_theme="white",
        reveal_width=str(WIDTH),
        reveal_height=str(HEIGHT),
    )
    made = new_notebook(cells=cells, metadata={"title": name})
    page, _ = exporter.from_notebook_node(made)
    return page


def copy_assets(folder: Path) -> None:
    """Put reveal.js and MathJax, which two packages of the environment carry, beside the slides."""
    reveal = _package_folder("sphinx_revealjs") / "_static" / "revealjs"
    mathjax = _package_folder("sphinx-mathjax-offline") / "static" / "mathjax"
    wanted = {f"reveal/{name}": reveal / name for name in ("dist", "plugin/notes")}
    wanted |= {f"mathjax/{name}": mathjax / name for name in ("tex-chtml.js", "output/chtml/fonts/woff-v2")}
    for name, origin in wanted.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.map"))
        else:
            shutil.copy(origin, target)


def _package_folder(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin).parent


def main() -> int:
    build = ROOT / "_build"
    try:
        path = chapter_path(sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    executed = build / "executed" / path.relative_to(ROOT).with_suffix(".ipynb")
    if not executed.exists():
        print(f"error: {executed.relative_to(ROOT)} is not there yet; run `make book` first.", file=sys.stderr)
        return 1
    target = build / "slides" / path.stem / "index.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_assets(build / "slides" / "assets")
    page = slideshow(nbformat.read(executed, as_version=4), title(path), path.parent.name)
    target.write_text(page, encoding="utf-8")
    print(target.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
