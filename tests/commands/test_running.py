"""`kdcore run`: checked before anything runs, the same as papermill alone, and nothing overwritten."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from commands.conftest import invoke, kdcore
from pipeline.conftest import write_chapter

from kdcore import study


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which chapters to run, or --part or --all"),
        (["sphercal_kd"], "no chapter 'sphercal_kd'. Did you mean 'spherical_kd'"),
        (["spherical_kd", "-p", "temprature=2"], "unknown parameter 'temprature'.* Did you mean 'temperature'"),
        (["spherical_kd", "-p", "temperature"], "parameters are given as name=value"),
        (["spherical_kd", "-p", "temperature=-1"], "temperature must be a positive number, got -1"),
        (["spherical_kd", "-p", "temperature='2'"], "temperature must be a positive number, got '2'"),
        (["spherical_kd", "-p", "n_seeds=1"], "n_seeds must be an integer of at least 2, got 1"),
        (["spherical_kd", "-p", "dataset=minst"], "dataset must be one of .* Did you mean 'mnist'"),
        (["spherical_kd", "--profile", "cup"], "profile must be one of .* Did you mean 'cpu'"),
        (["kd", "spherical_kd", "-p", "multiplier=1"], "unknown parameter 'multiplier'"),
        (["--all", "-p", "temperature=2"], "unknown parameter 'temperature'"),
        (["--part", "logit"], "no part 'logit'; there are foundations, logits"),
        (["kd", "spherical_kd", "--output", "one.ipynb"], "--output names one notebook, and there are 2 chapters"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(arguments, message, monkeypatch):
    from kdcore.commands import running

    monkeypatch.setattr(running, "_run_one", lambda *_: pytest.fail("a chapter was run"))
    done = invoke("run", *arguments)
    with pytest.raises(ValueError, match=message):
        raise done.exception


def without_times(record: dict) -> dict:
    """A record but for what differs between two runs of the same."""
    times = ("date", "started", "wall_seconds")
    provenance = {name: value for name, value in record["provenance"].items() if name not in times}
    assert len(provenance) == len(record["provenance"]) - len(times)
    return record | {"provenance": provenance}


def test_run_says_where_things_lie_and_gives_what_papermill_alone_gives(study_project):
    done = kdcore(study_project, "run", "first", "-p", "temperature=2")
    assert done.returncode == 0, done.stderr
    folder = study_project / "results" / "temperature=2" / "quick" / "logits"
    assert "notebook results/temperature=2/quick/logits/first.ipynb" in done.stdout
    assert "record   results/temperature=2/quick/logits/first.json" in done.stdout
    assert "[1/1] logits/first began at" in done.stderr
    table = done.stdout.splitlines()[-1].split()
    assert (table[0], table[1], table[-2], table[-1]) == ("logits/first", "wins", "3", "supported")
    ours = study.read_record(folder / "first.json")
    assert ours["parameters"]["temperature"] == 2
    assert str(study_project) not in (folder / "first.ipynb").read_text()

    command = [sys.executable, "-m", "papermill", "chapters/logits/first.ipynb", "out.ipynb", "-p", "temperature", "2"]
    subprocess.run(command, cwd=study_project, check=True, capture_output=True)
    theirs = study.read_record(study_project / "results" / "quick" / "logits" / "first.json")
    assert without_times(ours) == without_times(theirs)

    compared = kdcore(study_project, "compare", "quick:first", str(folder / "first.json"))
    assert "bit-equal" in compared.stdout


def test_a_chapter_that_fails_is_named_and_the_others_run(tiny_project):
    write_chapter(tiny_project, "logits", "first", "raise ValueError('the labels are wrong')")
    done = kdcore(tiny_project, "run", "--all", "--results-dir", "out side")
    assert done.returncode == 1
    assert "logits/first: code cell 2 failed with ValueError: the labels are wrong" in done.stderr
    assert "error: 1 of 2 chapters failed: logits/first" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tiny_project / "out side" / "quick" / "features" / "second.ipynb").exists()
    assert "/2] features/second: " in done.stdout
    assert "no record" in done.stdout


def test_run_takes_a_part_a_profile_and_a_place_for_the_notebook(tiny_project):
    write_chapter(tiny_project, "features", "second", "print(profile, temperature * 2, results_dir)")
    done = kdcore(
        tiny_project, "run", "--part", "features", "--profile", "cpu", "-p", "temperature=3.5", "--output", "here.ipynb"
    )
    assert done.returncode == 0, done.stderr
    assert "[1/1] features/second" in done.stdout
    cells = json.loads((tiny_project / "here.ipynb").read_text())["cells"]
    assert "cpu 7.0 results/temperature=3.5" in json.dumps(cells)
