"""What is run again, and why: a real tree, a clone of this repository, whose execution and rendering are stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_EXECUTE = """
import pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text("{}")
"""


def build(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(tree / "ci" / "build.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def why(tree: Path) -> dict[str, str]:
    """Reason by page; empty if everything is up to date."""
    lines = build(tree, "--why").splitlines()
    return dict(line.split(": ", 1) for line in lines if not line.startswith("Nothing has changed"))


def chapters(reasons: dict[str, str]) -> dict[str, str]:
    return {page: reason for page, reason in reasons.items() if page.startswith("chapters/")}


@pytest.fixture(scope="module")
def built(root, tmp_path_factory) -> Path:
    """The working tree, every chapter of which has just been "executed"."""
    tree = tmp_path_factory.mktemp("tree") / "book"
    wanted = ("_config.yml", "_toc.yml", "CITATION.cff", "book", "chapters", "ci", "kdcore")
    tree.mkdir()
    for name in wanted:
        if (root / name).is_dir():
            shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, tree)
    (tree / "ci" / "execute.py").write_text(_EXECUTE)
    (tree / "ci" / "render.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tree)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all of it"]):
        subprocess.run([*git, *command], check=True)
    build(tree)
    assert why(tree) == {}
    return tree


def test_touching_every_file_reruns_nothing(built):
    for path in built.rglob("*"):
        if "_build" not in path.parts and path.is_file():
            os.utime(path)
    assert why(built) == {}


def test_a_fresh_clone_with_the_build_folder_reruns_nothing(built, tmp_path):
    clone = tmp_path / "a clone"
    subprocess.run(["git", "clone", "-q", str(built), str(clone)], check=True)
    shutil.copytree(built / "_build", clone / "_build")
    assert why(clone) == {}


@pytest.mark.parametrize(
    ("path", "addition", "wanted"),
    [
        ("kdcore/logits/sinkd.py", "# more", {"chapters/logits/sinkd"}),
        ("kdcore/exercises/dhkd.py", "# more", {"chapters/logits/dhkd"}),
        ("chapters/features/adain_kd.md", "More.", {"chapters/features/adain_kd"}),
        ("book/records/cpu/logits/lelp.json", " ", {"chapters/logits/lelp"}),
        ("kdcore/data/scenes.py", "# more", None),  # of the ground floor: more than one, and not none
        ("book/how_to_run.md", "More.", set()),
    ],
)
def test_a_change_reruns_what_it_concerns_and_says_so(built, path, addition, wanted):
    file = built / path
    before = file.read_text(encoding="utf-8")
    try:
        file.write_text(before + addition + "\n", encoding="utf-8")
        reasons = why(built)
    finally:
        file.write_text(before, encoding="utf-8")
    found = chapters(reasons)
    assert set(found) == wanted if wanted is not None else len(found) > 1
    assert set(found.values()) <= {f"{path} changed"}
    assert "site" in reasons
    assert why(built) == {}


def test_a_change_of_the_data_counts(built):
    """The digits of `quick` lie in another package: the list of what a chapter is made of holds their digest."""
    noted = json.loads((built / "_build/executed/chapters/logits/sinkd.sources.json").read_text())
    assert len(noted["scikit-learn's digits"]) == 64
    assert "kdcore/data/digits.py" in noted
