"""Write a chapter as an assignment: a notebook for students without solutions, one for the teacher with them.

python ci/handout.py spherical_kd

Both go to `_build/handouts`. Their cells carry the metadata of nbgrader (schema 3): answers in code are graded by the
chapter's own check, written answers by hand, and everything else is locked but for the parameters.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from pages import REPOSITORY, ROOT, chapter_path

_SOLUTION = re.compile(r"<details><summary>Solution</summary>\n(?P<text>.*?)</details>\n*", flags=re.S)
_PYTHON = re.compile(r"```python\n(.*?)```", flags=re.S)
_EXERCISE = re.compile(r"^(?=\d+\. \*)", flags=re.M)
_NUMBER = re.compile(r"(\d+)\. \*([^*]+?)\.\*")
_POINTS = {"Recall": 1, "By hand": 2, "Code, checked": 3}  # and what is open:
_OPEN_POINTS = 4


@dataclass
class Exercise:
    """One exercise of a chapter: its text, the folded solution, and the code cell that the reader completes."""

    number: str
    kind: str
    text: str
    solution: str = ""
    code: str = ""

    @property
    def points(self) -> int:
        return _POINTS.get(self.kind, _OPEN_POINTS)


def read_chapter(path: Path) -> tuple[list[NotebookNode], list[Exercise], str]:
    """The cells of a chapter up to the heading of its exercises, the exercises, and its references."""
    cells = jupytext.read(path).cells
    start = next(number for number, cell in enumerate(cells) if re.search("^## Exercises$", cell.source, flags=re.M))
    before, after = cells[start].source.split("## Exercises\n")
    questions, references = cells[-1].source.split("## References")
    between = [new_markdown_cell(after), *cells[start + 1 : -1], new_markdown_cell(questions)]
    head = [*cells[:start], *([new_markdown_cell(before.strip())] if before.strip() else [])]
    return [*head, new_markdown_cell("## Exercises")], read_exercises(between), f"## References{references}"


def read_exercises(cells: list[NotebookNode]) -> list[Exercise]:
    """The exercises in the cells of a chapter's section of that name, in order."""
    found: list[Exercise] = []
    for cell in cells:
        if cell.cell_type == "code":
            found[-1].code = cell.source
            continue
        for piece in filter(str.strip, _EXERCISE.split(cell.source)):
            solution = "\n\n".join(match["text"].strip() for match in _SOLUTION.finditer(piece))
            text = _SOLUTION.sub("", piece).strip()
            if head := _NUMBER.match(piece):
                found.append(Exercise(head[1], head[2], text, solution))
            else:  # what follows the code cell of the exercise before
                found[-1].solution += solution
                found[-1].text += f"\n\n{text}" if text else ""
    return found


def split_answer(source: str) -> tuple[str, str]:
    """Cut a checked cell into the reader's function and the rest, whose last line calls the check.

    Raises:
        ValueError: the cell does not define a function and end in a call of a check with it.
    """
    body = ast.parse(source).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("check_")]
    last = body[-1].value if isinstance(body[-1], ast.Expr) else None
    named = {node.id for node in ast.walk(last) if isinstance(node, ast.Name)} if isinstance(last, ast.Call) else set()
    answers = [node for node in functions if node.name in named]
    if len(answers) != 1:
        raise ValueError("a checked exercise must define one function and end in the call of a check with it.")
    lines = source.splitlines()
    first, end = answers[0].lineno - 1, answers[0].end_lineno
    rest = "\n".join(lines[:first] + lines[end:]).strip()
    call = ast.get_source_segment(source, last)
    rest = rest.removesuffix(call).rstrip()
    # An autograder sees an exception, not a message.
    check = f'outcome = {call}\nassert str(outcome).startswith("Right"), outcome\nprint(outcome)'
    return "\n".join(lines[first:end]), f"{rest}\n\n\n{check}" if rest else check


def grading(identity: str, *, grade: bool = False, solution: bool = False, points: int = 0) -> dict:
    """Metadata of a cell for nbgrader; what is no answer is locked."""
    fields = {"schema_version": 3, "grade_id": identity, "grade": grade, "solution": solution, "task": False}
    metadata: dict = {"nbgrader": fields | {"locked": not solution} | ({"points": points} if grade else {})}
    return metadata if solution else metadata | {"editable": False, "deletable": False}


def exercise_cells(method: str, exercise: Exercise, teacher: bool) -> list[NotebookNode]:
    """Question, answer and, where there is one, check of an exercise."""
    identity = f"{method}-{exercise.number}"
    question = new_markdown_cell(exercise.text, metadata=grading(f"{identity}-question"))
    if not exercise.code:
        answer = exercise.solution if teacher else "*Your answer:*"
        metadata = grading(identity, grade=True, solution=True, points=exercise.points)
        return [question, new_markdown_cell(answer or "*An open question.*", metadata=metadata)]
    shown, check = split_answer(exercise.code)
    solved = "\n\n\n".join(code.strip() for code in _PYTHON.findall(exercise.solution))
    remark = "\n".join(f"# {line}" for line in _PYTHON.sub("", exercise.solution).split("\n") if line.strip())
    answer = f"### BEGIN SOLUTION\n{solved}\n{remark}\n### END SOLUTION" if teacher else shown
    return [
        question,
        new_code_cell(answer, metadata=grading(identity, solution=True)),
        new_code_cell(check, metadata=grading(f"{identity}-check", grade=True, points=exercise.points)),
    ]


def handout(path: Path, teacher: bool) -> NotebookNode:
    """The notebook of a chapter as an assignment, for the teacher or for students."""
    method = path.stem
    assignment, exercises, references = read_chapter(path)
    for number, cell in enumerate(assignment):
        if "parameters" not in cell.metadata.get("tags", []):
            cell.metadata.update(grading(f"{method}-cell-{number}"))
    for exercise in exercises:
        assignment += exercise_cells(method, exercise, teacher)
    assignment.append(new_markdown_cell(references, metadata=grading(f"{method}-references")))
    for number, cell in enumerate(assignment):
        cell["id"] = f"cell-{number}"
        if cell.cell_type == "markdown":  # beside a handout there are no other chapters
            cell.source = re.sub(r"\]\((?:\.\./(\w+)|\.)?/?(\w+\.ipynb)\)", lambda m: _absolute(path, m), cell.source)
    notebook = nbformat.v4.new_notebook(cells=assignment)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def _absolute(path: Path, link: re.Match) -> str:
    return f"]({REPOSITORY}/blob/main/chapters/{link[1] or path.parent.name}/{link[2]})"


def main() -> int:
    try:
        path = chapter_path(sys.argv[1] if len(sys.argv) > 1 else "")
        folder = ROOT / "_build" / "handouts"
        folder.mkdir(parents=True, exist_ok=True)
        for reader in ("student", "teacher"):
            target = folder / f"{path.stem}_{reader}.ipynb"
            nbformat.write(handout(path, teacher=reader == "teacher"), target)
            print(target.relative_to(ROOT))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
