"""The site as a reader has it: no other hosts, mathematics, images, sliders, search, small screens, dark mode."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from urllib.parse import urlparse

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, SITE, site_pages

PAGES = site_pages()
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]


def test_page_asks_no_other_host_and_reports_no_error(opened):
    others = {urlparse(url).netloc for url in opened.requests if not url.startswith(("data:", "blob:"))}
    assert others == {urlparse(opened.base).netloc}
    assert opened.problems == []
    assert opened.page.title().strip()


def test_mathematics_is_rendered_and_images_are_loaded(opened):
    page = opened.page
    rendered, errors = (page.locator(name).count() for name in ("mjx-container", "mjx-merror"))
    assert errors == 0
    if opened.path in CHAPTERS or opened.path.endswith("notation.html"):
        assert rendered > 5
    left = page.evaluate(
        "() => [...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).length"
    )
    assert left == 0
    broken = page.evaluate(
        "() => [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src.slice(0, 80))"
    )
    assert broken == []
    assert page.evaluate("() => [...document.querySelectorAll('article img')].every(i => i.alt.trim().length > 10)")


def test_equations_and_their_numbers_are_seen_whole(opened):
    hidden = opened.page.locator("article div.math").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth + 2).map(e => e.innerText.slice(0, 60))"
    )
    assert hidden == []


@pytest.mark.parametrize("path", [*CHAPTERS, "book/protocol.html"])
def test_sliders_move_by_keyboard_and_change_the_picture(visit, path):
    visit.open(path)
    boxes = visit.page.locator(".kdcore-slider")
    assert boxes.count() >= 1
    for number in range(boxes.count()):
        box = boxes.nth(number)
        control, picture, value = box.locator("input"), box.locator("img"), box.locator("output")
        control.focus()
        control.press("Home")
        first = picture.get_attribute("src"), value.inner_text()
        control.press("ArrowRight")
        second = picture.get_attribute("src"), value.inner_text()
        assert first[0] != second[0]
        assert first[1] != second[1]
        control.press("End")
        assert value.inner_text() != second[1] or control.get_attribute("max") == "1"


def test_search_finds_temperature(visit):
    visit.open("search.html?q=temperature")
    # Results come one by one; with many pages the first of them need not be the one that is looked for.
    visit.page.wait_for_selector("#search-results li a[href*='foundations/kd']", timeout=15_000)
    assert {urlparse(url).netloc for url in visit.requests} == {urlparse(visit.base).netloc}


@pytest.mark.parametrize("visit", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True)
@pytest.mark.parametrize("path", PAGES)
def test_page_fits_a_phone(visit, path):
    visit.open(path)
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert visit.page.evaluate("() => parseFloat(getComputedStyle(document.querySelector('article p')).fontSize)") >= 14
    widths = visit.page.locator("article :not(.kdcore-wide) > img, article input, .kdcore-wide").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().width)"
    )
    assert all(width <= 390 for width in widths)
    equations = visit.page.locator("article mjx-container[display=true]").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().left)"
    )
    assert all(left >= 0 for left in equations)  # a long one is read from its beginning


@pytest.mark.parametrize("visit", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True)
def test_panels_side_by_side_scroll_on_a_phone(visit):
    visit.open("chapters/foundations/kd.html")
    sizes = visit.page.locator(".kdcore-wide").evaluate_all("all => all.map(e => [e.clientWidth, e.scrollWidth])")
    assert sizes
    assert all(shown <= 390 and whole >= 600 for shown, whole in sizes)


def contrast(page, selector: str) -> float:
    """Contrast ratio (WCAG 2) of an element's text against the first background behind it that is not transparent."""
    colours = page.locator(selector).first.evaluate(
        """element => {
            const text = getComputedStyle(element).color;
            const clear = () => getComputedStyle(element).backgroundColor.endsWith(", 0)");
            while (element && clear()) element = element.parentElement;
            return [text, getComputedStyle(element || document.body).backgroundColor];
        }"""
    )
    values = []
    for colour in colours:
        parts = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        values.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(values) + 0.05) / (min(values) + 0.05)


@pytest.mark.parametrize("visit", [{"color_scheme": "dark"}], indirect=True)
@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("book/index.html", ".kdcore-cards a"),
        ("book/tags.html", "label.kdcore-tag"),
        ("chapters/foundations/kd.html", "article td"),
        ("book/ledger.html", "article td"),
        ("book/ledger.html", "tr.kdcore-supported td:nth-child(4)"),
        ("book/ledger.html", "tr.kdcore-contradicted td:nth-child(4)"),
    ],
)
def test_dark_mode_is_dark_and_readable(visit, path, most):
    visit.open(path)
    page = visit.page
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    for selector in ("article p", "article h1", most):
        assert contrast(page, selector) >= 4.5, selector


def test_buttons_point_at_files_that_exist(opened):
    links = opened.page.locator("a").evaluate_all(
        "all => all.map(a => [a.href, a.getAttribute('title') || a.textContent])"
    )
    colab = {url for url, _ in links if "colab.research.google.com" in url}
    downloads = {url for url, _ in links if "/_sources/" in url and url.endswith(".ipynb")}
    if opened.path in CHAPTERS:
        assert colab
        assert downloads
    for url in colab:
        assert (ROOT / url.split("/blob/main/")[1].split("#")[0]).exists(), url
    sources = {url for url, _ in links if "github.com/kdcore/kdcore/blob/main/" in url}
    for url in sources - colab:
        assert (ROOT / url.split("/blob/main/")[1].split("#")[0]).exists(), url
    for url in downloads:
        notebook = json.loads((SITE / urlparse(url).path.lstrip("/")).read_text(encoding="utf-8"))
        assert any(cell.get("outputs") for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_links_within_the_site_lead_somewhere(opened):
    links = opened.page.locator("article a[href]").evaluate_all(  # those in drawings have no plain href
        "all => all.map(a => new URL(a.getAttribute('href'), document.baseURI).href)"
    )
    for link in {link.split("#")[0] for link in links if link.startswith(opened.base)}:
        assert (SITE / urlparse(link).path.lstrip("/")).exists(), link


@pytest.mark.parametrize("path", PAGES)
def test_page_names_no_path_of_the_machine_that_built_it(path):
    assert str(ROOT) not in (SITE / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PAGES)
def test_tables_are_rendered(path):
    page = (SITE / path).read_text(encoding="utf-8")
    assert "<p>| " not in page
    if path in CHAPTERS:
        assert page.count("<table") >= 3


@pytest.mark.parametrize("path", CHAPTERS)
def test_chapter_stays_small(path):
    assert (SITE / path).stat().st_size < 3_000_000


def test_reference_names_the_chapters_that_use_a_function(visit):
    visit.open("book/api/foundations.html")
    entry = visit.page.locator("dl.py:has(> dt[id='kdcore.foundations.kd.KnowledgeDistillation'])")
    used = entry.locator("em:text-is('Used in')").first.locator("xpath=..").locator("a")
    links = used.evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert "../../chapters/foundations/kd.html" in links
    assert all((SITE / "book" / "api" / link).resolve().exists() for link in links)
    examples = entry.locator(".highlight").first.inner_text()
    assert ">>>" in examples
