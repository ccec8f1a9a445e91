"""Data pruning with a teacher: subsets, scores, the ridge-regression theory, what the weights mean, learning."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from kdcore import data
from kdcore.data import Arrays
from kdcore.foundations.kd import KnowledgeDistillation, distillation_loss
from kdcore.logits.data_pruning_kd import (
    RidgePair,
    alpha_for_fraction,
    early_outputs,
    el2n_score,
    forgetting_score,
    grand_score,
    keep_hardest,
    keep_random,
    kept_count,
    memorisation_score,
    watch_training,
)
from kdcore.metrics import accuracy
from kdcore.models import MLP
from kdcore.training import Budget, Distillation, Supervised, fit, predict, seeded, with_teacher

FRACTIONS = (0.05, 0.1, 0.33, 0.5, 1.0)
DEVIATION, WIDTH, SAMPLES = 1.0, 40, 400


# Subsets


@given(st.integers(1, 500), st.floats(0.01, 1.0))
def test_number_kept_is_the_nearest_integer(total, fraction):
    if total * fraction < 0.5:
        with pytest.raises(ValueError, match="keeps none"):
            kept_count(total, fraction)
    else:
        assert abs(kept_count(total, fraction) - total * fraction) <= 0.5 + 1e-9
        assert 1 <= kept_count(total, fraction) <= total


@pytest.mark.parametrize("keep", [lambda f: keep_hardest(SCORES, f), lambda f: keep_random(200, f, seed=3)])
def test_subsets_are_nested_exact_and_without_duplicates(keep):
    kept = [keep(fraction) for fraction in FRACTIONS]
    for fraction, rows in zip(FRACTIONS, kept, strict=True):
        assert len(rows) == kept_count(200, fraction) == len(set(rows.tolist()))
    for small, large in pairwise(kept):
        assert set(small.tolist()) <= set(large.tolist())


SCORES = torch.rand(200, generator=torch.Generator().manual_seed(0)).mul(20).round()  # with ties


def test_hardest_are_those_with_the_largest_score():
    kept = keep_hardest(SCORES, 0.25)
    dropped = torch.ones(200, dtype=torch.bool).index_fill(0, kept, False)
    assert SCORES[kept].min() >= SCORES[dropped].max()


def test_random_subsets_differ_by_seed_and_keep_class_frequencies_where_asked():
    assert keep_random(200, 0.3, seed=0).tolist() != keep_random(200, 0.3, seed=1).tolist()
    labels = torch.tensor([0] * 150 + [1] * 50)
    kept = keep_random(200, 0.2, seed=0, labels=labels)
    assert labels[kept].bincount().tolist() == [30, 10]


# Scores


def test_el2n_by_a_loop_over_networks_and_samples():
    logits, labels = torch.randn(3, 5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 2])
    expected = []
    for sample in range(5):
        lengths = []
        for network in range(3):
            probabilities = np.exp(logits[network, sample].numpy())
            error = probabilities / probabilities.sum() - np.eye(4)[labels[sample]]
            lengths.append(math.sqrt((error**2).sum()))
        expected.append(sum(lengths) / 3)
    torch.testing.assert_close(el2n_score(logits, labels), torch.tensor(expected, dtype=torch.float64))


@given(st.integers(0, 1000))
def test_el2n_lies_between_0_and_root_2(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 30 * torch.randn(6, 4, generator=generator)
    scores = el2n_score(logits, torch.arange(6) % 4)
    assert float(scores.min()) >= 0
    assert float(scores.max()) <= math.sqrt(2) + 1e-6


def test_el2n_of_sure_predictions():
    logits = torch.tensor([[80.0, 0.0], [0.0, 80.0]])
    torch.testing.assert_close(el2n_score(logits, torch.tensor([0, 0])), torch.tensor([0.0, math.sqrt(2)]))


def test_grand_is_the_norm_of_the_last_layers_gradient():
    with seeded(0):
        network = MLP(6, (5,), 4).double()
    inputs, labels = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 4
    expected = []
    for one, label in zip(inputs, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(network(one[None]), label[None])
        pieces = torch.autograd.grad(loss, list(network.classifier.parameters()))
        expected.append(torch.cat([piece.flatten() for piece in pieces]).norm())
    embeddings = network.embed(inputs).detach()
    scores = grand_score(network.classifier(embeddings).detach(), embeddings, labels)
    torch.testing.assert_close(scores, torch.stack(expected))


def test_forgetting_counts_falls_and_never_learned_is_largest():
    right = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1]]).bool()
    assert forgetting_score(right).tolist() == [2, 0, 4, 0]


@given(st.integers(1, 12), st.integers(0, 100))
def test_no_learned_sample_is_as_forgotten_as_one_never_learned(epochs, seed):
    right = torch.rand(epochs, 30, generator=torch.Generator().manual_seed(seed)) < 0.4
    scores = forgetting_score(right)
    learned = right.any(dim=0)
    assert bool((scores[~learned] == epochs).all())
    assert bool((scores[learned] <= epochs / 2).all())


def test_memorisation_by_hand():
    probabilities = torch.tensor([[0.9, 0.4], [0.8, 0.6], [0.1, 0.5]])
    trained_on = torch.tensor([[True, False], [True, True], [False, True]])
    torch.testing.assert_close(memorisation_score(probabilities, trained_on), torch.tensor([0.75, 0.15]))


# The loss is plain distillation: what its weight means here


def test_without_weight_the_teacher_is_irrelevant_and_with_all_the_labels_are():
    student, teacher, other = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    labels, wrong = torch.arange(6) % 5, (torch.arange(6) + 2) % 5
    ignoring, believing = KnowledgeDistillation(alpha=0.0), KnowledgeDistillation(alpha=1.0)
    assert ignoring(student, teacher, labels) == ignoring(student, other, labels)
    assert ignoring(student, teacher, labels) == torch.nn.functional.cross_entropy(student, labels)
    assert believing(student, teacher, labels) == believing(student, teacher, wrong)
    assert float(distillation_loss(teacher + torch.randn(6, 1), teacher).abs()) < 1e-6


# Ridge regression


def problem(seed, share, teacher_share, regularisation=1.0, samples=SAMPLES):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(WIDTH, samples, generator=generator, dtype=torch.float64)
    truth = torch.randn(WIDTH, generator=generator, dtype=torch.float64) / math.sqrt(WIDTH)
    noise = DEVIATION * torch.randn(samples, generator=generator, dtype=torch.float64)
    kept = [torch.randperm(samples, generator=generator)[: int(samples * part)] for part in (share, teacher_share)]
    return inputs, truth, inputs.T @ truth + noise, kept, RidgePair(inputs, *kept, regularisation)


def test_without_teacher_the_student_is_plain_ridge_regression():
    inputs, _, targets, (kept, _), pair = problem(0, 0.3, 1.0)
    oracle = Ridge(alpha=1.0, fit_intercept=False).fit(inputs[:, kept].T.numpy(), targets[kept].numpy())
    np.testing.assert_allclose(pair.solve(targets, alpha=0.0).numpy(), oracle.coef_, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_student_is_ridge_regression_on_mixed_targets(alpha):
    inputs, _, targets, (kept, seen), pair = problem(1, 0.3, 0.7)
    teacher = Ridge(alpha=1.0, fit_intercept=False).fit(inputs[:, seen].T.numpy(), targets[seen].numpy())
    mixed = (1 - alpha) * targets[kept].numpy() + alpha * teacher.predict(inputs[:, kept].T.numpy())
    oracle = Ridge(alpha=1.0, fit_intercept=False).fit(inputs[:, kept].T.numpy(), mixed)
    np.testing.assert_allclose(pair.solve(targets, alpha).numpy(), oracle.coef_, rtol=1e-9)


def test_without_regularisation_the_student_becomes_its_teacher():
    inputs, _, targets, (_, seen), pair = problem(2, 0.3, 1.0, regularisation=0.0)
    teacher = torch.linalg.lstsq(inputs[:, seen].T, targets[seen, None]).solution[:, 0]
    torch.testing.assert_close(pair.solve(targets, alpha=1.0), teacher)


def test_without_regularisation_a_teacher_on_the_same_samples_changes_nothing():
    inputs, _, targets, (kept, _), _ = problem(3, 0.3, 1.0)
    pair = RidgePair(inputs, kept, kept, regularisation=0.0)
    torch.testing.assert_close(pair.solve(targets, alpha=0.8), pair.solve(targets, alpha=0.0))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_expected_error_is_the_mean_over_the_noise(alpha):
    inputs, truth, _, _, pair = problem(4, 0.3, 0.6)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(2000):
        noise = DEVIATION * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
        errors.append(float((pair.solve(inputs.T @ truth + noise, alpha) - truth).square().sum()))
    standard_error = np.std(errors) / math.sqrt(len(errors))
    assert abs(np.mean(errors) - pair.expected_error(truth, DEVIATION, alpha)) < 5 * standard_error


def test_best_weight_is_the_parabolas_minimum():
    _, truth, _, _, pair = problem(5, 0.15, 1.0)
    best = pair.best_alpha(truth, DEVIATION)
    errors = [pair.expected_error(truth, DEVIATION, best + step) for step in (-0.1, 0.0, 0.1)]
    assert errors[1] < min(errors[0], errors[2])
    assert errors[0] == pytest.approx(errors[2])


@pytest.mark.parametrize(
    ("share", "teacher_share", "alpha", "error"),
    [(0.15, 1.0, 0.0, 1.63), (0.15, 1.0, 1.0, 0.11), (0.15, 0.5, 1.0, 0.24), (0.6, 1.0, 0.0, 0.20),
     (0.6, 1.0, 1.0, 0.11), (0.6, 0.5, 1.0, 0.26)],
)  # fmt: skip
def test_mean_error_of_a_hundred_draws(share, teacher_share, alpha, error):
    """Figures of another simulation of 100 draws: 40 weights, 400 samples, unit noise and λ = 1, two decimals."""
    draws = [problem(seed, share, teacher_share) for seed in range(100)]
    found = [float((pair.solve(targets, alpha) - truth).square().sum()) for _, truth, targets, _, pair in draws]
    standard_error = np.std(found) / math.sqrt(len(found))  # of either simulation, hence the root
    assert np.mean(found) == pytest.approx(error, abs=0.005 + 3 * math.sqrt(2) * standard_error)


# The convenience that is ours, bad input, and learning


def test_weight_falls_with_the_share_that_is_kept():
    weights = [alpha_for_fraction(fraction, low=0.2, high=0.9) for fraction in FRACTIONS]
    assert weights == sorted(weights, reverse=True)
    assert weights[-1] == pytest.approx(0.2)


LOGITS = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kept_count(10, 0.0), r"fraction must lie in \(0, 1\]"),
        (lambda: kept_count(10, 1.2), r"fraction must lie in \(0, 1\]"),
        (lambda: kept_count(10, 0.01), "keeps none"),
        (lambda: keep_hardest(torch.zeros(3, 2), 0.5), "scores must have shape"),
        (lambda: keep_hardest(torch.tensor([0.0, math.nan]), 0.5), "scores must be finite"),
        (lambda: keep_random(4, 0.5, labels=torch.zeros(3)), r"labels must have shape \(4,\)"),
        (lambda: el2n_score(torch.zeros(4), torch.zeros(4)), "logits must have shape"),
        (lambda: el2n_score(LOGITS, torch.tensor([0, 1, 4])), r"labels must lie in \[0, 4\)"),
        (lambda: grand_score(LOGITS, torch.zeros(2, 5), torch.tensor([0, 1, 2])), "embeddings must have shape"),
        (lambda: forgetting_score(torch.zeros(3, 4)), "right must be bool"),
        (lambda: memorisation_score(torch.zeros(2, 3), torch.zeros(2, 3)), "trained_on must be bool"),
        (lambda: memorisation_score(torch.zeros(2, 3), torch.ones(2, 3).bool()), "some networks and not of others"),
        (lambda: alpha_for_fraction(0.0), "fraction must lie"),
        (lambda: alpha_for_fraction(0.5, low=0.9, high=0.1), "low must be at most high"),
        (lambda: early_outputs(MLP, Arrays(inputs=LOGITS), Budget(epochs=1), runs=0), "runs must be a positive"),
        (lambda: RidgePair(torch.zeros(3), torch.arange(2), torch.arange(2)), "inputs must have shape"),
        (lambda: RidgePair(LOGITS, torch.arange(2), torch.arange(2), -1.0), "regularisation must be"),
        (lambda: RidgePair(torch.randn(5, 9), torch.arange(2), torch.arange(9), 0.0), "regularisation must be above 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scores_of_real_training_find_flipped_labels():
    rows = data.digits().train[:400]
    flipped = torch.arange(400) % 10 == 0
    rows = rows.with_(labels=torch.where(flipped, (rows.labels + 1) % 10, rows.labels))
    short = Budget(epochs=10, batch_size=50, lr=0.05, schedule="constant")
    logits, embeddings = early_outputs(lambda: MLP(64, (64,)), rows, short, runs=3)
    right = watch_training(lambda: MLP(64, (64,)), rows, short)
    for scores in (
        el2n_score(logits, rows.labels),
        grand_score(logits, embeddings, rows.labels),
        forgetting_score(right),
    ):
        hardest = keep_hardest(scores, 0.1)
        assert flipped[hardest].float().mean() > 0.3  # three times chance


def test_with_a_teacher_a_random_twentieth_teaches_more():
    images = data.digits()
    with seeded(0):
        teacher, students = MLP(64, (64,)), [MLP(64, (64,)) for _ in range(2)]
    fit(Supervised(teacher), images.train, Budget(epochs=15, batch_size=64, lr=0.1))
    kept = with_teacher(images.train, teacher)[keep_random(len(images.train), 0.05)]
    scores = []
    for student, alpha in zip(students, (0.0, 1.0), strict=True):
        fit(Distillation(student, KnowledgeDistillation(4.0, alpha)), kept, Budget(steps=200, batch_size=50, lr=0.1))
        scores.append(accuracy(predict(student, images.test.inputs), images.test.labels))
    assert scores[1] > scores[0] + 2
