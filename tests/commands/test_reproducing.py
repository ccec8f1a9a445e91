"""Agreement of two records by hand."""

from __future__ import annotations

import pytest

from kdcore.commands import reproducing


def record(**arms: list[float]) -> dict:
    rows = [
        {"arm": arm, "seed": seed, "metric": "accuracy", "value": value}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]
    return {"results": rows}


@pytest.mark.parametrize(
    ("here", "verdict"),
    [
        ([90.0, 91.0, 92.0], "bit-equal"),
        ([90.0, 91.0, 92.0 + 2e-14], "within the interval"),  # the last bit
        ([88.7, 90.1, 91.3], "within the interval"),  # 91 ± 2.48
        ([93.0, 94.0, 95.0], "different"),
        ([90.0, 91.0], "different"),  # a seed is missing
    ],
)
def test_agreement_by_the_recorded_interval(here, verdict):
    table = reproducing.agreement(record(a=[90.0, 91.0, 92.0]), record(a=here))
    assert table["agreement"].tolist() == [verdict]


def test_constants_agree_to_six_digits():
    same = reproducing.agreement(record(a=[1.0, 1.0]), record(a=[1.0000001, 1.0]))
    other = reproducing.agreement(record(a=[1.0, 1.0]), record(a=[1.001, 1.0]))
    assert same["agreement"].tolist() + other["agreement"].tolist() == ["within the interval", "different"]


def test_an_arm_on_one_side_only_is_different_and_order_is_kept():
    table = reproducing.agreement(record(z=[1, 2], a=[1, 2]), record(z=[1, 2], new=[1, 2]))
    assert table["arm"].tolist() == ["z", "a", "new"]
    assert table["agreement"].tolist() == ["bit-equal", "different", "different"]
    assert table["here"].tolist()[1:] == ["not run", "2 seeds"]


def test_environment_differences_name_what_is_new_and_what_was_not_recorded():
    old = {"provenance": {"hardware": {"threads": 1}, "code_digest": "a" * 64, "wall_seconds": 1.0}}
    new = {"provenance": {"hardware": {"threads": 2}, "code_digest": "b" * 64, "wall_seconds": 2.0, "dirty": True}}
    assert reproducing.environment_differences(old, new) == [
        "hardware threads: 1 recorded, 2 here",
        f"code_digest: {'a' * 12} recorded, {'b' * 12} here",
        "dirty: nothing recorded, True here",
    ]
