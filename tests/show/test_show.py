"""Tables by hand, figures that draw, pictures with descriptions, a slider that holds its frames."""

from __future__ import annotations

import base64
import json
import re
import sys
from io import BytesIO
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kdcore import models, show, study


@pytest.fixture
def displayed(monkeypatch):
    """What was displayed, as (type name, content)."""
    import IPython.display

    items = []

    def keep(item, **options):
        items.append(item if options.get("raw") else (type(item).__name__, item.data))

    monkeypatch.setattr(IPython.display, "display", keep)
    return items


def results(arms=("CE", "KD"), seeds: int = 4) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "metric": "accuracy", "value": 80.0 + 5 * number + seed}
        for number, arm in enumerate(arms)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def judged() -> list[study.Verdict]:
    one = study.Claim("kd_wins", "KD beats CE", "KD", "CE", "accuracy", "test", paper="74 | 146")
    other = study.Claim("ce_wins", "CE beats KD", "CE", "KD", "accuracy", "test")
    return study.judge([one, other], results())


def test_markdown_table_formats_and_escapes():
    text = show.markdown_table(pd.DataFrame({"a|b": ["x|y"], "value": [1.0 / 3], "n": [2]}), digits=3)
    assert text.splitlines()[2] == "| x\\|y | 0.333 | 2 |"


def test_say_summary_and_claims_are_markdown(displayed):
    show.say("  hello **you**")
    show.summary(results(), {"accuracy": "accuracy (%)", "nll": "NLL"}, ["KD", "CE"])
    show.claims(judged())
    assert [kind for kind, _ in displayed] == ["Markdown"] * 3
    assert "| KD | 86.50\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}2.05 | – |" in displayed[1][1]
    assert "+5 [+5,\N{NO-BREAK SPACE}+5]" in displayed[2][1]
    assert "**contradicted**" in displayed[2][1]


def test_the_mean_of_two_seeds_has_no_interval(displayed):
    two = results()[results()["seed"] < 2]
    show.summary(two, {"accuracy": "accuracy (%)"}, ["KD"])
    assert f"| KD | {two[two['arm'] == 'KD']['value'].mean():.2f} (2 seeds) |" in displayed[0][1]


def test_palette_keeps_colours_across_chapters():
    first, second = show.palette(["CE", "SKD"], method="SKD"), show.palette(["x", "CE", "y", "AdaIN"], method="AdaIN")
    assert first["CE"] == second["CE"]
    assert first["SKD"] == second["AdaIN"]
    assert len(set(second.values())) == 4


def test_recurring_figures_show_what_they_were_given():
    drawn = show.scores(results(), "accuracy", show.palette(["CE", "KD"], "KD"), label="accuracy (%)")
    (axes,) = drawn.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["CE", "KD"]
    assert {text.get_text() for text in axes.texts} == {"81.5", "86.5"}
    frame = results().rename(columns={"metric": "kind"}).assign(x=lambda f: f["seed"] % 2)
    lines = show.curves(frame, "x", "value", show.palette(["CE", "KD"], "KD")).axes[0]
    assert {text.get_text() for text in lines.texts} == {"CE", "KD"}
    texts = [text.get_text() for text in show.verdicts(judged()).axes[0].texts]
    assert any("supported" in text for text in texts)
    assert any("contradicted" in text for text in texts)


def test_verdict_map_has_a_tile_per_claim_and_profile():
    ledger = pd.DataFrame(
        [verdict.as_dict() | {"chapter": "a/b", "profile": "quick", "claim": verdict.claim.id} for verdict in judged()]
    )
    drawn = show.verdict_map(pd.concat([ledger, ledger.assign(profile="cpu")]))
    assert len(drawn.axes[0].patches) == 4


def test_data_figures_draw():
    counts = np.array([[9, 1], [0, 5]])
    assert "90" in [text.get_text() for text in show.confusion_map(counts, ["a", "b"]).axes[0].texts]
    drawn = show.embedding(torch.randn(30, 5), torch.arange(30) % 3, ["a", "b", "c"])
    assert {text.get_text() for text in drawn.axes[0].texts} == {"a", "b", "c"}
    points = torch.randn(20, 2)
    assert len(show.plane(models.MLP(2, (4,), 2), points, (points[:, 0] > 0).long()).axes[0].images) == 1
    grid = show.image_grid(torch.rand(7, 3, 4, 4), titles=list("abcdefg"), columns=4)
    assert sum(len(panel.images) for panel in grid.axes) == 7


def test_what_is_too_wide_for_a_phone_is_wrapped_to_scroll(displayed):
    for figure in (show.figure()[0], show.figure(2)[0], show.figure(width=8.5)[0]):
        show.picture(figure, "panels")
    narrow, *others = (page for _, page in displayed)
    assert "kdcore-wide" not in narrow
    assert all(page.startswith('<div class="kdcore-wide" tabindex="0"') for page in others)


def test_picture_has_alternative_text_and_a_real_image(displayed):
    figure, (axes,) = show.figure()
    axes.plot([0, 1])
    show.picture(figure, 'a "rising" line')
    kind, page = displayed[0]
    assert kind == "HTML"
    assert 'alt="a &quot;rising&quot; line"' in page
    content = re.search(r"base64,([^\"]+)", page)
    assert content is not None
    assert Image.open(BytesIO(base64.b64decode(content.group(1)))).width > 500
    with pytest.raises(ValueError, match="description"):
        show.picture(figure, "  ")


def draw(value: float):
    figure, (axes,) = show.figure(width=3, height=2)
    axes.plot([0, value])
    return figure


def test_slider_page_holds_every_frame_and_says_what_it_shows():
    page = show.slider_html(draw, [1, 2, 4], label="temperature τ", caption="Watch & learn.")
    frames = json.loads(re.search(r'application/json">(.*?)</script>', page, re.S).group(1))
    assert [frame["value"] for frame in frames] == ["1", "2", "4"]
    assert len({frame["png"] for frame in frames}) == 3
    assert 'max="2"' in page
    assert "Watch &amp; learn." in page
    assert "http" not in page
    assert show.slider_html(draw, [1, 2], label="a", caption="b") != show.slider_html(
        draw, [1, 2], label="a", caption="b"
    )


def test_slider_refuses_too_few_or_too_many_values():
    for values in ([1], list(range(31))):
        with pytest.raises(ValueError, match="2 to 30"):
            show.slider_html(draw, values, label="a", caption="b")


def test_slider_is_a_page_when_built_and_a_widget_when_live(displayed, monkeypatch):
    monkeypatch.setenv("KDCORE_STATIC", "1")
    show.slider(draw, [1, 2], label="a", caption="b")
    assert displayed[0][0] == "HTML"
    monkeypatch.delenv("KDCORE_STATIC")
    import sys

    module = sys.modules["kdcore.show.slider"]
    monkeypatch.setattr(module, "_kernel_is_live", lambda: True)
    show.slider(draw, [1, 2], label="a", caption="b")
    bundle = displayed[1]
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html"}


def test_live_widget_draws_anew_when_moved():
    box = sys.modules["kdcore.show.slider"]._live_widget(draw, [1, 2, 3], "a", 0)
    image, control = box.children
    before = bytes(image.value)
    control.value = 3
    assert bytes(image.value) != before


def test_recorded_says_when_there_is_nothing(displayed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    show.recorded("logits/unknown", "gpu", {})
    assert "No `gpu` result is recorded" in displayed[0][1]


def test_recorded_shows_arms_that_have_an_interval_and_no_empty_table_of_claims(displayed, tmp_path, monkeypatch):
    (tmp_path / "_config.yml").touch()
    monkeypatch.setattr("kdcore.study.records.repository_root", lambda: tmp_path)
    chapter = study.Study("parts/toy", profile="cpu", n_seeds=3, results_dir=tmp_path / "book" / "records")
    chapter.run(lambda arm, seed: {"accuracy": 90.0 + seed}, ["KD"])
    chapter.run(lambda arm, seed: {"accuracy": 80.0}, ["swept once"], seeds=1)
    chapter.finish([], "made here")
    displayed.clear()
    show.recorded("parts/toy", "cpu", {"accuracy": "accuracy (%)"})
    said, summary = (text for _, text in displayed)
    assert "3 seeds" in said
    assert "| KD" in summary
    assert "swept once" not in summary


def test_source_shows_the_package_and_nothing_pasted(displayed):
    show.source(show.say)
    assert displayed[0][1].startswith("```python\ndef say(text: str)")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2): what is left of a colour in grey."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stay_visible_in_grey():
    arms = ["teacher", "CE", "KD", "method", *"abcdefgh"]
    for arm, colour in show.palette(arms, method="method").items():
        assert 1.05 / (luminance(colour) + 0.05) >= 2.2, f"{arm} {colour} is too light on white"
    for colour in show.VERDICT_COLOURS.values():
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_lines_are_told_apart_without_colour():
    frame = pd.DataFrame({"arm": ["a", "a", "b", "b"], "x": [1, 2, 1, 2], "y": [1.0, 2.0, 1.0, 3.0]})
    axes = show.curves(frame, "x", "y", {"a": "#0072B2", "b": "#D55E00"}).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["a", "b"]
    results = pd.DataFrame({"arm": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "metric": "m", "value": [1.0, 2, 3, 4]})
    axes = show.scores(results, "m", {"a": "#0072B2", "b": "#D55E00"}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_a_difference_of_two_seeds_has_no_interval():
    table = pd.DataFrame(
        [("A", 2.0, -40.0, 44.0, 2), ("B", 1.0, 0.5, 1.5, 3)], columns=["arm", "difference", "low", "high", "pairs"]
    )
    (axes,) = show.differences(table, "KD", "accuracy (points)").axes
    intervals = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1]
    assert [list(line.get_xdata()) for line in intervals] == [[0.5, 1.5]]


def test_names_of_lines_that_end_at_one_height_stay_in_the_panel_and_apart():
    frame = pd.DataFrame([{"arm": f"arm {k}", "x": x, "y": 90 * x + 0.1 * k} for k in range(8) for x in (0, 1)])
    (axes,) = show.curves(frame, "x", "y", {f"arm {k}": "#0072B2" for k in range(8)}).axes
    axes.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 8
    assert boxes[-1].y1 <= axes.bbox.y1 + 1
    assert all(after.y0 >= before.y0 + 10 for before, after in pairwise(boxes))


def test_differences_are_coloured_by_the_side_of_zero_they_lie_on():
    table = pd.DataFrame(
        [("A", 2.0, 1.0, 3.0, 5), ("B", 0.1, -1.0, 1.2, 5), ("C", -2.0, -3.0, -1.0, 5)],
        columns=["arm", "difference", "low", "high", "pairs"],
    )
    drawn = show.differences(table, "KD", "accuracy (points)")
    axes = drawn.axes[0]
    names = {colour: verdict for verdict, colour in show.VERDICT_COLOURS.items()}
    intervals = [line for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert [names[line.get_color()] for line in intervals] == ["supported", "undecided", "contradicted"]
    assert list(intervals[0].get_xdata()) == [1.0, 3.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B", "C"]
