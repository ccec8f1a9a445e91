"""A small copy of the project whose chapters take a second, to build, break and kill."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import jupytext
import pytest
import yaml

_HEADER = """---
jupytext:
  formats: ipynb,md:myst
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# {title}

```{{code-cell}} ipython3
:tags: [parameters]

profile = "quick"
results_dir = "results"
temperature = 4.0
```

```{{code-cell}} ipython3
{code}
```
"""


@pytest.fixture
def tiny_project(tmp_path, root) -> Path:
    """ci/ and kdcore/ of the project (in a path with a space), with two chapters and two pages of its own."""
    project = tmp_path / "a project"
    shutil.copytree(root / "ci", project / "ci", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "kdcore", project / "kdcore", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_static", "_extensions"):
        shutil.copytree(root / "book" / name, project / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("_config.yml", "CITATION.cff"):
        shutil.copy(root / name, project)
    (project / "book" / "references.bib").write_text("@misc{a,\n title={A},\n year={2000}}\n")
    (project / "book" / "index.md").write_text("# Index\n\nHello $x^2$.\n\n```{verdict-counts}\n```\n")
    parts = {"logits": "first", "features": "second"}
    chapters = "".join(f"      - file: chapters/{part}/{method}\n" for part, method in parts.items())
    (project / "_toc.yml").write_text(
        f"format: jb-book\nroot: book/index\nparts:\n  - caption: All\n    chapters:\n{chapters}"
    )
    (project / "book" / "papers.yml").write_text(yaml.safe_dump(papers(parts)))
    for part, method in parts.items():
        write_chapter(project, part, method, f"from kdcore.{part} import {method}\nprint({method}.VALUE)")
        (project / "kdcore" / part / f"{method}.py").write_text("VALUE = 1\n")
    return project


def papers(parts: dict[str, str]) -> dict:
    """What `papers.yml` says of chapters, part by part, each building on the one before."""
    methods = list(parts.values())
    entries = [
        {
            "slug": method, "part": part, "title": method, "paper": "A paper", "authors": ["A. Author"], "year": 2000,
            "arxiv": "0001.00001", "sentence": "do it", "prerequisites": methods[:place][-1:],
            "minutes": {"read": 1, "run": 1}, "hardware": "any", "source_status": "reconstructed", "tags": ["outputs"],
            "goals": ["do it", "do it again"],
        }
        for place, (part, method) in enumerate(parts.items())
    ]  # fmt: skip
    titles = {part: {"title": part.capitalize(), "question": "Why?"} for part in parts}
    return {"parts": titles, "tags": {"outputs": "compares outputs", "graph": "nodes"}, "papers": entries}


def write_chapter(project: Path, part: str, method: str, code: str) -> None:
    path = project / "chapters" / part / f"{method}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_HEADER.format(title=method, code=code), encoding="utf-8")


_STUDY = """
from kdcore import study

experiment = study.Study(
    "{part}/{method}", profile=profile, seed=seed, n_seeds=n_seeds, results_dir=results_dir,
    parameters={{"temperature": temperature}},
)
values = {{"CE": 1.0, "KD": temperature}}
experiment.run(lambda arm, seed: {{"accuracy": values[arm] + (0.1 if arm == "KD" else 0.2) * seed}}, list(values))
claim = study.Claim("wins", "KD beats labels", better="KD", than="CE", metric="accuracy", source="nowhere")
experiment.finish([claim], "made here")
"""
_STUDY_KNOBS = """profile = "quick"  # "quick", "cpu" or "gpu"
seed = 0  # the first seed, at least 0
n_seeds = 3  # paired seeds, at least 2
results_dir = "results"  # where the record is written
temperature = 4.0  # of the distillation term, positive
"""


def write_study(project: Path, part: str, method: str) -> None:
    """A chapter that runs a study of a moment and writes a record; like a real one, it is a pair."""
    write_chapter(project, part, method, _STUDY.format(part=part, method=method))
    path = project / "chapters" / part / f"{method}.md"
    path.write_text(re.sub(r'profile = "quick"\n.*?(?=```)', _STUDY_KNOBS, path.read_text(), count=1, flags=re.S))
    jupytext.write(jupytext.read(path), path.with_suffix(".ipynb"))


def build_command(project: Path) -> list[str]:
    return [sys.executable, str(project / "ci" / "build.py")]


_RECORD = """
import json, pathlib
{before}
value = {{"KD": temperature, "CE": 0.0}}
rows = [{{"arm": arm, "seed": seed + n, "metric": "accuracy", "value": value[arm] + 0.01 * n * value[arm]}}
        for n in range(2) for arm in value]
claim = {{"id": "wins", "statement": "KD wins", "better": "KD", "than": "CE", "metric": "accuracy", "source": "-",
         "direction": "higher", "paper": "-", "difference": 1.0, "low": 0.5, "high": 1.5, "pairs": 2,
         "verdict": "supported"}}
record = {{"schema": 1, "chapter": "logits/first", "profile": profile, "parameters": {{"seed": seed}},
          "seeds": [seed, seed + 1], "results": rows, "claims": [claim],
          "provenance": {{"date": "2026-01-01", "wall_seconds": 0.0, "hardware": {{"device": "cpu", "cpu": "any"}},
                         "versions": {{}}, "code_digest": "0" * 64, "data": "none"}}}}
path = pathlib.Path(results_dir) / profile / "logits" / "first.json"
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps(record))
"""


def write_swept_chapter(project: Path, before: str = "") -> None:
    """The chapter logits/first with a seed, which writes a record without loading kdcore; `before` runs first."""
    write_chapter(project, "logits", "first", _RECORD.format(before=before))
    path = project / "chapters" / "logits" / "first.md"
    knobs = 'temperature = 4.0  # of the loss, positive\nseed = 0  # the first, at least 0\nnote = ""  # any text'
    path.write_text(path.read_text(encoding="utf-8").replace("temperature = 4.0", knobs), encoding="utf-8")


def sweep_command(*arguments: str) -> list[str]:
    """`kdcore sweep first …`, to be run in the project's folder."""
    return [sys.executable, "-c", "from kdcore.commands import main; main()", "sweep", "first", *arguments]
