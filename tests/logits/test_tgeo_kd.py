"""Trilateral geometry: state and centres, the weights, one unrolled step against its closed form, three solvers."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.foundations.kd import KnowledgeDistillation
from kdcore.logits.tgeo_kd import (
    PARTS,
    Controller,
    TrilateralDistillation,
    TrilateralLoss,
    class_centres,
    hypergradient,
    sample_terms,
    trilateral_state,
    virtual_step,
    weighted_loss,
)
from kdcore.metrics import accuracy
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Distillation, Supervised, fit, predict, seeded, with_teacher

CLASSES = 5
DOUBLE = torch.float64


def batch_of(rows=12, seed=0, shape=(6,)):
    generator = torch.Generator().manual_seed(seed)
    return Arrays(
        inputs=torch.randn(rows, *shape, generator=generator, dtype=DOUBLE),
        labels=torch.randint(CLASSES, (rows,), generator=generator),
        teacher_logits=2 * torch.randn(rows, CLASSES, generator=generator, dtype=DOUBLE),
    )


def logits_of(seed=0, rows=12):
    student = 2 * torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed + 50), dtype=DOUBLE)
    return student, batch_of(rows, seed)


def learner_of(solver="bilevel", seed=0, student=None, **options):
    with seeded(seed):
        train = batch_of()
        loss = TrilateralLoss(class_centres(train.teacher_logits, train.labels), temperature=2.0)
        return TrilateralDistillation(student or MLP(6, (7,), CLASSES), loss, solver=solver, **options).double()


def streams(seed=0):
    return SimpleNamespace(train=batch_of(seed=seed), validation=batch_of(9, seed=seed + 100))


def copy_of(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(before, module):
    return any(bool((a != b).any()) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("case", reference_cases("tgeo-kd"))
def test_matches_published_figures(case):
    student = torch.tensor(case["inputs"]["student_logits"], dtype=DOUBLE).requires_grad_()
    teacher = torch.tensor(case["inputs"]["teacher_logits"], dtype=DOUBLE)
    labels = torch.tensor(case["inputs"]["labels"])
    temperature = case["hyperparameters"]["T"]
    controller = Controller(
        9 * teacher.shape[1], case["hyperparameters"]["hidden"], case["hyperparameters"]["leaky_relu_slope"]
    ).double()
    weights = case["inputs"]["controller_weights"]
    linear = [layer for layer in controller.layers if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linear, start=1):
        layer.weight.data = torch.tensor(weights[f"fc{number}.weight"], dtype=DOUBLE)
        layer.bias.data = torch.tensor(weights[f"fc{number}.bias"], dtype=DOUBLE)
    losses = {}
    for name, twice in {"official": True, "ce_on_logits": False}.items():
        loss = TrilateralLoss(class_centres(teacher, labels), temperature, softmax_twice=twice)
        loss.controller = controller
        alpha = loss.alpha(student.detach(), teacher, labels)
        soft, hard = loss.terms(student, teacher, labels)
        losses[name] = (weighted_loss(alpha.detach(), soft, hard, temperature), hard)
    ours = {
        "state": trilateral_state(student, teacher, labels, class_centres(teacher, labels)),
        "alpha": alpha,
        "kd_per_sample": soft,
        "ce_on_probabilities_per_sample": losses["official"][1],
        "ce_on_logits_per_sample": losses["ce_on_logits"][1],
        **{f"lower_loss_{name}": value for name, (value, _) in losses.items()},
        **{
            f"grad_student_logits_{name}": torch.autograd.grad(value, student, retain_graph=True)[0]
            for name, (value, _) in losses.items()
        },
    }
    assert_published(ours, case)


# Centres and state, equation (1)


def test_centres_are_class_means():
    _, rows = logits_of(rows=40)
    centres = class_centres(rows.teacher_logits, rows.labels)
    for label in rows.labels.unique():
        own = rows.teacher_logits[rows.labels == label].softmax(dim=1).mean(dim=0)
        torch.testing.assert_close(centres[label], own)


def test_class_without_samples_has_no_centre():
    assert class_centres(torch.zeros(2, 3), torch.tensor([0, 2]))[1].tolist() == [0.0, 0.0, 0.0]


@given(st.integers(2, 12), st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_state_is_nine_times_classes_long_and_bounded(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 5 * torch.randn(2, 6, classes, generator=generator, dtype=DOUBLE)
    labels = torch.randint(classes, (6,), generator=generator)
    state = trilateral_state(student, teacher, labels, class_centres(teacher, labels))
    assert state.shape == (6, 9 * classes)
    assert bool(((state >= 0) & (state <= 1)).all())


def test_parts_stand_in_the_order_asked_for():
    student, rows = logits_of()
    centres = class_centres(rows.teacher_logits, rows.labels)
    whole = trilateral_state(student, rows.teacher_logits, rows.labels, centres).split(CLASSES, dim=1)
    some = trilateral_state(student, rows.teacher_logits, rows.labels, centres, parts=("TG", "S"))
    torch.testing.assert_close(some, torch.cat([whole[PARTS.index("TG")], whole[0]], dim=1))


def test_sides_vanish_where_vertices_meet():
    labels = torch.arange(CLASSES)
    sure = 800 * torch.eye(CLASSES, dtype=DOUBLE)
    loose = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    centres = class_centres(sure, labels)
    to_label = trilateral_state(loose, sure, labels, centres, parts=("TG", "MG"))
    assert float(to_label.abs().max()) == 0
    everywhere = trilateral_state(sure, sure, labels, centres, parts=PARTS[4:])
    assert float(everywhere.abs().max()) == 0


def test_two_sides_already_determine_the_third():
    """Class by class, a squared side that ends in the label gives away the label and the other end."""
    student, rows = logits_of()
    centres = class_centres(rows.teacher_logits, rows.labels)
    to_student = trilateral_state(student, rows.teacher_logits, rows.labels, centres, parts=("GS",)).sqrt()
    label = to_student.argmax(dim=1)  # there the entry is the sum of the others
    assert bool((label == rows.labels).all())
    recovered = to_student.scatter(1, label[:, None], 1 - to_student.gather(1, label[:, None]))
    torch.testing.assert_close(recovered, student.softmax(dim=1))


# Weights and loss, equations (2) and (3)


def test_zero_last_layer_gives_one_half():
    student, rows = logits_of()
    loss = TrilateralLoss(class_centres(rows.teacher_logits, rows.labels), temperature=3.0).double()
    for parameter in loss.controller.layers[-1].parameters():
        parameter.data.zero_()
    alpha = loss.alpha(student, rows.teacher_logits, rows.labels)
    assert alpha.tolist() == [0.5] * len(rows)
    soft, hard = sample_terms(student, rows.teacher_logits, rows.labels, 3.0)
    value = loss(student, rows.teacher_logits, rows.labels)
    torch.testing.assert_close(value, (9 * soft.mean() + hard.mean()) / 2)


def test_weights_lie_between_zero_and_one_and_follow_their_samples():
    student, rows = logits_of()
    loss = learner_of().loss
    alpha = loss.alpha(student, rows.teacher_logits, rows.labels)
    assert bool(((alpha > 0) & (alpha < 1)).all())
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    permuted = loss.alpha(student[order], rows.teacher_logits[order], rows.labels[order])
    torch.testing.assert_close(permuted, alpha[order])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_constant_weights_are_plain_distillation(alpha):
    student, rows = logits_of()
    terms = sample_terms(student, rows.teacher_logits, rows.labels, 2.0)
    ours = weighted_loss(torch.full((len(rows),), alpha, dtype=DOUBLE), *terms, 2.0)
    torch.testing.assert_close(ours, KnowledgeDistillation(2.0, alpha)(student, rows.teacher_logits, rows.labels))


def test_softmax_twice_cannot_reach_zero():
    sure = 100 * torch.eye(10, dtype=DOUBLE)
    loss = TrilateralLoss(torch.eye(10), softmax_twice=True)
    _, hard = loss.terms(sure, sure, torch.arange(10))
    torch.testing.assert_close(hard, torch.full((10,), math.log1p(9 / math.e), dtype=DOUBLE))


# The unrolled step, equations (5) and (6)


def unrolled_slope(learner, batch, alpha):
    """What autograd says of the held-out loss at the weights."""
    loss, student = learner.loss, learner.model
    terms = loss.terms(student(batch.train.inputs), batch.train.teacher_logits, batch.train.labels)
    theta = virtual_step(student, weighted_loss(alpha, *terms, loss.temperature), learner.step_size)
    held_out = torch.func.functional_call(student, theta, (batch.validation.inputs,))
    return torch.autograd.grad(F.cross_entropy(held_out, batch.validation.labels), alpha)[0]


@pytest.mark.parametrize("student", ["mlp", "conv"])
def test_hypergradient_equals_its_closed_form(student):
    images = student == "conv"
    learner = learner_of(student=ConvNet(4, 2, num_classes=CLASSES) if images else None, step_size=0.7).eval()
    shape = (1, 4, 4) if images else (6,)
    batch = SimpleNamespace(train=batch_of(shape=shape), validation=batch_of(9, seed=100, shape=shape))
    alpha = torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=DOUBLE).requires_grad_()
    wanted = hypergradient(learner.model, batch.train, alpha, batch.validation, 2.0, step_size=0.7)
    slope = unrolled_slope(learner, batch, alpha)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-14)
    assert float(slope.abs().min()) > 0


def test_hypergradient_equals_sample_gradients_written_out():
    learner, batch, step_size = learner_of(step_size=0.4), streams(), 0.4
    student, parameters = learner.model, list(learner.model.parameters())
    alpha = torch.linspace(0.1, 0.9, 12, dtype=DOUBLE)
    wanted = hypergradient(student, batch.train, alpha, batch.validation, 2.0, step_size)
    terms = learner.loss.terms(student(batch.train.inputs), batch.train.teacher_logits, batch.train.labels)
    theta = virtual_step(student, weighted_loss(alpha, *terms, 2.0), step_size)
    held_out = F.cross_entropy(
        torch.func.functional_call(student, theta, (batch.validation.inputs,)), batch.validation.labels
    )
    pull = torch.autograd.grad(held_out, list(theta.values()), retain_graph=True)
    for row, value in enumerate(wanted):
        difference = 4 * terms[0][row] - terms[1][row]
        own = torch.autograd.grad(difference, parameters, retain_graph=True)
        product = sum((a * b).sum() for a, b in zip(pull, own, strict=True))
        torch.testing.assert_close(value, -step_size / 12 * product)


def test_hypergradient_agrees_with_finite_differences():
    learner, batch = learner_of(step_size=0.5), streams()
    alpha = torch.full((12,), 0.5, dtype=DOUBLE)

    def held_out(weights):
        terms = learner.loss.terms(learner.model(batch.train.inputs), batch.train.teacher_logits, batch.train.labels)
        theta = virtual_step(learner.model, weighted_loss(weights, *terms, 2.0), 0.5)
        logits = torch.func.functional_call(learner.model, theta, (batch.validation.inputs,))
        return F.cross_entropy(logits, batch.validation.labels).item()

    closed = hypergradient(learner.model, batch.train, alpha, batch.validation, 2.0, 0.5)
    for row in (0, 5, 11):
        nudge = torch.zeros(12, dtype=DOUBLE)
        nudge[row] = 1e-5
        slope = (held_out(alpha + nudge) - held_out(alpha - nudge)) / 2e-5
        assert closed[row].item() == pytest.approx(slope, rel=1e-5)


def test_no_pull_where_both_terms_pull_alike():
    """At τ = 1 a teacher that is as sure as the label has the label's gradient."""
    learner, batch = learner_of(), streams()
    train = batch.train.with_(teacher_logits=800 * F.one_hot(batch.train.labels, CLASSES).double())
    slope = hypergradient(learner.model, train, torch.full((12,), 0.3, dtype=DOUBLE), batch.validation, 1.0)
    assert float(slope.abs().max()) < 1e-15


def test_controller_follows_the_gradient_of_the_unrolled_loss():
    """The step goes through the weights: closed form times the controller's own Jacobian."""
    learner, batch = learner_of(step_size=0.3).eval(), streams()
    weights = list(learner.loss.controller.parameters())
    logits = learner.model(batch.train.inputs).detach()
    alpha = learner.loss.alpha(logits, batch.train.teacher_logits, batch.train.labels)
    closed = hypergradient(learner.model, batch.train, alpha, batch.validation, 2.0, 0.3)
    wanted = torch.autograd.grad(alpha, weights, closed)
    found = torch.autograd.grad(learner.upper_loss(batch.train, batch.validation), weights)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-14)


def test_a_step_of_the_controller_lowers_the_unrolled_loss():
    learner, batch = learner_of(controller_lr=1e-3), streams()
    before = learner.upper_loss(batch.train, batch.validation).item()
    learner.losses(batch)
    assert learner.upper_loss(batch.train, batch.validation).item() < before


def test_only_the_named_part_moves():
    learner, batch = learner_of(), streams()
    terms = learner.loss.terms(learner.model(batch.train.inputs), batch.train.teacher_logits, batch.train.labels)
    theta = virtual_step(learner.model, terms[1].mean(), 0.1, unrolled=("classifier",))
    assert set(theta) == {"classifier.weight", "classifier.bias"}


# Solvers


@pytest.mark.parametrize(("solver", "learns"), [("bilevel", True), ("frozen", False), ("joint", True)])
def test_whether_the_controller_changes(solver, learns):
    learner = learner_of(solver)
    before, student = copy_of(learner.loss.controller), copy_of(learner.model)
    fit(learner, vars(streams()), Budget(steps=4, batch_size=6, lr=0.1, weight_decay=0.0))
    assert moved(before, learner.loss.controller) == learns
    assert moved(student, learner.model)


def test_controller_steps_every_so_often():
    learner, seen = learner_of(outer_every=3), []
    for _ in range(7):
        before = copy_of(learner.loss.controller)
        learner.losses(streams())
        seen.append(moved(before, learner.loss.controller))
    assert seen == [True, False, False, True, False, False, True]


def student_gradient(learner, batch):
    terms = learner.losses(batch)
    return torch.autograd.grad(sum(terms.values()), list(learner.model.parameters()))


@pytest.mark.parametrize(("solver", "open_path"), [("frozen", False), ("bilevel", False), ("joint", True)])
def test_only_joint_training_reaches_the_student_through_its_weights(solver, open_path):
    learner, batch = learner_of(solver), streams()
    found = student_gradient(learner, batch)
    logits = learner.model(batch.train.inputs)
    alpha = learner.loss.alpha(logits, batch.train.teacher_logits, batch.train.labels).detach()
    terms = learner.loss.terms(logits, batch.train.teacher_logits, batch.train.labels)
    detached = torch.autograd.grad(weighted_loss(alpha, *terms, 2.0), list(learner.model.parameters()))
    same = all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, detached, strict=True))
    assert same != open_path


def test_teacher_gets_no_gradient_and_stays_as_it_is():
    teacher = ConvNet(4, 2, num_classes=CLASSES).double()
    learner = learner_of(student=ConvNet(4, 2, num_classes=CLASSES), teacher=teacher).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    rows = Arrays(**{name: getattr(batch_of(shape=(1, 4, 4)), name) for name in ("inputs", "labels")})
    sum(learner.losses(SimpleNamespace(train=rows, validation=rows)).values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(bool((before[name] == value).all()) for name, value in teacher.state_dict().items())


def test_virtual_step_leaves_running_statistics_alone():
    learner = learner_of(student=ConvNet(4, 2, num_classes=CLASSES), outer_every=1).train()
    rows = batch_of(shape=(1, 4, 4))
    counted = [layer for layer in learner.model.modules() if isinstance(layer, nn.BatchNorm2d)]
    learner.losses(SimpleNamespace(train=rows, validation=rows))
    assert [int(layer.num_batches_tracked) for layer in counted] == [1] * len(counted)
    assert learner.model.training


def test_state_of_a_run_can_be_taken_up():
    first = learner_of()
    first.losses(streams())
    second = learner_of(seed=1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        learner.losses(streams(1))
        learner.losses(streams(2))
    for ours, theirs in zip(first.loss.controller.parameters(), second.loss.controller.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert second.steps == 3


# Bad input


def test_bad_input():
    student, rows = logits_of()
    teacher, labels, centres = rows.teacher_logits, rows.labels, torch.eye(CLASSES)
    with pytest.raises(ValueError, match="C >= 2"):
        sample_terms(student[:, :1], teacher[:, :1], labels)
    with pytest.raises(ValueError, match="teacher_logits must have the shape"):
        trilateral_state(student, teacher[:, :3], labels, centres)
    with pytest.raises(ValueError, match=r"centres must have shape \(5, 5\)"):
        trilateral_state(student, teacher, labels, torch.eye(4))
    with pytest.raises(ValueError, match="parts must be one of"):
        trilateral_state(student, teacher, labels, centres, parts=("S", "SX"))
    with pytest.raises(ValueError, match="at least one"):
        TrilateralLoss(centres, parts=())
    with pytest.raises(ValueError, match="labels must lie in"):
        class_centres(teacher, labels + CLASSES)
    with pytest.raises(ValueError, match="temperature"):
        TrilateralLoss(centres, temperature=0.0)
    with pytest.raises(ValueError, match=r"centres must have shape \(C, C\)"):
        TrilateralLoss(torch.ones(1, 1))
    with pytest.raises(ValueError, match="hard must have the shape of alpha"):
        weighted_loss(torch.zeros(3), torch.zeros(3), torch.zeros(4))
    with pytest.raises(ValueError, match="unrolled"):
        virtual_step(nn.Linear(1, 1), torch.zeros(()), 0.1, unrolled=("layer",))


def test_bad_solver_and_missing_streams():
    with pytest.raises(ValueError, match="Did you mean 'frozen'"):
        learner_of("frozn")
    with pytest.raises(ValueError, match="step_size"):
        learner_of(step_size=0.0)
    with pytest.raises(ValueError, match="held-out"):
        learner_of().losses(SimpleNamespace(train=batch_of()))
    with pytest.raises(ValueError, match="stream train"):
        learner_of().losses(batch_of())
    without = Arrays(inputs=batch_of().inputs, labels=batch_of().labels)
    with pytest.raises(ValueError, match="needs a teacher"):
        learner_of("frozen").losses(SimpleNamespace(train=without))


# Learning


def test_learns_to_trust_the_teacher_where_labels_are_wrong():
    """Every third label is wrong: held-out samples raise the teacher's weight there, and the student is better off."""
    images = digits(700)
    teacher_rows, rest = images.train[:400], images.train[400:]
    train, validation = rest[:200], rest[200:]
    wrong = torch.arange(len(train)) % 3 == 0
    train = train.with_(labels=torch.where(wrong, (train.labels + 1) % 10, train.labels))
    with seeded(0):
        teacher, student, rival = MLP(64, (64,)), MLP(64, (16,)), MLP(64, (16,))
    rival.load_state_dict(student.state_dict())
    fit(Supervised(teacher), teacher_rows, Budget(epochs=20, batch_size=50, lr=0.1))
    train, budget = with_teacher(train, teacher), Budget(epochs=60, batch_size=50, lr=0.1)
    with seeded(1):
        loss = TrilateralLoss(class_centres(train.teacher_logits, train.labels))
    learner = TrilateralDistillation(student, loss, step_size=1.0, outer_every=1)
    fit(learner, {"train": train, "validation": validation}, budget)
    alpha = learner.sample_weights(train)
    assert alpha[wrong].mean() > alpha[~wrong].mean() + 0.1
    fit(Distillation(rival, KnowledgeDistillation(1.5, 0.0)), train, budget)
    scores = [accuracy(predict(model, images.test.inputs), images.test.labels) for model in (student, rival)]
    assert scores[0] > scores[1] + 10
