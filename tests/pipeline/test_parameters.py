"""Knobs are read from the parameters cell, and what a chapter cannot run with is refused before it runs."""

from __future__ import annotations

import math

import pytest

CELL = """
profile = "quick"  # "quick", "cpu" or "gpu"
device = "auto"  # "auto", "cpu" or "cuda"
n_seeds = 5  # paired seeds, at least 2
temperature = 4.0  # of the distillation term, positive
alpha = 0.9  # weight, in [0, 1]
threshold = 0.6  # δ: a greater probability, in [0, 1)
rotation = -20.0  # of the digits, in degrees, any number
tau = None  # of one loss, positive; None: by profile
data_dir = ""  # where data files are, if not in data/
exact = True  # whether the share is exact
"""
CHAPTER = f"""# A title

```{{code-cell}} ipython3
:tags: [hide-input]

other = 1
```

```{{code-cell}} ipython3
:tags: [parameters]
{CELL}```

```{{code-cell}} ipython3
temperature = 8.0  # not a parameter, positive
```
"""


@pytest.fixture
def parameters(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "ci"))
    import parameters

    return parameters


@pytest.fixture
def knobs(parameters):
    return parameters.knobs(CHAPTER)


def test_knobs_have_default_type_meaning_and_range(knobs):
    assert list(knobs) == [line.split(" =")[0] for line in CELL.strip().splitlines()]
    assert (knobs["temperature"].default, knobs["temperature"].type) == (4.0, "number")
    assert (knobs["n_seeds"].type, knobs["n_seeds"].range, knobs["n_seeds"].minimum) == ("integer", "at least 2", 2)
    assert knobs["threshold"].meaning == "δ: a greater probability"
    assert (knobs["threshold"].minimum, knobs["threshold"].maximum, knobs["threshold"].range) == (0, 1, "in [0, 1)")
    assert (knobs["rotation"].minimum, knobs["rotation"].meaning) == (-math.inf, "of the digits, in degrees")
    assert (knobs["tau"].type, knobs["tau"].meaning) == ("number", "of one loss; None: by profile")
    assert knobs["device"].choices == ("auto", "cpu", "cuda")
    assert knobs["data_dir"].choices == ()
    assert knobs["exact"].type == "truth value"


def test_choices_may_carry_notes_and_prose_in_quotes_is_no_choice(parameters):
    cell = 'dataset = "auto"  # "auto" (by profile), "digits" or "usps to mnist"; the first is for all\n'
    assert parameters.knobs_of_cell(cell)["dataset"].choices == ("auto", "digits", "usps to mnist")
    assert parameters.knobs_of_cell('who = ""  # "auto" or a name\n')["who"].choices == ()


@pytest.mark.parametrize(
    "given",
    [
        {}, {"temperature": 2}, {"temperature": 1e-9}, {"alpha": 0}, {"alpha": 1.0}, {"threshold": 0.0}, {"tau": None},
        {"n_seeds": 2}, {"rotation": -1e300}, {"device": "cuda:1"}, {"data_dir": "a b; rm"}, {"exact": False},
        {"profile": "gpu", "tau": 3},
    ],
)  # fmt: skip
def test_good_values_pass(parameters, knobs, given):
    parameters.check(knobs, given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 2}, "unknown parameter 'temprature'; there are .* Did you mean 'temperature'\\?"),
        ({"other": 2}, "unknown parameter 'other'"),
        ({"temperature": 0}, "temperature must be a positive number, got 0\\."),
        ({"temperature": math.nan}, "temperature must be a positive number, got nan\\."),
        ({"temperature": math.inf}, "temperature must be a positive number, got inf\\."),
        ({"temperature": "2"}, "temperature must be a positive number, got '2'\\."),
        ({"temperature": True}, "temperature must be a positive number, got True\\."),
        ({"temperature": None}, "temperature must be a positive number, got None\\."),
        ({"temperature": [2]}, "temperature must be a positive number, got \\[2\\]\\."),
        ({"tau": -1}, "tau must be a positive number or None, got -1\\."),
        ({"alpha": 1.5}, "alpha must be a number in \\[0, 1\\], got 1.5\\."),
        ({"threshold": 1}, "threshold must be a number in \\[0, 1\\), got 1\\."),
        ({"n_seeds": 1}, "n_seeds must be an integer of at least 2, got 1\\."),
        ({"n_seeds": 5.0}, "n_seeds must be an integer of at least 2, got 5.0\\."),
        ({"rotation": "left"}, "rotation must be a number, got 'left'\\."),
        ({"profile": "cup"}, "profile must be one of quick, cpu, gpu, got 'cup'. Did you mean 'cpu'\\?"),
        ({"device": "cuda:x"}, "device must be one of auto, cpu, cuda, got 'cuda:x'"),
        ({"data_dir": 7}, "data_dir must be text, got 7\\."),
        ({"exact": 1}, "exact must be True or False, got 1\\."),
    ],
)
def test_bad_values_are_refused_in_one_line(parameters, knobs, given, message):
    with pytest.raises(ValueError, match=message) as caught:
        parameters.check(knobs, given)
    assert "\n" not in str(caught.value)


def test_a_chapter_without_parameters_has_no_knobs(parameters):
    assert parameters.knobs("# Only prose\n") == {}
    with pytest.raises(ValueError, match="unknown parameter 'seed'; there are none"):
        parameters.check({}, {"seed": 1})


def test_a_default_that_is_computed_is_refused(parameters):
    with pytest.raises(ValueError, match="the default of parameter 'beta' must be a number or a text"):
        parameters.knobs_of_cell("beta = 2 * 3\n")


def test_values_are_python_literals_or_text(parameters):
    pairs = ["temperature=2", "dataset=usps to mnist", "tau=None", "data_dir=", "rule=a=b"]
    expected = {"temperature": 2, "dataset": "usps to mnist", "tau": None, "data_dir": "", "rule": "a=b"}
    assert parameters.parse(pairs) == expected
    with pytest.raises(ValueError, match="parameters are given as name=value, got 'temperature'"):
        parameters.parse(["temperature"])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("beta = 1.0", "parameter beta has no comment that says what it means"),
        ("beta = 1.0  # weight", "parameter beta: the comment must end with a range"),
        ("beta = 1.0  # weight, between 0 and 1", "parameter beta: the comment must end with a range"),
        ("beta = 1.0  # weight, in [0, one]", "parameter beta: the comment must end with a range"),
        ("beta = 2.0  # weight, in [0, 1]", "parameter beta must be a number in [0, 1]; its default is 2.0"),
        ('kind = "c"  # "a" or "b"', "parameter kind must be one of a, b; its default is 'c'"),
        ('kind = "a"  # "a", or another', 'parameter kind: choices are written "a" (note), "b" or "c"'),
    ],
)
def test_a_comment_that_says_too_little_is_a_problem_of_the_chapter(parameters, line, problem):
    (found,) = parameters.problems(parameters.knobs_of_cell(line + "\n"))
    assert found.startswith(problem)


def test_every_knob_of_the_book_is_explained_and_every_number_has_a_range(parameters, root):
    sources = [*(root / "chapters").glob("*/*.md"), *(root / "book" / "parts").glob("*.md")]
    found = {path.stem: parameters.knobs(path.read_text(encoding="utf-8")) for path in sources}
    assert len(found) > 10
    assert {name: parameters.problems(knobs) for name, knobs in found.items() if parameters.problems(knobs)} == {}


def test_the_check_of_chapters_names_a_number_without_a_range(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "ci"))
    import check_chapters
    import nbformat

    names = "".join(f'{name} = "a"  # what it is\n' for name in check_chapters.PARAMETERS)
    code = names + "beta = 1.0  # weight\n"
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["parameters"]})
    problems = check_chapters._parameters([cell])
    assert [line for line in problems if "beta" in line] == [
        "parameter beta: the comment must end with a range: positive, at least 0, in [0, 1], any number"
    ]
    assert not any("lacks" in line for line in problems)
