"""Early stopping: the rule on scores, and what it does in `fit`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdcore.data import Arrays
from kdcore.models import MLP
from kdcore.training import Budget, EarlyStopping, Supervised, fit

EPOCHS = Budget(epochs=12, batch_size=8, lr=0.05)


def rows(scores):
    return [{"score": score} for score in scores]


def data() -> Arrays:
    torch.manual_seed(1)
    return Arrays(inputs=torch.randn(32, 4), labels=torch.arange(32) % 3)


def run(scores, patience=3, budget=EPOCHS, **options):
    """Train with the given scores, one per epoch; return the learner, its weights after each epoch, the history."""
    torch.manual_seed(0)
    learner, seen = Supervised(MLP(4, (8,), 3, dropout=0.5)), []
    upcoming = iter(scores)

    def evaluate():
        seen.append(learner.model.classifier.weight.detach().clone())
        return {"score": next(upcoming)}

    history = fit(learner, data(), budget, evaluate=evaluate, stopping=EarlyStopping("score", patience), **options)
    return learner, seen, history


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_rule_counts_ties_as_improvements(scores, patience):
    best, waited, stopped = -math.inf, 0, False  # the obvious loop: a counter that a tie resets
    for score in scores:
        waited = 0 if score >= best else waited + 1
        best = max(best, score)
        stopped = waited >= patience
    rule = EarlyStopping("score", patience)
    assert rule.finished(rows(scores)) == stopped
    assert rule.best(rows(scores)) == max(k for k, score in enumerate(scores) if score == best)


def test_fit_stops_and_restores_the_last_of_the_best_epochs():
    learner, seen, history = run([1, 5, 2, 5, 4, 3, 2, 9, 9, 9, 9, 9])
    assert history.epochs["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(learner.model.classifier.weight, seen[3])
    assert not torch.equal(seen[3], seen[-1])
    assert not learner.training


def test_without_stopping_early_the_budget_is_spent_and_the_best_still_restored():
    learner, seen, history = run([1, 5, *[2] * 10], patience=50)
    assert len(history.epochs) == 12
    assert torch.equal(learner.model.classifier.weight, seen[1])


def test_stopped_runs_repeat_to_the_last_bit():
    scores = [1, 2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    (first, _, history), (second, _, again) = run(scores), run(scores)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert history.epochs.drop(columns="seconds").equals(again.epochs.drop(columns="seconds"))


def test_rule_does_not_change_what_it_watches():
    torch.manual_seed(0)
    plain = Supervised(MLP(4, (8,), 3, dropout=0.5))
    fit(plain, data(), Budget(epochs=5, batch_size=8, lr=0.05, schedule="constant"))
    watched, _, _ = run(range(5), budget=Budget(epochs=5, batch_size=8, lr=0.05, schedule="constant"))
    assert torch.equal(plain.model.classifier.weight, watched.model.classifier.weight)


def test_a_stopped_run_resumes_where_it_ended(tmp_path):
    scores = [1, 5, 2, 2, 2]
    learner, seen, history = run(scores, checkpoint=tmp_path / "run.pt")
    resumed, steps, again = run([], checkpoint=tmp_path / "run.pt")
    assert steps == []
    assert again.epochs.equals(history.epochs)
    assert torch.equal(resumed.model.classifier.weight, seen[1])
    assert torch.equal(resumed.model.classifier.weight, learner.model.classifier.weight)


def test_refuses_bad_arguments():
    with pytest.raises(ValueError, match="patience must be a positive number"):
        EarlyStopping("score", patience=0)
    with pytest.raises(ValueError, match="rows must hold at least one epoch"):
        EarlyStopping("score").best([])
    with pytest.raises(ValueError, match=r"monitor must name a column of the history \(score\).*got 'accuracy'"):
        EarlyStopping("accuracy").best(rows([1, 2]))
    with pytest.raises(ValueError, match="holds a number in every epoch"):
        run([1.0, math.nan])
