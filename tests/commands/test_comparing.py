"""`kdcore compare`: what differs between two records."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from commands.conftest import invoke
from scipy import stats

from kdcore import study
from kdcore.commands.comparing import differences_in_results, differences_in_setting
from kdcore.commands.recorded import find_record


def results(values: dict[int, float], arm: str = "KD") -> dict:
    rows = [{"arm": arm, "seed": seed, "metric": "accuracy", "value": value} for seed, value in values.items()]
    return {"chapter": "foundations/kd", "results": rows}


def test_same_seeds_are_paired_as_claims_are():
    a, b = {0: 90.0, 1: 91.5, 2: 89.0}, {2: 90.5, 1: 92.0, 0: 92.0}
    (row,) = differences_in_results(results(a), results(b))
    assert row["how"] == "paired"
    expected = study.paired_interval(np.array([b[seed] - a[seed] for seed in a]))
    np.testing.assert_allclose([row["difference"], row["low"], row["high"]], expected)


def test_other_seeds_are_two_samples():
    first, second = {0: 90.0, 1: 91.5, 2: 89.0}, {5: 92.0, 6: 92.5, 7: 93.5, 8: 91.0}
    (row,) = differences_in_results(results(first), results(second))
    assert (row["how"], row["seeds"]) == ("unpaired", "3, 4")
    # Welch by hand: variances of the two means, and the degrees of freedom of Satterthwaite.
    a, b = (np.array(list(values.values())) for values in (first, second))
    parts = [values.var(ddof=1) / len(values) for values in (a, b)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    difference = b.mean() - a.mean()
    np.testing.assert_allclose([row["low"], row["high"]], [difference - half, difference + half])


def test_seeds_of_another_chapter_are_no_pairs():
    a, b = results({0: 1.0, 1: 2.0}), results({0: 2.0, 1: 4.0}) | {"chapter": "logits/dhkd"}
    assert differences_in_results(a, b)[0]["how"] == "unpaired"


@pytest.mark.parametrize(
    ("a", "b", "low", "how"),
    [
        ({0: 1.0, 1: 3.0}, {0: 1.0, 1: 3.0}, 0.0, "bit-equal"),
        ({0: 1.0, 1: 3.0}, {0: 2.0, 1: 4.0}, 1.0, "paired"),
        ({0: 1.0, 1: 1.0}, {5: 2.0, 6: 2.0}, 1.0, "unpaired"),
        ({0: 1.0}, {0: 2.0}, None, "paired"),
        ({0: 1.0}, {1: 2.0, 2: 3.0}, None, "unpaired"),
    ],
)
def test_without_a_spread_the_interval_is_a_point_and_with_one_seed_there_is_none(a, b, low, how):
    (row,) = differences_in_results(results(a), results(b))
    assert (row["low"], row["high"], row["how"]) == (low, low, how)


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="no arm and metric in common"):
        differences_in_results(results({0: 1.0}), results({0: 1.0}, arm="CE"))


def test_what_differs_is_shown_and_nothing_else(tmp_path):
    a = study.read_record(find_record("cpu:kd"))
    b = copy.deepcopy(a)
    b["parameters"]["temperature"] = 2.0
    b["provenance"]["versions"]["torch"] = "2.6.0"
    b["provenance"]["hardware"]["gpu"] = "one of them"
    b["claims"][0]["verdict"] = "undecided"
    for row in b["results"]:
        if row["arm"] == "KD" and row["metric"] == "accuracy":
            row["value"] += 1 + row["seed"]
    changed = [row["what"] for row in differences_in_setting(a, b)]
    assert changed == ["parameters: temperature", "versions: torch", "hardware: gpu"]
    path = tmp_path / "kd.json"
    path.write_text(json.dumps(b))
    found = json.loads(invoke("compare", "cpu:kd", str(path), "--json").output)
    (row,) = [row for row in found["results"] if row["how"] != "bit-equal"]
    assert (row["arm"], row["metric"], row["how"]) == ("KD", "accuracy", "paired")
    assert row["difference"] == pytest.approx(3.0)
    assert row["low"] == pytest.approx(3 - 2.776445 * np.sqrt(2.5 / 5), rel=1e-6)
    assert [claim["claim"] for claim in found["verdicts"]] == [a["claims"][0]["id"]]
    table = invoke("compare", "cpu:kd", str(path)).output
    assert "parameters: temperature   4.0" in table
    assert "undecided" in table


def test_a_record_that_is_not_there_is_named():
    done = invoke("compare", "cpu:kd", "cpu:kdd")
    with pytest.raises(ValueError, match=r"no record 'cpu:kdd'. Did you mean 'cpu:.*kd'"):
        raise done.exception
