"""FitNets hints: the loss, the connector, the learner."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from kdcore.checks import check_maps
from kdcore.data import Arrays
from kdcore.foundations.hints import Connector, HintDistillation, build_connectors, hint_loss
from kdcore.models import ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded, with_layers


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_batch(size: int = 6) -> Arrays:
    return Arrays(inputs=torch.rand(size, 1, 8, 8), labels=torch.arange(size) % 10)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 4),
    st.floats(-3, 3, allow_nan=False),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_constant_gap_costs_its_square(shape, gap, dtype):
    teacher_map = random_map(*shape).to(dtype)
    torch.testing.assert_close(hint_loss(teacher_map + gap, teacher_map).item(), gap**2, rtol=1e-5, atol=1e-5)


def test_agrees_with_obvious_loop():
    student_map, teacher_map = random_map(2, 3, 4, 2), random_map(2, 3, 4, 2, seed=1)
    pairs = zip(student_map.flatten().tolist(), teacher_map.flatten().tolist(), strict=True)
    assert hint_loss(student_map, teacher_map).item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 48)


def test_gradient_reaches_the_student_only():
    student_map, teacher_map = random_map(2, 3, 2, 2).requires_grad_(), random_map(2, 3, 2, 2, seed=1).requires_grad_()
    hint_loss(student_map, teacher_map).backward()
    torch.testing.assert_close(student_map.grad, 2 * (student_map - teacher_map).detach() / student_map.numel())
    assert teacher_map.grad is None


def test_different_sizes_meet_at_the_smaller_of_each_axis():
    student_map, teacher_map = random_map(2, 3, 8, 2), random_map(2, 3, 4, 6, seed=1)
    pooled_student = student_map.view(2, 3, 4, 2, 2).mean(dim=3)
    pooled_teacher = teacher_map.view(2, 3, 4, 2, 3).mean(dim=4)
    torch.testing.assert_close(hint_loss(student_map, teacher_map), F.mse_loss(pooled_student, pooled_teacher))
    enlarged = teacher_map.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    assert hint_loss(enlarged, teacher_map).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("student_map", "message"),
    [
        (torch.zeros(2, 3, 4), r"student_map must have shape \(B, C, H, W\) with at least one pixel, got \(2, 3, 4\)"),
        (torch.zeros(2, 3, 0, 4), r"student_map must have shape .* got \(2, 3, 0, 4\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.long), "student_map must be floating point, got torch.int64"),
        (torch.zeros(1, 3, 4, 4), r"teacher_map must have the batch size and channels of student_map, \(1, 3\)"),
        (torch.zeros(2, 1, 4, 4), r"teacher_map must have the batch size and channels .* got \(2, 3\)"),
        (torch.full((2, 3, 4, 4), math.nan), "student_map must be finite"),
    ],
)
def test_maps_that_do_not_fit_are_rejected(student_map, message):
    teacher_map = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=message):
        hint_loss(student_map, teacher_map)
    with pytest.raises(ValueError, match=message):
        check_maps(student_map=student_map, teacher_map=teacher_map)


def test_connector_is_a_1x1_convolution_with_batch_norm_and_relu():
    connector = Connector(3, 500).double()
    convolution, norm, _ = connector
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.1)
    features = random_map(4, 3, 2, 2)
    mixed = torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], features)
    expected = F.batch_norm(mixed, None, None, training=True, eps=norm.eps).relu()
    torch.testing.assert_close(connector(features), expected)


def test_plain_connector_is_affine_in_the_channels():
    connector = Connector(3, 5, batch_norm_relu=False).double()
    (convolution,) = connector
    one, other = random_map(2, 3, 4, 4), random_map(2, 3, 4, 4, seed=1)
    bias = convolution.bias[:, None, None].expand(2, 5, 4, 4)
    torch.testing.assert_close(connector(one + other) + bias, connector(one) + connector(other))


def test_connectors_only_where_channels_differ():
    connectors = build_connectors(ConvNet(width=4), ConvNet(width=8, depth=4), stages=(0, -1, 1), batch_norm_relu=False)
    sizes = [(connector[0].in_channels, connector[0].out_channels) for connector in connectors]
    assert sizes == [(4, 8), (16, 64), (8, 16)]
    assert isinstance(build_connectors(ConvNet(4), ConvNet(2, depth=4), stages=(-1,))[0], nn.Identity)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HintDistillation(ConvNet(4), ConvNet(8), stages=()), "stages must name at least one stage"),
        (lambda: HintDistillation(ConvNet(4), ConvNet(8), stages=(2, -1)), r"none twice, got \(2, -1\)"),
        (
            lambda: HintDistillation(ConvNet(4), ConvNet(8), stages=(3,)),
            r"stages must lie in \[-3, 3\) for the student",
        ),
        (lambda: HintDistillation(ConvNet(4), ConvNet(8, depth=2), stages=(2,)), r"\[-2, 2\) for the teacher"),
        (
            lambda: HintDistillation(ConvNet(4), ConvNet(8), weight=-1.0),
            "weight must be a number of at least 0, got -1",
        ),
        (lambda: HintDistillation(ConvNet(4), ConvNet(8), weight=math.nan), "weight must be .* got nan"),
        (lambda: Connector(0, 4), "in_channels must be a positive number, got 0"),
    ],
)
def test_bad_settings_are_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_labels_are_rejected():
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
        HintDistillation(ConvNet(4), ConvNet(8)).losses(
            Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 10]))
        )


def test_a_copy_of_the_teacher_has_no_hint_loss():
    teacher = ConvNet(width=4)
    learner = HintDistillation(copy.deepcopy(teacher), teacher, stages=(0, 1, 2)).eval()
    batch = random_batch()
    terms = learner.losses(batch)
    assert terms["hint"] == 0
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(teacher(batch.inputs), batch.labels))


def test_terms_are_summed_over_stages_and_weighted():
    student, teacher, batch = ConvNet(width=4), ConvNet(width=8), random_batch()
    learner = HintDistillation(student, teacher, stages=(0, -1), weight=3.0, batch_norm_relu=False).eval()
    student_maps, teacher_maps = student.maps(batch.inputs)[0], teacher.maps(batch.inputs)[0]
    expected = sum(
        hint_loss(connector(student_maps[stage]), teacher_maps[stage])
        for connector, stage in zip(learner.connectors, (0, -1), strict=True)
    )
    torch.testing.assert_close(learner.losses(batch)["hint"], 3 * expected)


def test_weight_zero_does_not_run_the_teacher():
    learner = HintDistillation(ConvNet(width=4), ConvNet(width=8), weight=0.0)
    learner.teacher.stem.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    assert list(learner.losses(random_batch())) == ["cross_entropy"]


def test_maps_that_the_data_carry_spare_the_teacher():
    teacher, batch = ConvNet(width=8), random_batch()
    learner = HintDistillation(ConvNet(width=4), teacher, stages=(-1, 0)).train()
    carried = with_layers(batch, teacher, ["stages.0", "stages.2"], batch_size=4)
    expected = learner.losses(batch)
    teacher.stem.register_forward_pre_hook(lambda *_: pytest.fail("the teacher ran"))
    torch.testing.assert_close(learner.losses(carried), expected)


def test_one_map_too_few_runs_the_teacher():
    teacher, batch = ConvNet(width=8), random_batch()
    learner = HintDistillation(ConvNet(width=4), teacher, stages=(-1, 0)).train()
    partly = with_layers(batch, teacher, ["stages.0"])
    torch.testing.assert_close(learner.losses(partly), learner.losses(batch))


def test_teacher_stays_as_it_was():
    teacher = ConvNet(width=8)
    before = copy.deepcopy(teacher.state_dict())
    learner = HintDistillation(ConvNet(width=4), teacher)
    learner.losses(random_batch())  # also where nobody called train()
    fit(learner, random_batch(), Budget(epochs=2, batch_size=3))
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in learner.connectors.parameters())


def test_hints_help_a_student_with_few_images():
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
            learner = HintDistillation(ConvNet(width=4), teacher, weight=weight)
        fit(learner, training[:100], Budget(epochs=60, batch_size=50), seed=seed)
        return (predict(learner.model, test.inputs).argmax(dim=1) == test.labels).double().mean().item()

    baseline, hinted = (sum(accuracy(weight, seed) for seed in range(3)) / 3 for weight in (0.0, 100.0))
    assert hinted > baseline + 0.01
