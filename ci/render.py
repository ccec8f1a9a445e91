"""Render the executed notebooks to static HTML with Jupyter Book; warnings are errors.

python ci/render.py _build
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from pages import ROOT, executed_pages, toc_files


def assemble(build: Path) -> tuple[Path, bool]:
    """Lay out the book's sources in `<build>/source`, copying only what changed so that rendering is incremental.

    Returns the folder, and whether all pages must be rendered anew: an extension, the order of pages or a list that
    pages are drawn from changed.

    Raises:
        ValueError: a notebook is not the outcome of running this checkout's source.
    """
    source = build / "source"
    wanted = {Path(name): ROOT / name for name in ("_config.yml", "_toc.yml", "CITATION.cff")}
    for folder in ("_static", "_extensions"):
        wanted |= {Path(folder) / path.name: path for path in (ROOT / "book" / folder).iterdir() if path.is_file()}
    data = [path for path in (ROOT / "book").iterdir() if path.suffix in (".bib", ".yml")]
    wanted |= {Path("book") / path.name: path for path in data}
    wanted[Path("_extensions/papers.py")] = ROOT / "ci" / "papers.py"
    wanted |= {Path("book") / path.name: path for path in (build / "records").glob("ledger.*")}  # made by the ledger
    executed = {f"book/{page}" for page in executed_pages()}
    for page in toc_files():
        if page.startswith("chapters/") or page in executed:
            wanted[Path(f"{page}.ipynb")] = own_notebook(build / "executed" / f"{page}.ipynb", page)
        else:
            wanted[Path(f"{page}.md")] = ROOT / f"{page}.md"
    for path in [path for path in source.rglob("*") if path.is_file()] if source.exists() else []:
        if path.relative_to(source) not in wanted:
            path.unlink()
    changed = {
        relative: origin
        for relative, origin in wanted.items()
        if not (source / relative).exists() or not filecmp.cmp(origin, source / relative, shallow=False)
    }
    for relative, origin in changed.items():
        (source / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin, source / relative)
    return source, any(relative.parent.name == "_extensions" or relative.suffix == ".yml" for relative in changed)


def own_notebook(path: Path, page: str) -> Path:
    """The path, if the notebook there was made from the page's source as it is.

    Outputs go into the site as they are, scripts of sliders and tables among them; another's notebook does not.
    """
    said = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("kdcore", {})
    digest = hashlib.sha256((ROOT / f"{page}.md").read_text(encoding="utf-8").encode()).hexdigest()
    if (said.get("page"), said.get("notebook_digest")) != (page.removeprefix("chapters/"), digest):
        raise ValueError(f"{path} was not made by this build from {page}.md as it is; delete it and build again.")
    return path


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    try:
        source, everything = assemble(build)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    executable = Path(sys.executable).with_name("jupyter-book")
    command = [executable, "build", source, "--path-output", build.parent, "-W", "--keep-going", "-q"]
    done = subprocess.run([*command, "--all"] if everything else command, cwd=ROOT, check=False)
    if done.returncode:  # what was read is not read again, and its warnings would be forgotten
        shutil.rmtree(build / ".doctrees", ignore_errors=True)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
