"""Records found by name, and files that are none."""

from __future__ import annotations

import json

import pytest

from kdcore.commands import recorded


def test_a_record_is_found_by_path_and_by_name(root):
    path = root / "book" / "records" / "cpu" / "foundations" / "kd.json"
    assert recorded.find_record("cpu:kd") == path
    assert recorded.find_record(str(path)) == path
    with pytest.raises(ValueError, match=r"no record 'cup:kd'. Did you mean 'cpu:kd'"):
        recorded.find_record("cup:kd")
    with pytest.raises(ValueError, match="A record is a file, or a name such as cpu:spherical_kd"):
        recorded.find_record("zzzzzzzzzzz")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record.pop("claims"), "claims is missing or not of type list"),
        (lambda record: record.update(parameters=[]), "parameters is missing or not of type dict"),
        (lambda record: record["results"][0].update(value="90"), "results: value is missing or not of type float"),
        (lambda record: record["claims"].append("none"), "claims: a mapping is wanted, got str"),
    ],
)
def test_a_file_that_is_no_record_is_named_with_what_is_wrong(tmp_path, change, problem):
    record = json.loads(recorded.find_record("cpu:kd").read_text(encoding="utf-8"))
    change(record)
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"kd.json is no record of kdcore: {problem}"):
        recorded.load_record(path)


@pytest.mark.parametrize("content", [b"", b'{"chapter": ', b"\xff\xfe", b"[" * 100_000])
def test_a_corrupt_file_is_named(tmp_path, content):
    path = tmp_path / "kd.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"kd.json is corrupt .*; delete it and run its chapter again"):
        recorded.load_record(path)
