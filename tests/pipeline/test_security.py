"""What comes from others is data: each test tries an attack and sees that it has no effect."""

from __future__ import annotations

import ast
import collections
import html
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from kdcore import show, study, training
from kdcore.commands import app
from kdcore.data import benchmarks, graphs

ROOT = Path(__file__).resolve().parent.parent.parent
TREE = [ROOT / "kdcore", ROOT / "ci", ROOT / "book", ROOT / "chapters"]


class Touch:
    """Unpickled without restriction, writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def python_sources() -> list[tuple[Path, ast.AST]]:
    """Every module of the project, and the code cells of every page."""
    sources = [(path, path.read_text(encoding="utf-8")) for folder in TREE for path in folder.rglob("*.py")]
    for path in (path for folder in TREE for path in folder.rglob("*.md")):
        code = study.notebook_code(path.read_text(encoding="utf-8"))
        sources.append((path, re.sub(r"^(\s*)[%!].*$", r"\1pass", code, flags=re.MULTILINE)))  # notebook magics
    return [(path, ast.parse(text)) for path, text in sources]


def forbidden(node: ast.AST) -> str:
    """What is dangerous about a node, or nothing."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
        return " ".join(names & {"marshal", "shelve", "dill", "cloudpickle", "joblib"})
    if not isinstance(node, ast.Call):
        return ""
    called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        return called
    if called in ("pd.read_pickle", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
        return called
    if called == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only"
    if called.endswith(".extractall") or called == "shutil.unpack_archive":
        return called
    for word, value in (("shell", "True"), ("allow_pickle", "True")):
        if given.get(word) == value:
            return f"{word}={value}"
    return ""


def test_nothing_in_the_tree_loads_or_runs_what_it_is_given():
    sources = python_sources()
    assert len(sources) > 80
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {forbidden(node)}"
        for path, tree in sources
        for node in ast.walk(tree)
        if forbidden(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)", "torch.load(p)", "torch.load(p, weights_only=False)", "yaml.load(t)", "eval(t)", "exec(t)",
        "subprocess.run(c, shell=True)", "np.load(p, allow_pickle=True)", "archive.extractall()", "import dill",
    ],
)  # fmt: skip
def test_the_search_finds_each_kind(code):
    assert [node for node in ast.walk(ast.parse(code)) if forbidden(node)]


def test_a_class_that_unpickles_refuses_what_is_not_listed():
    subclasses = [
        (path, node)
        for path, tree in python_sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases)
    ]
    assert [node.name for _, node in subclasses] == ["_ArraysOnly"]
    assert "def find_class" in ast.unparse(subclasses[0][1])


def test_a_pickle_as_checkpoint_runs_nothing(tmp_path):
    torch.save({"learner": Touch(tmp_path / "pwned")}, tmp_path / "fit.pt")
    data = training_data()
    with pytest.raises(ValueError, match="cannot be resumed"):
        training.fit(learner(), data, training.Budget(epochs=1), checkpoint=tmp_path / "fit.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Touch(tmp_path / "pwned")))
    with pytest.raises(ValueError, match="cannot be resumed"):
        training.fit(learner(), data, training.Budget(epochs=1), checkpoint=tmp_path / "raw.pt")
    assert not (tmp_path / "pwned").exists()


def training_data():
    from kdcore.data import Arrays

    return Arrays(inputs=torch.zeros(8, 4), labels=torch.zeros(8, dtype=torch.long))


def learner():
    return training.Supervised(torch.nn.Linear(4, 2))


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_as_graph_data_runs_nothing_even_with_the_right_digest(tmp_path, protocol):
    attacks = [Touch(tmp_path / "pwned"), collections.defaultdict(list, {0: [Touch(tmp_path / "pwned")]})]
    for attack in attacks:
        (tmp_path / "ind.cora.graph").write_bytes(pickle.dumps(attack, protocol=protocol))
        with pytest.raises(ValueError, match="refused to unpickle"):
            graphs._read(tmp_path / "ind.cora.graph")
    assert not (tmp_path / "pwned").exists()


def test_data_files_are_compared_by_digest_before_they_are_opened(tmp_path, monkeypatch):
    folder = tmp_path / "planetoid"
    folder.mkdir()
    for name in graphs._CORA_FILES:
        (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "pwned")))
    with pytest.raises(ValueError, match="is corrupt"):
        graphs.cora(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_images_of_a_zip_are_read_and_never_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "in" / "images.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../pwned/cat/a.png", "not a picture")
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="is corrupt"):
        benchmarks._read_image_zip(path, "0" * 64)
    monkeypatch.setattr(benchmarks, "verify_file", lambda *_: None)  # as if it were the original
    with pytest.raises(OSError, match="cannot identify image"):
        benchmarks._read_image_zip(path, "0" * 64)
    assert set(tmp_path.rglob("*")) == before


TAG = "!!python/object/apply:os.mkdir ['{}']"


@pytest.mark.parametrize("name", ["_toc.yml", "book/papers.yml"])
def test_yaml_tags_run_nothing_in_the_list_of_papers(tiny_project, tmp_path, name):
    (tiny_project / name).write_text(TAG.format(tmp_path / "pwned"))
    done = subprocess.run(
        [sys.executable, tiny_project / "ci" / "papers.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "could not determine a constructor" in done.stdout + done.stderr
    assert not (tmp_path / "pwned").exists()


def test_yaml_tags_run_nothing_in_the_quizzes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_extensions"))
    import quiz

    path = tmp_path / "quizzes.yml"
    path.write_text(TAG.format(tmp_path / "pwned"))
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        quiz.read_quizzes(path)
    assert not (tmp_path / "pwned").exists()


SHELL = [
    "x; touch pwned", "$(touch pwned)", "`touch pwned`", "x' ; touch pwned; '", 'x" ; touch pwned; "',
    "x\ntouch pwned", "| touch pwned", "../../x",
]  # fmt: skip


ATTACKED = {"run", "sweep", "reproduce", "archive"} & {command.name for command in app.registered_commands}


@pytest.mark.parametrize("subcommand", sorted(ATTACKED))
@pytest.mark.parametrize("text", [SHELL[0], SHELL[1], SHELL[4]])
def test_names_of_chapters_and_records_reach_no_shell(tiny_project, subcommand, text):
    values = ["-p", "temperature=2"] if subcommand == "sweep" else []  # which a sweep is nothing without
    done = subprocess.run(
        [sys.executable, "-c", "from kdcore.commands import main; main()", subcommand, text, *values],
        cwd=tiny_project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not list(tiny_project.rglob("pwned"))


def test_values_of_parameters_reach_neither_shell_nor_code(tiny_project):
    values = [
        *SHELL,
        "'''; import os; os.mkdir('pwned') #",
        '"""; import os; os.mkdir("pwned") #',
        "\\",
        "{x!r}",
        "é ∑",
    ]
    values += ["__import__('os').mkdir('pwned')", "x\\'; __import__('os').mkdir('pwned') #"]
    chapter = tiny_project / "chapters" / "logits" / "first.md"
    cell = "temperature = 4.0\n" + "".join(f'text{number} = "x"\n' for number in range(len(values)))
    code = f"import json\njson.dump([{', '.join(f'text{n}' for n in range(len(values)))}], open('said.json', 'w'))"
    text = chapter.read_text().replace("temperature = 4.0\n", cell)
    chapter.write_text(text.replace("from kdcore.logits import first\nprint(first.VALUE)", code))
    given = [word for number, value in enumerate(values) for word in ("-p", f"text{number}={value}")]
    done = subprocess.run(
        [sys.executable, "ci/execute.py", "first", *given],
        cwd=tiny_project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tiny_project / "said.json").read_text()) == values
    assert not list(tiny_project.rglob("pwned"))


def test_a_parameter_s_name_is_no_code(tiny_project):
    done = subprocess.run(
        [sys.executable, "ci/execute.py", "first", "-p", "x;__import__('os').mkdir('pwned')#=1"],
        cwd=tiny_project, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "error: unknown parameter" in done.stderr
    assert not list(tiny_project.rglob("pwned"))


MARKUP = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table><svg onload=alert(1)>"]


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("field", ["statement", "paper", "source", "metric"])
def test_no_page_is_made_of_a_record_with_markup(tmp_path, monkeypatch, text, field):
    """The ledger's page, what a chapter shows of records, and the cards of the index all read by these two."""
    path = study.record_path(ROOT / "book" / "records", "foundations/kd", "cpu")
    record = json.loads(path.read_text(encoding="utf-8"))
    record["claims"][0][field] = text
    target = study.record_path(tmp_path / "book" / "records", "foundations/kd", "cpu")
    target.parent.mkdir(parents=True)
    target.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="a record holds plain text"):
        study.ledger([tmp_path / "book" / "records"])
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a record holds plain text"):
        show.recorded("foundations/kd", "cpu", {"accuracy": "accuracy (%)"})


def test_the_ledger_s_page_escapes_what_it_shows():
    """A second wall: even if a text got through, the page's own cell writes it as text."""
    code = study.notebook_code((ROOT / "book" / "ledger.md").read_text(encoding="utf-8"))
    row = next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef) and node.name == "row")
    names = {"papers": {"a/b": dict.fromkeys(("title", "part", "source_status"), MARKUP[0])}, "show": show}
    names["content"] = {"parts": {MARKUP[0]: {"title": MARKUP[0]}}}
    names["escape"] = html.escape
    exec(compile(ast.Module([row], type_ignores=[]), "ledger", "exec"), names)
    entry = {"chapter": "a/b", "statement": MARKUP[1], "profile": "cpu", "verdict": "undecided", "metric": MARKUP[2]}
    entry |= {"difference": 1.0, "low": 0.0, "high": 2.0, "effect": 1.0, "pairs": 3, "paper": MARKUP[0]}
    shown = names["row"](next(pd.DataFrame([entry]).itertuples()))
    cells = "".join(map(str, shown.values()))
    assert "<script" not in cells
    assert "<img" not in cells
    assert "<svg" not in cells


def test_cards_of_the_index_escape_what_they_show(monkeypatch):
    for folder in ("ci", "book/_extensions"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import curriculum
    import papers

    entry = {
        "slug": "kd", "part": "p", "title": MARKUP[0], "paper": MARKUP[0], "authors": [MARKUP[0]], "year": 2000,
        "arxiv": "1", "sentence": MARKUP[1], "prerequisites": [], "minutes": {"read": 1, "run": 1},
        "hardware": MARKUP[0], "source_status": "reconstructed", "tags": ["t"], "goals": ["a", "b"],
    }  # fmt: skip
    paper = papers.Paper(**entry)
    made = papers.Curriculum({"p": {"title": MARKUP[2], "question": MARKUP[0]}}, {"t": MARKUP[0]}, {"kd": paper})
    claims = [{"chapter": "p/kd", "profile": "cpu", "verdict": MARKUP[0]}]
    for macro in ("paper_cards", "tag_list", "field_map", "verdict_counts"):
        shown = curriculum.render(macro, made, claims, lambda page: page)
        assert "<script" not in shown
        assert "<img" not in shown
        assert "onload=alert(1)>" not in shown


def test_a_notebook_that_this_build_did_not_make_is_not_rendered(tiny_project, tmp_path):
    hostile = {
        "cells": [
            {
                "cell_type": "code", "execution_count": 1, "metadata": {}, "source": "",
                "outputs": [{"output_type": "display_data", "metadata": {}, "data": {"text/html": MARKUP[0]}}],
            }
        ],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}},
        "nbformat": 4, "nbformat_minor": 4,
    }  # fmt: skip
    for part, method in (("logits", "first"), ("features", "second")):
        path = tiny_project / "_build" / "executed" / "chapters" / part / f"{method}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(hostile))
    done = subprocess.run(
        [sys.executable, "ci/render.py", "_build"], cwd=tiny_project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "first.ipynb was not made by this build" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tiny_project / "_build" / "html").exists()
