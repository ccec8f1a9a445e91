"""AdaIN-KD: statistics, their transplantation, the teacher's evaluation, the learner."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays
from kdcore.features.adain_kd import (
    EPSILON,
    AdaINDistillation,
    adaptive_instance_norm,
    channel_mean,
    channel_std,
    evaluation_loss,
    mean_matching_loss,
    statistics_matching_loss,
    std_matching_loss,
)
from kdcore.foundations.hints import Connector
from kdcore.foundations.kd import distillation_loss
from kdcore.models import ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded

MATCHING = [mean_matching_loss, std_matching_loss, statistics_matching_loss]
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(2, 4))


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def permute_pixels(features: torch.Tensor, seed: int) -> torch.Tensor:
    """Each channel of each sample in a pixel order of its own."""
    order = torch.rand(features.shape, generator=torch.Generator().manual_seed(seed)).flatten(2).argsort(dim=2)
    return features.flatten(2).gather(2, order).view_as(features)


def random_batch(size: int = 6, dtype: torch.dtype = torch.float32) -> Arrays:
    return Arrays(inputs=torch.rand(size, 1, 8, 8, dtype=dtype), labels=torch.arange(size) % 10)


@pytest.mark.parametrize("case", reference_cases("adain-kd"))
def test_matches_published_figures(case):
    student_map = torch.tensor(case["inputs"]["student_map"], dtype=torch.float64, requires_grad=True)
    teacher_map = torch.tensor(case["inputs"]["teacher_map"], dtype=torch.float64)
    loss = mean_matching_loss(student_map, teacher_map, **case["hyperparameters"])
    loss.backward()
    computed = {"loss": loss.detach(), "grad_student_map": student_map.grad}
    assert_published(computed, case, decimals=10)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_statistics_agree_with_obvious_loop(shape, seed):
    features = random_map(*shape, seed=seed)
    means, deviations = channel_mean(features), channel_std(features)
    assert means.shape == deviations.shape == shape[:2]
    for b in range(shape[0]):
        for c in range(shape[1]):
            pixels = features[b, c].flatten().tolist()
            mean = sum(pixels) / len(pixels)
            variance = sum((pixel - mean) ** 2 for pixel in pixels) / len(pixels)
            assert means[b, c].item() == pytest.approx(mean, abs=1e-12)
            assert deviations[b, c].item() == pytest.approx(math.sqrt(variance + 1e-5), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_student_with_the_teachers_statistics_changes_nothing(shape, seed):
    teacher_map = random_map(*shape, seed=seed)
    student_map = permute_pixels(teacher_map, seed)
    torch.testing.assert_close(adaptive_instance_norm(student_map, teacher_map), teacher_map)
    assert statistics_matching_loss(student_map, teacher_map).item() == pytest.approx(0, abs=1e-20)


def test_copy_of_the_teacher_has_no_loss():
    teacher = ConvNet(width=4).double()
    learner = AdaINDistillation(copy.deepcopy(teacher), teacher, stages=(0, 1, 2)).eval()
    terms = learner.losses(random_batch(dtype=torch.float64))
    assert terms["statistics"] == 0
    assert terms["evaluation"].item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("inject", ["both", "mean", "std"])
def test_transplanted_map_has_the_injected_statistics(inject):
    student_map, teacher_map = 2 * random_map(3, 4, 5, 2) + 1, random_map(3, 4, 6, 3, seed=1)
    transplanted = adaptive_instance_norm(student_map, teacher_map, inject)
    variance = teacher_map.var(dim=(2, 3), correction=0)
    expected_mean = channel_mean(teacher_map if inject == "std" else student_map)
    expected_std = channel_std(teacher_map)
    if inject != "mean":  # exactly σ(F^s) but for the ε in both deviations
        expected_std = (channel_std(student_map).square() * variance / (variance + EPSILON) + EPSILON).sqrt()
        torch.testing.assert_close(channel_std(transplanted), channel_std(student_map), rtol=1e-4, atol=0)
    torch.testing.assert_close(channel_mean(transplanted), expected_mean)
    torch.testing.assert_close(channel_std(transplanted), expected_std)


def test_normalization_agrees_with_library():
    student_map, teacher_map = random_map(3, 4, 5, 2), random_map(3, 4, 6, 3, seed=1)
    deviation, mean = channel_std(student_map)[:, :, None, None], channel_mean(student_map)[:, :, None, None]
    expected = deviation * F.instance_norm(teacher_map, eps=EPSILON) + mean
    torch.testing.assert_close(adaptive_instance_norm(student_map, teacher_map), expected)


@pytest.mark.parametrize("loss", MATCHING)
@settings(max_examples=10, deadline=None)
@given(shape=shapes, seed=st.integers(0, 1000))
def test_place_and_size_do_not_matter(loss, shape, seed):
    student_map, teacher_map = random_map(*shape, seed=seed), random_map(*shape, seed=seed + 1)
    expected, transplanted = loss(student_map, teacher_map), adaptive_instance_norm(student_map, teacher_map)
    for same in (
        permute_pixels(student_map, seed),
        student_map.repeat_interleave(3, dim=2),
        student_map.tile(1, 1, 1, 2),
    ):
        torch.testing.assert_close(loss(same, teacher_map), expected)
        torch.testing.assert_close(adaptive_instance_norm(same, teacher_map), transplanted)


def test_samples_do_not_interact():
    student_map, teacher_map = random_map(3, 4, 5, 2), random_map(3, 4, 5, 2, seed=1)
    singly = [adaptive_instance_norm(*pair) for pair in zip(student_map.split(1), teacher_map.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(singly), adaptive_instance_norm(student_map, teacher_map))


@settings(max_examples=20, deadline=None)
@given(shapes, st.floats(-5, 5), st.integers(0, 1000))
def test_constant_added_to_the_student_costs_its_square(shape, constant, seed):
    teacher_map = random_map(*shape, seed=seed)
    student_map = permute_pixels(teacher_map, seed) + constant
    loss = statistics_matching_loss(student_map, teacher_map)
    assert loss.item() == pytest.approx(constant**2, rel=1e-9, abs=1e-12)
    assert std_matching_loss(student_map, teacher_map).item() == pytest.approx(0, abs=1e-12)


def test_statistics_matching_is_mean_part_plus_std_part():
    student_map, teacher_map = random_map(2, 3, 4, 4), random_map(2, 3, 2, 5, seed=1)
    mean_part = (student_map.mean((2, 3)) - teacher_map.mean((2, 3))).square().mean()
    std_part = (channel_std(student_map) - channel_std(teacher_map)).square().mean()
    torch.testing.assert_close(mean_matching_loss(student_map, teacher_map), mean_part)
    torch.testing.assert_close(std_matching_loss(student_map, teacher_map), std_part)
    torch.testing.assert_close(statistics_matching_loss(student_map, teacher_map), mean_part + std_part)


def test_linear_tail_turns_evaluation_into_weighted_mean_matching():
    weight, labels = random_map(5, 4, 1, 1, seed=2).flatten(1), torch.zeros(3, dtype=torch.long)
    weight[:, 0] = 0  # the teacher ignores this channel
    student_map, teacher_map = random_map(3, 4, 2, 2).requires_grad_(), random_map(3, 4, 4, 4, seed=1)

    def tail(features: torch.Tensor) -> torch.Tensor:
        return features.mean(dim=(2, 3)) @ weight.T

    judged = tail(adaptive_instance_norm(student_map, teacher_map))
    gap = channel_mean(student_map) - channel_mean(teacher_map)
    torch.testing.assert_close(judged - tail(teacher_map), gap @ weight.T)
    loss = evaluation_loss(judged, tail(teacher_map), labels)
    torch.testing.assert_close(loss, (gap @ weight.T).square().mean())
    (gradient,) = torch.autograd.grad(loss, student_map)
    torch.testing.assert_close(gradient, gradient.mean(dim=(2, 3), keepdim=True).expand_as(gradient))  # none in σ
    assert gradient[:, 0].abs().max() < 1e-12
    only_std = tail(adaptive_instance_norm(student_map, teacher_map, inject="std"))
    assert evaluation_loss(only_std, tail(teacher_map), labels).item() == pytest.approx(0, abs=1e-20)
    (plain,) = torch.autograd.grad(statistics_matching_loss(student_map, teacher_map), student_map)
    assert plain[:, 0].abs().max() > 1e-3  # plain matching cares about the ignored channel all the same


def test_gradients_are_those_of_finite_differences():
    student_map, teacher_map = random_map(2, 2, 2, 3).requires_grad_(), random_map(2, 2, 3, 2, seed=1)
    assert torch.autograd.gradcheck(lambda features: statistics_matching_loss(features, teacher_map), student_map)
    assert torch.autograd.gradcheck(lambda features: adaptive_instance_norm(features, teacher_map), student_map)


@pytest.mark.parametrize("function", [*MATCHING, adaptive_instance_norm])
def test_teacher_map_is_a_constant(function):
    student_map, teacher_map = random_map(2, 2, 2, 3).requires_grad_(), random_map(2, 2, 2, 3, seed=1).requires_grad_()
    function(student_map, teacher_map).square().sum().backward()
    assert teacher_map.grad is None
    assert student_map.grad.abs().max() > 0


def test_dead_channels_give_finite_values_and_gradients():
    student_map, teacher_map = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 3, 4, 4)
    transplanted = adaptive_instance_norm(student_map, teacher_map)
    assert torch.equal(transplanted, teacher_map)
    (transplanted.sum() + statistics_matching_loss(student_map, random_map(2, 3, 4, 4).float())).backward()
    assert torch.isfinite(student_map.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_statistics_in_float32(dtype):
    student_map, teacher_map = random_map(2, 3, 4, 4).to(dtype), random_map(2, 3, 4, 4, seed=1).to(dtype)
    student_map[:, 0] = teacher_map[:, 0] = 0.5
    assert channel_std(student_map).dtype == torch.float32
    torch.testing.assert_close(channel_std(student_map)[:, 0], torch.full((2,), math.sqrt(1e-5)))
    torch.testing.assert_close(
        statistics_matching_loss(student_map, teacher_map),
        statistics_matching_loss(student_map.float(), teacher_map.float()),
    )
    transplanted = adaptive_instance_norm(student_map, teacher_map)
    assert transplanted.dtype == dtype
    torch.testing.assert_close(transplanted, adaptive_instance_norm(student_map.float(), teacher_map.float()).to(dtype))


def test_output_distances():
    judged, teacher_logits, labels = random_map(4, 3), random_map(4, 3, seed=1), torch.tensor([0, 1, 2, 0])
    squares = [(a - b) ** 2 for a, b in zip(judged.flatten().tolist(), teacher_logits.flatten().tolist(), strict=True)]
    assert evaluation_loss(judged, teacher_logits, labels).item() == pytest.approx(sum(squares) / 12)
    divergence = evaluation_loss(judged, teacher_logits, labels, output_distance="kl", temperature=3.0)
    torch.testing.assert_close(divergence, distillation_loss(judged, teacher_logits, temperature=3.0))
    hard = evaluation_loss(judged, teacher_logits, labels, output_distance="ce")
    picked = judged.log_softmax(dim=1)[range(4), labels.tolist()]
    torch.testing.assert_close(hard, -picked.mean())
    assert evaluation_loss(judged, judged, labels) == evaluation_loss(judged, judged, labels, "kl") == 0


@pytest.mark.parametrize("output_distance", ["mse", "kl"])
def test_teacher_logits_are_a_constant(output_distance):
    judged, teacher_logits = random_map(4, 3).requires_grad_(), random_map(4, 3, seed=1).requires_grad_()
    evaluation_loss(judged, teacher_logits, torch.tensor([0, 1, 2, 0]), output_distance).backward()
    assert teacher_logits.grad is None
    assert judged.grad.abs().max() > 0


@pytest.mark.parametrize("function", [*MATCHING, adaptive_instance_norm])
@pytest.mark.parametrize(
    ("student_map", "message"),
    [
        (
            torch.zeros(2, 3, 16),
            r"student_map must have shape \(B, C, H, W\) with at least one pixel, got \(2, 3, 16\)",
        ),
        (torch.zeros(2, 3, 4, 0), r"student_map must have shape .* got \(2, 3, 4, 0\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.long), "student_map must be floating point, got torch.int64"),
        (torch.zeros(1, 3, 4, 4), r"teacher_map must have the batch size and channels of student_map, \(1, 3\)"),
        (torch.zeros(2, 1, 4, 4), r"teacher_map must have the batch size and channels .* got \(2, 3\)"),
        (torch.full((2, 3, 4, 4), math.inf), "student_map must be finite"),
    ],
)
def test_maps_that_do_not_fit_are_rejected(function, student_map, message):
    with pytest.raises(ValueError, match=message):
        function(student_map, torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("statistic", [channel_mean, channel_std])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(2, 3), r"features must have shape \(B, C, H, W\)"),
        (torch.full((1, 1, 2, 2), math.nan), "be finite"),
    ],
)
def test_statistics_of_anything_but_a_map_are_rejected(statistic, features, message):
    with pytest.raises(ValueError, match=message):
        statistic(features)


def test_single_pixel_has_a_mean_but_no_deviation():
    student_map, teacher_map = random_map(2, 3, 1, 1), random_map(2, 3, 1, 1, seed=1)
    torch.testing.assert_close(adaptive_instance_norm(student_map, teacher_map, inject="mean"), student_map)
    torch.testing.assert_close(mean_matching_loss(student_map, teacher_map), F.mse_loss(student_map, teacher_map))
    for function in (std_matching_loss, statistics_matching_loss, adaptive_instance_norm):
        with pytest.raises(ValueError, match=r"at least two pixels for a deviation, got \(2, 3, 1, 1\)"):
            function(student_map, teacher_map)
    with pytest.raises(ValueError, match="at least two pixels"):
        channel_std(student_map)


def test_unknown_injection_is_rejected():
    with pytest.raises(ValueError, match=r"inject must be one of .* got 'means'. Did you mean 'mean'"):
        adaptive_instance_norm(random_map(1, 1, 2, 2), random_map(1, 1, 2, 2), inject="means")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluated_logits": torch.zeros(2, 4)}, "teacher_logits must have the shape of evaluated_logits"),
        ({"evaluated_logits": torch.zeros(2)}, r"evaluated_logits must have shape \(B, C\)"),
        ({"teacher_logits": torch.full((2, 3), math.nan)}, "teacher_logits must be finite"),
        ({"labels": torch.tensor([0, 3])}, r"labels must lie in \[0, 3\)"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be integer"),
        ({"output_distance": "l2"}, "output_distance must be one of 'mse', 'kl', 'ce', got 'l2'"),
        ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
    ],
)
def test_bad_evaluations_are_rejected(arguments, message):
    good = {"evaluated_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        evaluation_loss(**(good | arguments))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"stages": ()}, "stages must name at least one stage"),
        ({"stages": (1, -2)}, r"none twice, got \(1, -2\)"),
        ({"stages": (3,)}, r"stages must lie in \[-3, 3\) for the student"),
        ({"statistics_weight": -0.5}, "statistics_weight must be a number of at least 0, got -0.5"),
        ({"evaluation_weight": math.inf}, "evaluation_weight must be a number of at least 0, got inf"),
        ({"output_distance": "mae"}, "output_distance must be one of"),
        ({"inject": "variance"}, "inject must be one of"),
        ({"temperature": -1.0}, "temperature must be a positive number"),
    ],
)
def test_bad_settings_are_rejected(settings_, message):
    with pytest.raises(ValueError, match=message):
        AdaINDistillation(ConvNet(width=4), ConvNet(width=8), **settings_)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 1.0)])
def test_bad_labels_are_rejected(weights):
    learner = AdaINDistillation(ConvNet(4), ConvNet(8), statistics_weight=weights[0], evaluation_weight=weights[1])
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
        learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 10])))


def test_terms_are_those_of_the_equations():
    student, teacher, batch = ConvNet(width=4).double(), ConvNet(width=8).double(), random_batch(dtype=torch.float64)
    learner = AdaINDistillation(student, teacher, stages=(0, -1), statistics_weight=2.0, evaluation_weight=3.0)
    terms = learner.double().eval().losses(batch)
    (student_maps, student_logits), (teacher_maps, teacher_logits) = (
        student.maps(batch.inputs),
        teacher.maps(batch.inputs),
    )
    statistics, damage = 0.0, 0.0
    for connector, stage in zip(learner.connectors, (0, 2), strict=True):
        student_map, teacher_map = connector(student_maps[stage]), teacher_maps[stage]
        statistics += statistics_matching_loss(student_map, teacher_map)
        features = adaptive_instance_norm(student_map, teacher_map)
        for module in teacher.stages[stage + 1 :]:
            features = module(features)
        damage += F.mse_loss(teacher.classifier(teacher.pool(features)), teacher_logits)
    torch.testing.assert_close(terms["statistics"], 2 * statistics)
    torch.testing.assert_close(terms["evaluation"], 3 * damage)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(student_logits, batch.labels))


@pytest.mark.parametrize("setting", [{"output_distance": "kl", "temperature": 0.01}, {"output_distance": "ce"}])
def test_learner_passes_the_output_distance_on(setting):
    batch = random_batch()
    learner = AdaINDistillation(ConvNet(4), ConvNet(8), stages=(-1,), **setting).eval()
    (student_maps, _), (teacher_maps, teacher_logits) = (
        learner.student_maps(batch.inputs),
        learner.teacher_maps(batch.inputs),
    )
    (judged,) = learner.evaluated_logits(student_maps, teacher_maps)
    expected = evaluation_loss(judged, teacher_logits, batch.labels, **setting)
    torch.testing.assert_close(learner.losses(batch)["evaluation"], expected)


@pytest.mark.parametrize("inject", ["both", "mean", "std"])
@pytest.mark.parametrize("relu_after", [False, True])
def test_evaluated_logits_are_the_tail_of_the_transplanted_map(inject, relu_after):
    learner = AdaINDistillation(ConvNet(8), ConvNet(8), stages=(1,), inject=inject, relu_after=relu_after)
    student_map, teacher_map = random_map(3, 16, 4, 4).float() - 1, random_map(3, 16, 4, 4, seed=1).float()
    (judged,) = learner.evaluated_logits([student_map], [teacher_map])
    transplanted = adaptive_instance_norm(student_map, teacher_map, inject)
    assert (transplanted < 0).any()
    if relu_after:
        transplanted = transplanted.clamp(min=0)
    torch.testing.assert_close(judged, learner.teacher.tail(1)(transplanted))


def test_weight_zero_skips_the_work(monkeypatch):
    def fail(*_):
        pytest.fail("this work should have been skipped")

    student, teacher, batch = ConvNet(width=4), ConvNet(width=8), random_batch()
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "maps", fail)
        learner = AdaINDistillation(student, teacher, statistics_weight=0.0, evaluation_weight=0.0)
        assert list(learner.losses(batch)) == ["cross_entropy"]
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "tail", fail)
        learner = AdaINDistillation(student, teacher, evaluation_weight=0.0)
        assert list(learner.losses(batch)) == ["cross_entropy", "statistics"]
    with monkeypatch.context() as patch:
        patch.setattr("kdcore.features.adain_kd.statistics_matching_loss", fail)
        learner = AdaINDistillation(student, teacher, statistics_weight=0.0)
        assert list(learner.losses(batch)) == ["cross_entropy", "evaluation"]


def test_connectors_only_where_channels_differ():
    learner = AdaINDistillation(ConvNet(width=4, depth=2), ConvNet(width=2), stages=(-1, -2))
    assert [type(connector) for connector in learner.connectors] == [nn.Identity] * 2
    learner = AdaINDistillation(ConvNet(width=4), ConvNet(width=8))
    assert [type(connector) for connector in learner.connectors] == [Connector] * 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_teacher_stays_as_it_was(precision):
    teacher = ConvNet(width=8)
    before = copy.deepcopy(teacher.state_dict())
    learner = AdaINDistillation(ConvNet(width=4), teacher)
    first = learner.model.stages[0][0].weight.detach().clone()
    learner.losses(random_batch())  # also where nobody called train()
    fit(learner, random_batch(), Budget(epochs=2, batch_size=3, precision=precision))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not torch.equal(learner.model.stages[0][0].weight, first)


def test_teacher_forward_keeps_no_graph():
    maps, logits = AdaINDistillation(ConvNet(4), ConvNet(8)).teacher_maps(torch.rand(2, 1, 8, 8, requires_grad=True))
    assert not any(tensor.requires_grad for tensor in (*maps, logits))


def test_evaluation_trains_student_and_connectors_through_the_tail():
    learner = AdaINDistillation(ConvNet(width=4), ConvNet(width=8), statistics_weight=0.0)
    learner.losses(random_batch())["evaluation"].backward()
    trained = [*learner.model.stages.parameters(), *learner.connectors.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
    assert all(parameter.grad is None for parameter in learner.model.classifier.parameters())


def test_student_learns_more_than_from_labels_alone():
    inputs, labels = load_digits(return_X_y=True)
    digits = Arrays(
        inputs=torch.tensor(inputs / 16, dtype=torch.float32).view(-1, 1, 8, 8), labels=torch.tensor(labels)
    )
    training, test = digits.split(1000, 797)
    with seeded(0):
        teacher = ConvNet(width=16)
    fit(Supervised(teacher), training, Budget(epochs=4, batch_size=50))

    def accuracy(weight: float, seed: int) -> float:
        with seeded(seed):
            learner = AdaINDistillation(ConvNet(width=4), teacher, statistics_weight=weight, evaluation_weight=weight)
        fit(learner, training[:100], Budget(epochs=60, batch_size=50), seed=seed)
        return (predict(learner.model, test.inputs).argmax(dim=1) == test.labels).double().mean().item()

    baseline, transferred = (sum(accuracy(weight, seed) for seed in range(2)) / 2 for weight in (0.0, 1.0))
    assert transferred > baseline + 0.03
