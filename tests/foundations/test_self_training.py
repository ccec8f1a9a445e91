"""Pseudo-labels, their loss and weight, and self-training under a shift."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays
from kdcore.foundations.self_training import SelfTraining, pseudo_label_loss, pseudo_labels, rising_weight
from kdcore.models import MLP
from kdcore.training import Budget, Supervised, fit, predict


def turned_classes(seed: int, angle: float = 0.5) -> dict[str, Arrays]:
    """Five Gaussian classes on a circle; the target is turned by less than half of the way to the next class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(300) % 5
    data = {}
    for name, turn in {"source": 0.0, "target": angle}.items():
        phase = 2 * math.pi * labels / 5 + turn
        points = 2 * torch.stack([phase.cos(), phase.sin()], dim=1)
        data[name] = Arrays(inputs=points + 0.25 * torch.randn(300, 2, generator=generator), labels=labels)
    return data


def accuracy(model: nn.Module, data: Arrays) -> float:
    return float((predict(model, data.inputs).argmax(1) == data.labels).float().mean())


def test_pseudo_labels_are_strictly_above_the_threshold_and_carry_no_gradient():
    logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    found = pseudo_labels(logits, threshold=0.5)
    assert found.labels.tolist() == [0, 1]
    assert found.keep.tolist() == [False, True]
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1).detach())
    assert not found.confidence.requires_grad
    assert bool(pseudo_labels(logits, threshold=0.0).keep.all())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(2, 6), st.floats(0, 0.95), st.integers(0, 9999))
def test_loss_is_the_mean_over_what_is_kept(batch, classes, threshold, seed):
    logits = 3 * torch.randn(batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kept = [float(row.max()) for row in logits.softmax(1) if float(row.max()) > threshold]
    expected = -sum(math.log(top) for top in kept) / len(kept) if kept else 0.0
    assert float(pseudo_label_loss(logits, threshold)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_fixed_labels_and_zero_where_nothing_is_kept(dtype):
    logits = torch.tensor([[0.1, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=dtype, requires_grad=True)
    pseudo_label_loss(logits, threshold=0.6).backward()
    fixed = logits.detach().clone().requires_grad_()
    F.cross_entropy(fixed[1:], torch.tensor([1])).backward()
    torch.testing.assert_close(logits.grad, fixed.grad)
    assert float(logits.grad[0].abs().max()) == 0
    nothing = pseudo_label_loss(logits[:1], threshold=0.6)
    assert float(nothing.detach()) == 0


def test_weight_waits_rises_and_stays():
    assert [rising_weight(t, 0.25, 0.75, 2.0) for t in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 0.0, 1.0, 2.0, 2.0]
    assert [rising_weight(t, 0.5, 0.5) for t in (0.4, 0.5, 0.6)] == [0.0, 1.0, 1.0]


def test_learner_weighs_its_terms():
    learner = SelfTraining(MLP(4, (8,), 3), threshold=0.0, adapt_after=0.2, full_after=0.6, weight=2.0)
    source = Arrays(inputs=torch.randn(6, 4), labels=torch.arange(6) % 3)
    target = Arrays(inputs=torch.randn(5, 4))
    batch = SimpleNamespace(source=source, target=target)
    assert float(learner.losses(batch)["pseudo_label"].detach()) == 0
    learner.on_step(0.4)
    terms = learner.losses(batch)
    torch.testing.assert_close(terms["pseudo_label"], pseudo_label_loss(learner.model(target.inputs)))
    torch.testing.assert_close(
        terms["source_cross_entropy"], F.cross_entropy(learner.model(source.inputs), source.labels)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\), got 1.0"),
        ({"adapt_after": -0.1}, "adapt_after must lie"),
        ({"adapt_after": 0.7, "full_after": 0.6}, "full_after must be at least adapt_after"),
        ({"weight": 0.0}, "weight must be a positive number"),
    ],
)
def test_learner_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelfTraining(MLP(4, (8,), 3), **arguments)


def test_functions_refuse_bad_input():
    with pytest.raises(ValueError, match="logits must have shape"):
        pseudo_labels(torch.zeros(3))
    with pytest.raises(ValueError, match="logits must be finite"):
        pseudo_label_loss(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match="progress must lie"):
        rising_weight(1.2, 0.1, 0.5)


def test_follows_turned_classes():
    budget = Budget(steps=300, batch_size=64, optimizer="adam", lr=5e-3, weight_decay=0.0, schedule="constant")
    alone, adapted = [], []
    for seed in (0, 1, 2):
        data = turned_classes(seed)
        torch.manual_seed(seed)
        model = MLP(2, (64,), 5)
        fit(Supervised(model), data["source"], budget, seed=seed)
        alone.append(accuracy(model, data["target"]))
        torch.manual_seed(seed)
        model = MLP(2, (64,), 5)
        fit(SelfTraining(model), data, budget, seed=seed)
        adapted.append(accuracy(model, data["target"]))
    assert min(adapted) > max(alone) + 0.05, (adapted, alone)
