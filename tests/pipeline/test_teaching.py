"""Handouts that nbgrader accepts, and a teaching page that covers every chapter."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from nbgrader.nbgraderformat import MetadataValidator

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "ci"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "book" / "_extensions"))
import handout
from check_chapters import check_chapter
from pages import ROOT, chapter_path, chapters
from teaching import teaching_table

METHODS = [name.split("/")[1] for name in chapters()]
READERS = {"student": False, "teacher": True}


def written(method: str) -> dict[str, nbformat.NotebookNode]:
    return {reader: handout.handout(chapter_path(method), teacher) for reader, teacher in READERS.items()}


def grades(notebook: nbformat.NotebookNode, **wanted: bool) -> list[nbformat.NotebookNode]:
    """The cells whose nbgrader metadata has these values."""
    cells = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    return [cell for cell in cells if all(cell.metadata.nbgrader[name] == value for name, value in wanted.items())]


@pytest.mark.parametrize("method", METHODS)
def test_nbgrader_accepts_both_notebooks(method):
    both = written(method)
    for notebook in both.values():
        nbformat.validate(notebook)
        MetadataValidator().validate_nb(notebook)
        assert len(grades(notebook, grade=True)) >= 3
        assert sum(cell.metadata.nbgrader.points for cell in grades(notebook, grade=True)) >= 5
        for cell in notebook.cells:
            if "nbgrader" not in cell.metadata:
                assert "parameters" in cell.metadata["tags"]
            elif not cell.metadata.nbgrader.solution:
                assert cell.metadata.nbgrader.locked
                assert cell.metadata.editable is False
        autograded = grades(notebook, grade=True, solution=False)
        assert autograded
        assert all("assert str(outcome)" in cell.source for cell in autograded)
    first, second = (
        [(c.metadata.get("nbgrader"), c.cell_type) for c in both[reader].cells] for reader in ("student", "teacher")
    )
    assert first == second


@pytest.mark.parametrize("method", METHODS)
def test_only_the_teacher_gets_solutions(method):
    both = written(method)
    chapter = jupytext.read(chapter_path(method))
    exercises = "\n".join(cell.source for cell in chapter.cells).split("## Exercises")[1]
    solutions = re.findall(r"<summary>Solution</summary>\s+(.+?)\s+</details>", exercises, flags=re.S)
    assert len(solutions) >= 2
    student, teacher = ("\n".join(cell.source for cell in both[reader].cells) for reader in ("student", "teacher"))
    for solution in solutions:
        for told in re.split(r"\s*```(?:python\n)?\s*", solution):
            assert told in teacher
            assert not told or told not in student
    assert "Solution</summary>" not in student
    assert "### BEGIN SOLUTION\n" in teacher
    assert "### END SOLUTION" in teacher
    assert "SOLUTION" not in student
    for number, kind, text in [(e.number, e.kind, e.text) for e in handout.read_chapter(chapter_path(method))[1]]:
        assert f"{number}. *{kind}.*" in text
        assert text in student


@pytest.mark.parametrize("method", METHODS)
def test_the_check_of_a_handout_passes_the_teacher_and_fails_the_student(method):
    for reader, notebook in written(method).items():
        imports = next(
            cell.source for cell in notebook.cells if re.search("^from kdcore import .*exercises", cell.source, re.M)
        )
        names: dict = {}
        exec(imports, names)
        answers = [cell for cell in grades(notebook, solution=True) if cell.cell_type == "code"]
        checks = grades(notebook, grade=True, solution=False)
        assert len(answers) == len(checks) >= 1
        for answer, check in zip(answers, checks, strict=True):
            exec(answer.source, names)
            if reader == "teacher":
                exec(check.source, names)
                assert str(names["outcome"]).startswith("Right")
            else:
                with pytest.raises(AssertionError):
                    exec(check.source, names)


def test_a_call_of_the_package_s_checks_is_split_too():
    source = 'def answer(z):\n    """What to do."""\n    return z\n\n\nexercises.check("kd.1", answer)'
    function, check = handout.split_answer(source)
    assert function == 'def answer(z):\n    """What to do."""\n    return z'
    assert check.startswith('outcome = exercises.check("kd.1", answer)\nassert ')
    with pytest.raises(ValueError, match="must define one function"):
        handout.split_answer("print(1)")


def test_make_handout_writes_two_files_and_names_the_nearest_chapter():
    command = [sys.executable, str(ROOT / "ci" / "handout.py")]
    done = subprocess.run([*command, "kd"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["_build/handouts/kd_student.ipynb", "_build/handouts/kd_teacher.ipynb"]
    assert all((ROOT / name).exists() for name in done.stdout.split())
    done = subprocess.run([*command, "sperical_kd"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: NAME must be one of")
    assert done.stderr.endswith("Did you mean 'spherical_kd'?\n")
    assert done.stderr.count("\n") == 1


def test_every_chapter_is_taught_and_its_answers_are_judged():
    page = (ROOT / "book" / "teach.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    syllabi = parts["One afternoon"], parts["One week"], parts["One semester"]
    for name in chapters():
        assert any(f"(../chapters/{name})" in syllabus for syllabus in syllabi), name
    linked = set(re.findall(r"\(\.\./chapters/(\w+/\w+)\)", page))
    assert linked <= set(chapters())
    assert parts["Grading"].count("*A good answer to the open exercise*") == len(chapters())
    assert parts["Grading"].count("*Typical mistakes:*") == len(chapters())
    afternoon = [int(minutes) for minutes in re.findall(r"^\| (\d+) \|", parts["One afternoon"], flags=re.M)]
    assert sum(afternoon) == 240


def test_the_teaching_table_holds_every_chapter_with_goals_and_minutes():
    papers = yaml.safe_load((ROOT / "book" / "papers.yml").read_text(encoding="utf-8"))["papers"]
    assert sorted(f"{paper['part']}/{paper['slug']}" for paper in papers) == sorted(chapters())
    lines = teaching_table(papers)
    for paper in papers:
        (row,) = [line for line in lines if line.startswith(f"| [{paper['title']}]")]
        assert f"| {paper['minutes']['read']} | {paper['minutes']['run']} |" in row
        assert all(f"  - {goal}" in lines for goal in paper["goals"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("study.announce(minutes=0.5)", "pass", "must begin with the cell of ci/templates"),
        ("github.com/kdcore/kdcore", "example.org/kdcore", "must begin with the cell of ci/templates"),
        ("announce(minutes=0.5)", "announce(minutes=7)", "announces 7 minutes, but says 'under a minute'"),
        ("under a minute to run", "not long to run", "must say in its row 'time' one of"),
    ],
)
def test_the_first_cell_of_a_chapter_is_checked(tmp_path, old, new, message):
    text = (ROOT / "chapters" / "foundations" / "kd.md").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "kd.md"
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert any(message in problem for problem in check_chapter(path))
