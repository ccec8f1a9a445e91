"""Sinkhorn distillation: the plan and its oracles, limits, symmetries, the gradient through cost and plan, rivals."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, jensenshannon
from torch import nn
from torch.nn import functional as F

from kdcore.data import digits
from kdcore.foundations.kd import distillation_loss, soft_cross_entropy, soften
from kdcore.logits.sinkd import (
    AnnealedDistillation,
    SinkhornDistance,
    SinkhornDistillation,
    annealed_temperature,
    jensen_shannon,
    reverse_divergence,
    total_variation,
    transport_cost,
    transport_plan,
)
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Distillation, Supervised, fit, predict, seeded, with_teacher

LABELS = torch.tensor([0, 3, 1, 5, 2, 2, 4, 0])
RIVALS = (total_variation, reverse_divergence, jensen_shannon)


def logits_pair(seed=0, rows=8, classes=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, rows, classes, generator=generator, dtype=torch.float64).mul(3).add(1)
    return student.to(dtype), teacher.to(dtype)


def gradient(function, student, *rest):
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(student, *rest), student)
    return result


def soft_labels(student, teacher, temperature=2.0):
    """The soft labels of equation (4)."""
    return soft_cross_entropy(student, soften(teacher, temperature), temperature)


def published_plan(cost, epsilon, iterations):
    """Equation (2) as it reads: the matrix divided by its sums."""
    plan = torch.exp(-cost / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(dim=1, keepdim=True)
        plan = plan / plan.sum(dim=0, keepdim=True)
    return plan


def ours_for(case):
    """What this case's outputs are in our functions, by name."""
    wanted = case["hyperparameters"]
    student, teacher = (
        torch.tensor(case["inputs"][f"{who}_logits"], dtype=torch.float64) for who in ("student", "teacher")
    )
    if "T0" in wanted:
        temperature = annealed_temperature(wanted["T0"], wanted["epoch"], wanted["total_epochs"])
        return {
            "soft_ce_kd": soft_labels(student, teacher, temperature),
            "grad_student_logits": gradient(soft_labels, student, teacher, temperature),
        }
    labels = torch.tensor(case["inputs"]["labels"])
    distance = SinkhornDistance(wanted["sinkhorn_temperature"], wanted["epsilon"], wanted["n_iters"])
    scale = wanted["sinkhorn_scale"]
    loss = SinkhornDistillation(wanted["kd_temperature"], wanted["alpha"], wanted["beta"], scale, distance)
    cost = transport_cost(student, teacher, wanted["sinkhorn_temperature"])
    return {
        "cost": cost,
        "plan": transport_plan(cost, wanted["epsilon"], wanted["n_iters"]),
        "sinkhorn_sum": distance(student, teacher),
        "sinkhorn_loss_scaled": scale * distance(student, teacher),
        "grad_sinkhorn_sum": gradient(distance, student, teacher),
        "soft_ce_kd": soft_labels(student, teacher, wanted["kd_temperature"]),
        "ce": SinkhornDistillation(alpha=0.0, beta=0.0)(student, teacher, labels),
        "total": loss(student, teacher, labels),
        "grad_total": gradient(loss, student, teacher, labels),
    }


@pytest.mark.parametrize("case", reference_cases("sinkd"))
def test_matches_published_figures(case):
    ours = ours_for(case)
    assert_published(ours, case)


# The plan, equation (2), and its oracles


@given(st.integers(1, 12), st.sampled_from([0.05, 0.1, 0.5, 3.0]), st.integers(1, 25), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_plan_is_the_alternate_normalisation(rows, epsilon, iterations, seed):
    cost = transport_cost(*logits_pair(seed, rows))
    plan = transport_plan(cost, epsilon, iterations)
    torch.testing.assert_close(plan, published_plan(cost, epsilon, iterations), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(rows, dtype=torch.float64))
    assert float(plan.min()) >= 0


def test_rows_sum_to_one_in_the_limit():
    cost = transport_cost(*logits_pair())
    gaps = [(transport_plan(cost, 0.1, n).sum(dim=1) - 1).abs().max().item() for n in (1, 20, 400)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


def test_logarithms_agree_with_the_kernel():
    """float32 has to take logarithms at this ε where float64 has not."""
    cost = transport_cost(*logits_pair(rows=16))
    torch.testing.assert_close(
        transport_plan(cost.float(), 0.03).double(), published_plan(cost, 0.03, 20), rtol=2e-3, atol=1e-5
    )
    plain = published_plan(cost.float(), 0.004, 20)
    assert not bool(torch.isfinite(plain).all())
    small = transport_plan(cost.float(), 0.004)
    torch.testing.assert_close(small.sum(dim=0), torch.ones(16))
    # Both forms in float64, on either side of the point where the form changes (ε near 0.0057).
    kernel, logarithms = (transport_plan(cost, epsilon) for epsilon in (0.00566, 0.00564))
    torch.testing.assert_close(kernel, published_plan(cost, 0.00566, 20), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(logarithms, published_plan(cost, 0.00564, 20), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_agrees_with_pot(epsilon):
    """POT carries mass 1/B from each row to each column; here every row and column has mass 1."""
    cost = transport_cost(*logits_pair(rows=12))
    share = np.full(12, 1 / 12)
    wanted = 12 * ot.sinkhorn(share, share, cost.numpy(), reg=epsilon, numItermax=20000, stopThr=1e-13)
    np.testing.assert_allclose(transport_plan(cost, epsilon, 5000).numpy(), wanted, rtol=1e-7, atol=1e-12)
    logarithmic = 12 * ot.sinkhorn(share, share, cost.numpy(), 0.05, method="sinkhorn_log", numItermax=20000)
    np.testing.assert_allclose(transport_plan(cost.float(), 0.05, 2000).numpy(), logarithmic, atol=2e-3)


def test_small_epsilon_gives_the_best_assignment():
    cost = transport_cost(*logits_pair(rows=12))
    rows, columns = linear_sum_assignment(cost.numpy())
    best = cost.numpy()[rows, columns].sum()
    plan = transport_plan(cost, 0.002, 4000)
    assert (plan * cost).sum().item() == pytest.approx(best, rel=1e-3)
    assert plan.argmax(dim=1).tolist() == columns.tolist()


def test_large_epsilon_gives_the_even_plan():
    student, teacher = logits_pair()
    cost = transport_cost(student, teacher)
    torch.testing.assert_close(transport_plan(cost, 1e6), torch.full_like(cost, 1 / 8), rtol=1e-5, atol=0)
    loss = SinkhornDistance(epsilon=1e6)(student, teacher)
    assert loss.item() == pytest.approx(cost.sum().item() / 8, rel=1e-5)


def test_two_classes_are_matched_by_rank():
    """With two classes the cost is a distance on a line, where sorting is the best assignment."""
    student, teacher = logits_pair(rows=10, classes=2)
    p, q = (soften(logits, 2.0)[:, 0].sort().values for logits in (student, teacher))
    loss = SinkhornDistance(epsilon=0.002, iterations=5000)(student, teacher)
    assert loss.item() == pytest.approx(2 * (p - q).abs().sum().item(), rel=1e-2)


# Cost and loss, equations (1) and (3)


def test_cost_agrees_with_scipy():
    student, teacher = logits_pair()
    wanted = cdist(soften(student, 3.0).numpy(), soften(teacher, 3.0).numpy(), "cityblock")
    np.testing.assert_allclose(transport_cost(student, teacher, 3.0).numpy(), wanted, rtol=1e-12)


def test_one_sample():
    student, teacher = logits_pair(rows=1)
    assert transport_plan(transport_cost(student, teacher)).item() == pytest.approx(1)
    wanted = (soften(student, 2.0) - soften(teacher, 2.0)).abs().sum()
    torch.testing.assert_close(SinkhornDistance()(student, teacher), wanted)
    torch.testing.assert_close(SinkhornDistance()(student, teacher), 2 * total_variation(student, teacher))


@pytest.mark.parametrize("iterations", [1, 20])
def test_equal_teacher_rows(iterations):
    student, teacher = logits_pair()
    same = teacher[:1].expand(8, -1)
    cost = transport_cost(student, same)
    torch.testing.assert_close(transport_plan(cost, 0.1, iterations), torch.full_like(cost, 1 / 8))
    torch.testing.assert_close(SinkhornDistance(iterations=iterations)(student, same), cost[:, 0].sum())


@given(st.integers(1, 12), st.integers(2, 8), st.sampled_from([0.01, 0.1, 1.0]), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_loss_lies_in_its_range(rows, classes, epsilon, seed):
    student, teacher = logits_pair(seed, rows, classes)
    total, mean = (SinkhornDistance(epsilon=epsilon, reduction=kind)(student, teacher) for kind in ("sum", "mean"))
    assert 0 <= total.item() <= 2 * rows
    assert mean.item() == pytest.approx(total.item() / rows)


def test_teacher_rows_may_be_permuted():
    student, teacher = logits_pair()
    order = torch.randperm(8)
    loss = SinkhornDistance()
    torch.testing.assert_close(loss(student, teacher[order]), loss(student, teacher))
    torch.testing.assert_close(gradient(loss, student, teacher[order]), gradient(loss, student, teacher))
    assert not torch.allclose(total_variation(student, teacher[order]), total_variation(student, teacher))


def test_permuted_students_permute_the_gradient():
    student, teacher = logits_pair()
    order = torch.randperm(8)
    # Only nearly, as long as rows have not converged: columns are normalised last, but either way row by row alike.
    torch.testing.assert_close(
        gradient(SinkhornDistance(), student[order], teacher), gradient(SinkhornDistance(), student, teacher)[order]
    )


def test_a_perfect_student_still_pays():
    """The plan is blurred, so that each prediction is also carried to the others; not so for a sharp plan."""
    _, teacher = logits_pair()
    assert SinkhornDistance()(teacher, teacher).item() > 0.01
    assert gradient(SinkhornDistance(), teacher, teacher).abs().max().item() > 1e-4
    assert SinkhornDistance(epsilon=0.002)(teacher, teacher).item() < 1e-6
    assert total_variation(teacher, teacher).item() == 0


# The gradient


@pytest.mark.parametrize("function", [SinkhornDistance(), SinkhornDistance(through_plan=False), *RIVALS])
def test_gradient_of_a_sample_sums_to_zero(function):
    student, teacher = logits_pair()
    result = gradient(function, student, teacher)
    assert result.sum(dim=1).abs().max().item() < 1e-14
    assert result.abs().max().item() > 1e-4


def weights(cost, epsilon, iterations):
    cost = cost.clone().requires_grad_()
    (result,) = torch.autograd.grad((transport_plan(cost, epsilon, iterations) * cost).sum(), cost)
    return result


def test_gradient_through_the_plan_in_closed_form():
    """Equation (7), with a and b from the linear system that defines them."""
    cost, epsilon = transport_cost(*logits_pair()), 0.3
    plan = transport_plan(cost, epsilon, 3000)
    rows, columns = torch.diag(plan.sum(dim=1)), torch.diag(plan.sum(dim=0))
    system = torch.cat([torch.cat([rows, plan], dim=1), torch.cat([plan.T, columns], dim=1)])
    right = torch.cat([(plan * cost).sum(dim=1), (plan * cost).sum(dim=0)])
    both = torch.linalg.lstsq(system, right.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    surplus = cost - both[:8].unsqueeze(1) - both[8:]
    torch.testing.assert_close(weights(cost, epsilon, 3000), plan * (1 - surplus / epsilon), rtol=1e-6, atol=1e-9)
    assert float(weights(cost, epsilon, 3000).min()) < 0


@pytest.mark.parametrize("through_plan", [True, False])
def test_which_way_the_gradient_flows(through_plan):
    student, teacher = logits_pair()
    leaf = student.clone().requires_grad_()
    cost = transport_cost(leaf, teacher)
    plan = transport_plan(cost.detach())
    (constant_plan,) = torch.autograd.grad((plan * cost).sum(), leaf)
    same = torch.allclose(gradient(SinkhornDistance(through_plan=through_plan), student, teacher), constant_plan)
    assert same != through_plan


@pytest.mark.parametrize("epsilon", [0.1, 0.005])
def test_gradcheck(epsilon):
    """Also through the logarithms, at the smaller ε."""
    student, teacher = logits_pair(rows=5)
    loss = SinkhornDistance(epsilon=epsilon, iterations=5)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher), student.requires_grad_(), eps=1e-7, atol=1e-4)


@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(epsilon, dtype):
    student, teacher = logits_pair(dtype=dtype)
    loss = SinkhornDistance(epsilon=epsilon)
    assert loss(student, teacher).dtype == torch.float32
    assert loss(student, teacher).item() == pytest.approx(loss(student.double(), teacher.double()).item(), rel=2e-3)
    assert bool(torch.isfinite(gradient(loss, student, teacher)).all())
    assert bool(torch.isfinite(gradient(loss, 100 * student, 100 * teacher)).all())


def test_a_loop_in_half_precision_does_not_round_the_plan():
    cost = transport_cost(*logits_pair(dtype=torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = transport_plan(cost)
    assert torch.equal(inside, transport_plan(cost))


@pytest.mark.parametrize("function", [SinkhornDistance(), *RIVALS, soft_labels])
def test_no_gradient_reaches_the_teacher(function):
    student, teacher = (logits.requires_grad_() for logits in logits_pair())
    function(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


# Soft labels, rivals, the whole


def test_soft_labels_differ_from_plain_distillation_by_entropy_and_factor():
    student, teacher = logits_pair()
    target = soften(teacher, 3.0)
    entropy = -(target * target.log()).sum(dim=1).mean()
    wanted = distillation_loss(student, teacher, 3.0) / 9 + entropy
    torch.testing.assert_close(soft_labels(student, teacher, 3.0), wanted)


def test_rivals_by_other_means():
    student, teacher = logits_pair()
    p, q = soften(student, 2.0), soften(teacher, 2.0)
    wanted = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p.numpy(), q.numpy(), strict=True)])
    assert jensen_shannon(student, teacher).item() == pytest.approx(wanted)
    torch.testing.assert_close(reverse_divergence(student, teacher), (p * (p / q).log()).sum(dim=1).mean())
    torch.testing.assert_close(reverse_divergence(student, teacher), distillation_loss(teacher, student, 2.0) / 4)
    diagonal = (torch.eye(8, dtype=torch.float64) * transport_cost(student, teacher)).sum() / 8
    torch.testing.assert_close(2 * total_variation(student, teacher), diagonal)


def test_total_variation_is_transport_between_classes():
    """The Wasserstein distance of two distributions with a cost of 1 between any two classes, by POT."""
    student, teacher = logits_pair()
    p, q = soften(student, 2.0).numpy(), soften(teacher, 2.0).numpy()
    apart = 1 - np.eye(6)
    wanted = np.mean([ot.emd2(a / a.sum(), b / b.sum(), apart) for a, b in zip(p, q, strict=True)])
    assert total_variation(student, teacher).item() == pytest.approx(wanted)


def test_terms_of_the_whole():
    student, teacher = logits_pair()
    hard, soft = F.cross_entropy(student, LABELS), soft_labels(student, teacher, 3.0)
    transport = SinkhornDistance()(student, teacher)
    loss = SinkhornDistillation(3.0, 0.7, 0.8)
    torch.testing.assert_close(loss(student, teacher, LABELS), 0.3 * hard + 0.7 * soft + 0.8e-3 * transport)
    swapped = SinkhornDistillation(3.0, 0.7, 2.0, 1.0, reverse_divergence)
    wanted = 0.3 * hard + 0.7 * soft + 2 * reverse_divergence(student, teacher)
    torch.testing.assert_close(swapped(student, teacher, LABELS), wanted)
    silent = SinkhornDistillation(3.0, 0.7, 0.0)
    torch.testing.assert_close(silent(student, teacher, LABELS), 0.3 * hard + 0.7 * soft)


def test_transforms():
    """One student per slice, as for seeds trained side by side."""
    students = torch.stack([logits_pair(seed)[0] for seed in range(3)])
    _, teacher = logits_pair()
    loss = SinkhornDistillation(scale=1.0)
    together = torch.func.vmap(torch.func.grad(lambda z: loss(z, teacher, LABELS)))(students)
    apart = torch.stack([gradient(loss, student, teacher, LABELS) for student in students])
    torch.testing.assert_close(together, apart)


def test_annealing_follows_the_epochs():
    assert annealed_temperature(4.0, 0, 5) == 4.0
    assert annealed_temperature(4.0, 4, 5) == 1.0
    assert annealed_temperature(4.0, 1, 4) == pytest.approx(3.0)
    loss, seen = SinkhornDistillation(temperature=4.0), []
    learner = AnnealedDistillation(nn.Linear(4, 3), loss, epochs=10)
    for step in range(70):
        learner.on_step(step / 70)
        seen.append(loss.temperature)
    assert seen == [annealed_temperature(4.0, step // 7, 10) for step in range(70)]


# Learning


@pytest.fixture(scope="module")
def taught():
    torch.set_num_threads(1)
    data = digits(train_size=1000)
    with seeded(0):
        teacher = ConvNet(width=24, depth=3)
    fit(Supervised(teacher), data.train, Budget(epochs=12, batch_size=64, lr=0.05), seed=0)
    train = with_teacher(data.train, teacher).split(200, seed=0)[0]
    # Wrong labels give a student something to gain from its teacher.
    wrong = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.3
    return train.with_(labels=torch.where(wrong, (train.labels + 3) % 10, train.labels)), data.test


def accuracies(taught, loss, seeds=3):
    train, test = taught
    scores = []
    for seed in range(seeds):
        with seeded(seed):
            student = MLP(64, (32,))
        learner = Supervised(student) if loss is None else Distillation(student, loss)
        fit(learner, train, Budget(steps=150, batch_size=64, lr=0.1, weight_decay=1e-4), seed=seed)
        scores.append((predict(student, test.inputs).argmax(dim=1) == test.labels).double().mean().item())
    return np.array(scores)


def test_student_learns_more_than_from_labels(taught):
    distance = SinkhornDistance(reduction="mean")
    distilled = accuracies(taught, SinkhornDistillation(2.0, 0.9, scale=0.05, distance=distance))
    assert distilled.mean() > accuracies(taught, None).mean() + 0.02
    assert distilled.min() > 0.8


def test_transport_alone_pairs_no_samples(taught):
    """It does not know what belongs to what: the student answers little better than by chance."""
    transport = SinkhornDistance(reduction="mean")
    alone = accuracies(taught, lambda student, teacher, labels: transport(student, teacher), seeds=2)
    paired = accuracies(taught, lambda student, teacher, labels: soft_labels(student, teacher), seeds=2)
    assert alone.max() < 0.6 < 0.8 < paired.min()


# Bad input

GOOD = torch.randn(8, 6)
COST = torch.rand(4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transport_cost(GOOD, GOOD[:4]), "teacher_logits must have the shape of student_logits"),
        (lambda: transport_cost(GOOD[:, :1], GOOD[:, :1]), "student_logits must have shape .* with C >= 2"),
        (lambda: transport_cost(GOOD / 0, GOOD), "student_logits must be finite, got 48 NaN or infinite"),
        (lambda: transport_cost(GOOD, GOOD, 0.0), "temperature must be a positive number, got 0.0"),
        (lambda: transport_plan(COST, 0.0), "epsilon must be a positive number, got 0.0"),
        (lambda: transport_plan(COST, -0.1), "epsilon must be a positive number, got -0.1"),
        (lambda: transport_plan(COST, math.nan), "epsilon must be a positive number, got nan"),
        (lambda: transport_plan(COST, 0.1, 0), "iterations must be an integer of at least 1, got 0"),
        (lambda: transport_plan(COST, 0.1, 2.5), "iterations must be an integer of at least 1, got 2.5"),
        (lambda: transport_plan(COST[:3]), r"cost must have shape \(B, B\) with at least one row, got \(3, 4\)"),
        (lambda: transport_plan(COST[0]), r"cost must have shape \(B, B\) with at least one row, got \(4,\)"),
        (lambda: transport_plan(COST.long()), "cost must be floating point, got torch.int64"),
        (lambda: transport_plan(COST / 0), "cost must be finite"),
        (lambda: transport_plan(COST + 2), r"cost must lie in \[0, 2\], as distances of probabilities do, got"),
        (lambda: transport_plan(COST - 1), r"cost must lie in \[0, 2\]"),
        (lambda: SinkhornDistance(temperature=0.0), "temperature must be a positive number, got 0.0"),
        (lambda: SinkhornDistance(epsilon=0.0), "epsilon must be a positive number, got 0.0"),
        (lambda: SinkhornDistance(iterations=0), "iterations must be an integer of at least 1, got 0"),
        (lambda: SinkhornDistance(reduction="summ"), "reduction must be one of 'sum', 'mean', got 'summ'. Did you"),
        (lambda: SinkhornDistance()(GOOD, GOOD[:4]), "teacher_logits must have the shape of student_logits"),
        (lambda: SinkhornDistillation(temperature=0.0), "temperature must be a positive number, got 0.0"),
        (lambda: SinkhornDistillation(alpha=1.2), r"alpha must lie in \[0, 1\], got 1.2"),
        (lambda: SinkhornDistillation(beta=-1.0), "beta must be a number of at least 0, got -1.0"),
        (lambda: SinkhornDistillation(scale=-1.0), "scale must be a number of at least 0, got -1.0"),
        (lambda: SinkhornDistillation()(GOOD, GOOD / 0, LABELS), "teacher_logits must be finite"),
        (lambda: SinkhornDistillation()(GOOD, GOOD, LABELS + 1), r"labels must lie in \[0, 6\)"),
        (lambda: SinkhornDistillation()(GOOD, GOOD, LABELS[:4]), r"labels must have shape \(8,\), got \(4,\)"),
        (lambda: soft_labels(GOOD, GOOD, -1.0), "temperature must be a positive number, got -1.0"),
        (lambda: soft_labels(GOOD, GOOD[:, :4]), "targets must have the shape of logits"),
        (lambda: annealed_temperature(4.0, 0, 1), "epochs must be at least 2 for a temperature to fall, got 1"),
        (lambda: annealed_temperature(0.0, 0, 5), "start must be a positive number, got 0.0"),
        (lambda: annealed_temperature(4.0, 5, 5), r"epoch must lie in \[0, 5\), got 5"),
        (lambda: annealed_temperature(4.0, -1, 5), r"epoch must lie in \[0, 5\), got -1"),
        (lambda: AnnealedDistillation(nn.Linear(4, 3), SinkhornDistillation(), 1), "epochs must be at least 2"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_reject_bad_batches(rival):
    with pytest.raises(ValueError, match="teacher_logits must have the shape of student_logits"):
        rival(GOOD, GOOD[:4])
    with pytest.raises(ValueError, match="student_logits must be finite"):
        rival(GOOD / 0, GOOD)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        rival(GOOD, GOOD, 0.0)
