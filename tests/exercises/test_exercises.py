"""Checks of the exercises: the right answer, every usual mistake, whatever else a reader may hand in, the chapters."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from kdcore import exercises
from kdcore.exercises import checking
from kdcore.foundations import kd
from kdcore.sources import notebook_code

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = exercises.exercise_names()
MISTAKES = [(name, hint) for name in NAMES for hint in checking._find(name).mistakes]


class Checked(NamedTuple):
    """An exercise as a chapter shows it."""

    chapter: Path
    name: str
    attempt: str
    solution: str


def checked_exercises() -> list[Checked]:
    """Each code cell that calls a check, with the Python of the solution folded below it."""
    shown = re.compile(
        r'^```\{code-cell\} ipython3\n((?:(?!^```).)*?)^exercises\.check\("([\w.]+)", (\w+)\)\n```\n\n'
        r"<details><summary>Solution</summary>\n\n```python\n(.*?)^```",
        flags=re.MULTILINE | re.DOTALL,
    )
    found = []
    for path in sorted((ROOT / "chapters").glob("*/*.md")):
        for code, name, function, solution in shown.findall(path.read_text(encoding="utf-8")):
            found.append(Checked(path, name, f"{code}\nanswer = {function}", f"{solution}\nanswer = {function}"))
    return found


CHECKED = checked_exercises()


def answer_of(checked: Checked, code: str):
    """Run code after the chapter's own imports, as a reader's kernel has them; return the function it defines."""
    code_cells = notebook_code(checked.chapter.read_text(encoding="utf-8"))
    tree = ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", code_cells, flags=re.MULTILINE))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names: dict = {}
    exec(compile(ast.Module(imports, type_ignores=[]), str(checked.chapter), "exec"), names)
    exec(code, names)
    return names["answer"]


@pytest.mark.parametrize("name", NAMES)
def test_the_module_itself_is_right(name):
    exercise = checking._find(name)
    result = exercises.check(name, exercise.right)
    assert result
    assert repr(result) == f"Right. {len(exercise.cases)} hidden cases agree."


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_each_usual_mistake_is_named(name, hint):
    result = exercises.check(name, checking._find(name).mistakes[hint])
    assert not result
    assert repr(result) == hint
    assert "\n" not in hint
    assert hint.endswith((".", "?"))


@pytest.mark.parametrize("checked", CHECKED, ids=lambda checked: checked.name)
def test_solution_of_the_chapter_passes_and_no_message_gives_it_away(checked):
    assert repr(exercises.check(checked.name, answer_of(checked, checked.solution))).startswith("Right. ")
    messages = [*checking._find(checked.name).mistakes, repr(exercises.check(checked.name, lambda *_: None))]
    lines = [line.strip() for line in checked.solution.splitlines() if line.strip() and not line.startswith("def ")]
    for message in messages:
        assert not re.search(r"\.\w+\(|\w\(\w+, |dim=|torch\.(?!float)", message), message
        assert not any(line in message or line.split(" = ")[-1] in message for line in lines), message


@pytest.mark.parametrize("checked", CHECKED, ids=lambda checked: checked.name)
def test_attempt_that_the_chapter_shows_is_wrong_in_a_usual_way(checked):
    result = exercises.check(checked.name, answer_of(checked, checked.attempt))
    assert not result
    values_right = repr(result).startswith("The values are right")
    assert repr(result) in checking._find(checked.name).mistakes or values_right


def test_every_check_stands_in_the_chapter_of_its_name():
    assert sorted(checked.name for checked in CHECKED) == sorted(NAMES)
    for checked in CHECKED:
        assert checked.name.split(".")[0] == checked.chapter.stem
    assert {path.stem for path in (ROOT / "chapters").glob("*/*.md")} == {name.split(".")[0] for name in NAMES}


def softened(student, teacher, temperature, dim=1, factor=2):
    """The distillation loss written out, so that it can go wrong independently of the mistakes in the package."""
    first, second = (torch.log_softmax(logits / temperature, dim) for logits in (student, teacher))
    return (second.exp() * (second - first)).sum() / len(student) * temperature**factor


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, t, tau: softened(s, t.detach(), tau, factor=0), "factor τ² is missing"),
        (lambda s, t, tau: softened(s, t.detach(), tau, dim=0), "softmax runs over the images of the batch"),
        (softened, "gradient flows into teacher_logits"),
        (lambda s, t, tau: softened(s.detach(), t.detach(), tau), "no gradient arrives at student_logits"),
        (lambda s, t, tau: -softened(s, t.detach(), tau), "sign is turned round"),
        (lambda s, t, tau: 0.25 * softened(s, t.detach(), tau), "0.25 times what is wanted"),
        (lambda s, t, tau: softened(s, t.detach(), tau) + 1, "largest error over 4 hidden cases is 1,"),
        (lambda s, t, tau: softened(s, t.detach(), tau).double(), "must be torch.float32"),
        (lambda s, t, tau: softened(s, t.detach(), tau)[None], "must have shape (), got (1,)"),
        (lambda s, t, tau: softened(s, t.detach(), tau) / 0, "must be finite, got 1 NaN or infinite"),
        (lambda s, t, tau: softened(s, t.detach(), tau).item(), "must return a tensor of shape (), got a float"),
        (lambda s, t, tau: None, "got None. Is a return missing?"),
        (lambda s, t, tau: softened(s.div_(tau), t, 1) * tau**2, "changes its argument student_logits in place"),
        (lambda s, t: s, "student_logits (5, 4), teacher_logits (5, 4), temperature 3.0 the answer raised TypeError"),
        (lambda s, t, tau: [][1], "raised IndexError: list index out of range"),
        (torch.zeros(()), "must be a function, given by its name without (), got a Tensor"),
    ],
)  # fmt: skip
def test_what_readers_hand_in_is_answered_in_one_line(answer, words):
    result = exercises.check("kd.1", answer)
    assert not result
    assert words in repr(result)
    assert "\n" not in repr(result)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kd.1"])
def test_every_check_notices_shape_type_change_and_exception(name):
    exercise = checking._find(name)

    def changed(first, *others):
        result = exercise.right(first, *others)
        first.mul_(2)
        return result

    def raising(*_):
        raise RuntimeError("two\nlines")

    assert "in place" in repr(exercises.check(name, changed))
    assert "must have shape" in repr(exercises.check(name, lambda *values: exercise.right(*values)[None]))
    assert "must be torch.float32" in repr(exercises.check(name, lambda *values: exercise.right(*values).double()))
    assert repr(exercises.check(name, raising)).endswith("raised RuntimeError: two lines")


@pytest.mark.parametrize("name", NAMES)
def test_constants_of_a_loss_must_not_receive_gradient(name):
    """Where a case asks for gradients, one that flows into a constant, or that stops short, is found."""
    exercise = checking._find(name)
    wanted = checking._run(exercise.right, exercise.cases[0]).gradients
    for number, (argument, gradient) in enumerate(wanted.items()):

        def cut(*values, number=number):
            return exercise.right(*values[:number], values[number].detach(), *values[number + 1 :])

        def leak(*values, number=number):
            return exercise.right(*values) + (values[number] - values[number].detach()).sum()

        if gradient.any():
            assert f"no gradient arrives at {argument}" in repr(exercises.check(name, cut))
        else:
            assert f"gradient flows into {argument}" in repr(exercises.check(name, leak))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("sperical_kd.1", "spherical_kd.1"), ("kd.9", "kd."), ("kd", "kd."), ("", None), ("alda1", "alda.1"), (7, None)],
)
def test_unknown_name_is_an_error_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=r"name must be one of .*'kd\.1'") as raised:
        exercises.check(name, kd.distillation_loss)
    if nearest:
        assert f"Did you mean '{nearest}" in str(raised.value)


def test_cases_are_the_same_at_every_check_and_untouched_by_answers():
    first = [
        {name: torch.as_tensor(value).clone() for name, value in case.items()} for case in checking._find("kd.2").cases
    ]
    exercises.check("kd.2", lambda student, teacher, temperature: student.zero_())
    for old, new in zip(first, checking._find("kd.2").cases, strict=True):
        assert all(torch.equal(old[name], torch.as_tensor(new[name])) for name in old)


def test_checks_work_where_gradients_are_switched_off():
    with torch.no_grad():
        assert exercises.check("kd.1", kd.distillation_loss)
        assert exercises.check("kd.2", checking.gradient_of(kd.distillation_loss))


def test_a_check_loads_the_exercises_of_its_chapter_only():
    import subprocess
    import sys

    code = (
        "import sys; from kdcore import exercises; exercises.check('kd.1', print); "
        "print(sorted(name for name in sys.modules if name.startswith('kdcore.exercises.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['kdcore.exercises.checking', 'kdcore.exercises.kd']"


def test_chapter_is_out_of_date_when_its_exercises_change_and_no_other_is(tmp_path, monkeypatch):
    import shutil

    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    import pages

    for folder in ("ci", "kdcore", "chapters"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = {name: pages.chapter_digest(name, tmp_path) for name in pages.chapters()}
    with (tmp_path / "kdcore" / "exercises" / "alda.py").open("a") as file:
        file.write("# changed\n")
    after = {name: pages.chapter_digest(name, tmp_path) for name in before}
    assert [name for name in before if before[name] != after[name]] == ["adaptation/alda"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('exercises.check("kd.2", ', 'exercises.check("kd.7", ', "checks 'kd.7', which kdcore/exercises/kd.py lacks"),
        ('exercises.check("kd.2", ', "print(", "never checks 'kd.2'"),
        ("<summary>Hint</summary>", "<b>Hint</b>", "exercise 5 has no folded solution or hint"),
        ("\n5. *Open.*", "\n6. *Open.*", "exercises must count from 1"),
        ("\n3. *Code", "\n*Code", "exercises must count from 1"),
    ],
)
def test_chapter_checks_notice_a_missing_exercise(tmp_path, monkeypatch, old, new, message):
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    import check_chapters

    text = (ROOT / "chapters" / "foundations" / "kd.md").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "foundations" / "kd.md"
    path.parent.mkdir()
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert any(message in problem for problem in check_chapters.check_chapter(path))


def test_chapter_without_a_check_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "ci"))
    import check_chapters

    problems = check_chapters._exercises(tmp_path / "new.md", "\n## Exercises\n\n1. One.\n\n## References\n")
    assert problems == [
        "has fewer than three exercises",
        "exercise 1 has no folded solution or hint",
        'checks no exercise: exercises.check("new.1", …) is not called',
    ]
