"""Where a number comes from: what an executed notebook says of itself, running a record again."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdcore.study import read_record

_CHAPTER = """---
jupytext:
  formats: ipynb,md:myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# First

```{code-cell} ipython3
:tags: [parameters]

profile = "quick"  # "quick", "cpu" or "gpu"
seed = 0  # the first seed
n_seeds = 5  # paired seeds
device = "auto"  # "auto", "cpu" or "cuda"
results_dir = "results"  # where the record is written
temperature = 4.0  # of the softmax
note = "plain"  # any text
```

```{code-cell} ipython3
from kdcore import study
from kdcore.logits import first

experiment = study.Study(
    "logits/first", profile=profile, seed=seed, n_seeds=n_seeds, device=device, results_dir=results_dir,
    parameters={"temperature": temperature, "note": note},
)
experiment.run(lambda arm, seed: {"accuracy": first.accuracy(arm, seed, temperature)}, ["CE", "KD"])
claim = study.Claim("wins", "KD beats CE", better="KD", than="CE", metric="accuracy", source="table 1")
_ = experiment.finish([claim], "made up")
```
"""
_METHOD = """import torch


def accuracy(arm, seed, temperature):
    return {"CE": 90.0, "KD": 92.0}[arm] + float(torch.rand(())) * temperature
"""


@pytest.fixture
def study_project(tiny_project, root) -> Path:
    """The small project with a chapter that is a study."""
    shutil.copy(root / ".gitignore", tiny_project)
    (tiny_project / "chapters" / "logits" / "first.md").write_text(_CHAPTER, encoding="utf-8")
    (tiny_project / "kdcore" / "logits" / "first.py").write_text(_METHOD)
    return tiny_project


def kdcore(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command of the project's own package."""
    command = [sys.executable, "-c", "from kdcore.commands import main; main()", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=300)


def run_first(project: Path, *arguments: str) -> dict:
    """The record of one run of the chapter, and the notebook's metadata under "notebook"."""
    command = [sys.executable, project / "ci" / "execute.py", "first", "--results-dir", "results", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    notebook = json.loads((project / "_build" / "runs" / "quick" / "logits" / "first.ipynb").read_text())
    return read_record(project / "results" / "quick" / "logits" / "first.json") | {"notebook": notebook["metadata"]}


def test_notebook_and_record_say_where_they_come_from_and_a_record_is_reproduced(study_project):
    subprocess.run(["git", "init", "-q", study_project], check=True)
    git = ["git", "-C", study_project, "-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    found = run_first(study_project, "-p", "temperature=2.5", "-p", "n_seeds=3", "-p", "note=plain")
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    said, provenance = found["notebook"]["kdcore"], found["provenance"]
    assert said["parameters"] == {"temperature": 2.5, "n_seeds": 3, "note": "plain"}
    assert said["notebook_digest"] == hashlib.sha256(_CHAPTER.encode()).hexdigest()
    assert said["versions"]["torch"] == provenance["versions"]["torch"]
    assert said["seeds"] == [0, 1, 2]
    for name in ("commit", "notebook_digest", "code_digest", "hardware"):
        assert said[name] == provenance[name], name
    assert provenance["commit"] == commit
    assert found["seeds"] == [0, 1, 2]

    again = kdcore(study_project, "reproduce", "results/quick/logits/first.json")
    assert again.returncode == 0, again.stderr + again.stdout
    assert "logits/first at quick is bit-equal: of 2 means, 2 bit-equal" in again.stdout
    assert "temperature=2.5" in again.stdout
    new = read_record(study_project / "_build" / "reproduced" / "quick" / "logits" / "first.json")
    old = read_record(study_project / "results" / "quick" / "logits" / "first.json")
    for record in (old, new):
        for name in ("date", "started", "wall_seconds", "dirty"):
            record["provenance"].pop(name)
    assert old == new

    changed = _METHOD.replace('"KD": 92.0', '"KD": 99.0')
    (study_project / "kdcore" / "logits" / "first.py").write_text(changed)
    other = kdcore(study_project, "reproduce", "results/quick/logits/first.json")
    assert other.returncode == 1, other.stderr
    assert "is different: of 2 means, 1 bit-equal, 1 different" in other.stdout
    assert f"code_digest: {provenance['code_digest'][:12]} recorded" in other.stdout
    assert "dirty: False recorded, True here" in other.stdout


def test_a_record_with_a_parameter_that_its_chapter_has_no_more(study_project):
    run_first(study_project)
    path = study_project / "results" / "quick" / "logits" / "first.json"
    record = json.loads(path.read_text())
    record["parameters"]["temprature"] = 3
    path.write_text(json.dumps(record))
    again = kdcore(study_project, "reproduce", str(path), "--results-dir", "else where")
    assert again.returncode == 0, again.stderr
    assert "left out: temprature=3: unknown parameter" in again.stdout
    assert (study_project / "else where" / "quick" / "logits" / "first.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quick:frist", "error: no record 'quick:frist'. A record is a file"),
        ("../nowhere.json", "error: no record"),
    ],
)
def test_no_such_record_is_one_line(tiny_project, name, message):
    done = kdcore(tiny_project, "reproduce", name)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corrupt_record_and_its_own_folder_are_refused(tiny_project):
    path = tiny_project / "results" / "quick" / "logits" / "first.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1')
    done = kdcore(tiny_project, "reproduce", str(path))
    assert done.returncode == 1
    assert "first.json is corrupt" in done.stderr
