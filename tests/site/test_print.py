"""The book on paper: one page with everything, a PDF, and how to cite it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, SITE, site_pages

CHAPTERS = [page for page in site_pages() if page.startswith("chapters/")]


@pytest.fixture(scope="module")
def printed(browser) -> Path:
    done = subprocess.run(
        [sys.executable, ROOT / "ci" / "print_book.py", ROOT / "_build"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return ROOT / "_build" / "print" / "book.html"


def test_one_page_holds_every_chapter_with_figures_and_mathematics(printed, browser):
    page = browser.new_page()
    missing: list[str] = []
    page.on("requestfailed", lambda request: missing.append(request.url))
    page.goto(printed.as_uri(), wait_until="load", timeout=300_000)  # the whole book is on it
    page.wait_for_function("() => !document.querySelector('.math:not(:has(mjx-container))')", timeout=300_000)
    assert missing == []
    headings = page.locator("article :is(h1, h2, h3)").evaluate_all("all => all.map(e => e.textContent)")
    for chapter in CHAPTERS:
        title = re.search(r"<h1>(.+?)<", (SITE / chapter).read_text(encoding="utf-8")).group(1)
        assert any(heading.startswith(title) for heading in headings), title
    assert page.evaluate("() => [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    page.emulate_media(media="print")
    code = page.locator("article .cell pre").first  # what a page would cut off, and could not break
    assert code.evaluate("e => [getComputedStyle(e).whiteSpace, getComputedStyle(e).overflowX]") == [
        "pre-wrap",
        "visible",
    ]
    page.close()


def test_the_pdf_is_there_and_has_many_pages(printed):
    content = printed.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert max(int(count) for count in re.findall(rb"/Count (\d+)", content)) > 60


@pytest.mark.parametrize("path", CHAPTERS)
def test_chapter_says_how_to_cite_it_and_leads_to_its_paper(path):
    page = (SITE / path).read_text(encoding="utf-8")
    box = re.search(r'<details class="kdcore-cite">(.*?)</details>', page, flags=re.S).group(1)
    assert f"@incollection{{kdcore-{Path(path).stem}," in box
    anchor = re.search(r'bibliography.html#(\w+)"', box).group(1)
    bibliography = (SITE / "book" / "bibliography.html").read_text(encoding="utf-8")
    entry = re.search(rf'id="{anchor}".*?</div>', bibliography, flags=re.S).group(0)
    arxiv = re.search(r"arxiv.org/abs/(\d+\.\d+)", page).group(1)
    assert arxiv in entry
