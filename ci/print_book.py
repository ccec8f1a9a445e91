"""The whole book as one printable page, and, where Chromium is installed, as a PDF.

python ci/print_book.py _build
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pages import ROOT
from render import assemble

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_LOADED = """() => [...document.images].every(image => image.complete)
    && !document.querySelector('.math:not(:has(mjx-container))')"""


def single_page(build: Path) -> Path:
    """Render all pages into `<build>/print/book.html`; needs the executed pages of `make book`.

    Raises:
        FileNotFoundError: the book is not built yet.
        RuntimeError: Sphinx failed.
    """
    if not (build / "html" / "index.html").exists():
        raise FileNotFoundError("the book is not built; run `make book` first")
    source, _ = assemble(build)
    with_config = [Path(sys.executable).with_name("jupyter-book"), "config", "sphinx", source]
    if subprocess.run(with_config, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise RuntimeError("the Sphinx configuration could not be written")
    target = build / "print"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "singlehtml", "-d", build / ".doctrees-print", source, target],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(source / "_extensions")}, check=False,
    )  # fmt: skip
    (source / "conf.py").unlink(missing_ok=True)
    if done.returncode:
        raise RuntimeError("the single page could not be rendered; see the messages above")
    (target / "searchindex.js").touch()  # the page asks for it, but a single page has none
    # Sphinx puts the page where the root document lies, but its links to assets start at the folder above.
    return (target / "book" / "index.html").replace(target / "book.html")


def to_pdf(page: Path, pdf: Path) -> bool:
    """Print the page with Chromium; whether there is one to print with."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        return False
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        tab = browser.new_page()
        tab.goto(page.as_uri(), wait_until="load", timeout=300_000)
        tab.wait_for_function(_LOADED, timeout=300_000)
        tab.emulate_media(media="print")
        margin = dict.fromkeys(("top", "bottom", "left", "right"), "15mm")
        tab.pdf(path=str(pdf), format="A4", print_background=True, margin=margin)
        browser.close()
    return True


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    try:
        page = single_page(build)
    except (FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"One page: {page}")
    pdf = page.with_suffix(".pdf")
    if to_pdf(page, pdf):
        print(f"PDF: {pdf} ({pdf.stat().st_size / 1e6:.1f} MB)")
    else:
        print("No Chromium here: open the page in a browser and print it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
