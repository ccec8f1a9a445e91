"""Which pages the book has, and what each depends on, by content."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import papers

from kdcore.checks import check_choice
from kdcore.sources import imported_files, notebook_code

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/kdcore/kdcore"
PROFILES = ("cpu", "gpu")


def toc_files(root: Path = ROOT) -> list[str]:
    """All pages of `_toc.yml`, in order, as paths without extension."""
    return papers.toc_files(root)


def chapters(root: Path = ROOT) -> list[str]:
    """The chapters, as part/method."""
    return [page.removeprefix("chapters/") for page in toc_files(root) if page.startswith("chapters/")]


def chapter_path(name: str, root: Path = ROOT) -> Path:
    """The Markdown source of a chapter by its method's name.

    Raises:
        ValueError: there is no such chapter; names the nearest.
    """
    paths = {chapter.split("/")[1]: root / "chapters" / f"{chapter}.md" for chapter in chapters(root)}
    return paths[check_choice("NAME", name, list(paths))]


def executed_pages(root: Path = ROOT) -> list[str]:
    """Pages of `book/` that hold code cells; they are run after the chapters and may read their records."""
    pages = [page.removeprefix("book/") for page in toc_files(root) if page.startswith("book/")]
    return [page for page in pages if "{code-cell}" in (root / "book" / f"{page}.md").read_text(encoding="utf-8")]


def chapter_digest(name: str, root: Path = ROOT) -> str:
    """Changes when the chapter's text, a kdcore file that it imports, its records, or how it is run changes."""
    path = root / "chapters" / f"{name}.md"
    # `exercises.check` loads the chapter's checks by name, which no import in the chapter shows.
    source = notebook_code(path.read_text(encoding="utf-8")) + f"\nimport kdcore.exercises.{path.stem}"
    records = [root / "book" / "records" / profile / f"{name}.json" for profile in PROFILES]
    code = imported_files(source, root / "kdcore")
    return _digest(root, [path, root / "ci" / "execute.py", *code, *records])


def page_digest(name: str, root: Path = ROOT) -> str:
    """Like `chapter_digest` for an executed page of `book/`.

    A closing page of a part runs its own experiment; any other page may read every record.
    """
    path = root / "book" / f"{name}.md"
    code = imported_files(notebook_code(path.read_text(encoding="utf-8")), root / "kdcore")
    if name.startswith("parts/"):
        records = [root / "book" / "records" / profile / f"{name}.json" for profile in PROFILES]
        return _digest(root, [path, root / "ci" / "execute.py", *code, *records])
    own = _digest(
        root, [path, root / "book" / "papers.yml", *code, *sorted((root / "book" / "records").glob("*/*/*.json"))]
    )
    return _combine([own, *(chapter_digest(chapter, root) for chapter in chapters(root))])


def site_digest(root: Path = ROOT) -> str:
    """Changes when anything that the site is rendered from changes."""
    sources = [root / "_config.yml", root / "_toc.yml", root / "ci" / "render.py", root / "ci" / "papers.py"]
    sources += sorted(p for p in (root / "book").rglob("*") if p.is_file() and p.suffix != ".pyc")
    sources += sorted((root / "kdcore").rglob("*.py"))
    return _combine([_digest(root, sources), *(chapter_digest(chapter, root) for chapter in chapters(root))])


def title(path: Path) -> str:
    """The first heading of a Markdown page."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return found.group(1) if found else path.stem


def _digest(root: Path, paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.exists():
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _combine(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
