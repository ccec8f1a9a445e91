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

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = (
    "At a glance", "The problem", "Theory", "Code", "Experiment", "On a GPU", "Ablation", "What held up",
    "Where it breaks", "Exercises", "References",
)  # fmt: skip
PARAMETERS = ("profile", "seed", "n_seeds", "device", "dataset", "data_dir", "results_dir")
GLANCE = ("paper", "in a sentence", "prerequisites", "time", "hardware", "source status")
_WORDS = (1500, 3000)
_REPOSITORY = "https://github.com/kdcore/kdcore/blob/main/"
_COLAB = "https://colab.research.google.com/github/kdcore/kdcore/blob/main/"


def check_chapter(path: Path) -> list[str]:
    """What is missing or wrong in one chapter, one line each; empty if nothing is."""
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md:myst")
    prose = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    problems = [*_structure(prose), *_parameters(code), *_cells(code), *_mathematics(prose), *_links(path, prose)]
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
    exercises = prose.split("## Exercises")[-1].split("## References")[0]
    if len(re.findall(r"^\d+\. ", exercises, flags=re.M)) < 3:
        problems.append("has fewer than three exercises")
    if exercises.count("<details>") < 2:
        problems.append("has fewer than two folded solutions")
    return problems


def _parameters(code: list) -> list[str]:
    cells = [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        return [f"must have one cell tagged parameters, got {len(cells)}"]
    return [f"the parameters cell lacks {name}" for name in PARAMETERS if not re.search(rf"^{name} = ", cells[0], re.M)]


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
    if text.count("show.picture(") < 4:
        problems.append("has fewer than four figures")
    for number, cell in enumerate(code):
        defined = re.findall(r"^(?:class \w+\((?:.*nn\.Module|.*Learner).*\))", cell.source, flags=re.M)
        problems += [f"code cell {number} defines a method: {line}" for line in defined]
        if len(cell.source.splitlines()) > 60:
            problems.append(f"code cell {number} is longer than 60 lines")
    return problems


def _mathematics(prose: str) -> list[str]:
    problems = []
    numbers = re.findall(r"\\tag\{(\d+)\}", prose)
    if len(numbers) < 3:
        problems.append("has fewer than three numbered equations")
    if numbers != [str(k + 1) for k in range(len(numbers))]:
        problems.append(f"equation numbers must count from 1, got {', '.join(numbers)}")
    for equation in re.findall(r"\$\$(.*?)\$\$", prose, flags=re.S):
        if "\\tag" in equation and "\\\\" in equation:
            problems.append("an equation with a tag must be one line (no \\\\)")
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
        for problem in check_rooms() + papers.problems(ROOT):
            print(problem)
            count += 1
    print(f"{len(paths)} chapters, {count} problems")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
