"""The site for those who use a keyboard, a screen reader, another colour scheme, or no scripts."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import site_pages

PAGES = site_pages()
CHAPTERS = [page for page in PAGES if page.startswith("chapters/")]
WITHOUT_SCRIPTS = {"java_script_enabled": False}


@pytest.mark.parametrize("visit", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
@pytest.mark.parametrize("path", PAGES)
def test_axe_finds_nothing_serious(visit, path):
    from axe_playwright_python.sync_playwright import Axe

    visit.open(path)
    # Code looks alike everywhere; the contrast of all of a long page's would take minutes to compute.
    visit.page.evaluate("() => [...document.querySelectorAll('div.highlight')].slice(8).forEach(code => code.remove())")
    found = Axe().run(visit.page, options={"resultTypes": ["violations"]}).response["violations"]
    serious = [
        (finding["id"], finding["nodes"][0]["target"], len(finding["nodes"]))
        for finding in found
        if finding["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_headings_go_down_by_one_level(opened):
    levels = opened.page.locator("article :is(h1, h2, h3, h4, h5, h6)").evaluate_all(
        "all => all.map(heading => Number(heading.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def test_everything_that_reacts_is_reached_by_tab(opened):
    out_of_reach = opened.page.locator("article :is(a[href], button, input, select, summary)").evaluate_all(
        "all => all.filter(e => e.tabIndex < 0 && !e.closest('[hidden]')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert out_of_reach == []


@pytest.mark.parametrize("visit", [WITHOUT_SCRIPTS], indirect=True)
@pytest.mark.parametrize("path", PAGES)
def test_page_reads_without_scripts(visit, path):
    visit.page.goto(f"{visit.base}/{path}", wait_until="load")
    page = visit.page
    assert len(page.locator("article").inner_text()) > 200
    assert page.locator("article .math").evaluate_all("all => all.every(e => getComputedStyle(e).display === 'none')")
    assert page.locator("article noscript math").count() == page.locator("article .math").count()
    if path in CHAPTERS:
        assert page.locator("article math").count() > 20
        assert page.locator("article img").evaluate_all("all => all.every(i => i.naturalWidth > 0)")
        folded = page.locator("article details:not(.above-input):not(.below-input)").last
        folded.locator("summary").click()
        assert folded.evaluate("e => e.open")


@pytest.mark.parametrize("visit", [{"viewport": {"width": 390, "height": 844}, "has_touch": True}], indirect=True)
def test_slider_moves_by_touch(visit):
    visit.open("chapters/foundations/kd.html")
    box = visit.page.locator(".kdcore-slider").first
    control, picture = box.locator("input"), box.locator("img")
    control.scroll_into_view_if_needed()
    before = picture.get_attribute("src")
    place = control.bounding_box()
    visit.page.touchscreen.tap(place["x"] + 0.9 * place["width"], place["y"] + place["height"] / 2)
    visit.page.wait_for_timeout(200)
    assert picture.get_attribute("src") != before
