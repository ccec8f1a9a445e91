"""Quizzes as a reader answers them: by keyboard, by touch, without JavaScript, in light and in dark."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import ROOT, SITE
from test_site import contrast

QUIZZES = yaml.safe_load((ROOT / "book" / "quizzes.yml").read_text(encoding="utf-8"))
_WITH_AND_WITHOUT_SCRIPTS = [{}, {"java_script_enabled": False}]


def open_quiz(visit, part: str):
    visit.page.goto(f"{visit.base}/book/quiz_{part}.html", wait_until="load")
    return visit.page.locator("form.kdcore-quiz fieldset")


@pytest.mark.parametrize("visit", _WITH_AND_WITHOUT_SCRIPTS, ids=["scripts", "no scripts"], indirect=True)
@pytest.mark.parametrize("part", QUIZZES)
def test_choosing_by_keyboard_shows_the_explanation_of_this_choice_only(visit, part):
    questions = open_quiz(visit, part)
    assert questions.count() == len(QUIZZES[part])
    for number, entry in enumerate(QUIZZES[part]):
        question = questions.nth(number)
        buttons, explanations = question.get_by_role("radio"), question.locator(".kdcore-why")
        assert buttons.count() == explanations.count() == len(entry["choices"])
        assert explanations.filter(visible=True).count() == 0
        buttons.first.focus()
        visit.page.keyboard.press("Space")
        for place, choice in enumerate(entry["choices"]):
            assert buttons.nth(place).is_checked()
            shown = explanations.filter(visible=True)
            assert shown.count() == 1
            assert shown.inner_text().startswith("Right." if choice.get("right") else "Not so.")
            assert explanations.nth(place).is_visible()
            visit.page.keyboard.press("ArrowDown")
    address = visit.page.url
    visit.page.keyboard.press("Enter")  # would send a form
    assert visit.page.url == address
    assert visit.page.locator(".kdcore-why").filter(visible=True).count() == len(QUIZZES[part])
    visit.page.get_by_role("button", name="Clear all answers").press("Enter")
    assert visit.page.locator(".kdcore-why").filter(visible=True).count() == 0


@pytest.mark.parametrize(
    "visit",
    [{"viewport": {"width": 390, "height": 844}, "has_touch": True, "java_script_enabled": False}],
    indirect=True,
)
def test_labels_can_be_tapped_and_are_large_enough(visit):
    question = open_quiz(visit, "foundations").first
    label = question.locator("label").nth(1)
    assert label.bounding_box()["height"] >= 44
    label.tap()
    assert question.get_by_role("radio").nth(1).is_checked()
    assert question.locator(".kdcore-why").nth(1).is_visible()


@pytest.mark.parametrize("part", QUIZZES)
def test_each_question_is_a_named_group_of_named_choices(visit, part):
    visit.open(f"book/quiz_{part}.html")
    page = (SITE / "book" / f"quiz_{part}.html").read_text(encoding="utf-8")
    identifiers = re.findall(r'<input type="radio" name="[\w-]+" id="([\w-]+)"', page)
    assert len(set(identifiers)) == sum(len(entry["choices"]) for entry in QUIZZES[part])
    assert re.findall(r'<label for="([\w-]+)"', page) == identifiers
    assert visit.page.locator("form.kdcore-quiz fieldset > legend").count() == len(QUIZZES[part])
    for number, entry in enumerate(QUIZZES[part], start=1):
        group = visit.page.get_by_role(
            "group", name=re.compile(f"^{number}\\. {re.escape(entry['question'].split('$')[0])}")
        )
        assert group.count() == 1
    text = visit.page.locator("form.kdcore-quiz").inner_text()
    assert not any(sign in text for sign in ("$", "**", "\\"))
    form = page.split('class="kdcore-quiz"')[1].split("</form>")[0]
    formulas = sum(str(entry).count("$") for entry in QUIZZES[part]) // 2
    assert form.count("<math ") == formulas > 0, "formulas must be there before any script runs"
    assert 'class="math' not in form


@pytest.mark.parametrize("visit", [{"color_scheme": scheme} for scheme in ("light", "dark")], indirect=True)
def test_quiz_is_readable_in_light_and_dark(visit):
    visit.open("book/quiz_adaptation.html")
    visit.page.locator("form.kdcore-quiz label").first.click()
    for selector in ("legend", "label", ".kdcore-why", ".kdcore-why strong", "button"):
        assert contrast(visit.page, f"form.kdcore-quiz {selector}") >= 4.5, selector
