"""Mixup in distillation: mixing and its share, scaled logits and what they cannot say, both losses, both learners."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import reference_cases
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.logits.mix_kd import (
    Mixing,
    Mixup,
    MixupDistillation,
    MixupSupervised,
    TemperatureLoss,
    UnitStdLoss,
    confidence_ceiling,
    expected_mixed_share,
    mix_inputs,
    mix_targets,
    scale_logits,
)
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded

CASES = reference_cases("mix-kd")
LOSS_CASES = [case for case in CASES if "student_logits" in case.values[0]["inputs"]]
MIXING_CASES = [case for case in CASES if "perm1" in case.values[0]["inputs"]]
LOSSES = {"std": UnitStdLoss, "temperature": TemperatureLoss}


def batch(seed=0, dtype=torch.float64):
    """Student and teacher logits of 8 samples and 6 classes, and mixed targets."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 8, 6, generator=generator, dtype=torch.float64).mul(3).add(1)
    targets = torch.rand(8, 6, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype), (targets / targets.sum(dim=1, keepdim=True)).to(dtype)


def gradient(loss, student, teacher, targets):
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(student, teacher, targets), student)
    return result


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# Published figures


@pytest.mark.parametrize("case", LOSS_CASES)
def test_matches_published_figures(case):
    student, teacher, targets = (
        tensor(case["inputs"][name]) for name in ("student_logits", "teacher_logits", "soft_targets")
    )
    gamma, alpha = case["hyperparameters"]["gamma"], case["hyperparameters"]["alpha"]
    ours = {
        "loss_cls_times_gamma": UnitStdLoss(gamma, 0.0)(student, teacher, targets),
        "loss_kd_times_alpha": UnitStdLoss(0.0, alpha)(student, teacher, targets),
        "total": UnitStdLoss(gamma, alpha)(student, teacher, targets),
        "grad_student_logits": gradient(UnitStdLoss(gamma, alpha), student, teacher, targets),
    }
    assert ours.keys() == case["outputs"].keys()
    for name, value in case["outputs"].items():
        # Gradients are printed to twelve decimals.
        torch.testing.assert_close(ours[name], tensor(value), rtol=1e-6, atol=1e-11)


@pytest.mark.parametrize("case", MIXING_CASES)
def test_mixing_matches_published_figures(case):
    given_, classes = case["inputs"], case["hyperparameters"]["classes"]
    weight = tensor(given_["lambda"])
    weight[torch.tensor(given_["unmixed_index"], dtype=torch.long)] = 1
    mixing = Mixing(torch.tensor(given_["perm1"]), torch.tensor(given_["perm2"]), weight)
    images = tensor(given_["image_value_per_sample"]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    mixed = mix_inputs(images, mixing)
    assert torch.equal(mixed, mixed[:, :1, :1, :1].expand_as(mixed))
    # The published code mixes in float32, and its targets are printed to six decimals.
    torch.testing.assert_close(
        mixed[:, 0, 0, 0], tensor(case["outputs"]["mixed_value_per_sample"]), rtol=1e-6, atol=1e-6
    )
    wanted = torch.zeros(len(weight), classes, dtype=torch.float64)
    for row, entries in enumerate(case["outputs"]["targets_nonzero"]):
        for label, value in entries:
            wanted[row, label] = value
    targets = mix_targets(torch.tensor(given_["labels"]), classes, mixing)
    torch.testing.assert_close(targets, wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(targets > 0, wanted > 0)


# Mixing, equations (1), (2) and (4)


@given(st.integers(1, 40), st.floats(0, 1), st.booleans(), st.sampled_from([0.2, 0.4, 1.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_every_draw_is_a_mixing(size, unmixed, exact, concentration):
    first, second, weight = mixing = Mixup(unmixed, exact, concentration).draw(size)
    for permutation in (first, second):
        assert sorted(permutation.tolist()) == list(range(size))
    assert bool(((weight >= 0) & (weight <= 1)).all())
    labels = torch.randint(4, (size,))
    targets = mix_targets(labels, 4, mixing)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(size))
    assert int((targets > 0).sum(dim=1).max()) <= 2
    same = labels[first] == labels[second]
    assert torch.equal(targets[same], F.one_hot(labels[first][same], 4).float())
    if exact:
        assert int((weight == 1).sum()) >= math.floor(size * unmixed)


def test_weight_one_is_the_permuted_clean_batch():
    inputs, labels = torch.rand(16, 2, 3, 3), torch.arange(16) % 5
    mixing = Mixup(unmixed=1.0).draw(16)
    assert torch.equal(mix_inputs(inputs, mixing), inputs[mixing.first])
    assert torch.equal(mix_targets(labels, 5, mixing), F.one_hot(labels[mixing.first], 5).float())


def test_nothing_unmixed_is_full_mixup():
    with seeded(0):
        full = Mixup(unmixed=0.0).draw(500)
    for exact in (True, False):
        with seeded(0):
            other = Mixup(unmixed=0.0, exact=exact).draw(500)
        assert all(map(torch.equal, full, other))
    assert bool((full.weight < 1).all())


def test_mixed_image_by_hand():
    mixing = Mixing(torch.tensor([2, 0, 1]), torch.tensor([2, 1, 0]), torch.tensor([0.3, 0.25, 0.0]))
    inputs = torch.tensor([[1.0], [5.0], [9.0]])
    assert mix_inputs(inputs, mixing).flatten().tolist() == pytest.approx([9.0, 4.0, 1.0])
    wanted = torch.tensor([[0.0, 0.0, 1.0], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(mix_targets(torch.arange(3), 3, mixing), wanted)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(concentration):
    from scipy.stats import beta, kstest

    with seeded(1):
        weight = Mixup(concentration=concentration).draw(4000).weight
    assert kstest(weight.numpy(), beta(concentration, concentration).cdf).pvalue > 0.01


@pytest.mark.parametrize("unmixed", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [8, 64])
def test_expected_mixed_share(size, unmixed):
    with seeded(2):
        drawn = {
            exact: np.mean([(Mixup(unmixed, exact).draw(size).weight < 1).double().mean() for _ in range(600)])
            for exact in (True, False)
        }
    assert drawn[True] == expected_mixed_share(size, unmixed)
    assert drawn[True] == pytest.approx(1 - unmixed, abs=1 / size)
    assert drawn[False] == pytest.approx(expected_mixed_share(size, unmixed, exact=False), abs=0.02)
    assert expected_mixed_share(size, unmixed, exact=False) == (1 - 1 / size) ** math.floor(size * unmixed)


def test_published_shares():
    assert expected_mixed_share(64, 0.9, exact=False) == pytest.approx(0.41, abs=0.005)
    assert expected_mixed_share(64, 0.5, exact=False) == pytest.approx(0.61, abs=0.01)
    assert expected_mixed_share(10**6, 0.9, exact=False) == pytest.approx(math.exp(-0.9), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_images_keep_their_type(dtype):
    assert mix_inputs(torch.rand(4, 3).to(dtype), Mixup().draw(4)).dtype == dtype


def test_draws_depend_on_the_seed_alone():
    draws = []
    for _ in range(2):
        with seeded(5):
            draws.append(Mixup(0.5, False).draw(32))
    assert all(map(torch.equal, *draws))


# Scaled logits, equations (5) and (9)


def test_scaled_logits_have_the_deviation():
    student, _, _ = batch()
    scaled = scale_logits(student, 1.7)
    np.testing.assert_allclose(np.std(scaled.numpy(), axis=1, ddof=1), 1.7)
    torch.testing.assert_close(F.normalize(scaled), F.normalize(student))


@pytest.mark.parametrize(("classes", "multiplier"), [(2, 1.0), (10, 1.0), (10, 2.0), (100, 1.0)])
def test_one_hot_logits_attain_the_ceiling(classes, multiplier):
    one_hot = torch.eye(classes, dtype=torch.float64)
    ceiling = confidence_ceiling(classes, multiplier)
    torch.testing.assert_close(
        scale_logits(one_hot, multiplier).softmax(dim=1).diagonal(),
        torch.full((classes,), ceiling, dtype=torch.float64),
    )
    noisy = one_hot + 0.3 * torch.randn(20, classes, classes, dtype=torch.float64)
    assert all(scale_logits(rows, multiplier).softmax(dim=1).max() <= ceiling + 1e-12 for rows in noisy)


def test_ceiling_by_hand():
    assert confidence_ceiling(10) == pytest.approx(1 / (1 + 9 * math.exp(-math.sqrt(10))))
    assert [round(confidence_ceiling(c), 3) for c in (2, 10, 100)] == [0.804, 0.724, 0.996]
    assert -math.log(confidence_ceiling(10)) == pytest.approx(0.323, abs=5e-4)
    assert confidence_ceiling(5, 1e-9) == pytest.approx(0.2)


def test_descent_reaches_the_floor_and_stops():
    logits = torch.randn(4, 10, dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(500):
        loss = F.cross_entropy(scale_logits(logits), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(-math.log(confidence_ceiling(10)), rel=1e-4)


# Losses, equations (6) and (7)


@pytest.mark.parametrize("name", LOSSES)
def test_agrees_with_numpy(name):
    student, teacher, targets = batch()
    gamma, alpha, number = 0.3, 0.8, 2.0
    total = 0.0
    for row, target, mixed in zip(student.numpy(), teacher.numpy(), targets.numpy(), strict=True):
        if name == "std":
            row, target = number * row / row.std(ddof=1), number * target / target.std(ddof=1)
        factor = 1.0 if name == "std" else number
        log_student, log_teacher = log_softmax(row / factor), log_softmax(target / factor)
        divergence = factor**2 * (np.exp(log_teacher) * (log_teacher - log_student)).sum()
        total += alpha * divergence - gamma * (mixed * log_softmax(row)).sum()
    loss = UnitStdLoss(gamma, alpha, number) if name == "std" else TemperatureLoss(number, gamma, alpha)
    assert loss(student, teacher, targets).item() == pytest.approx(total / len(student), rel=1e-12)


@given(st.floats(0.05, 50), st.floats(-20, 20), st.floats(0.05, 50), st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_scaled_loss_ignores_scale_and_offset(scale, offset, teacher_scale, teacher_offset):
    student, teacher, targets = batch()
    loss = UnitStdLoss()
    moved = loss(scale * student + offset, teacher_scale * teacher + teacher_offset, targets)
    torch.testing.assert_close(moved, loss(student, teacher, targets), rtol=1e-9, atol=0)
    assert TemperatureLoss()(3 * student, teacher, targets) != TemperatureLoss()(student, teacher, targets)


@pytest.mark.parametrize(("gamma", "alpha"), [(0.1, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_gradient_is_tangential(gamma, alpha):
    """No component along the logits and none along the ones vector, in each sample."""
    student, teacher, targets = batch()
    result = gradient(UnitStdLoss(gamma, alpha), student, teacher, targets)
    size = (student.norm(dim=1) * result.norm(dim=1)).min().item()
    assert size > 0
    assert result.sum(dim=1).abs().max().item() < 1e-12
    assert (student * result).sum(dim=1).abs().max().item() < 1e-12


def test_divergence_is_zero_only_for_equal_directions():
    student, teacher, targets = batch()
    loss = UnitStdLoss(gamma=0.0, alpha=1.0)
    assert abs(loss(0.2 * teacher - 4, teacher, targets).item()) < 1e-12
    assert loss(student, teacher, targets).item() > 0.01
    assert TemperatureLoss(4.0, 0.0, 1.0)(0.2 * teacher - 4, teacher, targets).item() > 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_weights_choose_the_term(name):
    student, teacher, targets = batch()
    hard, soft, both = (
        LOSSES[name](gamma=g, alpha=a)(student, teacher, targets) for g, a in ((1, 0), (0, 1), (0.25, 2))
    )
    torch.testing.assert_close(both, 0.25 * hard + 2 * soft)
    logits = scale_logits(student) if name == "std" else student
    torch.testing.assert_close(hard, F.cross_entropy(logits, targets))
    assert torch.equal(soft, LOSSES[name](gamma=0, alpha=1)(student, teacher, targets.flip(1)))


def test_scaling_is_a_temperature_for_each_sample():
    """One sample whose student has the teacher's deviation: (6) is the divergence at τ = s(z), without τ²."""
    student, teacher, targets = (rows[:1] for rows in batch())
    student = scale_logits(student, teacher.std().item())
    temperature = teacher.std().item()
    scaled = UnitStdLoss(gamma=0.0, alpha=1.0)(student, teacher, targets)
    plain = TemperatureLoss(temperature, gamma=0.0, alpha=1.0)(student, teacher, targets)
    torch.testing.assert_close(temperature**2 * scaled, plain)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    student, teacher, targets = batch()
    loss = LOSSES[name]()
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, targets), student.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, targets = batch()
    teacher.requires_grad_()
    LOSSES[name]()(student.requires_grad_(), teacher, targets).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    student, teacher, targets = batch(dtype=dtype)
    loss = LOSSES[name]()
    result = loss(300 * student, 300 * teacher, targets.float())
    assert result.dtype == torch.float32
    wanted = loss(300 * student.double(), 300 * teacher.double(), targets.double())
    assert result.item() == pytest.approx(wanted.item(), rel=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_constant_logits_are_guarded(value):
    _, teacher, targets = batch(dtype=torch.float32)
    flat = torch.full_like(teacher, value)
    for student, target in [(flat, teacher), (teacher, flat), (flat, flat)]:
        assert bool(torch.isfinite(UnitStdLoss()(student, target, targets)))
        assert bool(torch.isfinite(gradient(UnitStdLoss(), student, target, targets)).all())
    assert UnitStdLoss(1.0, 0.0)(flat, teacher, targets).item() == pytest.approx(math.log(6), rel=1e-4)


# Learners


def rows(count=24):
    return Arrays(inputs=torch.rand(count, 1, 8, 8), labels=torch.arange(count) % 10)


def test_both_networks_see_the_same_mixed_images():
    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []
            self.layer = nn.Linear(64, 10)

        def forward(self, inputs):
            self.seen.append(inputs)
            return self.layer(inputs.flatten(1))

    student, teacher = Recorder(), Recorder()
    batch_ = rows()
    MixupDistillation(student, teacher, UnitStdLoss()).losses(batch_)
    assert torch.equal(student.seen[0], teacher.seen[0])
    assert not torch.isin(student.seen[0], batch_.inputs).all()


def test_targets_belong_to_the_mixed_images():
    """A loss that records its targets, and a network that returns its images: classes as one-hot images."""
    labels = torch.arange(30) % 10
    batch_ = Arrays(inputs=F.one_hot(labels, 10).float(), labels=labels)
    seen = {}

    def record(student_logits, teacher_logits, targets):
        seen.update(student=student_logits, targets=targets)
        return student_logits.sum()

    for mixup in (Mixup(), Mixup(unmixed=0.5), Mixup(0.9, exact=False), Mixup(1.0)):
        MixupDistillation(nn.Identity(), nn.Identity(), record, mixup).losses(batch_)
        torch.testing.assert_close(seen["targets"], seen["student"])


def test_teacher_stays_frozen_and_in_evaluation_mode():
    teacher = ConvNet(4, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    learner = MixupDistillation(MLP(64, (8,)), teacher, UnitStdLoss())
    fit(learner, rows(), Budget(steps=3, batch_size=8, lr=0.1))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not learner.train().teacher.training
    assert learner.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("kind", ["teacher", "labels"])
def test_same_seed_same_student(kind):
    weights, data = [], rows()
    for _ in range(2):
        with seeded(0):
            student, teacher = MLP(64, (8,)), MLP(64, (8,))
        learner = (
            MixupDistillation(student, teacher, UnitStdLoss(), Mixup(0.5, False))
            if kind == "teacher"
            else MixupSupervised(student)
        )
        fit(learner, data, Budget(steps=4, batch_size=8), seed=3)
        weights.append(torch.cat([p.flatten() for p in student.parameters()]))
    assert torch.equal(*weights)


def test_no_mixing_is_plain_training():
    model, batch_ = MLP(64, (8,)), rows()
    ours = MixupSupervised(model, Mixup(unmixed=1.0)).losses(batch_)["cross_entropy"]
    torch.testing.assert_close(ours, Supervised(model).losses(batch_)["cross_entropy"])


# Learning


@pytest.fixture(scope="module")
def taught():
    torch.set_num_threads(1)
    data = digits(train_size=600)
    with seeded(0):
        teacher = ConvNet(width=8, depth=3)
    fit(Supervised(teacher), data.train, Budget(epochs=12, batch_size=40, lr=0.1), seed=0)
    return data, teacher


@pytest.mark.parametrize("loss", [UnitStdLoss(), UnitStdLoss(multiplier=2.0), TemperatureLoss(4.0)])
def test_student_learns_more_than_from_few_labels(taught, loss):
    data, teacher = taught
    few, test = data.train.split(60, seed=0)[0], data.test
    scores = []
    for learner_for in (lambda s: MixupDistillation(s, teacher, loss, Mixup(unmixed=0.5)), Supervised):
        hits = []
        for seed in range(3):
            with seeded(seed):
                student = MLP(64, (32,))
            fit(learner_for(student), few, Budget(steps=200, batch_size=20, lr=0.1, warmup=0.1), seed=seed)
            hits.append(predict(student, test.inputs).argmax(dim=1) == test.labels)
        scores.append(100 * torch.stack(hits).double().mean().item())
    assert scores[0] > scores[1] + 1.5


# Bad input

GOOD = torch.randn(8, 6)
TARGETS = torch.full((8, 6), 1 / 6)
MIXING = Mixing(torch.arange(8), torch.arange(8), torch.ones(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mixup(unmixed=1.1), r"unmixed must lie in \[0, 1\], got 1.1"),
        (lambda: Mixup(unmixed=-0.1), r"unmixed must lie in \[0, 1\], got -0.1"),
        (lambda: Mixup(concentration=0.0), "concentration must be a positive number, got 0.0"),
        (lambda: Mixup(concentration=-1.0), "concentration must be a positive number, got -1.0"),
        (lambda: Mixup().draw(0), "batch_size must be a positive number, got 0"),
        (lambda: expected_mixed_share(0, 0.5), "batch_size must be a positive number, got 0"),
        (lambda: expected_mixed_share(8, 2.0), r"unmixed must lie in \[0, 1\], got 2.0"),
        (lambda: mix_inputs(GOOD.long(), MIXING), "inputs must be floating point, got torch.int64"),
        (lambda: mix_inputs(GOOD[:5], MIXING), r"mixing.first must have shape \(5,\), got \(8,\)"),
        (lambda: mix_targets(torch.zeros(8).long(), 1, MIXING), "num_classes must be at least 2, got 1"),
        (lambda: mix_targets(torch.arange(8), 7, MIXING), r"labels must lie in \[0, 7\), got values from 0 to 7"),
        (lambda: mix_targets(torch.zeros(8), 7, MIXING), "labels must be integer class numbers"),
        (
            lambda: mix_targets(torch.arange(8), 8, MIXING._replace(weight=torch.ones(3))),
            r"mixing.weight must have shape \(8,\), got \(3,\)",
        ),
        (lambda: scale_logits(torch.zeros(3, 1)), r"logits must have shape \(B, C\) with C >= 2"),
        (lambda: scale_logits(GOOD / 0), "logits must be finite"),
        (lambda: scale_logits(GOOD, 0.0), "multiplier must be a positive number, got 0.0"),
        (lambda: confidence_ceiling(1), "num_classes must be at least 2, got 1"),
        (lambda: confidence_ceiling(10, -1.0), "multiplier must be a positive number, got -1.0"),
        (lambda: UnitStdLoss(gamma=-0.1), "gamma must be a number of at least 0, got -0.1"),
        (lambda: UnitStdLoss(alpha=-0.9), "alpha must be a number of at least 0, got -0.9"),
        (lambda: UnitStdLoss(multiplier=0.0), "multiplier must be a positive number, got 0.0"),
        (lambda: TemperatureLoss(temperature=0.0), "temperature must be a positive number, got 0.0"),
        (lambda: TemperatureLoss(alpha=math.nan), "alpha must be a number of at least 0, got nan"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("student", "teacher", "targets", "message"),
    [
        (GOOD, GOOD[:4], TARGETS, "teacher_logits must have the shape of student_logits"),
        (GOOD[:, :1], GOOD[:, :1], TARGETS, "student_logits must have shape .* with C >= 2"),
        (GOOD / 0, GOOD, TARGETS, "student_logits must be finite"),
        (GOOD, GOOD, TARGETS[:4], r"targets must be class probabilities of shape \(8, 6\), got .* \(4, 6\)"),
        (GOOD, GOOD, torch.zeros(8, dtype=torch.long), "targets must be class probabilities .* got torch.int64"),
    ],
)
def test_losses_reject_bad_batches(name, student, teacher, targets, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name]()(student, teacher, targets)
