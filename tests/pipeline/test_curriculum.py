"""The list of papers is checked field by field and against the chapters; what is drawn from it shows all of it."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_extensions"))
import curriculum
import field_map
import papers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def content() -> dict:
    return yaml.safe_load((ROOT / "book" / "papers.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def loaded() -> papers.Curriculum:
    return papers.load(ROOT)


@pytest.fixture
def changed(content, tmp_path):
    """A function that changes the list and returns the problems that are found; toc and chapters stay."""
    (tmp_path / "book").mkdir()
    for name in ("_toc.yml", "chapters"):
        (tmp_path / name).symlink_to(ROOT / name)

    def problems(change) -> list[str]:
        new = copy.deepcopy(content)
        change({entry["slug"]: entry for entry in new["papers"]}, new)
        (tmp_path / "book" / "papers.yml").write_text(yaml.safe_dump(new), encoding="utf-8")
        return papers.problems(tmp_path)

    return problems


def test_the_list_agrees_with_every_chapter(loaded):
    assert papers.problems(ROOT) == []
    assert {paper.page for paper in loaded.papers.values()} == {
        str(path.relative_to(ROOT).with_suffix("")) for path in (ROOT / "chapters").glob("*/*.md")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda by, new: new["papers"].pop(), "is in the table of contents and has no entry"),
        (lambda by, new: by["kd"].update(slug="dk"), "chapters/foundations/kd is in the table of contents and has no"),
        (lambda by, new: by["kd"].pop("goals"), "kd lacks goals"),
        (lambda by, new: by["kd"].update(gaols=[]), "kd: unknown field 'gaols', did you mean 'goals'?"),
        (lambda by, new: by["kd"].update(year="2015"), "kd: year must be of type int, got '2015'"),
        (lambda by, new: by["kd"].update(goals=["learn"]), "kd: goals must be two or three, got 1"),
        (lambda by, new: by["kd"].update(minutes={"read": 25}), "kd: minutes must have read and run"),
        (lambda by, new: by["kd"].update(tags=["output"]), "kd: unknown tag 'output', did you mean 'outputs'?"),
        (lambda by, new: by["kd"].update(tags=[]), "kd has no tags"),
        (
            lambda by, new: by["alda"].update(prerequisites=["kdd"]),
            "alda: unknown prerequisite 'kdd', did you mean 'kd'",
        ),
        (lambda by, new: by["kd"].update(source_status="guessed"), "kd: unknown source_status 'guessed'"),
        (lambda by, new: by["kd"].update(part="logit"), "kd: unknown part 'logit', did you mean 'logits'?"),
        (lambda by, new: by["alda"].update(prerequisites=["maxsquare"]), "prerequisites go round in a circle"),
        (lambda by, new: new["papers"].append(by["kd"]), "kd is listed twice"),
        (lambda by, new: by["kd"].update(title="Distillation"), "kd has the title 'Distillation', the chapter"),
        (lambda by, new: by["kd"].update(arxiv="1503.02532"), "'[arXiv 1503.02532]', which is not in the chapter's"),
        (lambda by, new: by["kd"].update(sentence="magic"), "'magic', which is not in the chapter's row 'in a sent"),
        (lambda by, new: by["adain_kd"].update(prerequisites=[]), "prerequisites [], the chapter's row links ['kd']"),
        (lambda by, new: by["kd"]["minutes"].update(read=5), "'5 minutes to read', which is not in"),
        (lambda by, new: new.pop("tags"), "must have the keys parts, tags"),
    ],
)
def test_mistakes_in_the_list_are_named(changed, change, message):
    found = changed(change)
    assert any(message in line for line in found), found
    assert all("\n" not in line and line.startswith("papers.yml") for line in found)


def test_missing_and_unreadable_lists_are_one_line(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "_toc.yml").symlink_to(ROOT / "_toc.yml")
    assert papers.problems(tmp_path) == ["papers.yml is not there; it must list every chapter."]
    (tmp_path / "book" / "papers.yml").write_text("papers: [")
    (line,) = papers.problems(tmp_path)
    assert line.startswith("papers.yml is no YAML: ")


def test_order_of_the_toc_respects_the_prerequisites(loaded):
    place = {slug: number for number, slug in enumerate(loaded.papers)}
    for paper in loaded.papers.values():
        assert all(place[needed] < place[paper.slug] for needed in paper.prerequisites), paper.slug


def drawn(loaded, macro: str, claims=(), **more) -> str:
    return curriculum.render(macro, loaded, list(claims), lambda page: f"{page}.html", **more)


def test_map_links_every_paper_once_per_drawing_and_draws_every_prerequisite(loaded):
    claims = [{"chapter": "foundations/kd", "profile": "quick", "verdict": v} for v in curriculum.VERDICTS[1:]]
    page = drawn(loaded, "field_map", claims)
    wide, narrow = re.findall(r'<svg class="kdcore-map.*?</svg>', page, flags=re.S)
    for drawing in (wide, narrow):
        for paper in loaded.papers.values():
            assert drawing.count(f'href="{paper.page}.html"') == 1
            assert f"<title>{paper.title} ({paper.year}): " in drawing
        assert drawing.count('class="kdcore-arrow') == sum(len(paper.prerequisites) for paper in loaded.papers.values())
        assert "0·1·1" in drawing
        assert drawing.count("not run") == len(loaded.papers) - 1


@pytest.mark.parametrize(("width", "columns", "gutter"), [(690, 3, 28), (350, 2, 20)])
def test_map_of_sixty_papers_has_no_overlap_and_arrows_cross_no_box(width, columns, gutter):
    parts = {f"part{number}": {"title": f"Part {number}", "question": "?"} for number in range(12)}
    entry = {
        "title": "A paper with a fairly long title of some words", "paper": "", "authors": [], "year": 2000,
        "arxiv": "", "sentence": "", "minutes": {}, "hardware": "", "source_status": "", "tags": [], "goals": [],
    }  # fmt: skip
    listed = {
        f"p{number}": papers.Paper(
            slug=f"p{number}",
            part=f"part{number // 5}",
            prerequisites=[f"p{number // 3}", f"p{number - 1}"] if number else [],
            **entry,
        )
        for number in range(60)
    }
    drawing = field_map.arrange(papers.Curriculum(parts, {}, listed), width, columns, gutter, 19)
    boxes = [box for *_, row in drawing.bands for box in row]
    places = {(box.x, box.y) for box in boxes}
    assert len(places) == 60
    assert all(box.x + drawing.box_width <= width and box.y + drawing.box_height <= drawing.height for box in boxes)
    for arrow in drawing.arrows:
        for x, y in points(arrow.path):
            inside = [b for b in boxes if b.x < x < b.x + drawing.box_width and b.y < y < b.y + drawing.box_height]
            assert not inside, (arrow, inside)


def test_a_link_that_does_not_fit_beside_its_title_stands_below_it(loaded):
    narrow = field_map.arrange(loaded, 350, 2, 20, 19)
    below = {title for _, title, baseline, link, _ in narrow.bands if link > baseline}
    assert below == {"Self-supervision and self-distillation"}
    assert all(boxes[0].y > link for *_, link, boxes in narrow.bands)
    assert all(baseline == link for _, _, baseline, link, _ in field_map.arrange(loaded, 690, 3, 28, 19).bands)


def points(path: str, step: float = 3.0):
    """Points along path data of M, H and V."""
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", path).groups())
    for direction, text in re.findall(r"([HV])([\d.]+)", path):
        end, at = float(text), x if direction == "H" else y
        for number in range(1, int(abs(end - at) // step) + 1):
            along = at + number * step * (1 if end > at else -1)
            yield (along, y) if direction == "H" else (x, along)
        x, y = (end, y) if direction == "H" else (x, end)


def test_ways_cards_and_tags_say_what_the_list_says(loaded):
    page = drawn(loaded, "ways", paper=loaded.papers["maxsquare"])
    assert "needs" in page
    assert 'href="chapters/adaptation/alda.html"' in page
    assert 'href="book/tags.html#tag-needs-no-labels"' in page
    assert "leads to" not in page
    cards, tags = drawn(loaded, "paper_cards"), drawn(loaded, "tag_list")
    for paper in loaded.papers.values():
        assert f'href="{paper.page}.html">{paper.title}</a> ({paper.year})' in cards
        assert cards.count(f"{paper.minutes['read']} min to read, {paper.minutes['run']} min to run")
    for tag, tagged in loaded.tagged().items():
        section = tags.split(f'id="{curriculum.anchor(tag)}"')[1].split("</section>")[0]
        assert section.count("<li>") == len(tagged)


def test_a_part_with_a_closing_page_links_it_from_cards_and_map(loaded):
    assert loaded.closing == {path.stem for path in (ROOT / "book" / "parts").glob("*.md")}
    for macro in ("paper_cards", "field_map"):
        page = drawn(loaded, macro)
        for part in loaded.parts:
            assert (f'href="book/parts/{part}.html"' in page) == (part in loaded.closing), (macro, part)
