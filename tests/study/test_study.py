"""Verdicts by hand, pairing, records that are whole or absent, resuming run by run, provenance by content."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import kdcore
from kdcore import sources, study
from kdcore.study import provenance, records
from kdcore.versions import revision


def tidy(**arms: list[float]) -> pd.DataFrame:
    rows = [
        {"arm": arm, "seed": seed, "metric": "accuracy", "value": value}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def claim(**changes) -> study.Claim:
    settings = {"id": "c", "statement": "a beats b", "better": "a", "than": "b", "metric": "accuracy", "source": "test"}
    return study.Claim(**{**settings, **changes})


@pytest.mark.parametrize(
    ("better", "worse", "direction", "verdict"),
    [
        ([3, 4, 5], [1, 2, 3.1], "higher", "supported"),
        ([1, 2, 3.1], [3, 4, 5], "higher", "contradicted"),
        ([1, 2, 3.1], [3, 4, 5], "lower", "supported"),
        ([1, 2, 3], [1.5, 1.5, 3.5], "higher", "undecided"),
        ([1, 1, 1], [1, 1, 1], "higher", "undecided"),
    ],
)
def test_verdicts(better, worse, direction, verdict):
    (judged,) = study.judge([claim(direction=direction)], tidy(a=better, b=worse))
    assert judged.verdict == verdict
    assert judged.pairs == 3
    assert judged.low <= judged.difference <= judged.high


def test_pairing_removes_what_arms_share():
    shared = np.array([0.0, 10, 20, 30])
    (judged,) = study.judge([claim()], tidy(a=list(shared + 1), b=list(shared + np.array([0, 0.1, -0.1, 0]))))
    assert judged.verdict == "supported"


@given(values=st.lists(st.floats(-100, 100), min_size=3, max_size=12, unique=True))
def test_interval_agrees_with_scipys_paired_test(values):
    mean, low, high = study.paired_interval(np.array(values))
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose([low, high], [wanted.low, wanted.high], rtol=1e-6, atol=1e-6)
    assert low <= mean <= high


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match=r"no 'accuracy' of arm 'b'"):
        study.judge([claim()], tidy(a=[1, 2]))
    with pytest.raises(ValueError, match="different seeds"):
        study.judge([claim()], tidy(a=[1, 2, 3], b=[1, 2]))
    with pytest.raises(ValueError, match="at least two"):
        study.paired_interval(np.array([1.0]))
    with pytest.raises(ValueError, match="with itself"):
        claim(than="a")
    with pytest.raises(ValueError, match="direction"):
        claim(direction="up")


def test_unknown_profile_and_single_seed_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"profile must be one of .* Did you mean 'quick'"):
        study.by_profile("quik", quick=1, cpu=2, gpu=3)
    with pytest.raises(ValueError, match="profile must be one of"):
        study.Study("foundations/kd", profile="fast", results_dir=tmp_path)
    with pytest.raises(ValueError, match="n_seeds must be at least 2"):
        study.Study("foundations/kd", n_seeds=1, results_dir=tmp_path)


def toy(tmp_path, **settings) -> study.Study:
    return study.Study("foundations/kd", results_dir=tmp_path, n_seeds=3, **settings)


def accuracy(arm: str, seed: int) -> dict[str, float]:
    return {"accuracy": seed + {"a": 1.0, "b": 0.1 * seed}[arm]}


def test_study_runs_all_arms_and_writes_a_valid_record(tmp_path):
    running = toy(tmp_path, parameters={"temperature": 4.0})
    results = running.run(accuracy, ["a", "b"])
    assert len(results) == 6
    (verdict,) = running.finish([claim()], "made up")
    record = study.read_record(study.record_path(tmp_path, "foundations/kd", "quick"))
    assert record["claims"][0]["verdict"] == verdict.verdict == "supported"
    assert record["parameters"] == {"seed": 0, "n_seeds": 3, "temperature": 4.0}
    assert {"torch", "numpy", "python"} <= set(record["provenance"]["versions"])
    assert not list((tmp_path / "unfinished").glob("*/*/*/*"))


def test_same_parameters_give_identical_records_but_for_dates_and_times(tmp_path):
    contents = []
    for folder in ("first", "second"):
        running = toy(tmp_path / folder)
        running.run(accuracy, ["a", "b"])
        running.finish([claim()], "made up")
        record = study.read_record(study.record_path(tmp_path / folder, "foundations/kd", "quick"))
        for name in ("date", "started", "wall_seconds"):
            record["provenance"].pop(name)
        contents.append(json.dumps(record))
    assert contents[0] == contents[1]


def test_a_record_says_where_its_numbers_come_from(tmp_path, root):
    provenance = finished_record(tmp_path)["provenance"]
    notebook = (root / "chapters" / "foundations" / "kd.md").read_bytes()
    assert provenance["notebook_digest"] == hashlib.sha256(notebook).hexdigest()
    assert provenance["hardware"]["cores"] >= 1
    assert provenance["hardware"]["memory_gib"] >= 1
    assert provenance["versions"]["kdcore"] == kdcore.__version__
    assert {"commit": provenance["commit"], "dirty": provenance["dirty"]} == revision()
    began = datetime.datetime.fromisoformat(provenance["started"])
    assert began.utcoffset() == datetime.timedelta(0)
    assert provenance["started"][:4] == provenance["date"][:4]


def git(folder, *arguments):
    command = ["git", "-C", folder, "-c", "user.name=A", "-c", "user.email=a@example.org", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def test_revision_is_the_commit_and_whether_code_differs_from_it(tmp_path):
    project = tmp_path / "a project"
    (project / "kdcore").mkdir(parents=True)
    (project / "_config.yml").touch()
    code = project / "kdcore" / "__init__.py"
    code.write_text("x = 1")
    unknown = {"commit": None, "dirty": None}
    assert revision(project / "kdcore") == unknown  # no repository
    git(project, "init")
    assert revision(project / "kdcore") == unknown  # no commit
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    clean = revision(project / "kdcore")
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert clean["dirty"] is False
    (project / "book" / "records").mkdir(parents=True)
    (project / "book" / "records" / "new.json").touch()
    assert revision(project / "kdcore") == clean  # a new record changes no number
    code.write_text("x = 2")
    assert revision(project / "kdcore") == clean | {"dirty": True}
    code.write_text("x = 1")
    code.with_name("new.py").touch()
    assert revision(project / "kdcore") == clean | {"dirty": True}


def test_revision_without_git_or_inside_of_a_foreign_repository_is_unknown(tmp_path, monkeypatch):
    outer = tmp_path / "kdcore-1.0"
    (outer / "kdcore").mkdir(parents=True)
    (outer / "_config.yml").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--allow-empty", "-m", "first")
    assert revision(outer / "kdcore") == {"commit": None, "dirty": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() == {"commit": None, "dirty": None}


def test_git_runs_no_program_that_a_repository_names(tmp_path):
    (tmp_path / "kdcore").mkdir()
    (tmp_path / "_config.yml").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    git(tmp_path, "config", "core.fsmonitor", f"touch '{tmp_path}/ran'; false")
    assert revision(tmp_path / "kdcore")["commit"]
    assert not (tmp_path / "ran").exists()


def test_what_is_known_of_a_gpu_is_recorded(monkeypatch):
    properties = types.SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(provenance, "_driver", lambda: "550.1")
    found = provenance.hardware("cuda")
    assert (found["gpu"], found["gpu_memory_gib"], found["driver"]) == ("Tesla T4", 15, "550.1")


def test_driver_is_asked_of_its_own_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance._driver() == "unknown"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 550.1\n")
    tool.chmod(0o755)
    assert provenance._driver() == "550.1"


def test_killed_study_resumes_where_it_stopped(tmp_path):
    ran = []

    def experiment(arm: str, seed: int) -> dict[str, float]:
        if len(ran) == 4:
            raise KeyboardInterrupt
        ran.append((arm, seed))
        return accuracy(arm, seed)

    with pytest.raises(KeyboardInterrupt):
        toy(tmp_path).run(experiment, ["a", "b"])
    first = list(ran)
    ran.clear()
    results = toy(tmp_path).run(experiment, ["a", "b"])
    assert len(first) == 4
    assert len(ran) == 2
    assert not set(first) & set(ran)
    pd.testing.assert_frame_equal(results, toy(tmp_path / "afresh").run(accuracy, ["a", "b"]))


def test_unseeded_randomness_depends_on_the_seed_alone(tmp_path):
    def experiment(arm: str, seed: int) -> dict[str, float]:
        return {"accuracy": float(torch.rand(()))}

    torch.manual_seed(1)
    first = toy(tmp_path / "first").run(experiment, ["a", "b"])
    torch.manual_seed(2)
    pd.testing.assert_frame_equal(first, toy(tmp_path / "second").run(experiment, ["a", "b"]))
    assert first["value"].nunique() == 3


def test_arms_that_run_after_the_record_leave_nothing_on_disk(tmp_path):
    study = toy(tmp_path)
    study.run(accuracy, ["a"])
    study.finish([], "made here")
    study.run(accuracy, ["b"])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["kd.json"]


def test_half_written_run_and_other_parameters_are_not_taken_for_finished(tmp_path):
    ran = []

    def experiment(arm: str, seed: int) -> dict[str, float]:
        ran.append((arm, seed))
        return accuracy(arm, seed)

    toy(tmp_path).run(experiment, ["a"])
    kept = sorted(tmp_path.rglob("unfinished/**/*.json"))
    kept[0].write_text(kept[0].read_text()[:10])
    toy(tmp_path).run(experiment, ["a"])
    assert len(ran) == 4
    toy(tmp_path, parameters={"temperature": 2.0}).run(experiment, ["a"])
    assert len(ran) == 7


def test_a_failed_run_names_arm_and_seed_stops_no_other_and_alone_is_run_again(tmp_path):
    ran, broken = [], {("a", 1): torch.OutOfMemoryError("out of memory"), ("b", 2): None}

    def experiment(arm: str, seed: int) -> dict[str, float]:
        ran.append((arm, seed))
        if (arm, seed) in broken:
            if broken[arm, seed]:
                raise broken[arm, seed]
            return {"accuracy": float("nan")}
        return accuracy(arm, seed)

    with pytest.raises(RuntimeError, match=r"2 of 6 runs failed") as caught:
        toy(tmp_path).run(experiment, ["a", "b"])
    assert "arm 'a', seed 1: OutOfMemoryError: out of memory" in str(caught.value)
    assert "arm 'b', seed 2: FloatingPointError: accuracy is nan" in str(caught.value)
    assert len(ran) == 6
    failed = set(broken)
    broken.clear()
    ran.clear()
    results = toy(tmp_path).run(experiment, ["a", "b"])
    assert set(ran) == failed
    pd.testing.assert_frame_equal(results, toy(tmp_path / "afresh").run(accuracy, ["a", "b"]))


def test_after_a_failure_the_same_study_goes_on_in_the_same_order(tmp_path):
    broken = [True]

    def experiment(arm: str, seed: int) -> dict[str, float]:
        if arm == "a" and seed == 0 and broken:
            raise MemoryError
        return accuracy(arm, seed)

    running = toy(tmp_path)
    with pytest.raises(RuntimeError, match="1 of 6 runs failed"):
        running.run(experiment, ["a", "b"])
    broken.clear()
    results = running.run(experiment, ["a", "b"])
    pd.testing.assert_frame_equal(results, toy(tmp_path / "afresh").run(accuracy, ["a", "b"]))


def finished_record(tmp_path) -> dict:
    running = toy(tmp_path)
    running.run(accuracy, ["a", "b"])
    running.finish([claim()], "made up")
    return study.read_record(study.record_path(tmp_path, "foundations/kd", "quick"))


def test_truncated_and_foreign_records_are_named(tmp_path):
    record = finished_record(tmp_path)
    path = study.record_path(tmp_path, "foundations/kd", "quick")
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"kd.json is corrupt .* run its chapter again"):
        study.read_record(path)
    path.write_text(json.dumps(record | {"profile": "huge"}))
    with pytest.raises(ValueError, match=r"does not fit the schema at profile"):
        study.ledger([tmp_path])


def test_failed_write_leaves_the_old_record_whole(tmp_path, monkeypatch):
    record = finished_record(tmp_path)
    path = study.record_path(tmp_path, "foundations/kd", "quick")
    before = path.read_bytes()

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        study.write_record(record | {"seeds": [9]}, tmp_path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["kd.json"]


def test_record_that_breaks_the_schema_is_not_written(tmp_path):
    record = finished_record(tmp_path)
    with pytest.raises(ValueError, match=r"the new record does not fit the schema at results/0/value"):
        study.write_record(record | {"results": [{"arm": "a", "seed": 0, "metric": "m", "value": "high"}]}, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>", "</td>", "<img src=x onerror=alert(1)>", "<!-- x", "two\nlines",
        "{download}`/etc/passwd`", "[x](JavaScript :alert(1))", "\\href{javascript:alert(1)}{x}",
        "[x](data:text/html,x)",
    ],
)  # fmt: skip
def test_markup_in_any_text_of_a_record_is_refused(tmp_path, text):
    record = finished_record(tmp_path)
    path = study.record_path(tmp_path, "foundations/kd", "quick")
    places = [
        lambda new: new["claims"][0].update(statement=text),
        lambda new: new["claims"][0].update(paper=text),
        lambda new: new["results"][0].update(arm=text),
        lambda new: new["results"][0].update(metric=text),
        lambda new: new["provenance"].update(data=text),
        lambda new: new["provenance"]["hardware"].update(cpu=text),
        lambda new: new["provenance"]["versions"].update(torch=text),
        lambda new: new["parameters"].update({"name": [{"deep": text}]}),
        lambda new: new["parameters"].update({text: 1}),
    ]
    for change in places:
        new = json.loads(json.dumps(record))
        change(new)
        path.write_text(json.dumps(new))
        with pytest.raises(ValueError, match=r"kd.json holds .* a record holds plain text"):
            study.read_record(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "1e305"])
def test_numbers_that_are_none_are_refused(tmp_path, number):
    record = finished_record(tmp_path)
    path = study.record_path(tmp_path, "foundations/kd", "quick")
    record["results"][0]["value"] = "here"
    path.write_text(json.dumps(record).replace('"here"', number))
    with pytest.raises(ValueError, match=r"kd.json (is corrupt|does not fit the schema at results/0/value)"):
        study.read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chapter": "../../etc/passwd"}, "schema at chapter"),
        ({"chapter": "foundations/kd\n"}, "schema at chapter"),
        ({"seeds": [10**30]}, "schema at seeds/0"),
        ({"results": "[" * 100_000}, "schema at results"),
        ({"provenance": {}}, "schema at provenance"),
    ],
)
def test_fields_of_other_kinds_are_refused(tmp_path, change, message):
    record = finished_record(tmp_path)
    path = study.record_path(tmp_path, "foundations/kd", "quick")
    path.write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=message):
        study.read_record(path)
    path.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"kd.json is corrupt"):
        study.read_record(path)


def test_an_interval_that_ends_before_it_begins_is_refused(tmp_path):
    record = finished_record(tmp_path)
    record["claims"][0] |= {"low": 2.0, "high": 1.0}
    with pytest.raises(ValueError, match="ends before it begins, of the claim 'c'"):
        study.write_record(record, tmp_path)


def test_reading_a_record_and_planning_an_archive_load_no_torch(root):
    code = (
        "import sys; from kdcore import study; from kdcore.commands import archiving, reproducing; "
        "archiving.pack(['kd']); study.read_record('book/records/cpu/foundations/kd.json'); "
        "print(sorted({'torch', 'pandas', 'scipy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_package_is_found_where_it_lives():
    assert sorted(name for names in study._HOMES.values() for name in names) == sorted(study.__all__)
    assert all(getattr(study, name) is not None for name in study.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = study.nothing


def test_ledger_has_a_row_per_claim_and_later_folders_win(tmp_path):
    record = finished_record(tmp_path / "new")
    old = record | {"provenance": record["provenance"] | {"date": "2001-01-01"}}
    records.write_record(old, tmp_path / "old")
    records.write_record(old | {"profile": "cpu"}, tmp_path / "old")
    table = study.ledger([tmp_path / "old", tmp_path / "new"])
    assert table["profile"].tolist() == ["cpu", "quick"]
    assert table["date"].iloc[0] == "2001-01-01" != table["date"].iloc[1]


def test_ledger_has_the_mean_in_units_of_the_standard_deviation(tmp_path):
    record = finished_record(tmp_path)
    values = pd.DataFrame(record["results"]).pivot(index="seed", columns="arm", values="value")
    entry, effect = record["claims"][0], study.ledger([tmp_path])["effect"].iloc[0]
    differences = values[entry["better"]] - values[entry["than"]]
    assert effect == pytest.approx(differences.mean() / differences.std(ddof=1))


def test_effect_of_equal_differences_is_not_a_number_and_bad_intervals_are_refused():
    assert np.isnan(study.standardised(1.0, 1.0, pairs=5))
    with pytest.raises(ValueError, match=r"at least two pairs is wanted, got \[0.0, 1.0\] of 1"):
        study.standardised(0.0, 1.0, pairs=1)


def test_imported_files_follow_the_static_graph():
    files = {path.name for path in study.imported_files("%pip install x\nfrom kdcore.foundations.kd import soften")}
    assert {"__init__.py", "kd.py", "checks.py", "precision.py"} == files
    names = {str(path.relative_to(sources._PACKAGE)) for path in study.imported_files("from kdcore import training")}
    assert "training/fit.py" in names
    assert "data/arrays.py" in names
    assert not any(name.startswith(("show", "study", "logits")) for name in names)


def test_code_digest_changes_with_the_code_it_imports_only(tmp_path, monkeypatch):
    package = tmp_path / "kdcore"
    (package / "part").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "part/__init__": "",
        "part/a": "from kdcore.part import b",
        "part/b": "",
        "part/c": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    source = "from kdcore.part.a import x"
    monkeypatch.setattr(sources, "_PACKAGE", package)
    first = study.code_digest(source)
    (package / "part" / "c.py").write_text("changed = 1")
    assert study.code_digest(source) == first
    (package / "part" / "b.py").write_text("changed = 1")
    assert study.code_digest(source) != first


def test_notebook_code_takes_cells_without_their_options():
    tagged = "```{code-cell} ipython3\n:tags: [a]\n\nx = 1\n```\n"
    plain = "\n```python\nno = 1\n```\n"
    with_block = "```{code-cell}\n---\nk: v\n---\ny = 2\n```\n"
    assert study.notebook_code(f"prose\n{tagged}{plain}{with_block}").split() == ["x", "=", "1", "y", "=", "2"]


@pytest.mark.parametrize(
    ("minutes", "length"), [(0.5, "under a minute"), (1, "about a minute"), (2, "about 2 minutes")]
)
def test_announcement_without_gpu(capsys, monkeypatch, minutes, length):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    study.announce(minutes)
    said = capsys.readouterr().out
    assert said.startswith(f'As it is, this chapter runs at profile "quick", which takes {length}; no GPU found')
    assert said.count("\n") == 1


def test_announcement_names_the_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    study.announce(1)
    assert 'Tesla T4 found: profile = "gpu" in the next cell' in capsys.readouterr().out


def test_announcement_needs_a_time():
    with pytest.raises(ValueError, match="minutes must be a positive number, got 0"):
        study.announce(0)


def _differing(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(arm, k, "accuracy", value) for arm, column in values.items() for k, value in enumerate(column)]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"])


def test_paired_differences_are_those_of_the_seeds_and_sorted():
    results = _differing({"KD": [90, 92, 94], "worse": [88, 89, 92], "better": [91, 93, 95]})
    table = study.paired_differences(results, "accuracy", "KD")
    assert table["arm"].tolist() == ["better", "worse"]
    assert table["difference"].tolist() == pytest.approx([1.0, -7 / 3])
    assert table.loc[0, ["low", "high"]].tolist() == [1.0, 1.0]  # the spread over seeds is common to both arms
    low, high = stats.ttest_rel([88, 89, 92], [90, 92, 94]).confidence_interval()
    assert table.loc[1, ["low", "high"]].tolist() == pytest.approx([low, high])


def test_paired_differences_want_the_reference_and_two_common_seeds():
    with pytest.raises(ValueError, match="reference 'SKD'"):
        study.paired_differences(_differing({"KD": [1, 2]}), "accuracy", "SKD")
    with pytest.raises(ValueError, match="'late' must share at least two seeds with 'KD', got 1"):
        study.paired_differences(_differing({"KD": [1, 2], "late": [3]}), "accuracy", "KD")


def test_relative_costs_take_turns_and_leave_the_first_round_out(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def run(name, seconds):
        def step():
            order.append(name)
            clock[0] += seconds.pop(0)

        return step

    runs = {"KD": run("KD", [100.0, 1.0, 2.0, 4.0]), "slow": run("slow", [1.0, 3.0, 4.0, 40.0])}
    assert study.relative_costs(runs, rounds=3) == {"KD": 1.0, "slow": 3.0}
    assert order == ["KD", "slow"] * 4
    with pytest.raises(ValueError, match="at least one function"):
        study.relative_costs({})
    with pytest.raises(ValueError, match="rounds must be"):
        study.relative_costs({"KD": list}, rounds=0)


def test_committed_record_is_read_from_the_checkout_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "repository_root", lambda: tmp_path)
    assert records.committed_record("logits/a", "cpu") is None
    path = tmp_path / "book" / "records" / "cpu" / "logits" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"a\.json is corrupt"):
        records.committed_record("logits/a", "cpu")
    monkeypatch.setattr(records, "repository_root", lambda: None)
    assert records.committed_record("logits/a", "cpu") is None


@given(st.integers(2, 40), st.floats(0.1, 20), st.floats(0.2, 5))
def test_as_many_seeds_as_are_needed_make_the_interval_narrow_enough(pairs, half, wanted):
    needed = study.seeds_needed(1.0 - half, 1.0 + half, pairs, half_width=wanted)
    deviation = half * np.sqrt(pairs) / stats.t.ppf(0.975, pairs - 1)
    width = stats.t.ppf(0.975, np.array([needed - 1, needed - 2]).clip(1)) * deviation / np.sqrt([needed, needed - 1])
    assert width[0] <= wanted * (1 + 1e-9)
    assert needed == 2 or width[1] > wanted * (1 - 1e-9)
    assert study.seeds_needed(1.0 - half, 1.0 + half, pairs, half_width=half * (1 + 1e-9)) <= pairs


def test_seeds_needed_refuses_what_is_no_interval():
    assert study.seeds_needed(2.0, 2.0, pairs=5) == 2
    for low, high, pairs in ((0.0, 1.0, 1), (1.0, 0.0, 5)):
        with pytest.raises(ValueError, match="at least two pairs"):
            study.seeds_needed(low, high, pairs)
    with pytest.raises(ValueError, match="half_width"):
        study.seeds_needed(0.0, 1.0, 5, half_width=0)
