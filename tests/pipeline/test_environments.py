"""One source of versions; an image without surprises; Colab's first cell; the report on the newest versions."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "ci"))
import newest
from check_chapters import ROOT, installed_extras

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")}


def instructions() -> list[tuple[str, str]]:
    """Keyword and rest of every instruction, continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_dockerfile_passes_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_have_found_something(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install torch\n")
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3006" in done.stdout


def test_image_has_two_targets_pinned_bases_and_no_root():
    stages = [rest.split() for keyword, rest in instructions() if keyword == "FROM"]
    names = [words[-1] for words in stages]
    assert {"cpu", "cuda"} <= set(names)
    for base, *_ in stages:
        assert base in names or re.search(r":\d+\.\d+\.\d+-", base), f"{base} is not pinned to a version"
    for target in ("cpu", "cuda"):
        own = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert re.search(r"^USER 1000$", own, re.M)
        assert "root" not in own
        assert 'ENTRYPOINT ["kdcore"]' in own
        assert "ci/environment.py" in own  # which installs by constraints.txt, as make does


def test_image_takes_files_that_exist_and_nothing_by_address():
    assert "://" not in DOCKERFILE
    assert not [rest for keyword, rest in instructions() if keyword == "ADD"]
    copied = {word for keyword, rest in instructions() if keyword == "COPY" for word in rest.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied), copied
    needed = {"kdcore", "chapters", "book", "ci", "_config.yml", "_toc.yml", "constraints.txt", "pyproject.toml"}
    assert needed <= copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", "_build", ".venv", "data/*"} <= set(ignored)
    assert not {name.split("/")[0] for name in copied} & set(ignored)


def test_the_same_python_everywhere():
    (wanted,) = re.findall(r">=(\d+\.\d+)", PROJECT["requires-python"])
    assert re.search(rf"^FROM python:{re.escape(wanted)}\.\d+-", DOCKERFILE, re.M)
    for name, text in WORKFLOWS.items():
        assert re.findall(r'python-version: "([^"]+)"', text) == [wanted], name
    assert f"python>={wanted}" in (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_versions_stand_in_constraints_alone():
    for name, text in {"Dockerfile": DOCKERFILE, **WORKFLOWS}.items():
        assert not re.search(r"[a-z]==\d", text), f"{name} pins a package"
    assert "constraints.txt" in (ROOT / "ci" / "environment.py").read_text(encoding="utf-8")
    assert "constraint" not in WORKFLOWS["newest.yml"].replace("constraints.txt says", "")


def test_newest_installs_every_extra_and_runs_on_a_schedule():
    workflow = yaml.safe_load(WORKFLOWS["newest.yml"])
    assert "schedule" in workflow[True]  # YAML takes the word `on` for a truth value
    assert workflow["permissions"] == {"contents": "read", "issues": "write"}
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", WORKFLOWS["newest.yml"])
    assert set(PROJECT["optional-dependencies"]) - {"notebook"} <= set(extras.split(","))
    for arguments in newest.STEPS.values():
        assert arguments[0] == "-m" or (ROOT / arguments[0]).exists()


EXTRA_OF = {
    "kdcore.models.geometric": "graphs",
    "torch_geometric": "graphs",
    "transformers": "language",
    "ipywidgets": "notebook",
    "jsonschema": "notebook",
}


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_colab_s_first_cell_installs_what_the_chapter_imports(path):
    extras = set(installed_extras(path).split(","))
    assert extras <= set(PROJECT["optional-dependencies"])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.M))
    listed = re.search(r"^\s+import (.+)$", code, re.M)  # of the first cell
    assert listed is not None
    named = {name.strip() for name in listed[1].split(",")}
    wanted = {EXTRA_OF[name] for name in imported | named if name in EXTRA_OF}
    assert wanted <= extras
    core = {re.split(r"[<>=]", item)[0] for item in PROJECT["dependencies"]}
    below = {re.split(r"[<>=!~;\[ ]", item)[0] for item in metadata.requires("torch") or []}  # networkx among them
    known = core | below | {"sklearn"} | set(EXTRA_OF) | {"kdcore", "IPython"} | set(sys.stdlib_module_names)
    assert imported <= known, f"not installed by the first cell: {imported - known}"


PINNED = "# a comment\ntorch==2.15.0\nscikit-learn==1.9.1\nnumpy==2.4.6\nuvloop==1.0\n"


def test_version_differences_are_those_of_installed_packages():
    installed = {"torch": "2.16.0", "scikit_learn": "1.9.1", "NumPy": "3.0.0", "unrelated": "1"}
    assert newest.differences(PINNED, installed) == [("torch", "2.15.0", "2.16.0"), ("numpy", "2.4.6", "3.0.0")]


def test_report_names_failed_tests_and_versions():
    output = "...F\nlong traceback\nE   ValueError: no\nFAILED tests/a.py::test_b - ValueError: no\n1 failed\n"
    outcomes = [newest.Outcome("unit tests", False, output), newest.Outcome("chapters and site", True, "")]
    text = newest.report(outcomes, [("torch", "2.15.0", "2.16.0")])
    assert "| unit tests | **failed** |" in text
    assert "| chapters and site | passed |" in text
    assert "FAILED tests/a.py::test_b - ValueError: no" in text
    assert "long traceback" not in text
    assert "| torch | 2.15.0 | 2.16.0 |" in text


def test_report_shows_the_end_where_no_line_says_what_failed_and_its_fence_holds():
    output = "\n".join(f"line {number}" for number in range(100)) + "\n~~~\n<script>alert(1)</script>"
    text = newest.report([newest.Outcome("unit tests", False, output)], [])
    assert "line 70" in text
    assert "line 10\n" not in text
    assert text.count("\n~~~") == 2
    assert "Versions that differ from constraints.txt: 0" in text


@pytest.mark.parametrize(
    ("open_issues", "passed", "wanted"),
    [
        ([], False, "issue create --title"),
        ([{"number": 7, "title": newest.TITLE}], False, "issue edit 7 --body-file"),
        ([{"number": 7, "title": newest.TITLE}], True, "issue close 7"),
        ([{"number": 8, "title": "Another"}], False, "issue create --title"),
        ([], True, None),
    ],
)
def test_one_issue_at_most_is_opened_updated_or_closed(tmp_path, monkeypatch, open_issues, passed, wanted):
    """GitHub's command is a script here that writes down how it was called."""
    command = tmp_path / "gh"
    calls = tmp_path / "calls"
    (tmp_path / "open.json").write_text(json.dumps(open_issues))
    command.write_text(f'#!/bin/sh\necho "$@" >> "{calls}"\n[ "$2" != list ] || cat "{tmp_path}/open.json"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    newest.publish(tmp_path / "report.md", passed)
    lines = calls.read_text().splitlines()
    assert lines[0].startswith("issue list")
    assert len(lines) == (1 if wanted is None else 2)
    assert wanted is None or lines[1].startswith(wanted)


def test_all_steps_run_and_the_exit_status_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(newest, "STEPS", {"bad": ["-c", "import sys; print('FAILED x'); sys.exit(1)"], "good": ["-V"]})
    monkeypatch.setattr(sys, "argv", ["newest.py", str(tmp_path / "report.md")])
    assert newest.main() == 1
    text = (tmp_path / "report.md").read_text()
    assert "| bad | **failed** |" in text
    assert "| good | passed |" in text


def test_image_is_built_where_there_is_an_engine():
    """`make image` says so where there is none, and runs the build of both targets where there is one."""
    done = subprocess.run(["make", "--dry-run", "image"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for target in ("cpu", "cuda"):
        assert f"--target {target}" in done.stdout
