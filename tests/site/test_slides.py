"""Slides in headless Chromium: nothing asked of another host, mathematics rendered, everything within the slide."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, _Quiet, site_pages

METHODS = [page.split("/")[2].removesuffix(".html") for page in site_pages() if page.startswith("chapters/")]
SLIDES = ROOT / "_build" / "slides"
# Goes through all slides and returns what reaches beyond its slide, with the number of the slide.
_OUTSIDE = """() => {
    const box = document.querySelector(".reveal").getBoundingClientRect(), outside = [];
    Reveal.getSlides().forEach((slide, number) => {
        const place = Reveal.getIndices(slide);
        Reveal.slide(place.h, place.v);
        for (const element of slide.querySelectorAll("img, table, p, pre, mjx-container[display=true] mjx-math")) {
            if (element.closest("aside")) continue;
            const at = element.getBoundingClientRect();
            if (at.bottom > box.bottom + 1 || at.right > box.right + 1 || at.left < box.left - 1 || at.width === 0)
                outside.push([number + 1, element.outerHTML.slice(0, 120)]);
        }
    });
    return outside;
}"""
_TO_SLIDER = """() => {
    const place = Reveal.getIndices(document.querySelector(".kdcore-slider").closest("section"));
    Reveal.slide(place.h, place.v);
}"""


def make_slides(name: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, str(root / "ci" / "slides.py"), name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SLIDES)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("method", METHODS)
def test_slides_need_no_other_host_and_hold_what_they_show(visit, method):
    made = make_slides(method)
    assert made.returncode == 0, made.stderr
    visit.open(f"{method}/index.html")
    page = visit.page
    total = page.evaluate("() => Reveal.getTotalSlides()")
    assert total > 8
    assert page.evaluate(_OUTSIDE) == []
    assert page.locator("mjx-container").count() > 5
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("() => [...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("aside.notes").count() > 5
    sections = page.locator(".slides > section").count()
    assert 8 < sections < total  # figures and long sections go on below
    shown = page.locator(".slides").inner_text()
    assert "Solution" not in shown
    assert "def compare" not in shown  # code that makes results stays hidden
    hosts = {urlparse(url).netloc for url in visit.requests if not url.startswith("data:")}
    assert hosts == {urlparse(visit.base).netloc}
    assert visit.problems == []


def test_slider_moves_on_its_slide(visit):
    assert make_slides("kd").returncode == 0
    visit.open("kd/index.html")
    page = visit.page
    page.evaluate(_TO_SLIDER)
    control, picture = page.locator(".kdcore-slider input"), page.locator(".kdcore-slider img")
    control.focus()
    control.press("Home")
    first = picture.get_attribute("src")
    control.press("ArrowRight")
    assert picture.get_attribute("src") != first


def test_mistaken_calls_are_one_line(tmp_path):
    done = make_slides("spherical")
    assert done.returncode == 1
    assert done.stderr.startswith("error: NAME must be one of")
    assert "Did you mean 'spherical_kd'?" in done.stderr
    for name in ("ci", "kdcore", "chapters"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    done = make_slides("kd", tmp_path)
    assert done.returncode == 1
    missing = "_build/executed/chapters/foundations/kd.ipynb"
    assert done.stderr == f"error: {missing} is not there yet; run `make book` first.\n"
