"""Spherical distillation: the sphere, what it makes invariant, its floor, both published variants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from scipy.special import log_softmax
from scipy.stats import zscore
from torch.nn import functional as F

from kdcore.data import digits
from kdcore.foundations.kd import KnowledgeDistillation, distillation_loss
from kdcore.logits.spherical_kd import (
    SphericalDistillation,
    cross_entropy_floor,
    match_teacher_std,
    measure_multiplier,
    normalise,
)
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Distillation, Supervised, fit, predict, seeded, with_teacher

VARIANTS = ("sphere", "teacher_std")
LABELS = torch.tensor([0, 3, 1, 5, 2, 2, 4, 0])


def logits_pair(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64).mul(3).add(1)
    return student.to(dtype), teacher.to(dtype)


def gradient(loss, student, teacher, labels=LABELS):
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(student, teacher, labels), student)
    return result


def loss_from_case(case, alpha):
    wanted = case["hyperparameters"]
    variant = {"layernorm_fixed_multiplier": "sphere", "per_sample_teacher_std": "teacher_std"}[wanted["variant"]]
    return SphericalDistillation(wanted["T"], alpha, wanted["multiplier"], variant)


@pytest.mark.parametrize("case", reference_cases("spherical-kd"))
def test_matches_published_figures(case):
    student = torch.tensor(case["inputs"]["student_logits"], dtype=torch.float64)
    teacher = torch.tensor(case["inputs"]["teacher_logits"], dtype=torch.float64)
    labels = torch.tensor(case["inputs"]["labels"])
    alpha = case["hyperparameters"]["alpha"]
    loss = loss_from_case(case, alpha)
    on_sphere = loss.variant == "sphere"
    rescaled = normalise(student, loss.multiplier) if on_sphere else match_teacher_std(student, teacher)
    ours = {
        "loss_kd_times_alpha": alpha * loss_from_case(case, 1.0)(student, teacher, labels),
        "loss_ce_times_one_minus_alpha": (1 - alpha) * loss_from_case(case, 0.0)(student, teacher, labels),
        "loss_total": loss(student, teacher, labels),
        "student_logits_normalised": rescaled,
        "teacher_logits_normalised": normalise(teacher, loss.multiplier),
        "grad_student_logits": gradient(loss, student, teacher, labels),
    }
    assert_published(ours, case)


# The sphere, equation (1)


@given(st.integers(2, 40), st.floats(0.1, 10), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_normalised_logits_lie_on_the_sphere(classes, multiplier, seed):
    logits = torch.randn(5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    result = normalise(logits, multiplier)
    variance = logits.var(dim=1, correction=0)
    radius = multiplier * math.sqrt(classes) * (variance / (variance + 1e-7)).sqrt()
    torch.testing.assert_close(result.norm(dim=1), radius, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.sum(dim=1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-11)
    assert bool((result.argsort(dim=1) == logits.argsort(dim=1)).all())


def test_normalise_agrees_with_scipy():
    student, _ = logits_pair()
    wanted = 2.5 * zscore(student.numpy(), axis=1, ddof=0)
    np.testing.assert_allclose(normalise(student, 2.5).numpy(), wanted, rtol=1e-6)


def test_epsilon_stands_inside_the_root():
    logits = torch.tensor([[1e-4, -1e-4]], dtype=torch.float64)
    wanted = 1e-4 / math.sqrt(1e-8 + 1e-7)
    assert normalise(logits, 1.0)[0, 0].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_agrees_with_a_loop(variant):
    """Sample by sample with NumPy, written from the equations."""
    student, teacher = logits_pair()
    temperature, alpha, multiplier = 3.0, 0.7, 1.5
    total = 0.0
    for row, target, label in zip(student.numpy(), teacher.numpy(), LABELS.tolist(), strict=True):
        if variant == "sphere":
            row = multiplier * (row - row.mean()) / math.sqrt(row.var() + 1e-7)
            target = multiplier * (target - target.mean()) / math.sqrt(target.var() + 1e-7)
        else:
            row = row * target.std(ddof=1) / row.std(ddof=1)
        log_student, log_teacher = log_softmax(row / temperature), log_softmax(target / temperature)
        divergence = (np.exp(log_teacher) * (log_teacher - log_student)).sum()
        total += alpha * temperature**2 * divergence - (1 - alpha) * log_softmax(row)[label]
    loss = SphericalDistillation(temperature, alpha, multiplier, variant)(student, teacher, LABELS)
    assert loss.item() == pytest.approx(total / len(student), rel=1e-12)


# What the loss does not see


@given(st.floats(0.05, 50), st.floats(-20, 20), st.sampled_from(["student", "teacher"]))
@settings(max_examples=40, deadline=None)
def test_loss_ignores_scale_and_offset(scale, offset, which):
    student, teacher = logits_pair()
    loss = SphericalDistillation(4.0, 0.9, 2.0)
    moved = {"student": student, "teacher": teacher}
    moved[which] = scale * moved[which] + offset
    # Up to the 1e-7 beside the variance, which is at least about 0.02 here.
    torch.testing.assert_close(
        loss(moved["student"], moved["teacher"], LABELS), loss(student, teacher, LABELS), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_gradient_is_tangential(alpha):
    """No radial component and none along the ones vector, in each sample."""
    student, teacher = logits_pair()
    result = gradient(SphericalDistillation(4.0, alpha, 2.0), student, teacher)
    size = (student.norm(dim=1) * result.norm(dim=1)).min().item()
    assert result.sum(dim=1).abs().max().item() < 1e-12 * size
    # What remains is the share of 1e-7 in the variance.
    assert (student * result).sum(dim=1).abs().max().item() < 1e-6 * size


def test_gradient_is_the_projection_of_the_plain_one():
    """The chain rule by hand: subtract mean and radial part, then scale by m over the standard deviation."""
    student, teacher = logits_pair()
    on_sphere = normalise(student, 2.0).requires_grad_()
    (plain,) = torch.autograd.grad(distillation_loss(on_sphere, normalise(teacher, 2.0), 4.0), on_sphere)
    direction = F.normalize(on_sphere.detach(), dim=1)
    tangent = plain - plain.mean(dim=1, keepdim=True) - (plain * direction).sum(dim=1, keepdim=True) * direction
    wanted = tangent * 2.0 / student.std(dim=1, correction=0, keepdim=True)
    torch.testing.assert_close(
        gradient(SphericalDistillation(4.0, 1.0, 2.0), student, teacher), wanted, rtol=1e-6, atol=1e-9
    )


def test_gradient_of_a_scaled_student_shrinks_with_the_scale():
    student, teacher = logits_pair()
    loss = SphericalDistillation()
    torch.testing.assert_close(
        10 * gradient(loss, 10 * student, teacher), gradient(loss, student, teacher), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("scale", "offset"), [(0.1, 0.0), (7.0, -3.0)])
def test_a_rescaled_teacher_has_nothing_left_to_teach(variant, scale, offset):
    _, teacher = logits_pair()
    student = scale * teacher + offset
    # The offset of variant (5) survives, but the softmax ignores it.
    assert abs(SphericalDistillation(4.0, 1.0, 2.0, variant)(student, teacher, LABELS).item()) < 1e-9
    assert distillation_loss(student, teacher, 4.0).item() > 0.1


def test_only_the_variant_sees_the_teachers_scale():
    student, teacher = logits_pair()
    change = {
        variant: abs(
            SphericalDistillation(variant=variant)(student, 2 * teacher, LABELS)
            / SphericalDistillation(variant=variant)(student, teacher, LABELS)
            - 1
        ).item()
        for variant in VARIANTS
    }
    assert change["sphere"] < 1e-6
    assert change["teacher_std"] > 0.1


def test_teacher_std_is_matched_sample_by_sample():
    student, teacher = logits_pair()
    result = match_teacher_std(student, teacher)
    torch.testing.assert_close(result.std(dim=1), teacher.std(dim=1))
    torch.testing.assert_close(F.normalize(result, dim=1), F.normalize(student, dim=1))


# Terms of equation (4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_alpha_chooses_the_term(variant):
    student, teacher = logits_pair()
    on_sphere = variant == "sphere"
    scaled = normalise(student, 3.0) if on_sphere else match_teacher_std(student, teacher)
    target = normalise(teacher, 3.0) if on_sphere else teacher
    ends = [SphericalDistillation(2.0, alpha, 3.0, variant)(student, teacher, LABELS) for alpha in (0.0, 1.0, 0.25)]
    torch.testing.assert_close(ends[0], F.cross_entropy(scaled, LABELS))
    torch.testing.assert_close(ends[1], distillation_loss(scaled, target, 2.0))
    torch.testing.assert_close(ends[2], 0.75 * ends[0] + 0.25 * ends[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_term_on_raw_logits(variant):
    student, teacher = logits_pair()
    raw = SphericalDistillation(2.0, 0.0, 3.0, variant, normalise_labels_term=False)
    torch.testing.assert_close(raw(student, teacher, LABELS), F.cross_entropy(student, LABELS))
    ends = [SphericalDistillation(2.0, 1.0, 3.0, variant, flag)(student, teacher, LABELS) for flag in (True, False)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("classes", "multiplier"), [(2, 1.0), (3, 0.5), (10, 2.0), (100, 3.0)])
def test_one_hot_direction_attains_the_floor(classes, multiplier):
    labels = torch.arange(classes)
    one_hot = torch.eye(classes, dtype=torch.float64)
    floor = cross_entropy_floor(classes, multiplier)
    attained = SphericalDistillation(4.0, 0.0, multiplier)(one_hot, one_hot, labels)
    # The one-hot rows have variance (C − 1)/C², so that 1e-7 beside it shortens them by up to 5e-6.
    assert attained.item() == pytest.approx(floor, rel=2e-4)
    noisy = one_hot + 0.3 * torch.randn(20, classes, classes, dtype=torch.float64)
    assert all(F.cross_entropy(normalise(rows, multiplier), labels).item() > floor for rows in noisy)


def test_descent_reaches_the_floor_and_stops():
    logits = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(400):
        loss = F.cross_entropy(normalise(logits, 1.0), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(cross_entropy_floor(5, 1.0), rel=1e-4)


def test_floor_by_hand():
    assert cross_entropy_floor(2, 1.0) == pytest.approx(math.log(1 + math.exp(-2)))
    assert cross_entropy_floor(10, 1e-9) == pytest.approx(math.log(10))
    assert cross_entropy_floor(10, 1e3) == 0.0


def test_measured_multiplier_gives_the_mean_norm():
    _, teacher = logits_pair()
    multiplier = measure_multiplier(teacher)
    assert multiplier == pytest.approx(np.std(teacher.numpy(), axis=1).mean())
    norms = (teacher - teacher.mean(dim=1, keepdim=True)).norm(dim=1)
    assert multiplier * math.sqrt(teacher.shape[1]) == pytest.approx(norms.mean().item())
    assert measure_multiplier(3 * teacher - 7) == pytest.approx(3 * multiplier)
    assert measure_multiplier(normalise(teacher, 2.7)) == pytest.approx(2.7)


# Numerics


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant, flag):
    student, teacher = logits_pair()
    loss = SphericalDistillation(2.0, 0.6, 1.5, variant, flag)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, LABELS), student.requires_grad_())


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_reaches_the_teacher(variant):
    student, teacher = logits_pair()
    student.requires_grad_()
    teacher.requires_grad_()
    SphericalDistillation(variant=variant)(student, teacher, LABELS).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_is_normalised_in_float32(variant, dtype):
    student, teacher = logits_pair(dtype=dtype)
    # Squares of these overflow float16.
    student, teacher = 300 * student, 300 * teacher
    loss = SphericalDistillation(temperature=400.0, multiplier=400.0, variant=variant)
    result, wanted = loss(student, teacher, LABELS), loss(student.double(), teacher.double(), LABELS)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert bool(torch.isfinite(gradient(loss, student, teacher)).all())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_logits_are_guarded(variant, value):
    _, teacher = logits_pair(dtype=torch.float32)
    flat = torch.full_like(teacher, value)
    loss = SphericalDistillation(variant=variant)
    for student, target in [(flat, teacher), (teacher, flat), (flat, flat)]:
        assert bool(torch.isfinite(loss(student, target, LABELS)))
        assert bool(torch.isfinite(gradient(loss, student, target)).all())
    uniform = SphericalDistillation(alpha=0.0, variant=variant)(flat, teacher, LABELS)
    assert uniform.item() == pytest.approx(math.log(6), rel=1e-4)


def test_state_is_empty_and_call_is_pure():
    student, teacher = logits_pair()
    before = student.clone(), teacher.clone()
    loss = SphericalDistillation()
    first = loss(student, teacher, LABELS)
    assert loss.state_dict() == {}
    assert bool(first == loss(student, teacher, LABELS))
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_transforms():
    """One student per slice, as for seeds trained side by side."""
    students = torch.stack([logits_pair(seed)[0] for seed in range(3)])
    _, teacher = logits_pair()
    loss = SphericalDistillation()
    together = torch.func.vmap(torch.func.grad(lambda z: loss(z, teacher, LABELS)))(students)
    apart = torch.stack([gradient(loss, student, teacher) for student in students])
    torch.testing.assert_close(together, apart)


# Learning


@pytest.fixture(scope="module")
def taught():
    torch.set_num_threads(1)
    data = digits(train_size=1000)
    with seeded(0):
        teacher = ConvNet(width=24, depth=3)
    fit(Supervised(teacher), data.train, Budget(epochs=12, batch_size=64, lr=0.05), seed=0)
    return with_teacher(data.train, teacher).split(200, seed=0)[0], data.test


def accuracies(taught, loss, seeds=3):
    train, test = taught
    scores = []
    for seed in range(seeds):
        with seeded(seed):
            student = MLP(64, (32,))
        learner = Supervised(student) if loss is None else Distillation(student, loss)
        fit(learner, train, Budget(steps=200, batch_size=64, lr=0.1, weight_decay=1e-4), seed=seed)
        scores.append((predict(student, test.inputs).argmax(dim=1) == test.labels).double().mean().item())
    return np.array(scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_student_learns_more_than_from_labels(taught, variant):
    multiplier = measure_multiplier(taught[0].teacher_logits)
    distilled = accuracies(taught, SphericalDistillation(4.0, 0.9, multiplier, variant))
    labels = accuracies(taught, None)
    assert distilled.mean() > labels.mean() + 0.005
    assert distilled.min() > 0.85


def test_overconfident_teacher_leaves_the_student_as_it_is(taught):
    """The claim behind the method in miniature: a teacher's scale changes plain distillation, not this one."""
    train, test = taught
    louder = train.with_(teacher_logits=8 * train.teacher_logits), test
    same = accuracies(taught, SphericalDistillation(), 1) - accuracies(louder, SphericalDistillation(), 1)
    assert abs(same.item()) < 0.003
    plain = KnowledgeDistillation(4.0, 0.9)
    student, teacher = train.teacher_logits * 0.5, train.teacher_logits
    assert plain(student, 8 * teacher, train.labels) > 4 * plain(student, teacher, train.labels)


# Bad input

GOOD = torch.randn(8, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: normalise(torch.zeros(3, 1)),
            r"logits must have shape \(B, C\) with C >= 2 and at least one row, got \(3, 1\)",
        ),
        (lambda: normalise(torch.zeros(3)), r"logits must have shape \(B, C\)"),
        (lambda: normalise(torch.ones(3, 2, dtype=torch.long)), "logits must be floating point, got torch.int64"),
        (lambda: normalise(torch.full((1, 2), math.nan)), "logits must be finite, got 2 NaN"),
        (lambda: normalise(GOOD, 0.0), "multiplier must be a positive number, got 0.0"),
        (lambda: normalise(GOOD, math.inf), "multiplier must be a positive number, got inf"),
        (lambda: match_teacher_std(GOOD, GOOD[:, :5]), "teacher_logits must have the shape of student_logits"),
        (lambda: match_teacher_std(GOOD[:, :1], GOOD[:, :1]), "student_logits must have shape .* with C >= 2"),
        (lambda: match_teacher_std(GOOD, GOOD / 0), "teacher_logits must be finite, got 48 NaN or infinite"),
        (lambda: measure_multiplier(GOOD[:, 0]), "teacher_logits must have shape"),
        (lambda: measure_multiplier(torch.ones(3, 4)), "teacher_logits must differ between classes, got .* 0.0 over 3"),
        (
            lambda: measure_multiplier(torch.ones(0, 4)),
            r"teacher_logits must have shape .* at least one row, got \(0, 4\)",
        ),
        (lambda: cross_entropy_floor(1), "num_classes must be at least 2, got 1"),
        (lambda: cross_entropy_floor(5, -1.0), "multiplier must be a positive number, got -1.0"),
        (lambda: SphericalDistillation(temperature=0.0), "temperature must be a positive number, got 0.0"),
        (lambda: SphericalDistillation(temperature=-4.0), "temperature must be a positive number, got -4.0"),
        (lambda: SphericalDistillation(alpha=1.2), r"alpha must lie in \[0, 1\], got 1.2"),
        (lambda: SphericalDistillation(multiplier=-2.0), "multiplier must be a positive number, got -2.0"),
        (lambda: SphericalDistillation(variant="spheres"), "variant must be one of .* Did you mean 'sphere'"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        (GOOD, GOOD[:4], LABELS, "teacher_logits must have the shape of student_logits"),
        (GOOD[:, :1], GOOD[:, :1], LABELS, "student_logits must have shape .* with C >= 2"),
        (GOOD / 0, GOOD, LABELS, "student_logits must be finite"),
        (GOOD, GOOD / 0, LABELS, "teacher_logits must be finite"),
        (GOOD, GOOD, LABELS[:4], r"labels must have shape \(8,\), got \(4,\)"),
        (GOOD, GOOD, LABELS + 1, r"labels must lie in \[0, 6\), got values from 1 to 6"),
        (GOOD, GOOD, LABELS.float(), "labels must be integer class numbers"),
    ],
)
def test_loss_rejects_bad_batches(variant, student, teacher, labels, message):
    with pytest.raises(ValueError, match=message):
        SphericalDistillation(variant=variant)(student, teacher, labels)
