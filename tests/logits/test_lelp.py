"""LELP: the null space, directions and their rotation, subclass targets, the loss and its limits, the learner."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.foundations.kd import distillation_loss, soften
from kdcore.logits.lelp import (
    SubclassDistillation,
    SubclassProjection,
    SummedSubclasses,
    class_logits,
    fit_projection,
    known_shares,
    null_space_projection,
    principal_directions,
    random_rotation,
    subclass_loss,
    subclass_shares,
    subclass_targets,
)
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Distillation, Supervised, fit, predict, seeded

C, D, S = 3, 12, 4
SPLITS = ("pca", "random", "kmeans")


def teacher_side(seed=0, rows=90):
    """Embeddings with uneven variances, labels, last layer and logits, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.2, D, dtype=torch.float64)
    embeddings = torch.randn(rows, D, generator=generator, dtype=torch.float64) * spread
    weight = torch.randn(C, D, generator=generator, dtype=torch.float64)
    return embeddings, torch.arange(rows) % C, weight, embeddings @ weight.T


def fitted(**changes):
    embeddings, labels, weight, logits = teacher_side()
    return fit_projection(embeddings, labels, weight, S, **changes), embeddings, labels, weight, logits


def random_targets(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, C, generator=generator, dtype=torch.float64)
    scores = 2 * torch.randn(8, C, S, generator=generator, dtype=torch.float64)
    outputs = torch.randn(8, C * S, generator=generator, dtype=torch.float64)
    return logits, scores, outputs


# Null space, equation (1)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_projection_is_symmetric_idempotent_and_blind_to_the_logits(classes):
    weight = torch.randn(classes, D, dtype=torch.float64)
    projection = null_space_projection(weight)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection, projection.T)
    torch.testing.assert_close(weight @ projection, torch.zeros(classes, D, dtype=torch.float64))
    closed = torch.eye(D).double() - weight.T @ torch.linalg.pinv(weight @ weight.T) @ weight
    torch.testing.assert_close(projection, closed)


def test_equal_rows_count_once():
    weight = torch.randn(1, D).repeat(2, 1)
    assert null_space_projection(weight).trace().item() == pytest.approx(D - 1)


@pytest.mark.parametrize("split", SPLITS)
def test_row_space_moves_class_probabilities_only(split):
    projection, embeddings, _, weight, _ = fitted(split=split)
    moved = embeddings + torch.randn(len(embeddings), C, dtype=torch.float64) @ weight
    torch.testing.assert_close(projection.scores(moved), projection.scores(embeddings))
    before, after = (projection(f, f @ weight.T).unflatten(1, (C, S)) for f in (embeddings, moved))
    assert (before.sum(2) - after.sum(2)).abs().max() > 0.1
    torch.testing.assert_close(before / before.sum(2, keepdim=True), after / after.sum(2, keepdim=True))


def test_without_the_null_space_they_move_the_shares():
    projection, embeddings, _, weight, _ = fitted(null_space=False)
    moved = embeddings + torch.randn(len(embeddings), C, dtype=torch.float64) @ weight
    assert (projection.scores(moved) - projection.scores(embeddings)).abs().max() > 0.1


def test_trivial_null_space_is_skipped():
    embeddings, labels, *_ = teacher_side()
    square = torch.randn(C, C, dtype=torch.float64)
    first, second = (fit_projection(embeddings[:, :C], labels, square, 2, null_space=use) for use in (True, False))
    torch.testing.assert_close(first.directions, second.directions)


# Directions and rotation, equations (2) and (3)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("split", ["pca", "random"])
def test_directions_are_orthonormal_and_in_the_null_space(split, rotate):
    projection, _, _, weight, _ = fitted(split=split, rotate=rotate)
    for directions in projection.directions:
        torch.testing.assert_close(directions.T @ directions, torch.eye(S).double())
        torch.testing.assert_close(weight @ directions, torch.zeros(C, S).double())


def test_principal_directions_are_the_eigenvectors():
    points = teacher_side()[0]
    mean, directions = principal_directions(points, S)
    torch.testing.assert_close(mean, points.mean(0))
    values, vectors = torch.linalg.eigh(torch.cov(points.T))
    torch.testing.assert_close((directions.T @ vectors[:, -S:].flip(1)).abs(), torch.eye(S).double())
    torch.testing.assert_close(((points - mean) @ directions).var(0), values[-S:].flip(0))


def own_scores(projection, embeddings, labels):
    scores = projection.scores(embeddings)
    return [scores[labels == label, label] for label in range(C)]


@pytest.mark.parametrize("split", ["pca", "random"])
def test_class_mean_of_scores_is_zero(split):
    projection, embeddings, labels, *_ = fitted(split=split)
    for own in own_scores(projection, embeddings, labels):
        torch.testing.assert_close(own.mean(0), torch.zeros(S).double())


def test_total_variance_is_rotation_invariant_and_the_eigenvalue_sum():
    embeddings, labels, weight, _ = teacher_side()
    totals = []
    for rotate, seed in [(False, 0), (True, 0), (True, 1)]:
        projection = fit_projection(embeddings, labels, weight, S, rotate=rotate, seed=seed)
        totals.append(torch.stack([own.var(0).sum() for own in own_scores(projection, embeddings, labels)]))
    projected = embeddings @ null_space_projection(weight)
    wanted = [torch.linalg.eigvalsh(torch.cov(projected[labels == c].T))[-S:].sum() for c in range(C)]
    for total in totals:
        torch.testing.assert_close(total, torch.stack(wanted))


def test_rotated_variances_are_even_in_expectation():
    variances = torch.tensor([9.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rotated = torch.stack([(random_rotation(4, generator) ** 2).T @ variances for _ in range(4000)]).mean(0)
    np.testing.assert_allclose(rotated, variances.mean().item(), rtol=0.05)


def test_rotation_is_even_in_sign():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_rotation(3, generator) for _ in range(2000)])
    assert drawn.mean(0).abs().max() < 0.06
    assert abs(torch.linalg.det(drawn).mean().item()) < 0.08


def test_the_seed_decides_the_rotation_and_nothing_else_does():
    first, second, other = (fitted(seed=seed)[0] for seed in (3, 3, 4))
    torch.testing.assert_close(first.directions, second.directions)
    assert (first.directions - other.directions).abs().max() > 0.1


@pytest.mark.parametrize("split", SPLITS)
def test_scale_makes_beta_a_multiple_of_the_standard_deviation(split):
    projection, embeddings, labels, *_ = fitted(split=split, scale="class")
    for own in own_scores(projection, embeddings, labels):
        assert own.var(0, unbiased=False).mean().item() == pytest.approx(1.0)
    bigger = fit_projection(7 * embeddings, labels, teacher_side()[2], S, split=split, scale="class")
    if split != "kmeans":  # offsets of k-means are squares, but its scores scale as a whole
        torch.testing.assert_close(bigger.scores(7 * embeddings), projection.scores(embeddings))


def test_kmeans_scores_are_distances_to_the_centres():
    embeddings, labels, weight, _ = teacher_side()
    projection = fit_projection(embeddings, labels, weight, S, split="kmeans")
    projected = (embeddings @ null_space_projection(weight))[labels == 1]
    shares = subclass_shares(projection.scores(embeddings[labels == 1]))[:, 1]
    answers = shares.argmax(1)
    centres = torch.stack([projected[answers == s].mean(0) for s in range(S)])
    torch.testing.assert_close((-(torch.cdist(projected, centres) ** 2) / 2).softmax(1), shares)
    inertia = (projected - centres[answers]).square().sum().item()
    best = KMeans(S, n_init=20, random_state=0).fit(projected.numpy()).inertia_
    assert inertia == pytest.approx(best, rel=0.05)


# Targets, equation (4)


@given(st.floats(0.05, 20), st.floats(0.2, 10), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_targets_by_their_properties(beta, temperature, seed):
    logits, scores, _ = random_targets(seed)
    shares = subclass_shares(scores, beta)
    targets = subclass_targets(logits, shares, temperature)
    classes = soften(logits, temperature)
    torch.testing.assert_close(targets.unflatten(1, (C, S)).sum(2), classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(8).double())
    within = -torch.xlogy(shares, shares).sum(2)
    entropy = -torch.xlogy(targets, targets).sum(1)
    torch.testing.assert_close(entropy, -(classes * classes.log()).sum(1) + (classes * within).sum(1))


def test_large_beta_shares_evenly_and_small_beta_gives_all_to_one():
    logits, scores, _ = random_targets()
    even = subclass_targets(logits, subclass_shares(scores, 1e9))
    torch.testing.assert_close(even, (soften(logits) / S).repeat_interleave(S, dim=1), rtol=1e-6, atol=1e-9)
    sharp = subclass_shares(scores, 1e-4)
    torch.testing.assert_close(sharp, F.one_hot(scores.argmax(2), S).double())


def test_shares_ignore_what_is_common_to_all_scores_of_a_class():
    _, scores, _ = random_targets()
    torch.testing.assert_close(subclass_shares(scores + torch.randn(8, C, 1)), subclass_shares(scores))


def test_known_shares():
    shares = known_shares(torch.tensor([0, 2]), torch.tensor([3, 1]), C, S)
    torch.testing.assert_close(shares.sum(2), torch.ones(2, C))
    assert shares[0, 0].tolist() == [0, 0, 0, 1]
    assert shares[0, 1].tolist() == [0.25] * 4
    assert shares[1, 2].tolist() == [0, 1, 0, 0]


# Loss and classes, equations (5) and (6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_subclass_is_plain_distillation(temperature):
    embeddings, labels, weight, logits = teacher_side()
    projection = fit_projection(embeddings, labels, weight, 1, temperature=temperature)
    outputs = torch.randn(len(labels), C, dtype=torch.float64, requires_grad=True)
    ours = subclass_loss(outputs, projection(embeddings, logits), temperature)
    theirs = distillation_loss(outputs, logits, temperature)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, outputs)[0] for loss in (ours, theirs)))
    torch.testing.assert_close(class_logits(outputs, C), outputs)


def test_gradient_by_hand():
    logits, scores, outputs = random_targets()
    targets = subclass_targets(logits, subclass_shares(scores))
    outputs.requires_grad_()
    (found,) = torch.autograd.grad(subclass_loss(outputs, targets), outputs)
    torch.testing.assert_close(found, (outputs.softmax(1) - targets) / 8)
    cross_entropy = -(targets * outputs.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(torch.autograd.grad(cross_entropy, outputs)[0], found)
    (soft,) = torch.autograd.grad(subclass_loss(outputs, targets, 3.0), outputs)
    torch.testing.assert_close(soft, 3 * ((outputs / 3).softmax(1) - targets) / 8)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_loss_is_that_of_classes_and_that_of_subclasses(temperature):
    logits, scores, outputs = random_targets()
    shares = subclass_shares(scores)
    loss = subclass_loss(outputs, subclass_targets(logits, shares, temperature), temperature)
    between = distillation_loss(class_logits(outputs, C, temperature), logits, temperature)
    own = (outputs.unflatten(1, (C, S)) / temperature).log_softmax(2)
    within = (soften(logits, temperature) * (shares * (shares.log() - own)).sum(2)).sum(1).mean() * temperature**2
    torch.testing.assert_close(loss, between + within)


def test_class_probabilities_are_sums():
    outputs = random_targets()[2]
    for temperature in (1.0, 3.0):
        summed = (outputs / temperature).softmax(1).unflatten(1, (C, S)).sum(2)
        torch.testing.assert_close(soften(class_logits(outputs, C, temperature), temperature), summed)


def test_permuted_subclasses_give_the_same_class():
    outputs = random_targets()[2]
    order = torch.stack([torch.randperm(S) + c * S for c in range(C)]).flatten()
    torch.testing.assert_close(class_logits(outputs[:, order], C), class_logits(outputs, C))


def test_loss_is_zero_at_the_target_and_no_gradient_reaches_it():
    targets = subclass_targets(
        *[t.requires_grad_() for t in (random_targets()[0], subclass_shares(random_targets()[1]))]
    )
    outputs = (targets.log() + 5).detach().requires_grad_()
    loss = subclass_loss(outputs, targets)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.zeros_like(outputs))


def test_zero_targets_are_allowed():
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert subclass_loss(torch.zeros(1, 4), targets).item() == pytest.approx(math.log(4))


# Learner


def learner_and_batch(**changes):
    embeddings, labels, *_ = teacher_side()
    with seeded(0):
        teacher = MLP(D, (16,), C).double()
        student = MLP(D, (5,), C * S).double()
    inside = predict(nn.Sequential(teacher.layers), embeddings)
    projection = fit_projection(inside, labels, teacher.classifier.weight, S)
    batch = Arrays(inputs=embeddings, labels=labels)
    cached = batch.with_(subclass_targets=projection(inside, predict(teacher, embeddings)))
    learners = (
        SubclassDistillation(student, C, **changes),
        SubclassDistillation(student, C, teacher=teacher, projection=projection, **changes),
    )
    return learners, batch, cached


def test_cached_targets_are_those_of_the_teacher_in_the_loop():
    (without, within), batch, cached = learner_and_batch()
    torch.testing.assert_close(without.losses(cached), within.losses(batch))
    assert not any(p.requires_grad for p in within.teacher.parameters())
    assert not within.train().teacher.training
    fit(within, batch, Budget(steps=2, batch_size=16))
    with pytest.raises(ValueError, match="needs a teacher and a projection"):
        without.losses(batch)


def test_alpha_brings_the_labels_in():
    (mixed, _), _, cached = learner_and_batch(alpha=0.25)
    (alone, _), _, _ = learner_and_batch()
    terms = mixed.losses(cached)
    torch.testing.assert_close(terms["subclasses"], 0.25 * alone.losses(cached)["subclasses"])
    summed = mixed.model(cached.inputs).softmax(1).unflatten(1, (C, S)).sum(2)
    torch.testing.assert_close(terms["cross_entropy"], -0.75 * summed[range(90), cached.labels].log().mean())
    wrong = cached.with_(labels=(cached.labels + 1) % C)
    torch.testing.assert_close(alone.losses(wrong), alone.losses(cached))


def test_student_learns_more_than_from_two_probabilities():
    torch.set_num_threads(1)
    images = digits(train_size=600)
    train, test = (part.with_(labels=(part.labels >= 5).long()) for part in (images.train, images.test))
    with seeded(0):
        teacher = ConvNet(16, 3, num_classes=2)
    fit(Supervised(teacher), train, Budget(epochs=15, batch_size=64, optimizer="adam", lr=3e-3))
    logits = predict(teacher, train.inputs)
    with torch.no_grad():
        inside = teacher.embed(train.inputs)
    projection = fit_projection(inside, train.labels, teacher.classifier.weight, 5, scale="class")
    train = train.with_(teacher_logits=logits, subclass_targets=projection(inside, logits)).split(200, seed=0)[0]
    scores = {"plain": [], "subclasses": []}
    for seed in range(3):
        for arm, found in scores.items():
            with seeded(seed):
                student = SummedSubclasses(MLP(64, (16,), 10), 2)
            plain = Distillation(student, lambda s, t, y: distillation_loss(s, t, 1.0))
            learner = plain if arm == "plain" else SubclassDistillation(student.student, 2)
            fit(learner, train, Budget(epochs=60, batch_size=64, optimizer="adam", lr=1e-2), seed=seed)
            found.append((predict(student, test.inputs).argmax(1) == test.labels).double().mean().item())
    assert min(scores["subclasses"]) > 0.8
    assert np.mean(scores["subclasses"]) > np.mean(scores["plain"])


# Bad input

POINTS, LABELS, WEIGHT = torch.randn(12, 6), torch.arange(12) % 2, torch.randn(2, 6)
SHARES = torch.full((4, 2, 3), 1 / 3)
TARGETS = torch.full((4, 6), 1 / 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: null_space_projection(torch.zeros(3)), "weight must be a floating-point matrix"),
        (lambda: null_space_projection(WEIGHT / 0), "weight must be finite"),
        (lambda: principal_directions(POINTS, 7), "num_directions must lie between 1 and 6"),
        (lambda: principal_directions(POINTS[:3], 3), "num_directions must lie between 1 and 2"),
        (lambda: principal_directions(torch.ones(9, 4) * torch.arange(9.0)[:, None], 2), "along which the embeddings"),
        (lambda: random_rotation(0, torch.Generator()), "size must be a positive number"),
        (lambda: subclass_shares(SHARES, 0.0), "beta must be a positive number, got 0.0"),
        (lambda: subclass_shares(SHARES[0]), r"scores must have shape \(B, C, S\), got \(2, 3\)"),
        (lambda: subclass_shares(SHARES / 0), "scores must be finite"),
        (lambda: known_shares(torch.tensor([2]), torch.tensor([0]), 2, 3), r"labels must lie in \[0, 2\)"),
        (lambda: known_shares(torch.tensor([1]), torch.tensor([3]), 2, 3), r"subclasses must lie in \[0, 3\)"),
        (lambda: subclass_targets(torch.zeros(4, 3), SHARES), r"shares must have shape .* \(4, 3\), got \(4, 2, 3\)"),
        (lambda: subclass_targets(torch.zeros(4, 2), SHARES, -1.0), "temperature must be a positive number"),
        (lambda: subclass_loss(torch.zeros(4, 5), TARGETS), "targets must have the shape of outputs"),
        (lambda: subclass_loss(torch.zeros(4, 6), TARGETS * 2), "targets must be probabilities that sum to 1"),
        (lambda: subclass_loss(torch.zeros(4, 6), TARGETS, 0.0), "temperature must be a positive number"),
        (lambda: class_logits(torch.zeros(4, 6), 4), "num_classes must divide the number of outputs, 6, got 4"),
        (lambda: SummedSubclasses(nn.Linear(2, 4), 0), "num_classes must be a positive number"),
        (lambda: SubclassProjection(torch.zeros(2, 6, 3), torch.zeros(3, 2)), "directions and offsets must have"),
        (lambda: SubclassProjection(torch.zeros(2, 6, 3), torch.zeros(2, 3), beta=-1.0), "beta must be a positive"),
        (
            lambda: fit_projection(POINTS, LABELS, WEIGHT, 2).scores(POINTS[:, :3]),
            "embeddings must have width 6, got 3",
        ),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 2)(POINTS, torch.zeros(12, 3)), "shares must have shape"),
        (lambda: fit_projection(POINTS / 0, LABELS, WEIGHT, 2), "embeddings must be finite"),
        (lambda: fit_projection(POINTS, LABELS + 1, WEIGHT, 2), r"labels must lie in \[0, 2\)"),
        (lambda: fit_projection(POINTS, 0 * LABELS, WEIGHT, 2), "the smallest class has 0 samples"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 5), "num_subclasses must lie between 1 and 4, got 5"),
        (lambda: fit_projection(POINTS[:6], LABELS[:6], WEIGHT, 3), "num_subclasses must lie between 1 and 2, got 3"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT[:, :3], 2), "weight must have the width of embeddings, 6"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 2, split="pac"), "split must be one of .* Did you mean 'pca'"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 2, scale="clas"), "scale must be one of"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 2, beta=0.0), "beta must be a positive number"),
        (lambda: fit_projection(POINTS, LABELS, WEIGHT, 2, temperature=0.0), "temperature must be a positive number"),
        (lambda: SubclassDistillation(MLP(4), 2, alpha=2.0), r"alpha must lie in \[0, 1\]"),
        (lambda: SubclassDistillation(MLP(4), 2, temperature=0.0), "temperature must be a positive number"),
        (lambda: SubclassDistillation(MLP(4), 2, teacher=MLP(4)), "teacher and projection must be given together"),
        (
            lambda: SubclassDistillation(MLP(4), 2, 4.0, 1.0, MLP(4), fit_projection(POINTS, LABELS, WEIGHT, 2)),
            "temperature must be that of projection, 1.0, got 4.0",
        ),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
