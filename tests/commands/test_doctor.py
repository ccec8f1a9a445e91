"""`kdcore doctor`: what will run here, what will not, and why."""

from __future__ import annotations

import json
import re
from importlib import metadata

import pytest
import torch
from commands.conftest import invoke

from kdcore.commands import doctor


@pytest.fixture
def without_data(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "locate", lambda source: None)
    return tmp_path


def lack(monkeypatch, *names: str) -> None:
    """As if these packages were not installed."""
    found = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)


def examined() -> tuple[dict, dict, int]:
    done = invoke("doctor", "--json")
    content = json.loads(done.output)
    findings = {row["what"]: row for row in content["findings"]}
    return findings, {row["profile"]: row for row in content["profiles"]}, done.exit_code


def test_quick_runs_here_and_the_table_says_the_same():
    findings, profiles, status = examined()
    assert status == 0
    assert profiles["quick"]["will not"] == []
    everything = re.fullmatch(r"(\d+) of \1 chapters", profiles["quick"]["will run"])
    assert everything is not None
    assert findings["torch"]["details"].startswith(torch.__version__)
    assert {"versions", "GPU", "memory", "disk", "git", "make", "Chromium", "fonts", "data: mnist"} <= set(findings)
    table = invoke("doctor").output
    assert re.search(rf"^quick +{everything.group()} +– +–", table, flags=re.M)


def test_missing_data_are_downloaded_or_keep_their_chapters_from_running(without_data):
    findings, profiles, status = examined()
    assert status == 0
    assert findings["data: cora"] == {
        "what": "data: cora", "state": "note", "details": "nobody downloads it; put the files there",
    }  # fmt: skip
    assert profiles["cpu"]["downloads first"] == ["cifar10", "mnist", "usps"]
    assert "ff_g2m: data cora missing" in profiles["cpu"]["will not"]
    assert profiles["quick"]["downloads first"] == []


def test_a_package_that_one_chapter_needs_keeps_only_that_chapter_from_running(monkeypatch):
    lack(monkeypatch, "torch-geometric")
    findings, profiles, status = examined()
    assert status == 1
    assert findings["packages: graphs"]["details"] == "missing: torch-geometric; pip install 'kdcore[graphs]'"
    assert profiles["quick"]["will not"] == ["ff_g2m: packages torch-geometric missing"]


def test_without_papermill_nothing_runs(monkeypatch):
    lack(monkeypatch, "papermill")
    _, profiles, status = examined()
    assert status == 1
    assert profiles["quick"]["will not"] == ["all: packages papermill missing"]
    assert profiles["quick"]["will run"].startswith("0 of ")


def test_the_gpu_profile_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    findings, profiles, _ = examined()
    assert findings["GPU"]["state"] == "note"
    assert profiles["gpu"]["will not"] == ["all: no GPU that CUDA knows"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    findings, profiles, _ = examined()
    assert findings["GPU"] == {"what": "GPU", "state": "ok", "details": "H200"}
    assert not any(line.startswith("all:") for line in profiles["gpu"]["will not"])


def test_a_torch_that_cannot_be_imported_is_reported_not_raised(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setattr(doctor, "sources", lambda: __import__("torch"))
    findings, profiles, status = examined()
    assert status == 1
    assert findings["torch"]["state"] == "missing"
    assert profiles["quick"]["will not"][0].startswith("all: torch cannot be imported")


def test_versions_other_than_the_pinned_are_named(monkeypatch):
    found = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "numpy" else found(name))
    findings, _, _ = examined()
    assert findings["versions"]["state"] == "note"
    assert re.search(r"; numpy 0\.0\.1 \(pinned [\d.]+\)", findings["versions"]["details"])


def test_every_chapter_with_a_choice_of_data_names_them_for_all_profiles(root):
    for path in (root / "chapters").glob("*/*.md"):
        text = path.read_text(encoding="utf-8")
        assert doctor._DATASET.search(text) or '"auto"  # "auto" (by profile)' not in text, path.name
