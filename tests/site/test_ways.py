"""Finding one's way: the map, the cards, the tags, needs and leads to, the ledger, with and without JavaScript."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, SITE, site_pages

sys.path.insert(0, str(ROOT / "ci"))
import papers

CURRICULUM = papers.load(ROOT)
PAPERS = list(CURRICULUM.papers.values())
PHONE, NO_SCRIPT = {"viewport": {"width": 390, "height": 844}}, {"java_script_enabled": False}


def claims() -> list[dict]:
    """All claims of all records, with their chapter and profile."""
    built, committed = ROOT / "_build" / "records", ROOT / "book" / "records"
    paths = [*built.glob("quick/*/*.json"), *committed.glob("cpu/*/*.json"), *committed.glob("gpu/*/*.json")]
    records = [json.loads(path.read_text()) for path in paths]
    return [
        claim | {name: record[name] for name in ("chapter", "profile")}
        for record in records
        for claim in record["claims"]
    ]


@pytest.mark.parametrize("visit", [{}, PHONE, NO_SCRIPT, {"color_scheme": "dark"}], indirect=True)
def test_map_shows_every_paper_as_a_link_with_its_verdicts(visit):
    visit.page.goto(f"{visit.base}/book/index.html")
    nodes = visit.page.locator(".kdcore-map:visible .kdcore-node")
    assert nodes.count() == len(PAPERS)
    for number, paper in enumerate(PAPERS):
        node = nodes.nth(number)
        assert node.get_attribute("href") == f"../{paper.page}.html"
        found = Counter(
            claim["verdict"]
            for claim in claims()
            if (claim["chapter"], claim["profile"]) == (f"{paper.part}/{paper.slug}", "quick")
        )
        figures = [found[verdict] for verdict in ("supported", "undecided", "contradicted")]
        assert node.locator("text").last.text_content() == "·".join(map(str, figures))
        assert node.locator("rect").count() == 1 + sum(figure > 0 for figure in figures)
        assert paper.title in node.locator("title").text_content()
    box = visit.page.locator(".kdcore-map:visible").bounding_box()
    drawn = float(visit.page.locator(".kdcore-map:visible").get_attribute("width"))
    assert box["width"] / drawn > 0.9  # letters of 12 pixels stay legible


def test_map_is_walked_by_keyboard_and_marks_the_arrows_of_a_paper(visit):
    visit.open("book/index.html")
    first = visit.page.locator(".kdcore-map:visible .kdcore-node").first
    width = "e => getComputedStyle(e).strokeWidth"
    arrow = visit.page.locator(f".kdcore-map:visible .from-{PAPERS[0].slug}").first
    before = arrow.evaluate(width)
    first.focus()
    assert arrow.evaluate(width) != before
    visit.page.keyboard.press("Tab")  # the heading of the next part leads to the page that closes it
    assert visit.page.evaluate("() => document.activeElement.href.baseVal") == f"parts/{PAPERS[1].part}.html"
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("() => document.activeElement.classList.contains('kdcore-node')")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url(f"**/{PAPERS[1].page}.html")


def test_index_counts_papers_and_claims_and_has_a_card_for_each(visit):
    visit.open("book/index.html")
    text = visit.page.locator(".kdcore-counts").inner_text()
    assert f"{len(PAPERS)} papers." in text
    for profile in {claim["profile"] for claim in claims()}:
        found = Counter(claim["verdict"] for claim in claims() if claim["profile"] == profile)
        wanted = ", ".join(f"{found[verdict]} {verdict}" for verdict in ("supported", "undecided", "contradicted"))
        assert f"{sum(found.values())} claims at {profile}: {wanted}" in text
    assert visit.page.locator(".kdcore-cards > li").count() == len(PAPERS)


@pytest.mark.parametrize("visit", [NO_SCRIPT], indirect=True)
def test_tags_work_without_javascript(visit):
    visit.page.goto(f"{visit.base}/book/tags.html")
    assert not visit.page.locator(".kdcore-filter fieldset").is_visible()
    assert visit.page.locator(".kdcore-filter li[data-tags]:visible").count() == len(PAPERS)
    for tag, tagged in CURRICULUM.tagged().items():
        links = visit.page.locator(f"#tag-{tag.replace(' ', '-')} li a")
        assert links.all_inner_texts() == [paper.title for paper in tagged]


def test_tags_filter_by_several_at_once(visit):
    visit.open("book/tags.html")
    shown = visit.page.locator(".kdcore-filter li[data-tags]:visible")
    for wanted in (["needs no labels"], ["needs no labels", "segmentation"]):
        box = visit.page.get_by_role("checkbox", name=wanted[-1], exact=True)
        box.focus()
        box.press("Space")
        left = [paper for paper in PAPERS if set(wanted) <= set(paper.tags)]
        assert shown.count() == len(left)
        assert visit.page.locator(".kdcore-filter output").inner_text() == f"{len(left)} of {len(PAPERS)} papers"


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.slug)
def test_chapter_names_what_it_needs_what_it_leads_to_and_its_neighbours(visit, paper):
    visit.open(f"{paper.page}.html")
    ways = visit.page.locator("article nav.kdcore-ways")
    assert ways.count() == 1
    assert ways.evaluate("e => e.previousElementSibling.tagName") == "H1"
    text = ways.inner_text()
    needed, leading = CURRICULUM.needs(paper.slug), CURRICULUM.leads_to(paper.slug)
    assert f"needs {', '.join(p.short for p in needed) or 'no other chapter'}" in text
    assert ("leads to " + ", ".join(p.short for p in leading) in text) == bool(leading)
    assert ways.locator(".kdcore-tag").all_inner_texts() == paper.tags
    pages = site_pages()
    place = pages.index(f"{paper.page}.html")
    for side, neighbour in (("left-prev", pages[place - 1]), ("right-next", pages[place + 1])):
        link = visit.page.locator(f".prev-next-footer a.{side}")
        assert link.count() == 1
        assert link.evaluate("e => e.href") == f"{visit.base}/{neighbour}"


@pytest.mark.parametrize("visit", [{}, NO_SCRIPT], indirect=True)
def test_ledger_shows_every_claim_with_and_without_javascript(visit):
    visit.page.goto(f"{visit.base}/book/ledger.html")
    if not visit.page.locator("noscript").count():
        visit.page.wait_for_selector(".dt-container")
    rows = visit.page.locator("#ledger tbody tr")
    assert rows.count() == len(claims())
    assert rows.last.is_visible()
    assert "itables" not in visit.page.locator("article").inner_text()


@pytest.fixture
def ledger(visit):
    """The ledger, ready, and a function that reads a column of the rows that are shown."""
    visit.open("book/ledger.html")
    visit.page.wait_for_selector(".dt-container")
    names = visit.page.locator("#ledger thead .dt-column-title").all_inner_texts()

    def column(name: str) -> list[str]:
        return visit.page.locator(f"#ledger tbody td:nth-child({names.index(name) + 1})").all_inner_texts()

    def button(name: str, kind: str):
        return visit.page.locator(f"#ledger thead th:nth-child({names.index(name) + 1}) .dtcc-button_{kind}")

    return visit, column, button


def test_ledger_sorts_by_difference_with_the_keyboard(ledger):
    visit, column, button = ledger
    for falling in (True, False):
        button("difference", "order").focus()
        button("difference", "order").press("Enter")
        wanted = sorted(map(float, column("difference")), reverse=falling)
        for _ in range(50):  # the table is drawn after the key has been handled
            if [float(text) for text in column("difference")] == wanted:
                break
            visit.page.wait_for_timeout(100)
        assert [float(text) for text in column("difference")] == wanted
        assert len(wanted) == len(claims())


def test_ledger_search_narrows(ledger):
    visit, _, _ = ledger
    visit.page.get_by_role("searchbox").first.fill("temperature")
    shown = visit.page.locator("#ledger tbody tr").all_inner_texts()
    assert 0 < len(shown) < len(claims())
    assert all("temperature" in text.lower() for text in shown)


@pytest.mark.parametrize(
    ("name", "value"), [("verdict", "supported"), ("profile", "quick"), ("part", "Domain adaptation")]
)
def test_ledger_filters_by_column_with_the_keyboard(ledger, name, value):
    visit, column, button = ledger
    wanted = column(name).count(value)
    assert 0 < wanted < len(claims())
    button(name, "dropdown").focus()
    button(name, "dropdown").press("Enter")
    choice = visit.page.locator(".dtcc-dropdown").get_by_role("button", name=value, exact=True)
    choice.focus()
    choice.press("Enter")
    assert column(name) == [value] * wanted


def test_ledger_links_lead_to_the_verdicts_of_the_chapter(ledger):
    visit, _, _ = ledger
    links = visit.page.locator("#ledger tbody td:first-child a").evaluate_all("all => all.map(a => a.href)")
    assert len(links) == len(claims())
    for link in set(links):
        path, section = link.removeprefix(f"{visit.base}/").split("#")
        assert f'id="{section}"' in (SITE / path).read_text(encoding="utf-8")


def test_ledger_downloads_hold_the_rows_of_the_table(ledger):
    visit, column, _ = ledger
    texts = {
        kind: visit.page.request.get(visit.page.get_by_role("link", name=kind).evaluate("e => e.href")).text()
        for kind in ("CSV", "JSON")
    }
    from_csv, from_json = list(csv.DictReader(io.StringIO(texts["CSV"]))), json.loads(texts["JSON"])
    assert [row["statement"] for row in from_csv] == [row["statement"] for row in from_json] == column("claim")
    for one, other in zip(from_csv, from_json, strict=True):
        assert list(one) == list(other)
        assert float(one["difference"]) == pytest.approx(other["difference"])
    wanted = {(claim["chapter"], claim["profile"], claim["id"]): claim["verdict"] for claim in claims()}
    assert {(row["chapter"], row["profile"], row["claim"]): row["verdict"] for row in from_json} == wanted


@pytest.mark.parametrize("visit", [PHONE], indirect=True)
def test_ledger_scrolls_in_its_own_box_on_a_phone(ledger):
    visit, _, _ = ledger
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    box = visit.page.locator(".dt-layout-table")
    assert box.evaluate("e => e.scrollWidth > e.clientWidth && e.scrollTop === 0")
    assert visit.page.get_by_role("searchbox").first.bounding_box()["width"] > 100
    box.evaluate("e => { e.scrollTop = 400; }")
    assert abs(visit.page.locator("#ledger thead th").first.bounding_box()["y"] - box.bounding_box()["y"]) < 3
