"""Which pages the book has, and what each depends on, by content."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import papers

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
    if name not in paths:
        near = get_close_matches(name, paths, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"NAME must be one of {', '.join(paths)}, got {name!r}.{hint}")
    return paths[name]


def executed_pages(root: Path = ROOT) -> list[str]:
    """Pages of `book/` that hold code cells; they are run after the chapters and may read their records."""
    pages = [page.removeprefix("book/") for page in toc_files(root) if page.startswith("book/")]
    return [page for page in pages if "{code-cell}" in (root / "book" / f"{page}.md").read_text(encoding="utf-8")]


def code_files(name: str, root: Path = ROOT) -> dict[str, str]:
    """The digest of a chapter's text, of every kdcore file that it imports, of its data, and of how it is run."""
    path = root / "chapters" / f"{name}.md"
    # `exercises.check` loads the chapter's checks by name, which no import in the chapter shows.
    source = notebook_code(path.read_text(encoding="utf-8")) + f"\nimport kdcore.exercises.{path.stem}"
    return digests(root, [path, root / "ci" / "execute.py", *imported_files(source, root / "kdcore")])


def chapter_files(name: str, root: Path = ROOT) -> dict[str, str]:
    """`code_files` and the records that the chapter shows: what makes it out of date when it changes."""
    return code_files(name, root) | _records(name, root)


def page_files(name: str, root: Path = ROOT) -> dict[str, str]:
    """Like `chapter_files` for an executed page of `book/`.

    A closing page of a part runs its own experiment; any other page may read every record.
    """
    path = root / "book" / f"{name}.md"
    code = imported_files(notebook_code(path.read_text(encoding="utf-8")), root / "kdcore")
    if name.startswith("parts/"):
        return digests(root, [path, root / "ci" / "execute.py", *code]) | _records(name, root)
    records = sorted((root / "book" / "records").glob("*/*/*.json"))
    own = digests(root, [path, root / "book" / "papers.yml", *code, *records])
    return own | {f"chapters/{chapter}": chapter_digest(chapter, root) for chapter in chapters(root)}


def site_files(root: Path = ROOT) -> dict[str, str]:
    """Like `chapter_files` for everything that the site is rendered from."""
    sources = [root / "_config.yml", root / "_toc.yml", root / "ci" / "render.py", root / "ci" / "papers.py"]
    sources += sorted(p for p in (root / "book").rglob("*") if p.is_file() and p.suffix != ".pyc")
    sources += sorted((root / "kdcore").rglob("*.py"))
    executed = {f"chapters/{chapter}": chapter_digest(chapter, root) for chapter in chapters(root)}
    return digests(root, sources) | executed


def files(target: str, root: Path = ROOT) -> dict[str, str]:
    """The digests of what a target is made of: "chapters/part/method", "book/page" or "site"."""
    if target == "site":
        return site_files(root)
    folder, _, name = target.partition("/")
    return chapter_files(name, root) if folder == "chapters" else page_files(name, root)


def digest(target: str, root: Path = ROOT) -> str:
    """Changes when something in `files` does."""
    return combined(files(target, root))


def chapter_digest(name: str, root: Path = ROOT) -> str:
    """`digest` of a chapter."""
    return digest(f"chapters/{name}", root)


def digests(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of the files that exist, by path in the checkout; of scikit-learn's digits, too, where they are read."""
    found = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.exists()
    }
    if "kdcore/data/digits.py" in found:
        found["scikit-learn's digits"] = _digits()
    return found


def combined(files: Mapping[str, str]) -> str:
    """One digest of digests by path."""
    return hashlib.sha256("".join(f"{path}\0{digest}\0" for path, digest in files.items()).encode()).hexdigest()


def title(path: Path) -> str:
    """The first heading of a Markdown page."""
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
    return found.group(1) if found else path.stem


def _records(name: str, root: Path) -> dict[str, str]:
    return digests(root, [root / "book" / "records" / profile / f"{name}.json" for profile in PROFILES])


@cache
def _digits() -> str:
    """The data of `quick`, which is a file of another package; the other data sets are checked by hash when read."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    data = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    return hashlib.sha256(data.read_bytes()).hexdigest()
