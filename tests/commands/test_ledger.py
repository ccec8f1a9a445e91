"""`kdcore ledger`: the claims of all records, filtered, as a table or as JSON."""

from __future__ import annotations

import json
import shutil

import pytest
from commands.conftest import invoke

from kdcore import study


@pytest.fixture
def records(root, tmp_path):
    """Two of the committed records."""
    for name in ("foundations/kd", "logits/spherical_kd"):
        path = study.record_path(tmp_path, name, "cpu")
        path.parent.mkdir(parents=True)
        shutil.copy(study.record_path(root / "book" / "records", name, "cpu"), path)
    return tmp_path


def test_the_ledger_agrees_with_the_one_of_the_book(root):
    folder = root / "book" / "records"
    rows = json.loads(invoke("ledger", str(folder), "--json").output)
    expected = study.ledger([folder])
    assert [(row["chapter"], row["profile"], row["id"], row["verdict"]) for row in rows] == list(
        zip(expected["chapter"], expected["profile"], expected["claim"], expected["verdict"], strict=True)
    )
    assert [row["low"] for row in rows] == expected["low"].tolist()


def test_filters_by_chapter_profile_and_verdict(records):
    table = invoke("ledger", str(records), "--chapter", "kd").output
    assert "kd_beats_labels" in table
    assert "spherical" not in table
    assert "4 claims: 4 supported, 0 undecided, 0 contradicted" in table
    every = json.loads(invoke("ledger", str(records), "--json").output)
    for verdict in ("supported", "undecided", "contradicted"):
        kept = json.loads(invoke("ledger", str(records), "--verdict", verdict, "--json").output)
        assert kept == [row for row in every if row["verdict"] == verdict]
    assert invoke("ledger", str(records), "--profile", "gpu").output.startswith("0 claims")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "profile must be one of quick, cpu, gpu, got 'huge'"),
        (["--verdict", "won"], "verdict must be one of supported, undecided, contradicted, got 'won'"),
        (["--chapter", "kdd"], "no chapter 'kdd'. Did you mean '.*kd'"),
    ],
)
def test_filters_that_name_nothing_are_refused(arguments, message):
    done = invoke("ledger", *arguments)
    with pytest.raises(ValueError, match=message):
        raise done.exception


def test_a_corrupt_record_is_named_and_the_others_are_shown(records):
    path = study.record_path(records, "foundations/kd", "cpu")
    path.write_text(path.read_text()[:500])
    done = invoke("ledger", str(records))
    assert done.exit_code == 1
    assert f"record {path} is corrupt" in done.stderr
    assert "logits/spherical_kd" in done.stdout
    assert "foundations/kd " not in done.stdout
