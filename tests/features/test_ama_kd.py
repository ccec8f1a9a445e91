"""AMA-KD: closed forms of hint and adaptation, what each loss trains, the collapse, the bound on fixed hints."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.features.ama_kd import (
    AdaptationModule,
    AdaptedTeacher,
    MapAdaptation,
    adaptation_loss,
    adapted_hint_loss,
    unexplained_share,
)
from kdcore.foundations.kd import distillation_loss
from kdcore.models import ConvNet, ResNet, parameter_count
from kdcore.training import Budget, Supervised, fit, seeded, with_layers, with_teacher

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


def batch(size: int = 6) -> Arrays:
    generator = torch.Generator().manual_seed(1)
    return Arrays(inputs=torch.rand(size, 1, 8, 8, generator=generator), labels=torch.arange(size) % 10)


def learner(**settings_) -> MapAdaptation:
    torch.manual_seed(0)
    adapted = AdaptedTeacher(ConvNet(8), stage=1, out_channels=8, size=(4, 4))
    return MapAdaptation(ConvNet(width=4, depth=2), adapted, **settings_)


def gradients(trained: MapAdaptation, *terms: str) -> dict[str, torch.Tensor]:
    """Gradients by parameter of the sum of these terms, where there is one."""
    found = trained.losses(batch())
    sum(found[term] for term in terms).backward()
    return {name: parameter.grad for name, parameter in trained.named_parameters() if parameter.grad is not None}


# The hint, equation (3)


@given(shapes, st.floats(-3, 3), st.integers(0, 1000))
def test_constant_offset_costs_its_square(shape, offset, seed):
    adapted = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert adapted_hint_loss(adapted, adapted).item() == 0
    assert adapted_hint_loss(adapted + offset, adapted).item() == pytest.approx(offset**2, abs=1e-12)


def test_hint_is_the_mean_over_all_elements():
    student, adapted = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 5))
    ours = adapted_hint_loss(torch.from_numpy(student), torch.from_numpy(adapted))
    assert ours.item() == pytest.approx(((student - adapted) ** 2).sum() / (3 * 2 * 4 * 5))


def test_the_stop_decides_where_the_hints_gradient_goes():
    student, adapted = (torch.rand(2, 3, 2, 2, requires_grad=True) for _ in range(2))
    adapted_hint_loss(student, adapted).backward()
    assert adapted.grad is None
    alone = student.grad.clone()
    student.grad = None
    adapted_hint_loss(student, adapted, mutual=True).backward()
    torch.testing.assert_close(student.grad, alone)
    torch.testing.assert_close(adapted.grad, -alone)


@pytest.mark.parametrize(
    ("student", "adapted", "message"),
    [
        (torch.rand(2, 3, 4, 4), torch.rand(3, 3, 4, 4), "batch size"),
        (torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4), "channels"),
        (torch.rand(2, 3, 4, 4), torch.rand(2, 3, 2, 2), "shape"),
        (torch.rand(2, 3), torch.rand(2, 3), r"\(B, C, H, W\)"),
        (torch.full((1, 1, 1, 1), torch.nan), torch.rand(1, 1, 1, 1), "finite"),
    ],
)
def test_maps_that_do_not_fit_are_rejected(student, adapted, message):
    with pytest.raises(ValueError, match=message):
        adapted_hint_loss(student, adapted)


# The module and its task, equations (1) and (2)


@pytest.mark.parametrize(
    ("channels", "size", "teacher_size"),
    [((16, 4), (4, 4), (8, 8)), ((3, 7), (2, 3), (5, 3)), ((8, 8), (4, 4), (4, 4))],
)
def test_the_module_makes_maps_of_the_students_shape(channels, size, teacher_size):
    module = AdaptationModule(*channels, size)
    made = module(torch.rand(5, channels[0], *teacher_size))
    assert made.shape == (5, channels[1], *size)
    assert (made >= 0).all()


def test_the_module_refuses_to_enlarge_a_map():
    with pytest.raises(ValueError, match=r"at least \(4, 4\) pixels, got \(2, 8\)"):
        AdaptationModule(4, 4, (4, 4))(torch.rand(1, 4, 2, 8))


def test_soft_targets_come_on_top():
    logits, teacher = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 3, 0])
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(adaptation_loss(logits, labels), plain)
    both = adaptation_loss(logits, labels, teacher, soft_weight=0.5, temperature=2.0)
    torch.testing.assert_close(both, plain + 0.5 * distillation_loss(logits, teacher, 2.0))
    with pytest.raises(ValueError, match="needs teacher_logits"):
        adaptation_loss(logits, labels, soft_weight=0.5)


def test_a_dead_module_costs_the_students_energy_and_log_k():
    """The collapsed optimum of `mutual` without (2): A = 0, and the head knows nothing."""
    trained = learner(mutual=True)
    last = trained.adapted.adaptation.layers[5]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    torch.nn.init.zeros_(trained.adapted.head[2].bias)
    terms = trained.losses(batch())
    own = trained.model.maps(batch().inputs)[0][-1]
    assert terms["adaptation"].item() == pytest.approx(math.log(10), rel=1e-6)
    torch.testing.assert_close(terms["hint"], own.square().mean())


# The learner, equation (4)


def test_without_a_hint_the_student_learns_from_labels_alone():
    found = {
        name: value for name, value in gradients(learner(weight=0.0), "cross_entropy", "hint").items() if value.any()
    }
    plain = learner()
    F.cross_entropy(plain.model(batch().inputs), batch().labels).backward()
    assert {name for name in found if name.startswith("model.")} == set(found)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(found.get(f"model.{name}", torch.zeros_like(parameter)), parameter.grad), name


@pytest.mark.parametrize("mutual", [False, True])
def test_each_loss_trains_what_it_should(mutual):
    assert all(name.startswith("adapted.") for name in gradients(learner(mutual=mutual), "adaptation"))
    pulled = gradients(learner(mutual=mutual), "cross_entropy", "hint")
    assert any(name.startswith("model.") for name in pulled)
    assert any(name.startswith("adapted.adaptation") for name in pulled) == mutual
    assert not any(".front." in name for name in gradients(learner(mutual=mutual), "adaptation", "hint"))


def test_phases_have_their_terms_and_train_their_parts():
    assert list(learner(phase="adaptation").losses(batch())) == ["adaptation"]
    hint = learner(phase="hint").train()
    assert list(hint.losses(batch())) == ["hint"]
    assert not hint.adapted.training
    moved = gradients(hint, "hint")
    assert moved
    assert all(name.startswith(("model.stem", "model.stages")) for name in moved)
    assert list(learner(task_loss=False).losses(batch())) == ["cross_entropy", "hint"]


def test_a_regressor_stands_between_the_student_and_the_hint():
    plain, doubled = learner(), learner(regressor=torch.nn.Conv2d(8, 8, 1, bias=False))
    with torch.no_grad():
        doubled.regressor.weight.copy_(2 * torch.eye(8).view(8, 8, 1, 1))
    own = plain.model.maps(batch().inputs)[0][-1]
    wanted = (2 * own - plain.adapted(batch().inputs)[0]).square().mean()
    torch.testing.assert_close(doubled.losses(batch())["hint"], wanted)


def test_soft_weight_takes_the_logits_that_the_data_carry():
    rows = with_teacher(batch(), ConvNet(8))
    with_soft, without = learner(soft_weight=1.0).losses(rows), learner().losses(rows)
    assert with_soft["adaptation"] > without["adaptation"]
    with pytest.raises(ValueError, match="after with_teacher"):
        learner(soft_weight=1.0).losses(batch())


@pytest.mark.parametrize("setting", ["soft_weight", "kd_weight"])
def test_a_frozen_teacher_answers_where_the_data_carry_no_logits(setting):
    teacher = ConvNet(8)
    live = learner(**{setting: 1.0}, teacher=teacher).train()
    cached = learner(**{setting: 1.0}).losses(with_teacher(batch(), teacher))
    terms = live.eval().losses(batch())
    assert list(terms) == list(cached)
    for name, value in learner(**{setting: 1.0}).eval().losses(with_teacher(batch(), teacher)).items():
        torch.testing.assert_close(terms[name], value)
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    before = copy.deepcopy(teacher.state_dict())
    fit(live, batch(), Budget(steps=2, batch_size=6, lr=0.1), augment=lambda inputs, generator: inputs.flip(3))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_distillation_of_the_students_logits_is_a_switch_of_its_own():
    teacher = ConvNet(8)
    rows = with_teacher(batch(), teacher)
    terms = learner(kd_weight=0.5).losses(rows)
    logits = learner().model(rows.inputs)
    torch.testing.assert_close(terms["distillation"], 0.5 * distillation_loss(logits, rows.teacher_logits, 4.0))
    assert "distillation" not in learner().losses(rows)


def test_the_front_stays_as_it_was_and_only_the_student_is_left():
    trained = learner()
    before = copy.deepcopy(trained.adapted.front.state_dict())
    moving = copy.deepcopy(trained.adapted.adaptation.state_dict())
    fit(trained, batch(), Budget(steps=3, batch_size=6, lr=0.1))
    for name, value in trained.adapted.front.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, moving[name]) for name, value in trained.adapted.adaptation.state_dict().items())
    assert parameter_count(trained.model) == parameter_count(ConvNet(width=4, depth=2))


@pytest.mark.parametrize("stage", [0, 1, -1])
def test_a_map_that_the_data_carry_spares_the_front(stage):
    torch.manual_seed(0)
    teacher = ConvNet(8)
    adapted = AdaptedTeacher(teacher, stage=stage, out_channels=16, size=(2, 2))
    trained = MapAdaptation(ConvNet(width=4), adapted).eval()
    carried = with_layers(batch(), teacher, [f"stages.{number}" for number in range(3)])
    expected = trained.losses(batch())
    adapted.front.register_forward_pre_hook(lambda *_: pytest.fail("the front ran"))
    torch.testing.assert_close(trained.losses(carried), expected)


def test_other_backbones_and_stages_by_negative_number():
    adapted = AdaptedTeacher(ResNet(8), stage=-2, out_channels=16, size=(8, 8))
    student = ResNet(8)
    rows = Arrays(inputs=torch.rand(2, 3, 32, 32), labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="channels of student_map"):  # the student's stage 1 has 32 channels
        MapAdaptation(student, AdaptedTeacher(ResNet(8), -2, 8, (16, 16)), stage=1).losses(rows)
    assert adapted(rows.inputs)[0].shape == (2, 16, 8, 8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: learner(weight=-1.0), "weight"),
        (lambda: learner(soft_weight=math.nan), "soft_weight"),
        (lambda: learner(phase="both"), "phase"),
        (lambda: learner(stage=2), r"stage must lie in \[-2, 2\), got 2"),
        (lambda: AdaptedTeacher(ConvNet(4), stage=3, out_channels=4, size=(4, 4)), r"stage must lie in \[-3, 3\)"),
        (lambda: AdaptationModule(4, 0, (4, 4)), "out_channels"),
        (lambda: learner().losses(batch().with_(labels=torch.full((6,), 10))), "labels"),
        (lambda: unexplained_share(torch.rand(2, 3), 1), r"\(B, C, H, W\)"),
        (lambda: unexplained_share(torch.rand(2, 3, 4, 4), 0), "channels"),
    ],
)
def test_bad_input_is_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# A module that follows the student, equation (6)


@given(st.integers(2, 5), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_best_module_is_the_mean_of_the_student_given_the_teacher(groups, seed):
    """Images in groups that the teacher's map cannot tell apart: the variance within them is left, and no less."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(groups, 4, 3, 2, 2, dtype=torch.float64, generator=generator)
    means = student.mean(dim=1, keepdim=True)
    left = student.var(dim=1, correction=0).mean().item()
    best = adapted_hint_loss(student.flatten(0, 1), means.expand_as(student).flatten(0, 1))
    assert best.item() == pytest.approx(left, rel=1e-12)
    other = means + 0.1 * torch.randn(means.shape, dtype=torch.float64, generator=generator)
    assert adapted_hint_loss(student.flatten(0, 1), other.expand_as(student).flatten(0, 1)).item() > left


def test_a_module_trained_by_a_mutual_hint_alone_finds_that_mean():
    """Its gradient at the conditional mean is zero: what is left of (6) cannot be learned away."""
    student = torch.randn(3, 4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table = torch.zeros(3, 1, 2, 2, 2, dtype=torch.float64, requires_grad=True)  # any function of the group
    for _ in range(200):
        loss = adapted_hint_loss(student.flatten(0, 1), table.expand_as(student).flatten(0, 1), mutual=True)
        (gradient,) = torch.autograd.grad(loss, table)
        table = (table - 5 * gradient).detach().requires_grad_()
    torch.testing.assert_close(table.detach(), student.mean(dim=1, keepdim=True))
    assert loss.item() == pytest.approx(student.var(dim=1, correction=0).mean().item(), rel=1e-9)


# What a fixed hint can reach, equation (5)


@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_unexplained_share_is_that_of_principal_components(channels, kept, seed):
    maps = np.random.default_rng(seed).normal(size=(7, channels, 3, 2)) * np.arange(1, channels + 1).reshape(-1, 1, 1)
    pixels = np.moveaxis(maps, 1, 3).reshape(-1, channels)
    explained = PCA().fit(pixels).explained_variance_ratio_[:kept].sum()
    assert unexplained_share(torch.from_numpy(maps), kept).item() == pytest.approx(1 - explained, abs=1e-12)


def test_no_affine_regressor_does_better():
    maps = torch.randn(40, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).cumsum(dim=1)
    pixels = maps.movedim(1, 3).flatten(0, 2).numpy()
    bound = unexplained_share(maps, 2).item()
    leading = PCA(2).fit_transform(pixels)
    shares = {}
    for name, student in {
        "leading": leading,
        "raw": pixels[:, :2],
        "noise": np.random.default_rng(0).normal(size=(360, 2)),
    }.items():
        left = pixels - LinearRegression().fit(student, pixels).predict(student)
        shares[name] = left.var(axis=0).sum() / pixels.var(axis=0).sum()
    assert shares["leading"] == pytest.approx(bound, rel=1e-9)
    assert min(shares["raw"], shares["noise"]) > bound


def test_a_map_without_variance_leaves_nothing():
    assert unexplained_share(torch.ones(3, 4, 2, 2), 1).item() == 0


def test_the_student_comes_to_predict_adapted_maps_of_new_images():
    images = digits()
    with seeded(0):
        teacher = ConvNet(16)
        fit(Supervised(teacher), images.train, Budget(epochs=6, batch_size=64, lr=0.1), seed=0)
    few, left = images.train.split(200, seed=0)[0], {}
    for weight in (0.0, 3.0):
        with seeded(1):
            student = ConvNet(width=4, depth=3)
            adapted = AdaptedTeacher(teacher, stage=1, out_channels=16, size=(2, 2))
        trained = MapAdaptation(student, adapted, weight=weight)
        fit(trained, few, Budget(steps=150, batch_size=50, lr=0.1), seed=0)
        with torch.no_grad():
            own, wanted = student.maps(images.test.inputs)[0][-1], adapted(images.test.inputs)[0]
        left[weight] = adapted_hint_loss(own, wanted).item() / wanted.var().item()
    assert left[3.0] < min(left[0.0], 1.0)
