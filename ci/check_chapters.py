"""Check every chapter against the anatomy that the book promises, and every pair of notebook files.

python ci/check_chapters.py            # all chapters
python ci/check_chapters.py --fix      # also write the .ipynb of each pair anew from its .md
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import jupytext
import papers
import parameters
import yaml

from kdcore.sources import notebook_code

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = (
    "At a glance", "The problem", "Theory", "Code", "Experiment", "On a GPU", "Ablation", "What held up",
    "Where it breaks", "Exercises", "References",
)  # fmt: skip
PARAMETERS = ("profile", "seed", "n_seeds", "device", "dataset", "data_dir", "results_dir")
GLANCE = ("paper", "in a sentence", "prerequisites", "time", "hardware", "source status")
_WORDS = (1500, 3000)
_TAG = r"\\tag\{(\d+)\}"
_REPOSITORY = "https://github.com/kdcore/kdcore/blob/main/"
_COLAB = "https://colab.research.google.com/github/kdcore/kdcore/blob/main/"
_FIRST_CELL = re.compile(
    r"(?:#.*\n)*try:\n    import (?:\w+, )*kdcore(?:\.\w+)*(?:, \w+)*\nexcept ImportError:\n"
    r'    %pip install -q "kdcore\[(?P<extras>[a-z,]+)\] @ git\+https://github\.com/kdcore/kdcore"\n\n'
    r"from kdcore import study\n\nstudy\.announce\(minutes=(?P<minutes>[\d.]+)\)"
)
_RUN_MINUTES = {"under a minute": 0.5, "about a minute": 1, "about two minutes": 2}


def check_chapter(path: Path) -> list[str]:
    """What is missing or wrong in one chapter, one line each; empty if nothing is."""
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md:myst")
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    problems = [*_structure(prose), *_first_cell(code, prose), *_parameters(code), *_cells(code)]
    problems += [*_mathematics(prose), *_module_numbers(path, prose), *_links(path, prose), *_exercises(path, text)]
    words = len(
        re.findall(r"[A-Za-z][\w'’-]+", re.sub(r"\$\$.*?\$\$|\$[^$]*\$|\(https?:[^)]*\)", " ", prose, flags=re.S))
    )
    if not _WORDS[0] <= words <= _WORDS[1]:
        problems.append(f"has {words} words of prose; {_WORDS[0]} to {_WORDS[1]} are wanted")
    if "TODO" in text:
        problems.append("still holds a TODO")
    return problems


def check_pair(path: Path) -> list[str]:
    """Whether the .ipynb beside a chapter holds the same cells and no outputs."""
    paired = path.with_suffix(".ipynb")
    if not paired.exists():
        return [f"has no paired {paired.name}; run `make pairs`"]
    wanted = json.loads(notebook_json(path))
    found = json.loads(paired.read_text(encoding="utf-8"))
    return [] if wanted == found else [f"is out of step with {paired.name}; run `make pairs`"]


def notebook_json(path: Path) -> str:
    """The .ipynb of a chapter, without outputs, the same at every call."""
    notebook = jupytext.read(path)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "jupytext": {"formats": "ipynb,md:myst"}}
    notebook.metadata["language_info"] = {"name": "python"}
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def installed_extras(path: Path) -> str:
    """The extras of kdcore that the first cell of a chapter installs, such as "notebook,graphs".

    Raises:
        ValueError: the first cell is not the one that installs kdcore and announces the profile.
    """
    notebook = jupytext.read(path)
    found = _FIRST_CELL.fullmatch(next(cell.source for cell in notebook.cells if cell.cell_type == "code"))
    if found is None:
        raise ValueError(f"{path.name} does not begin with the cell that installs kdcore; see ci/templates.")
    return found["extras"]


def _first_cell(code: list, prose: str) -> list[str]:
    """The first code cell installs kdcore and announces the run time that the chapter gives at a glance."""
    found = _FIRST_CELL.fullmatch(code[0].source) if code else None
    if found is None:
        return ["must begin with the cell of ci/templates/chapter.md.txt that installs kdcore and calls study.announce"]
    given = re.search(r"^\| time \|.*?, (.+) to run at `quick` \|$", prose, flags=re.M)
    if given is None or given.group(1) not in _RUN_MINUTES:
        return [f"must say in its row 'time' one of {', '.join(_RUN_MINUTES)} 'to run at `quick`'"]
    if _RUN_MINUTES[given.group(1)] != float(found["minutes"]):
        return [f"announces {found['minutes']} minutes, but says {given.group(1)!r} at a glance"]
    return []


def _structure(prose: str) -> list[str]:
    problems = []
    headings = re.findall(r"^## (.+)$", prose, flags=re.M)
    if headings != list(SECTIONS):
        problems.append(f"sections must be {', '.join(SECTIONS)}; got {', '.join(headings)}")
    if len(re.findall(r"^# .+$", prose, flags=re.M)) != 1:
        problems.append("must have one title")
    for row in GLANCE:
        if not re.search(rf"^\| {row} \|", prose, flags=re.M):
            problems.append(f"At a glance lacks the row {row!r}")
    return problems


def _exercises(path: Path, text: str) -> list[str]:
    """Three or more, each with something folded, one at least with a check of `kdcore/exercises/<method>.py`."""
    problems = []
    section = text.split("\n## Exercises\n")[-1].split("\n## References")[0]
    _, *exercises = re.split(r"^(?=\d+\. )", section, flags=re.M)
    if len(exercises) < 3:
        problems.append("has fewer than three exercises")
    for number, exercise in enumerate(exercises, start=1):
        if not exercise.startswith(f"{number}. "):
            problems.append(f"exercises must count from 1, got {exercise.split('. ')[0]} at place {number}")
        if not re.search(
            r"^<details><summary>(?:Solution|Hint)</summary>\n.*^</details>$", exercise, flags=re.M | re.S
        ):
            problems.append(f"exercise {number} has no folded solution or hint")
    module = ROOT / "kdcore" / "exercises" / f"{path.stem}.py"
    known = re.findall(
        r'^    "([\w.]+)": Exercise\(', module.read_text(encoding="utf-8") if module.exists() else "", re.M
    )
    called = re.findall(r'^exercises\.check\("([^"]*)", ', section, flags=re.M)
    if not called:
        problems.append(f'checks no exercise: exercises.check("{path.stem}.1", …) is not called')
    problems += [
        f"checks {name!r}, which kdcore/exercises/{path.stem}.py lacks" for name in called if name not in known
    ]
    problems += [f"never checks {name!r} of kdcore/exercises/{path.stem}.py" for name in known if name not in called]
    return problems


def _parameters(code: list) -> list[str]:
    cells = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        return [f"must have one cell tagged parameters, got {len(cells)}"]
    found = parameters.knobs_of_cell(cells[0])
    lacking = [f"the parameters cell lacks {name}" for name in PARAMETERS if name not in found]
    return lacking + parameters.problems(found)


def _cells(code: list) -> list[str]:
    problems = []
    text = "\n".join(cell.source for cell in code)
    wanted = (
        "show.source(",
        "show.slider(",
        "show.picture(",
        "show.claims(",
        "show.recorded(",
        "study.Claim(",
        ".finish(",
    )
    problems += [f"never calls {call}…)" for call in wanted if call not in text]
    captions = re.findall(r'show\.slider\(.*?caption="([^"]*)"', text, flags=re.S)
    if len(captions) < text.count("show.slider(") or any(len(caption) < 60 for caption in captions):
        problems.append("has a slider whose caption does not say what to look for (60 characters or more)")
    if text.count("show.picture(") < 4:
        problems.append("has fewer than four figures")
    for number, cell in enumerate(code):
        defined = re.findall(r"^(?:class \w+\((?:.*nn\.Module|.*Learner).*\))", cell.source, flags=re.M)
        problems += [f"code cell {number} defines a method: {line}" for line in defined]
        if len(cell.source.splitlines()) > 60:
            problems.append(f"code cell {number} is longer than 60 lines")
    return problems


def _module_numbers(path: Path, prose: str) -> list[str]:
    """Readers see docstrings in the chapter: an equation has one number in both."""
    module = path.parents[2] / "kdcore" / path.parent.name / f"{path.stem}.py"
    if not module.exists():
        return []  # `check_rooms` says so
    known = set(re.findall(_TAG, prose))
    foreign = [tag for tag in re.findall(_TAG, module.read_text(encoding="utf-8")) if tag not in known]
    return [f"does not have the equations {', '.join(foreign)} of its module's docstring"] if foreign else []


def _mathematics(prose: str) -> list[str]:
    problems = []
    numbers = re.findall(_TAG, prose)
    if len(numbers) < 3:
        problems.append("has fewer than three numbered equations")
    if numbers != [str(k + 1) for k in range(len(numbers))]:
        problems.append(f"equation numbers must count from 1, got {', '.join(numbers)}")
    for equation in re.findall(r"\$\$(.*?)\$\$", prose, flags=re.S):
        if "\\tag" in equation and "\\\\" in equation:
            problems.append("an equation with a tag takes no \\\\; break it by aligned and \\cr")
    if re.search(r"^:::|^```\{(?!code-cell)|\{(?:ref|cite|numref|eq|doc)\}`", prose, flags=re.M):
        problems.append("uses a role or directive that Colab shows raw")
    return problems


def _links(path: Path, prose: str) -> list[str]:
    problems = []
    name = f"{path.parent.name}/{path.stem}"
    for wanted in (f"{_COLAB}chapters/{name}.ipynb", f"{_REPOSITORY}kdcore/{name}.py"):
        if wanted not in prose:
            problems.append(f"lacks the link {wanted}")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if target.startswith((_REPOSITORY, _COLAB)):
            local = ROOT / target.removeprefix(_REPOSITORY).removeprefix(_COLAB)
        elif target.startswith("http"):
            continue
        else:
            local = (path.parent / target).resolve()
        if not local.exists() and not (local.suffix == ".ipynb" and local.with_suffix(".md").exists()):
            problems.append(f"links to {target}, which is not there")
    return problems


def check_rooms() -> list[str]:
    """The mirror rule: every method has its module, its tests and its chapter, and the chapter is in the toc."""
    problems = []
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    for path in sorted((ROOT / "chapters").glob("*/*.md")):
        part, method = path.parent.name, path.stem
        for other in (f"kdcore/{part}/{method}.py", f"tests/{part}/test_{method}.py"):
            if not (ROOT / other).exists():
                problems.append(f"chapters/{part}/{method}.md has no {other}")
        if f"chapters/{part}/{method}" not in toc:
            problems.append(f"_toc.yml lacks chapters/{part}/{method}")
    return problems


def check_part_pages(root: Path = ROOT) -> list[str]:
    """A page that closes a part compares all its methods."""
    problems = []
    for page in sorted((root / "book" / "parts").glob("*.md")):
        code = notebook_code(page.read_text(encoding="utf-8"))
        for chapter in sorted((root / "chapters" / page.stem).glob("*.md")):
            if not re.search(rf"\b{chapter.stem}\.", code):
                problems.append(f"book/parts/{page.name} does not compare {chapter.stem}")
    return problems


def check_quizzes(root: Path = ROOT) -> list[str]:
    """Every part that has chapters closes with the page of its quiz, which has questions."""
    problems = []
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    quizzes = yaml.safe_load((root / "book" / "quizzes.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        pages = [entry["file"] for entry in part["chapters"]]
        folders = dict.fromkeys(page.split("/")[1] for page in pages if page.startswith("chapters/"))
        for folder in folders:
            if pages[-1] != f"book/quiz_{folder}":
                problems.append(f"_toc.yml: the part of chapters/{folder} does not end with book/quiz_{folder}")
            if folder not in quizzes:
                problems.append(f"book/quizzes.yml has no questions on {folder}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fix", action="store_true", help="write the .ipynb files anew from the .md files")
    parser.add_argument("names", nargs="*", help="part/method; all if left out")
    options = parser.parse_args()
    paths = sorted((ROOT / "chapters").glob("*/*.md"))
    if options.names:
        paths = [
            path for path in paths if f"{path.parent.name}/{path.stem}" in options.names or path.stem in options.names
        ]
    count = 0
    for path in paths:
        if options.fix:
            path.with_suffix(".ipynb").write_text(notebook_json(path), encoding="utf-8")
        for problem in check_chapter(path) + check_pair(path):
            print(f"{path.relative_to(ROOT)} {problem}")
            count += 1
    if not options.names:
        for problem in check_rooms() + check_quizzes() + check_part_pages() + papers.problems(ROOT):
            print(problem)
            count += 1
    print(f"{len(paths)} chapters, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
