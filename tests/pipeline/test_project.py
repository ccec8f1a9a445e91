"""What must agree: versions in three files, pairs, lists of papers, floors; and nothing that names a machine."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import textwrap
import tomllib

import pytest
import yaml

import kdcore
from kdcore import study


def requirement_name(text: str) -> str:
    return re.split(r"[<>=!\[ ;]", text, maxsplit=1)[0].lower()


def test_environment_yml_agrees_with_pyproject(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    }
    wanted = {item.replace(" ", "") for item in wanted if not item.startswith("kdcore")}
    listed = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    found = {item for item in listed if isinstance(item, str)} | {
        item for entry in listed if isinstance(entry, dict) for item in entry["pip"]
    }
    assert {item.replace(" ", "") for item in found} - {"pip", "--editable."} - {
        f"python{project['requires-python']}"
    } == wanted


def test_constraints_pin_every_requirement_without_addresses(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    names = {requirement_name(item) for item in project["dependencies"]}
    names |= {requirement_name(item) for extra in project["optional-dependencies"].values() for item in extra}
    assert names - {"kdcore"} <= pinned
    assert "://" not in text
    assert "@" not in text


def test_package_version_is_stated_once(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == kdcore.__version__
    assert f"version: {kdcore.__version__}" in (root / "CITATION.cff").read_text(encoding="utf-8")


def methods(root) -> list:
    return sorted(
        path for part in kdcore.PARTS for path in (root / "kdcore" / part).glob("*.py") if path.stem != "__init__"
    )


def test_no_method_imports_another(root):
    for path in methods(root):
        used = study.imported_files(path.read_text(encoding="utf-8"))
        others = [
            other for other in used if other in methods(root) and other.parent.name != "foundations" and other != path
        ]
        assert not others, f"{path} imports {others}"


def test_every_module_has_tests_and_an_entry_in_the_reference(root):
    api = "".join(path.read_text(encoding="utf-8") for path in (root / "book" / "api").glob("*.md"))
    for path in methods(root):
        name = f"{path.parent.name}.{path.stem}"
        assert (root / "tests" / path.parent.name / f"test_{path.stem}.py").exists(), name
    for path in (root / "kdcore").rglob("*.py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        if path.name != "__init__.py" or name == "kdcore.metrics.__init__":
            assert f"automodule:: {name.removesuffix('.__init__')}\n" in api, name


def test_every_chapter_is_in_the_toc_and_the_bibliography(root):
    toc = (root / "_toc.yml").read_text(encoding="utf-8")
    bibliography = (root / "book" / "references.bib").read_text(encoding="utf-8")
    for path in (root / "chapters").glob("*/*.md"):
        name = f"{path.parent.name}/{path.stem}"
        assert f"chapters/{name}\n" in toc
        arxiv = re.search(r"arxiv.org/abs/(\d+\.\d+)", path.read_text(encoding="utf-8"))
        assert arxiv is not None, f"{name} does not link its paper"
        assert arxiv.group(1) in bibliography, f"book/references.bib lacks arXiv {arxiv.group(1)} of {name}"


def test_committed_records_are_valid_and_name_no_machine_path(root):
    paths = sorted((root / "book" / "records").glob("*/*/*.json"))
    assert paths
    for path in paths:
        record = study.read_record(path)
        assert path == study.record_path(root / "book" / "records", record["chapter"], record["profile"])
        assert not re.search(r'": "(?:/|[A-Z]:\\)', path.read_text(encoding="utf-8"))


def test_readme_table_is_made_from_the_records(root):
    done = subprocess.run(
        [sys.executable, root / "ci" / "readme.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_import_of_kdcore_loads_nothing_heavy():
    code = "import sys, kdcore; print(sorted({'torch', 'pandas', 'matplotlib', 'sklearn', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_methods_import_no_plotting_or_data_frames():
    heavy = "{'pandas', 'matplotlib', 'sklearn'}"
    code = f"import sys; from kdcore.foundations import kd; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_training_loads_no_compiler_and_graph_networks_no_transformers():
    code = """
        import sys, torch
        from kdcore import data, models, training
        rows = data.Arrays(inputs=torch.rand(8, 4), labels=torch.arange(8) % 3)
        for optimizer in ("sgd", "adam", "adamw"):
            budget = training.Budget(steps=2, batch_size=4, optimizer=optimizer, ema=0.9, max_grad_norm=1.0)
            training.fit(training.Supervised(models.MLP(4, (4,), 3)), rows, budget)
        print("torch._dynamo" in sys.modules)
        models.GraphNetwork("gcn", 4, 4, 3)
        print("transformers" in sys.modules)
        import transformers
        print(hasattr(transformers, "AutoModel"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_unknown_submodule_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kdcore.nothing


def public_items() -> list:
    """Every public function and class of kdcore, where it is defined."""
    found = []
    for module in pkgutil.walk_packages(kdcore.__path__, "kdcore."):
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", []):
            item = getattr(loaded, name)
            if getattr(item, "__module__", None) == module.name and callable(item):
                found.append(item)
    return found


def test_every_public_name_has_an_example_that_the_tests_run():
    items = public_items()
    assert len(items) > 150
    lacking = [f"{item.__module__}.{item.__qualname__}" for item in items if ">>>" not in (item.__doc__ or "")]
    assert lacking == []
    skipped = [f"{item.__module__}.{item.__qualname__}" for item in items if "+SKIP" in item.__doc__]
    assert skipped == []


def test_doctests_are_part_of_the_tests(root):
    options = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"]
    assert "kdcore" in options["testpaths"]


def test_every_entry_of_the_bibliography_has_authors_year_and_a_place(root):
    text = (root / "book" / "references.bib").read_text(encoding="utf-8")
    entries = re.findall(r"^@\w+\{([^,]+),\n(.*?)^\}", text, flags=re.M | re.S)
    assert len(entries) >= len(list((root / "chapters").glob("*/*.md")))
    for key, body in entries:
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, flags=re.M))
        assert {"author", "title", "year"} <= set(fields), key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        has_place = any(name in fields for name in ("journal", "booktitle", "publisher", "eprint", "school"))
        assert has_place or "arXiv" in fields.get("note", ""), key


def test_a_part_page_that_leaves_a_method_out_is_named(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "ci"))
    import check_chapters

    page = tmp_path / "book" / "parts" / "logits.md"
    page.parent.mkdir(parents=True)
    page.write_text("```{code-cell} ipython3\nfrom kdcore.logits import first\nfirst.loss()\n```\nsecond. In prose.\n")
    for method in ("first", "second"):
        chapter = tmp_path / "chapters" / "logits" / f"{method}.md"
        chapter.parent.mkdir(parents=True, exist_ok=True)
        chapter.touch()
    assert check_chapters.check_part_pages(tmp_path) == ["book/parts/logits.md does not compare second"]
    assert check_chapters.check_part_pages() == []
