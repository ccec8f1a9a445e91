"""A new paper is laid out in all its rooms, and passes no check until it is filled in."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml


@pytest.fixture
def copy(tmp_path, root):
    ignored = shutil.ignore_patterns(
        "_build", ".venv", ".git", "__pycache__", ".*_cache", "results", ".snakemake", "data"
    )
    shutil.copytree(root, tmp_path / "copy", ignore=ignored, symlinks=True)
    return tmp_path / "copy"


def call(copy, script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, f"ci/{script}", *arguments], cwd=copy, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("part", ["logits", "dense"])
def test_new_paper_is_entered_everywhere_and_passes_nothing(copy, part):
    done = call(copy, "new_paper.py", "my_method", part, "My method")
    assert done.returncode == 0, done.stderr
    rooms = [f"kdcore/{part}/my_method.py", f"tests/{part}/test_my_method.py", f"chapters/{part}/my_method.md"]
    for room in [*rooms, "kdcore/exercises/my_method.py"]:
        assert "my_method" in (copy / room).read_text()
    assert f"chapters/{part}/my_method" in (copy / "_toc.yml").read_text()
    captions = re.findall(r"- caption: (.+)", (copy / "_toc.yml").read_text())
    titles = [entry["title"] for entry in yaml.safe_load((copy / "book" / "papers.yml").read_text())["parts"].values()]
    assert [caption for caption in captions if caption in titles] == [title for title in titles if title in captions]
    for page, module in {part: f"kdcore.{part}.my_method", "exercises": "kdcore.exercises.my_method"}.items():
        assert (copy / "book" / "api" / f"{page}.md").read_text().count(f"automodule:: {module}\n") == 1
    pages = re.findall(r"- file: book/api/(\w+)", (copy / "_toc.yml").read_text())
    parts = list(yaml.safe_load((copy / "book" / "papers.yml").read_text())["parts"])
    listed = re.findall(r"\(api/(\w+)\.md\)", (copy / "book" / "api.md").read_text())
    assert listed == pages
    assert [page for page in pages if page in parts] == [name for name in parts if name in pages]
    assert part in pages
    assert "{my_method," in (copy / "book" / "references.bib").read_text()
    assert "  - slug: my_method\n" in (copy / "book" / "papers.yml").read_text()
    listed = call(copy, "papers.py")
    assert listed.returncode == 1
    for missing in ("my_method still holds a TODO", "my_method has no tags"):
        assert missing in listed.stdout
    checked = call(copy, "check_chapters.py", "my_method")
    assert checked.returncode == 1
    for missing in (
        "words of prose",
        "TODO",
        "fewer than three numbered equations",
        "never calls",
        "no paired",
        "never checks",
    ):
        assert missing in checked.stdout
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"tests/{part}/test_my_method.py"],
        cwd=copy,
        capture_output=True,
        check=False,
    )
    assert tested.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["My-Method", "logits"], "NAME must be a lower-case identifier"),
        (["my_method", "logit"], "PART must be one of"),
        (["spherical_kd", "logits"], "is there already"),
        ([], "NAME must be"),
    ],
)
def test_mistaken_calls_are_one_line(copy, arguments, message):
    done = call(copy, "new_paper.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_checks_notice_what_goes_missing(copy):
    path = copy / "chapters" / "foundations" / "kd.md"
    text = path.read_text()
    for old, new, message in [
        ("## Ablation", "## Ablations", "sections must be"),
        ("\\tag{2}", "\\tag{7}", "equation numbers must count from 1"),
        ("show.slider(", "print(", "never calls show.slider("),
        ("../logits/spherical_kd.ipynb", "../logits/nothing.ipynb", "which is not there"),
        ("results_dir = ", "result_dir = ", "lacks results_dir"),
        ("| hardware |", "| hard ware |", "lacks the row 'hardware'"),
    ]:
        assert old in text
        path.write_text(text.replace(old, new))
        done = call(copy, "check_chapters.py", "foundations/kd")
        assert done.returncode == 1
        assert message in done.stdout
    path.write_text(text + "\nmore\n")
    assert "out of step" in call(copy, "check_chapters.py", "foundations/kd").stdout
    path.write_text(text)
    module = copy / "kdcore" / "foundations" / "kd.py"
    module.write_text(module.read_text().replace("\\tag{3}", "\\tag{33}"))
    assert "does not have the equations 33 of its module's docstring" in call(copy, "check_chapters.py", "kd").stdout
