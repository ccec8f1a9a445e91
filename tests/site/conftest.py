"""The built site, served on this machine, in headless Chromium, with every request and console message kept."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SITE = ROOT / "_build" / "html"
_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def site_pages() -> list[str]:
    """All pages of the toc, as paths in the site."""
    import sys

    sys.path.insert(0, str(ROOT / "ci"))
    from pages import toc_files

    return [f"{page}.html" for page in toc_files()]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@dataclass
class Visit:
    """A page in the browser and what it did."""

    page: object
    base: str
    path: str = ""
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def open(self, path: str) -> None:
        self.page.goto(f"{self.base}/{path}", wait_until="load")
        self.page.wait_for_function(
            "!window.MathJax || !MathJax.startup || MathJax.startup.promise === undefined || true"
        )
        self.page.evaluate("() => window.MathJax && MathJax.startup && MathJax.startup.promise")


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Chromium: .ci/run installs it")
        pytest.skip("no Chromium on this machine; install it to test the site")
    if not (SITE / "index.html").exists():
        pytest.fail("the site is not built; run `make book` first")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def _visit(browser: object, address: str, options: dict) -> Iterator[Visit]:
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(120_000)  # milliseconds; long pages on a busy machine
    page = context.new_page()
    visited = Visit(page, address)
    page.on("request", lambda sent: visited.requests.append(sent.url))
    page.on("console", lambda said: visited.problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: visited.problems.append(str(error)))
    page.on("requestfailed", lambda failed: visited.problems.append(f"failed: {failed.url}"))
    page.on("response", lambda got: visited.problems.append(f"{got.status} {got.url}") if got.status >= 400 else None)
    yield visited
    context.close()


@pytest.fixture
def visit(browser, address, request) -> Iterator[Visit]:
    """A fresh window; parametrise indirectly with options of Playwright's `new_context`."""
    with _visit(browser, address, getattr(request, "param", {})) as visited:
        yield visited


@pytest.fixture(scope="module", params=site_pages())
def opened(browser, address, request) -> Iterator[Visit]:
    """Each page of the site in turn, open in a window that the tests of a module share: they only look."""
    with _visit(browser, address, {}) as visited:
        visited.open(request.param)
        visited.page.wait_for_timeout(300)  # what is asked for late
        visited.path = request.param
        yield visited
