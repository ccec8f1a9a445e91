"""Dual-head distillation: both logit losses and their clamp, the aligned step, which gradient reaches which head."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.foundations.kd import distillation_loss
from kdcore.logits.dhkd import (
    DualHeadDistillation,
    DualHeadLoss,
    aligned_loss,
    auxiliary_head,
    binary_kl,
    binary_kl_norm,
    conflict,
    gradient_cosine,
    gradients,
    merge_gradients,
)
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded, with_teacher

LOSSES = {"binary_kl": binary_kl, "binary_kl_norm": binary_kl_norm}
BOTH = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
LABELS = torch.tensor([0, 3, 1, 5, 2, 2, 4, 0])
PUBLISHED = 1e-8


def logits_pair(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64).mul(3).add(1)
    return student.to(dtype), teacher.to(dtype)


def gradient(loss, student, *others):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, *others), student)[0]


def toy(case_inputs):
    """The little network of the published figures for alignment: names → leaves, and both losses."""
    # Decimals straight into float64: by way of float32 they would lose the digits that are compared.
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in case_inputs.items()}
    weights = {name: value.requires_grad_() for name, value in values.items() if name.startswith("w_")}
    features = torch.tanh(values["x"] @ weights["w_backbone"].T)
    main, auxiliary = (features @ weights[name].T for name in ("w_head_ce", "w_head_aux"))
    return weights, main, auxiliary, values["teacher_logits"], values["labels"].long()


@pytest.mark.parametrize("case", reference_cases("dhkd"))
def test_matches_published_figures(case):
    settings_of_case = case["hyperparameters"]
    if "student_logits" in case["inputs"]:
        student, teacher = (
            torch.tensor(case["inputs"][f"{name}_logits"], dtype=torch.float64) for name in ("student", "teacher")
        )
        # Both losses have the same inputs; the case's name says which one it is.
        loss = binary_kl_norm if case["name"].startswith("binary_kl_norm") else binary_kl
        arguments = (teacher, settings_of_case["T"], settings_of_case["eps"])
        ours = {"loss": loss(student, *arguments), "grad_student_logits": gradient(loss, student, *arguments)}
    else:
        ours = aligned_figures(case)
    assert_published(ours, case)


def aligned_figures(case):
    """What the published figures report of one aligned step."""
    weights, main, auxiliary, teacher, labels = toy(case["inputs"])
    settings_of_case = case["hyperparameters"]
    loss = DualHeadLoss(settings_of_case["T"], settings_of_case["gamma"], settings_of_case["alpha"], eps=PUBLISHED)
    hard, soft = loss(main, auxiliary, teacher, labels)
    leaves = list(weights.values())
    of_hard, of_soft = (dict(zip(weights, gradients(term, leaves), strict=True)) for term in (hard, soft))
    aligned_loss(hard, soft, leaves).backward()
    return {
        "loss_ce": hard / loss.gamma,
        "loss_kd_times_alpha": soft,
        "grad_ce_backbone": of_hard["w_backbone"],
        "grad_kd_backbone": of_soft["w_backbone"],
        "grad_ce_head": of_hard["w_head_ce"],
        "grad_kd_aux": of_soft["w_head_aux"],
        "merged_grad_backbone": weights["w_backbone"].grad,
        "merged_grad_head_ce": weights["w_head_ce"].grad,
        "merged_grad_head_aux": weights["w_head_aux"].grad,
    }


# The losses, equations (1) and (2)


def literal(student, teacher, temperature, eps, norm):
    """Both losses as they are written down, with logarithms of probabilities, in NumPy."""
    student, teacher = student.numpy(), teacher.numpy()
    difference = student - teacher
    logits, target = (difference, np.zeros_like(teacher)) if norm else (student, teacher)
    u, q = (np.clip(1 / (1 + np.exp(-z / temperature)), eps, 1 - eps) for z in (logits, target))
    return temperature**2 * (q * np.log(q / u) + (1 - q) * np.log((1 - q) / (1 - u))).sum() / len(student)


@pytest.mark.parametrize("eps", [0.0, PUBLISHED, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@BOTH
def test_agrees_with_probabilities_written_out(loss, temperature, eps):
    student, teacher = logits_pair()
    wanted = literal(student, teacher, temperature, eps, norm=loss is binary_kl_norm)
    assert loss(student, teacher, temperature, eps).item() == pytest.approx(wanted, rel=1e-6)


def test_binary_kl_agrees_with_torch():
    student, teacher = logits_pair()
    q = (teacher / 2).sigmoid()
    coins = torch.distributions.Bernoulli
    wanted = torch.distributions.kl_divergence(coins(probs=q), coins(logits=student / 2)).sum() * 4 / len(student)
    torch.testing.assert_close(binary_kl(student, teacher, 2.0), wanted)


@BOTH
def test_zero_exactly_where_student_equals_teacher(loss):
    student, teacher = logits_pair()
    assert loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-14)
    assert bool((gradient(loss, teacher, teacher).abs() < 1e-15).all())
    for column in range(6):
        moved = teacher.clone()
        moved[0, column] += 0.1
        assert loss(moved, teacher).item() > 1e-6
    assert loss(student, teacher).item() > 0


@given(st.floats(-40, 40), st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_norm_is_even_and_sees_the_difference_only(shift, temperature, seed):
    student, teacher = logits_pair(seed)
    value = binary_kl_norm(student, teacher, temperature)
    torch.testing.assert_close(binary_kl_norm(teacher, student, temperature), value)
    torch.testing.assert_close(binary_kl_norm(student + shift, teacher + shift, temperature), value)
    wanted = temperature**2 * torch.log(torch.cosh((student - teacher) / (2 * temperature))).sum() / len(student)
    torch.testing.assert_close(value, wanted)


def test_binary_kl_sees_the_level_and_a_softmax_sees_no_shift():
    student, teacher = logits_pair()
    assert abs(binary_kl(student + 3, teacher + 3) - binary_kl(student, teacher)) > 0.1
    for loss in LOSSES.values():
        assert abs(loss(student + 3, teacher) - loss(student, teacher)) > 0.1
    torch.testing.assert_close(distillation_loss(student + 3, teacher), distillation_loss(student, teacher))


@BOTH
def test_high_temperature_is_least_squares(loss):
    student, teacher = logits_pair()
    wanted = (student - teacher).square().sum() / (8 * len(student))
    assert loss(student, teacher, 1e4).item() == pytest.approx(wanted.item(), rel=1e-3)


def test_gradients_by_hand():
    student, teacher = logits_pair()
    torch.testing.assert_close(
        gradient(binary_kl, student, teacher, 3.0), 3 / 8 * ((student / 3).sigmoid() - (teacher / 3).sigmoid())
    )
    torch.testing.assert_close(
        gradient(binary_kl_norm, student, teacher, 3.0), 3 / 16 * torch.tanh((student - teacher) / 6)
    )
    assert bool((gradient(binary_kl_norm, 1e3 * student, teacher, 3.0).abs() <= 3 / 16).all())


@BOTH
def test_gradcheck(loss):
    student, teacher = logits_pair()
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, 2.0), student.requires_grad_())


@BOTH
def test_sum_over_classes_and_mean_over_samples(loss):
    student, teacher = logits_pair()
    torch.testing.assert_close(loss(student.repeat(3, 1), teacher.repeat(3, 1)), loss(student, teacher))
    torch.testing.assert_close(loss(student.repeat(1, 2), teacher.repeat(1, 2)), 2 * loss(student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_published_clamp_cuts_the_gradient(temperature, dtype):
    edge = temperature * math.log(1e8)
    student = torch.tensor([[0.99 * edge, -1.01 * edge, 1.01 * edge]], dtype=dtype)
    teacher = torch.zeros_like(student)
    clamped = gradient(binary_kl_norm, student, teacher, temperature, PUBLISHED)
    assert clamped[0, 0].item() == pytest.approx(temperature / 2, rel=1e-3)
    assert clamped[0, 1:].tolist() == [0.0, 0.0]
    free = gradient(binary_kl_norm, student, teacher, temperature)
    assert free[0, 1:].tolist() == pytest.approx([-temperature / 2, temperature / 2], rel=1e-3)
    term = -math.log(2) - 0.5 * math.log(PUBLISHED * (1 - PUBLISHED))
    assert term == pytest.approx(8.517, abs=1e-3)
    far = binary_kl_norm(torch.full((1, 2), 100 * edge, dtype=dtype), teacher[:, :2], temperature, PUBLISHED)
    assert far.item() == pytest.approx(2 * temperature**2 * term, rel=1e-5)


@BOTH
@pytest.mark.parametrize("eps", [0.0, PUBLISHED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_finite_in_low_precision_where_a_probability_rounds_to_one(loss, eps, dtype):
    rounded = torch.tensor(100.0).sigmoid()
    assert rounded.clamp(PUBLISHED, 1 - PUBLISHED).item() == 1.0  # the clamp of probabilities is void in float32
    student, teacher = (
        torch.tensor([[200.0, -200.0, 3.0]], dtype=dtype),
        torch.tensor([[-200.0, 200.0, 1.0]], dtype=dtype),
    )
    result = loss(student, teacher, 1.0, eps)
    assert result.dtype == torch.float32
    assert bool(torch.isfinite(result))
    assert bool(torch.isfinite(gradient(loss, student, teacher, 1.0, eps)).all())
    assert result.item() == pytest.approx(loss(student.double(), teacher.double(), 1.0, eps).item(), rel=1e-5)


@BOTH
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher = (logits.requires_grad_() for logits in logits_pair())
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


# Alignment, equations (8) and (9)

VECTORS = st.lists(st.floats(-5, 5), min_size=6, max_size=6).map(lambda v: torch.tensor(v, dtype=torch.float64))


@given(VECTORS, VECTORS)
@settings(max_examples=100, deadline=None)
def test_merged_gradient_by_its_properties(first, second):
    leading, other = [first[:2], first[2:].reshape(2, 2)], [second[:2], second[2:].reshape(2, 2)]
    merged = torch.cat([part.reshape(-1) for part in merge_gradients(leading, other)])
    product, kappa = float(first @ second), float(conflict(leading, other))
    if product >= 0:
        assert kappa == 0
        torch.testing.assert_close(merged, first + second)
    elif float(first @ first) > 1e-6:
        # What was added to g₁ is orthogonal to it, and is the projection of g₂.
        assert float((merged - first) @ first) == pytest.approx(0.0, abs=1e-9)
        torch.testing.assert_close(merged - first, second - product / (first @ first) * first)
        torch.testing.assert_close(merged, (1 + kappa) * first + second)
        assert float(merged.norm()) <= float(first.norm() + second.norm()) + 1e-9


def test_a_zero_leading_gradient_is_no_conflict():
    zero, other = [torch.zeros(3)], [torch.tensor([1.0, -2.0, 0.0])]
    assert conflict(zero, other).item() == 0
    torch.testing.assert_close(merge_gradients(zero, other)[0], other[0])
    assert gradient_cosine(zero, other).item() == 0


def two_headed(seed=0, opposed=True):
    """A learner, and a batch on which its two gradients disagree in the backbone (or agree)."""
    with seeded(seed):
        learner = DualHeadDistillation(MLP(5, (7,), 4), auxiliary_head(7, 4), align=True).double()
        batch = Arrays(inputs=torch.randn(9, 5).double(), labels=torch.arange(9) % 4)
    # With equal heads, a teacher of long logits for the label agrees with it, and of long logits against it does not.
    learner.auxiliary.load_state_dict(learner.model.classifier.state_dict())
    sign = -1 if opposed else 1
    return learner, batch.with_(teacher_logits=sign * 8 * F.one_hot(batch.labels, 4).double())


@pytest.mark.parametrize("opposed", [True, False])
def test_what_alignment_rescales(opposed):
    learner, batch = two_headed(opposed=opposed)
    named = dict(learner.named_parameters())
    hard, soft = learner.terms(batch)
    first, second = (dict(zip(named, gradients(term, list(named.values())), strict=True)) for term in (hard, soft))
    kappa = float(conflict(list(first.values()), list(second.values())))
    assert (kappa > 0) == opposed
    terms = learner.losses(batch)
    torch.testing.assert_close(sum(terms.values()), (hard + soft).detach())
    sum(terms.values()).backward()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.grad, (1 + kappa) * first[name] + second[name])
        if name.startswith("auxiliary"):
            torch.testing.assert_close(parameter.grad, second[name])
            assert not first[name].any()
        if name.startswith("model.classifier"):
            torch.testing.assert_close(parameter.grad, (1 + kappa) * first[name])
            assert not second[name].any()


def test_alignment_is_the_step_of_a_raised_gamma():
    learner, batch = two_headed()
    kappa = learner.cosines(batch)["conflict"]
    sum(learner.losses(batch).values()).backward()
    aligned = [parameter.grad.clone() for parameter in learner.parameters()]
    learner.zero_grad()
    raised = DualHeadDistillation(learner.model, learner.auxiliary, DualHeadLoss(gamma=1 + kappa), align=False)
    sum(raised.losses(batch).values()).backward()
    torch.testing.assert_close(aligned, [parameter.grad for parameter in learner.parameters()])


def test_without_conflict_alignment_changes_nothing():
    learner, batch = two_headed(opposed=False)
    sum(learner.losses(batch).values()).backward()
    aligned = [parameter.grad.clone() for parameter in learner.parameters()]
    learner.zero_grad()
    learner.align = False
    sum(learner.losses(batch).values()).backward()
    torch.testing.assert_close(aligned, [parameter.grad for parameter in learner.parameters()])


def test_cosines_are_those_of_the_parts():
    learner, batch = two_headed()
    found = learner.cosines(batch)
    assert found["classifier"] == 0  # the heads are disjoint
    assert found["backbone"] < 0
    assert found["conflict"] > 0
    shared = DualHeadDistillation(learner.model, None, align=False)
    hard, soft = shared.terms(batch)
    weight = learner.model.classifier.weight
    bias = learner.model.classifier.bias
    first, second = (torch.cat([g.reshape(-1) for g in gradients(term, [weight, bias])]) for term in (hard, soft))
    wanted = torch.cosine_similarity(first, second, dim=0).item()
    assert shared.cosines(batch)["classifier"] == pytest.approx(wanted)


def test_loss_scaling_scales_the_finished_gradient():
    learner, batch = two_headed()
    sum(learner.losses(batch).values()).backward()
    plain = [parameter.grad.clone() for parameter in learner.parameters()]
    learner.zero_grad()
    (1024 * sum(learner.losses(batch).values())).backward()
    torch.testing.assert_close([parameter.grad / 1024 for parameter in learner.parameters()], plain)


def test_aligned_step_runs_under_autocast():
    learner, batch = two_headed()
    learner, batch = learner.float(), batch.with_(inputs=batch.inputs.float())
    history = fit(learner, batch, Budget(steps=3, batch_size=9, precision="bfloat16"))
    assert history.epochs[["cross_entropy", "logits"]].notna().all().all()


# Heads and learner


def test_exported_student_is_the_one_that_came_in():
    student = ConvNet(4, 2)
    names = set(student.state_dict())
    learner = DualHeadDistillation(student, auxiliary_head(8, 10))
    assert learner.model is student
    assert set(learner.model.state_dict()) == names
    assert {name.split(".")[0] for name in learner.state_dict()} == {"model", "auxiliary"}


def test_nonlinear_head_is_the_published_one():
    head = auxiliary_head(16, 10, "nonlinear")
    assert [type(layer) for layer in head] == [nn.Linear, nn.Dropout, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert (head[0].out_features, head[1].p) == (200, 0.1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        head(torch.zeros(1, 16))


def test_one_head_gets_both_gradients():
    learner, batch = two_headed()
    shared = DualHeadDistillation(learner.model, None, align=False)
    assert all(bool(g.any()) for term in shared.terms(batch) for g in gradients(term, list(shared.parameters())))


def test_weights_choose_the_terms():
    student, teacher = logits_pair()
    hard, soft = DualHeadLoss(3.0, 0.5, 0.25, "binary_kl")(student, teacher * 0.5, teacher, LABELS)
    torch.testing.assert_close(hard, 0.5 * F.cross_entropy(student, LABELS))
    torch.testing.assert_close(soft, 0.25 * binary_kl(teacher * 0.5, teacher, 3.0))


def test_frozen_teacher_runs_where_the_data_carry_no_logits():
    learner, batch = two_headed()
    with seeded(3):
        teacher = MLP(5, (3,), 4).double()
    bare = Arrays(inputs=batch.inputs, labels=batch.labels)
    with_network = DualHeadDistillation(learner.model, learner.auxiliary, teacher=teacher)
    expected = learner.terms(batch.with_(teacher_logits=predict(teacher, batch.inputs)))
    torch.testing.assert_close(with_network.terms(bare), expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with pytest.raises(ValueError, match="needs a teacher"):
        learner.losses(bare)


# Learning


@pytest.mark.parametrize("align", [True, False])
def test_student_learns_more_than_from_labels(align):
    torch.set_num_threads(1)
    data = digits(train_size=1000)
    with seeded(0):
        teacher = ConvNet(width=24, depth=3)
    fit(Supervised(teacher), data.train, Budget(epochs=10, batch_size=64, lr=0.05), seed=0)
    train = with_teacher(data.train, teacher).split(200, seed=0)[0]
    scores = {"labels": [], "two heads": []}
    for seed in range(3):
        for arm, found in scores.items():
            with seeded(seed):
                student = MLP(64, (32,))
                own = DualHeadDistillation(student, auxiliary_head(32, 10), align=align)
            learner = Supervised(student) if arm == "labels" else own
            fit(learner, train, Budget(steps=200, batch_size=64, lr=0.1, weight_decay=1e-4), seed=seed)
            found.append((predict(student, data.test.inputs).argmax(1) == data.test.labels).double().mean().item())
    assert np.mean(scores["two heads"]) > np.mean(scores["labels"]) + 0.002
    assert min(scores["two heads"]) > 0.85


# Bad input

GOOD = torch.randn(8, 6)
LIST = [torch.zeros(2)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *[
            case
            for loss in LOSSES.values()
            for case in [
                (lambda loss=loss: loss(GOOD, GOOD[:, :5]), "teacher_logits must have the shape of student_logits"),
                (lambda loss=loss: loss(GOOD[:, :1], GOOD[:, :1]), "student_logits must have shape .* C >= 2"),
                (lambda loss=loss: loss(GOOD / 0, GOOD), "student_logits must be finite"),
                (lambda loss=loss: loss(GOOD, GOOD / 0), "teacher_logits must be finite"),
                (lambda loss=loss: loss(GOOD, GOOD, 0.0), "temperature must be a positive number, got 0.0"),
                (lambda loss=loss: loss(GOOD, GOOD, 2.0, 0.5), r"eps must lie in \[0, 0.5\), got 0.5"),
                (lambda loss=loss: loss(GOOD, GOOD, 2.0, -1e-8), r"eps must lie in \[0, 0.5\), got -1e-08"),
            ]
        ],
        (lambda: gradients(torch.zeros((), requires_grad=True), []), "parameters must hold at least one tensor"),
        (lambda: conflict([], []), "leading and other must hold tensors of the same shapes"),
        (lambda: conflict(LIST, LIST * 2), "leading and other must hold tensors of the same shapes"),
        (lambda: merge_gradients(LIST, [torch.zeros(3)]), r"got \[\(2,\)\] and \[\(3,\)\]"),
        (lambda: gradient_cosine(LIST, [torch.zeros(3)]), "leading and other must hold"),
        (lambda: aligned_loss(torch.zeros(()), torch.zeros(()), []), "parameters must hold at least one"),
        (lambda: auxiliary_head(0, 10), "in_features must be a positive number, got 0"),
        (lambda: auxiliary_head(8, 10, "linaer"), "kind must be one of .* Did you mean 'linear'"),
        (lambda: DualHeadLoss(temperature=-1.0), "temperature must be a positive number, got -1.0"),
        (lambda: DualHeadLoss(gamma=-1.0), "gamma must be a number of at least 0, got -1.0"),
        (lambda: DualHeadLoss(alpha=math.nan), "alpha must be a number of at least 0, got nan"),
        (lambda: DualHeadLoss(kind="norms"), "kind must be one of .* Did you mean 'norm'"),
        (lambda: DualHeadLoss(eps=1.0), r"eps must lie in \[0, 0.5\), got 1.0"),
        (
            lambda: DualHeadLoss()(GOOD, GOOD[:, :5], GOOD, LABELS),
            "auxiliary_logits must have the shape of main_logits",
        ),
        (lambda: DualHeadLoss()(GOOD, GOOD, GOOD[:, :5], LABELS), "teacher_logits must have the shape of main_logits"),
        (lambda: DualHeadLoss()(GOOD, GOOD, GOOD, LABELS + 1), r"labels must lie in \[0, 6\)"),
        (lambda: DualHeadDistillation(nn.Linear(3, 2), None), "student must have embed and classifier, Linear lacks"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
