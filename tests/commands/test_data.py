"""`kdcore data`: what is here, what is missing, and getting it."""

from __future__ import annotations

import hashlib
import json
import urllib.request

import pytest
import torch
from commands.conftest import invoke

from kdcore import data
from kdcore.commands.data import locate, sources
from kdcore.data import benchmarks


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No data anywhere and no network; downloads would go to `cache`."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", refuse)
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("kdcore.data.dataset.Path.home", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def made_usps(offline, monkeypatch):
    """Files in the place and form of USPS, of two samples each, that pass for the originals."""
    import bz2

    folder = offline / "elsewhere"
    folder.mkdir()
    row = " ".join(f"{pixel}:0.5" for pixel in range(1, 257))
    digests = {}
    for name in benchmarks._USPS_FILES:
        content = bz2.compress(f"1 {row}\n3 {row}\n".encode())
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(benchmarks, "_USPS_FILES", digests)
    md5 = hashlib.md5((folder / "usps.bz2").read_bytes()).hexdigest()
    from torchvision.datasets import USPS

    kinds = {kind: [address, file, md5] for kind, (address, file, _) in USPS.split_list.items()}
    monkeypatch.setattr(USPS, "split_list", kinds)
    return folder


def rows(*arguments: str) -> dict:
    content = json.loads(invoke("data", *arguments, "--json").output)
    return {row["data set"]: row for row in content["data"]} | {"folders": content["folders"]}


def test_every_data_set_that_a_chapter_names_is_listed(root):
    assert {name for name in data.DATASETS} <= set(sources())
    named = (root / "data" / "README.md").read_text(encoding="utf-8")
    for source in sources().values():
        for files in source.layouts[:1]:
            assert files[0].split("/")[0] in named, source.name


def test_missing_data_say_where_they_would_come_from(offline):
    found = rows("--data-dir", "mine")
    assert found["digits"]["state"] == "there"
    assert {found[name]["state"] for name in ("mnist", "usps", "cifar10", "cifar100", "sst2", "cora")} == {"missing"}
    assert found["mnist"]["comes from"] == "torchvision downloads it"
    assert found["sst2"]["comes from"] == "nobody downloads it; put the files there"
    assert found["mnist"]["where"] == "MNIST/raw/ (4 files)"
    assert found["folders"] == ["mine", str(offline / "elsewhere"), str(offline / ".cache" / "kdcore")]
    table = invoke("data").output
    assert f"Looked in {offline / 'elsewhere'}, then" in table


def test_data_that_are_there_are_found_measured_and_read(made_usps):
    found = rows()["usps"]
    assert (found["state"], found["where"]) == ("there", str(made_usps))
    size = sum(path.stat().st_size for path in made_usps.iterdir()) / 1e6
    assert found["size"] == f"{size:.1f} MB"
    done = invoke("data", "get", "usps")
    assert done.exit_code == 0, done.exception
    assert "usps: USPS (Hull 1994)" in done.output
    assert f"in {made_usps}" in done.output
    assert torch.equal(data.usps().train.labels, torch.tensor([0, 2]))


def test_a_corrupt_file_is_named(made_usps):
    (made_usps / "usps.t.bz2").write_bytes(b"cut short")
    found = rows()["usps"]
    assert found["state"] == "corrupt"
    assert "usps.t.bz2 is corrupt" in found["where"]
    done = invoke("data", "get", "usps")
    with pytest.raises(ValueError, match=r"usps.t.bz2 is corrupt"):
        raise done.exception


@pytest.mark.parametrize("name", ["mnist", "usps", "cifar10", "cifar100"])
def test_without_network_getting_says_what_to_put_where(offline, name):
    done = invoke("data", "get", name, "--data-dir", "mine")
    with pytest.raises(data.MissingDataError, match=r"could not be downloaded .*Put .* into mine, or"):
        raise done.exception


@pytest.mark.parametrize("name", ["sst2", "cora"])
def test_what_nobody_downloads_says_so(offline, name):
    done = invoke("data", "get", name)
    with pytest.raises(data.MissingDataError, match=r"is not on this machine. Put .*"):
        raise done.exception


def test_an_unknown_name_is_refused_with_the_nearest():
    done = invoke("data", "get", "minst")
    with pytest.raises(ValueError, match=r"NAME must be one of .* Did you mean 'mnist'"):
        raise done.exception


def test_each_layout_of_cifar10_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("KDCORE_DATA", str(tmp_path))
    for layout in sources()["cifar10"].layouts:
        folder = tmp_path / layout[0].split("/")[0].replace(".", "_")
        for name in layout:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).mkdir()
        assert locate(sources()["cifar10"], folder) == (folder, layout)
