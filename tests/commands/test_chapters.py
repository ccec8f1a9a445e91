"""`kdcore list`, and completion at the prompt."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from commands.conftest import invoke, kdcore


def test_list_names_every_part_and_paper_with_its_minutes_and_records(root):
    done = invoke("list")
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    for path in (root / "chapters").glob("*/*.md"):
        assert path.stem in lines
        assert f"({path.parent.name})" in done.output
    assert "25 read, 1 run" in lines["spherical_kd"]
    assert "cpu" in lines["spherical_kd"].split("run")[-1]


def test_list_of_a_part_shows_no_other():
    done = invoke("list", "--part", "adaptation")
    assert "alda" in done.output
    assert "spherical_kd" not in done.output


def test_list_of_a_chapter_shows_each_parameter_with_default_range_and_meaning():
    lines = invoke("list", "spherical_kd").output.splitlines()
    (temperature,) = [line for line in lines if line.startswith("temperature")]
    assert temperature.split() == [
        "temperature",
        "4.0",
        *["a", "positive", "number", "of", "the", "distillation", "term"],
    ]
    (dataset,) = [line for line in lines if line.startswith("dataset")]
    assert "one of auto, digits, mnist, cifar10" in dataset


def test_list_as_json_holds_the_same():
    (chapter,) = json.loads(invoke("list", "logits/spherical_kd", "--json").output)
    assert (chapter["slug"], chapter["part"], chapter["minutes"]["run"]) == ("spherical_kd", "logits", 1)
    knobs = {knob["name"]: knob for knob in chapter["parameters"]}
    assert knobs["alpha"] == {
        "name": "alpha", "default": 0.9, "type": "number", "range": "in [0, 1]", "choices": [],
        "meaning": "weight of the distillation term",
    }  # fmt: skip
    assert len(json.loads(invoke("list", "--json").output)) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sphercal_kd"], "no chapter 'sphercal_kd'. Did you mean 'spherical_kd'\\?"),
        (["--part", "logit"], "no part 'logit'; there are .* Did you mean 'logits'\\?"),
        (["book/ledger"], "'book/ledger' is no chapter but another page; see `kdcore list`"),
    ],
)
def test_names_that_are_none_are_refused(arguments, message):
    done = invoke("list", *arguments)
    with pytest.raises(ValueError, match=message):
        raise done.exception


def test_mistakes_are_one_line_and_status_1(root):
    done = kdcore(root, "list", "sphercal_kd")
    assert done.returncode == 1
    assert done.stderr == "error: no chapter 'sphercal_kd'. Did you mean 'spherical_kd'?\n"


def test_outside_a_checkout_the_installed_one_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "spherical_kd" in invoke("list").output


def test_listing_loads_neither_torch_nor_pandas(root):
    code = (
        "import sys; from kdcore.commands import chapters, ledger; chapters.list_chapters(); ledger.show_ledger(); "
        "print('loaded', sorted({'torch', 'pandas', 'scipy', 'papermill', 'jupytext'} & set(sys.modules)))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    print(f"list and ledger together: {time.perf_counter() - began:.2f} s")
    assert done.stdout.splitlines()[-1] == "loaded []"


def offered(root, words: str) -> list[str]:
    """What bash is offered after these words."""
    environment = {"_KDCORE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return kdcore(root, **environment).stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("kdcore run sph", ["spherical_kd"]),
        ("kdcore list al", ["alda"]),
        ("kdcore run --part ad", ["adaptation"]),
        ("kdcore run spherical_kd -p temp", ["temperature="]),
        ("kdcore run maxsquare -p st", ["strength="]),
        ("kdcore run kd -p mult", []),
        ("kdcore run spherical_kd -p dataset=m", ["dataset=mnist"]),
        ("kdcore ledger --chapter tgeo", ["tgeo_kd"]),
        ("kdcore compare cpu:spher", ["cpu:spherical_kd"]),
        ("kdcore data get ci", ["cifar10", "cifar100"]),
        ("kdcore led", ["ledger"]),
    ],
)
def test_completion_offers_names(root, words, expected):
    assert offered(root, words) == expected


def test_a_locale_without_greek_letters_gets_their_numbers(root):
    done = kdcore(root, "list", "alda", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert r"\u03b4: target images need a greater probability" in done.stdout
