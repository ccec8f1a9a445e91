"""ND-KD: class means, both branches of the loss, its rivals, the ramp, the adapter, the learner."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.features.nd_kd import (
    FeatureAdapter,
    NormDirectionDistillation,
    RunningMeans,
    class_means,
    direction_loss,
    embeddings,
    mean_cosines,
    nd_loss,
    norm_loss,
    ramp,
    with_features,
)
from kdcore.foundations.kd import distillation_loss
from kdcore.metrics import accuracy
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded

LABELS = torch.tensor([2, 0, 1, 2, 0])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def triple(student_scale: float = 1.0, seed: int = 0):
    """Student features, teacher features, class means."""
    return student_scale * normal(5, 4, seed=seed), normal(5, 4, seed=seed + 1), normal(3, 4, seed=seed + 2)


def gradient(loss, features: torch.Tensor) -> torch.Tensor:
    leaf = features.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def batch_of(images: int = 12, width: int = 8) -> tuple[Arrays, MLP, MLP]:
    """A batch with a teacher's outputs, the teacher, and a student of the same width."""
    teacher, student = MLP(6, (width,), 3), MLP(6, (width,), 3)
    data = Arrays(inputs=normal(images, 6).float(), labels=torch.arange(images) % 3)
    return with_features(data, teacher), teacher, student


def means_of(batch: Arrays) -> torch.Tensor:
    return class_means(batch.teacher_features, batch.labels, 3)


@pytest.mark.parametrize("case", reference_cases("nd-kd"))
def test_matches_published_figures(case):
    tensors = {
        name: torch.tensor(value, dtype=torch.int64 if name == "labels" else torch.float64)
        for name, value in case["inputs"].items()
    }
    given_ = case["hyperparameters"]
    if "student_embedding" in tensors:
        student = tensors["student_embedding"].requires_grad_()
        loss = given_["nd_loss_factor"] * nd_loss(
            student, tensors["teacher_embedding"], tensors["class_means"], tensors["labels"]
        )
        grown = "grad_student_embedding"
    else:
        student = tensors["student_logits"].requires_grad_()
        loss = given_["kl_loss_factor"] * distillation_loss(student, tensors["teacher_logits"], given_["T"])
        grown = "grad_student_logits"
    loss.backward()
    assert_published({"loss": loss, grown: student.grad}, case, decimals=10)


# Class means, equations (1) and (11)


def test_class_means_agree_with_scikit_learn():
    features, labels = normal(40, 5), torch.arange(40) % 4
    wanted = NearestCentroid().fit(features.numpy(), labels.numpy()).centroids_
    np.testing.assert_allclose(class_means(features, labels, 4).numpy(), wanted, rtol=1e-12)


def test_means_carry_no_gradient():
    features = normal(6, 3).requires_grad_()
    assert not class_means(features, torch.arange(6) % 2, 2).requires_grad


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_running_means_of_everything_are_the_exact_ones(size, seed):
    features, labels = normal(30, 4, seed=seed), torch.randint(3, (30,), generator=torch.Generator().manual_seed(seed))
    running = RunningMeans(3, 4).double()
    for rows in torch.arange(30).split(size):
        running.update(features[rows], labels[rows])
    seen = labels.unique()
    for label in seen:
        torch.testing.assert_close(running.means[label], features[labels == label].mean(dim=0))
    assert running.counts.tolist() == torch.bincount(labels, minlength=3).tolist()


def test_running_means_are_exact_under_autocast():
    """Autocast would average in half precision, with errors of the order of 1e-3."""
    features, labels = normal(60, 5).float(), torch.arange(60) % 3
    running = RunningMeans(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for rows in torch.arange(60).split(7):
            running.update(features[rows], labels[rows])
        exact = class_means(features, labels, 3)
    wanted = torch.stack([features[labels == label].double().mean(dim=0).float() for label in range(3)])
    torch.testing.assert_close(exact, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running.means, wanted, rtol=1e-5, atol=1e-6)


def test_running_means_with_a_rate_are_an_exponential_average():
    running = RunningMeans(2, 1, rate=0.25).double()
    for value in (4.0, 8.0, 0.0):
        running.update(torch.full((3, 1), value, dtype=torch.float64), torch.zeros(3, dtype=torch.long))
    assert running.means.flatten().tolist() == [0.75 * (0.75 * 4 + 0.25 * 8), 0.0]  # the first as it is, the other none


def test_running_means_leave_absent_classes_alone():
    running = RunningMeans(3, 2, rate=0.5)
    running.update(torch.ones(3, 2), torch.arange(3))
    before = running.means.clone()
    running.update(torch.full((2, 2), 5.0), torch.tensor([1, 1]))
    assert torch.equal(running.means[[0, 2]], before[[0, 2]])
    assert running.means[1].tolist() == [3.0, 3.0]


def test_running_means_are_part_of_a_checkpoint():
    first, second = RunningMeans(2, 3), RunningMeans(2, 3)
    first.update(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.counts, second.counts)


def test_mean_cosines_agree_with_scikit_learn():
    features, means = normal(6, 4), normal(3, 4, seed=1)
    np.testing.assert_allclose(mean_cosines(features, means), cosine_similarity(features, means), rtol=1e-12)


# The loss, equations (2) to (6) and (8)


@pytest.mark.parametrize("teacher_norm", [0.5, 3.0])
@pytest.mark.parametrize("length", [0.2, 0.5, 1.0, 3.0, 50.0])
def test_along_the_mean_only_the_length_counts(length, teacher_norm):
    _, teacher, means = triple()
    unit = F.normalize(means, dim=1)[LABELS]
    teacher = teacher_norm * F.normalize(teacher, dim=1)
    wanted = max(0.0, 1 - length / teacher_norm)
    assert nd_loss(length * unit, teacher, means, LABELS).item() == pytest.approx(wanted, abs=1e-12)


def test_right_angle_and_opposite():
    means = torch.tensor([[2.0, 0.0]])
    labels, teacher = torch.tensor([0]), torch.tensor([[0.0, 1.0]])
    assert nd_loss(torch.tensor([[0.0, 7.0]]), teacher, means, labels).item() == 1.0
    assert nd_loss(torch.tensor([[-7.0, 0.0]]), teacher, means, labels).item() == 2.0


@given(st.floats(0.01, 100), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_equals_the_capped_norm_times_the_cosine(scale, seed):
    student, teacher, means = triple(scale, seed)
    value = nd_loss(student, teacher, means, LABELS).item()
    assert 0 <= value <= 2
    terms = []
    for one, other, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        target = means[label].tolist()
        cosine = sum(a * b for a, b in zip(one, target, strict=True)) / (math.hypot(*one) * math.hypot(*target))
        terms.append(1 - min(1, math.hypot(*one) / math.hypot(*other)) * cosine)
    assert value == pytest.approx(sum(terms) / len(terms), rel=1e-10)


def test_short_features_are_pulled_the_same_way_wherever_they_lie():
    student, teacher, means = triple(0.01)
    wanted = -F.normalize(means, dim=1)[LABELS] / (5 * teacher.norm(dim=1, keepdim=True))
    for scale in (1.0, 0.3):
        found = gradient(lambda s: nd_loss(s, teacher, means, LABELS), scale * student)
        torch.testing.assert_close(found, wanted)


def test_long_features_are_turned_and_not_stretched():
    student, teacher, means = triple(100.0)
    found = gradient(lambda s: nd_loss(s, teacher, means, LABELS), student)
    torch.testing.assert_close((found * student).sum(dim=1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found, gradient(lambda s: direction_loss(s, means, LABELS), student))
    longer = nd_loss(7 * student, teacher, means, LABELS)
    torch.testing.assert_close(longer, nd_loss(student, teacher, means, LABELS))


def test_a_detached_norm_would_keep_stretching():
    student, teacher, means = triple(100.0)

    def detached(features):
        unit = F.normalize(means, dim=1)[LABELS]
        return (1 - (features * unit).sum(dim=1) / features.norm(dim=1).detach()).mean()

    wrong, right = (gradient(loss, student) for loss in (detached, lambda s: nd_loss(s, teacher, means, LABELS)))
    assert (wrong * student).sum(dim=1).abs().min() > 1e-3
    assert (right * student).sum(dim=1).abs().max() < 1e-12


def test_the_gradient_is_that_of_finite_differences():
    student, teacher, means = triple()
    assert torch.autograd.gradcheck(lambda s: nd_loss(s, teacher, means, LABELS), student.requires_grad_())


def test_continuous_where_the_norms_agree():
    student, teacher, means = triple()
    student = F.normalize(student, dim=1) * teacher.norm(dim=1, keepdim=True)
    below, at, above = (nd_loss(scale * student, teacher, means, LABELS).item() for scale in (1 - 1e-9, 1, 1 + 1e-9))
    assert below == pytest.approx(at, abs=1e-8)
    assert above == pytest.approx(at, abs=1e-8)


def test_at_a_tie_the_gradient_is_the_mean_of_both_branches():
    student, means, labels = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    teacher = torch.tensor([[5.0, 0.0]])
    short, tie, long = (
        gradient(lambda s, t=scale * teacher: nd_loss(s, t, means, labels), student)
        for scale in (1 + 1e-6, 1, 1 - 1e-6)
    )
    torch.testing.assert_close(tie, (short + long) / 2, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_symmetries(seed):
    student, teacher, means = triple(seed=seed)
    value = nd_loss(student, teacher, means, LABELS)
    scales = torch.tensor([[0.1], [1.0], [40.0]], dtype=torch.float64)
    torch.testing.assert_close(nd_loss(student, teacher, scales * means, LABELS), value)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(nd_loss(student[order], teacher[order], means, LABELS[order]), value)
    turn = torch.linalg.qr(normal(4, 4, seed=seed + 9)).Q
    torch.testing.assert_close(nd_loss(student @ turn, teacher @ turn, means @ turn, LABELS), value)


@pytest.mark.parametrize("loss", [nd_loss, lambda s, t, m, y: direction_loss(s, m, y)])
def test_teacher_and_means_are_constants(loss):
    student, teacher, means = (tensor.requires_grad_() for tensor in triple())
    loss(student, teacher, means, LABELS).backward()
    assert teacher.grad is None
    assert means.grad is None
    assert student.grad.abs().max() > 0


def test_zero_features_give_finite_values_and_gradients():
    _, teacher, means = triple()
    zero = torch.zeros(5, 4, dtype=torch.float64, requires_grad=True)
    for other in (teacher, torch.zeros_like(teacher)):
        value = nd_loss(zero, other, means, LABELS)
        assert value.item() == 1.0
        assert torch.isfinite(torch.autograd.grad(value, zero)[0]).all()
    assert torch.isfinite(gradient(lambda s: direction_loss(s, means, LABELS), zero.detach())).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_norms_in_float32(dtype):
    student, teacher, means = (tensor.mul(100).to(dtype) for tensor in triple(4.0))
    value = nd_loss(student, teacher, means, LABELS)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, nd_loss(student.float(), teacher.float(), means.float(), LABELS))


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_with_means_that_share_a_direction_a_constant_feature_is_cheap(shared):
    """Ten directions with the same cosine for each pair: their sum has the cosine √((1 + 9g)/10) with each."""
    gram = shared * torch.ones(10, 10, dtype=torch.float64) + (1 - shared) * torch.eye(10, dtype=torch.float64)
    means = torch.linalg.cholesky(gram)
    constant = means.sum(dim=0).expand(10, -1)
    value = nd_loss(100 * constant, torch.ones_like(constant), means, torch.arange(10))
    assert value.item() == pytest.approx(1 - math.sqrt((1 + 9 * shared) / 10), abs=1e-12)


def test_in_the_short_branch_it_is_the_linear_part_of_a_squared_distance():
    student, teacher, means = triple(0.01)
    norms = teacher.norm(dim=1)
    ends = norms.unsqueeze(1) * F.normalize(means, dim=1)[LABELS]
    squared = (student - ends).square().sum(dim=1)
    linear = (squared - student.square().sum(dim=1) - norms.square()) / (2 * norms.square())
    torch.testing.assert_close(nd_loss(student, teacher, means, LABELS), 1 + linear.mean())


# The rivals: the direction alone, the norm alone


def test_direction_loss_knows_no_length():
    student, _, means = triple()
    values = [direction_loss(scale * student, means, LABELS).item() for scale in (0.01, 1, 100)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)
    found = gradient(lambda s: direction_loss(s, means, LABELS), student)
    assert (found * student).sum(dim=1).abs().max() < 1e-14


def test_the_direction_s_gradient_grows_as_features_shrink_and_nd_s_does_not():
    student, teacher, means = triple()

    def growth(loss) -> float:
        """How much longer the gradient is at features a thousand times shorter."""
        small, smaller = (gradient(loss, scale * student) for scale in (1e-2, 1e-5))
        return float(smaller.norm() / small.norm())

    assert growth(lambda s: direction_loss(s, means, LABELS)) == pytest.approx(1000, rel=1e-6)
    assert growth(lambda s: nd_loss(s, teacher, means, LABELS)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("step", [0.1, 2.0])
def test_norm_loss_pushes_all_features_alike(step):
    student = triple()[0]
    assert norm_loss(student, step).item() == pytest.approx(step**2)
    found = gradient(lambda s: norm_loss(s, step), student)
    torch.testing.assert_close(found, -2 * step / 5 * F.normalize(student, dim=1))


# The ramp of equation (9), and the adapter, equation (10)


def test_ramp():
    assert [ramp(epoch, 20) for epoch in (0, 1, 10, 20, 100)] == [0, 0.05, 0.5, 1, 1]
    assert ramp(0, 0) == 1


def test_adapter_does_not_feel_the_length_of_its_input():
    torch.manual_seed(0)
    adapter, features = FeatureAdapter(4, 6, dropout=0.0).double(), normal(16, 4)
    torch.testing.assert_close(adapter(features), adapter(10 * features), rtol=1e-3, atol=1e-3)
    means, labels = normal(3, 6, seed=1), torch.arange(16) % 3
    leaf = features.requires_grad_()
    loss = nd_loss(adapter(leaf), normal(16, 6, seed=2), means, labels)
    (found,) = torch.autograd.grad(loss, leaf)
    assert (found * leaf).sum().abs() < 1e-4 * found.norm() * leaf.norm()  # no pull on the common length


# The learner, equation (9)


def test_terms_are_those_of_the_equation():
    batch, _, student = batch_of()
    learner = NormDirectionDistillation(student, means_of(batch), kd_weight=3.0, nd_weight=0.5, temperature=2.0)
    learner.on_epoch_end(5)
    terms = learner.losses(batch)
    features = student.embed(batch.inputs)
    logits = student.classifier(features)
    wanted = {
        "cross_entropy": F.cross_entropy(logits, batch.labels),
        "distillation": 5 / 20 * 3 * distillation_loss(logits, batch.teacher_logits, 2.0),
        "features": 0.5 * nd_loss(features, batch.teacher_features, means_of(batch), batch.labels),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_weight_zero_skips_the_term():
    batch, _, student = batch_of()

    def fail(*_):
        pytest.fail("this loss should not have been computed")

    learner = NormDirectionDistillation(student, means_of(batch), kd_weight=0.0, nd_weight=0.0, feature_loss=fail)
    assert list(learner.losses(batch)) == ["cross_entropy"]


def test_cached_outputs_are_those_of_the_teacher():
    batch, teacher, student = batch_of()
    cached = NormDirectionDistillation(student, means_of(batch))
    running = NormDirectionDistillation(student, means_of(batch), teacher=teacher)
    bare = Arrays(inputs=batch.inputs, labels=batch.labels)
    first, second = cached.losses(batch), running.losses(bare)
    for name in first:
        torch.testing.assert_close(first[name], second[name])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_running_means_learn_in_training_alone():
    batch, _, student = batch_of()
    learner = NormDirectionDistillation(student, RunningMeans(3, 8))
    learner.eval()
    learner.running.update(batch.teacher_features[:3], batch.labels[:3])
    learner.losses(batch)
    assert learner.running.counts.sum() == 3
    learner.train()
    value = learner.losses(batch)["features"]
    assert learner.running.counts.sum() == 15
    assert torch.isfinite(value)


def test_the_ramp_moves_with_the_epochs_and_survives_a_checkpoint():
    batch, _, student = batch_of()
    learner = NormDirectionDistillation(student, means_of(batch), ramp_epochs=4)
    history = fit(learner, batch, Budget(epochs=3, batch_size=6, lr=1e-6))
    found = history.epochs["distillation"].to_numpy()
    assert found[0] == 0
    assert found[2] == pytest.approx(2 * found[1], rel=1e-3)
    fresh = NormDirectionDistillation(copy.deepcopy(student), means_of(batch), ramp_epochs=4)
    fresh.load_state_dict(learner.state_dict())
    assert fresh.ramp_factor.item() == 0.75


def test_adapter_is_trained_and_the_kept_student_does_without_it():
    batch, teacher, _ = batch_of()
    student = MLP(6, (5,), 3)
    learner = NormDirectionDistillation(student, means_of(batch), adapter=FeatureAdapter(5, 8))
    before = copy.deepcopy(learner.adapter.state_dict())
    fit(learner, batch, Budget(epochs=1, batch_size=6))
    assert not torch.equal(learner.adapter[2].weight, before["2.weight"])
    assert predict(learner.model, batch.inputs).shape == (12, 3)
    assert teacher.classifier.in_features == 8


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("rate", [None, 0.1])
def test_trains_beside_a_running_teacher_that_stays_as_it_was(precision, rate):
    teacher, student = ConvNet(width=4, depth=3), ConvNet(width=8, depth=2)
    rows = Arrays(inputs=torch.rand(20, 1, 8, 8), labels=torch.arange(20) % 10)
    before, first = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    learner = NormDirectionDistillation(student, RunningMeans(10, 16, rate), teacher=teacher)
    history = fit(learner, rows, Budget(epochs=2, batch_size=10, precision=precision))
    assert {"cross_entropy", "distillation", "features"} <= set(history.epochs)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(student.classifier.weight, first["classifier.weight"])
    assert learner.running.means.dtype == torch.float32


def test_evaluation_keeps_the_mode_of_a_network():
    network = ConvNet(width=4, depth=2)
    inputs = torch.rand(5, 1, 8, 8)
    network.train()
    features = embeddings(network, inputs, batch_size=2)
    assert network.training
    torch.testing.assert_close(network.eval().embed(inputs), features)
    data = with_features(Arrays(inputs=inputs, labels=torch.arange(5)), network)
    torch.testing.assert_close(network(inputs), data.teacher_logits)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student_features": torch.zeros(5)}, r"student_features must have shape \(B, d\)"),
        (
            {"student_features": torch.zeros(5, 3)},
            r"teacher_features must have the shape of student_features, \(5, 3\)",
        ),
        ({"student_features": torch.full((5, 4), math.nan)}, "student_features must be finite"),
        ({"teacher_features": torch.zeros(5, 4, dtype=torch.long)}, "teacher_features must be floating point"),
        ({"teacher_features": torch.full((5, 4), math.inf)}, "teacher_features must be finite"),
        ({"means": torch.ones(3, 6)}, r"means must have shape \(C, 4\), as wide as the features, got \(3, 6\)"),
        ({"means": torch.full((3, 4), math.nan)}, "means must be finite"),
        ({"means": torch.tensor([[1.0] * 4, [0.0] * 4, [1.0] * 4])}, r"no direction for class \[1\]"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0])}, r"labels must lie in \[0, 3\)"),
        ({"labels": torch.tensor([0, 1])}, r"labels must have shape \(5,\)"),
        ({"labels": torch.zeros(5)}, "labels must be integer"),
    ],
)
def test_bad_features_are_rejected(arguments, message):
    good = {
        "student_features": torch.ones(5, 4),
        "teacher_features": torch.ones(5, 4),
        "means": torch.ones(3, 4),
        "labels": LABELS,
    }
    with pytest.raises(ValueError, match=message):
        nd_loss(**(good | arguments))


def test_a_zero_mean_of_a_class_that_is_not_there_does_no_harm():
    means = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert nd_loss(torch.ones(1, 2), torch.ones(1, 2), means, torch.tensor([0])).isfinite()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_means(torch.ones(4, 2), torch.tensor([0, 0, 2, 2]), 3), r"no sample of \[1\] among 4"),
        (lambda: class_means(torch.ones(4), torch.zeros(4).long(), 1), r"features must have shape \(B, d\)"),
        (lambda: RunningMeans(0, 2), "num_classes must be a positive number"),
        (lambda: RunningMeans(2, 2, rate=0.0), r"rate must lie in \(0, 1\], or be None, got 0.0"),
        (lambda: RunningMeans(2, 3).update(torch.ones(1, 2), torch.tensor([0])), r"features must have shape \(B, 3\)"),
        (lambda: RunningMeans(2, 3).update(torch.ones(1, 3), torch.tensor([2])), r"labels must lie in \[0, 2\)"),
        (lambda: mean_cosines(torch.ones(2, 3), torch.ones(2, 4)), r"means must have shape \(C, 3\)"),
        (lambda: norm_loss(torch.ones(2, 3), step=0.0), "step must be a positive number"),
        (lambda: ramp(-1, 3), "epoch must be a number of at least 0"),
        (lambda: ramp(0, -3), "ramp_epochs must be a number of at least 0"),
        (lambda: FeatureAdapter(2, 3, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: FeatureAdapter(0, 3), "in_features must be a positive number"),
    ],
)
def test_bad_arguments_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kd_weight": -1.0}, "kd_weight must be a number of at least 0"),
        ({"nd_weight": math.inf}, "nd_weight must be a number of at least 0"),
        ({"temperature": 0.0}, "temperature must be a positive number"),
        ({"ramp_epochs": -2.0}, "ramp_epochs must be a number of at least 0"),
    ],
)
def test_bad_settings_are_rejected(settings_, message):
    with pytest.raises(ValueError, match=message):
        NormDirectionDistillation(MLP(6, (8,), 3), torch.ones(3, 8), **settings_)


def test_a_learner_without_teacher_and_without_its_outputs_says_so():
    batch, _, student = batch_of()
    learner = NormDirectionDistillation(student, means_of(batch))
    with pytest.raises(ValueError, match=r"batch must carry teacher_features .* got inputs, labels"):
        learner.losses(Arrays(inputs=batch.inputs, labels=batch.labels))


# Learning


def test_the_loss_turns_and_lengthens_features():
    images = digits(train_size=300)
    with seeded(0):
        teacher = ConvNet(width=8, depth=2)
    fit(Supervised(teacher), images.train, Budget(epochs=15, batch_size=50, lr=0.1))
    train, test = with_features(images.train, teacher), with_features(images.test, teacher)
    means = class_means(train.teacher_features, train.labels, 10)
    found = {}
    for weight in (0.0, 2.0):
        with seeded(1):
            student = MLP(64, (16,))
        learner = NormDirectionDistillation(student, means, kd_weight=0.0, nd_weight=weight)
        fit(learner, train, Budget(steps=300, batch_size=50, lr=0.05))
        features = embeddings(student, test.inputs)
        found[weight] = {
            "loss": nd_loss(features, test.teacher_features, means, test.labels).item(),
            "nearest mean": accuracy(mean_cosines(features, means), test.labels),
            "norm": features.norm(dim=1).mean().item(),
            "accuracy": accuracy(predict(student, test.inputs), test.labels),
        }
    plain, pulled = found[0.0], found[2.0]
    assert pulled["loss"] < plain["loss"] / 3, found
    assert pulled["nearest mean"] > plain["nearest mean"] + 15, found
    assert pulled["accuracy"] > plain["accuracy"] - 2, found
