"""Metrics by hand on a few points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcore import metrics

LOGITS = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 2.0], [3.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
LABELS = torch.tensor([0, 1, 0, 2])


def test_accuracy_and_top_k():
    assert metrics.accuracy(LOGITS, LABELS) == 50.0
    assert metrics.top_k_accuracy(LOGITS, LABELS, k=2) == 100.0
    with pytest.raises(ValueError, match="k must lie"):
        metrics.top_k_accuracy(LOGITS, LABELS, k=4)


def test_negative_log_likelihood_by_hand():
    rows = [[2, 0, 1], [0, 1, 2], [3, 2, 1], [0, 2, 1]]
    wanted = (
        sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(rows, [0, 1, 0, 2], strict=True)) / 4
    )
    assert metrics.negative_log_likelihood(LOGITS, LABELS) == pytest.approx(wanted)


def test_calibration_error_of_a_constant_confidence():
    logits = torch.zeros(100, 2)
    logits[:, 0] = math.log(4)  # confidence 0.8
    labels = torch.tensor([0] * 60 + [1] * 40)
    assert metrics.calibration_error(logits, labels) == pytest.approx(20.0, abs=1e-4)
    table = metrics.reliability(logits, labels)
    assert table.to_dict("records") == [{"confidence": pytest.approx(0.8), "accuracy": 0.6, "count": 100}]


def test_agreement_confusion_and_f1():
    assert metrics.agreement(LOGITS, LOGITS * 2 + 1) == 100.0
    assert metrics.agreement(LOGITS, LOGITS.flip(1)) == 25.0  # only a prediction of the middle class stays
    counts = metrics.confusion(LOGITS, LABELS)
    assert counts.tolist() == [[2, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert metrics.macro_f1(LOGITS, LABELS) == pytest.approx(100 / 3)


def test_intersection_over_union_agrees_with_torchmetrics_and_ignores():
    from torchmetrics.functional.classification import multiclass_jaccard_index

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, generator=generator)
    labels = torch.randint(4, (2, 6, 6), generator=generator)
    wanted = multiclass_jaccard_index(logits.argmax(1), labels, 4, average="none").numpy()
    np.testing.assert_allclose(metrics.intersection_over_union(logits, labels), 100 * wanted, rtol=1e-6)
    labels[:, :, 3:] = -100
    got = metrics.intersection_over_union(logits, labels)
    np.testing.assert_allclose(got, metrics.intersection_over_union(logits[..., :3], labels[..., :3]))
    empty = metrics.intersection_over_union(torch.eye(3)[:2].reshape(1, 2, 3, 1)[:, :, :2], torch.zeros(1, 2, 1).long())
    assert np.isnan(
        metrics.intersection_over_union(torch.tensor([[[[1.0]], [[0.0]], [[0.0]]]]), torch.zeros(1, 1, 1).long())[2]
    )
    assert empty.shape == (2,)


_OF_LABELS = [
    metrics.accuracy,
    metrics.negative_log_likelihood,
    metrics.calibration_error,
    metrics.confusion,
    metrics.macro_f1,
]


@pytest.mark.parametrize("metric", _OF_LABELS)
def test_labels_out_of_range_are_refused(metric):
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\)"):
        metric(LOGITS, torch.tensor([0, 1, 3, 0]))


def test_segmentation_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
        metrics.intersection_over_union(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 4).long())


def test_linear_probe_reads_off_what_is_linear_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 2, generator=generator)
    diagonal, checkers = (points.sum(1) > 0).long(), (points.prod(1) > 0).long()
    first, rest = slice(0, 200), slice(200, 400)
    assert metrics.linear_probe(points[first], diagonal[first], points[rest], diagonal[rest]) > 95
    assert metrics.linear_probe(points[first], checkers[first], points[rest], checkers[rest]) < 65
    with pytest.raises(ValueError, match="same features"):
        metrics.linear_probe(points, diagonal, points[:, :1], diagonal)
    with pytest.raises(ValueError, match="equally long"):
        metrics.linear_probe(points, diagonal[:5], points, diagonal)
    with pytest.raises(ValueError, match="penalty must be"):
        metrics.linear_probe(points, diagonal, points, diagonal, penalty=0)
