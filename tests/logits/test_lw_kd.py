"""Light-weight distillation: numbers made of digits, drawn targets and their mean, the adversary, what trains whom."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdcore import data
from kdcore.data import Arrays
from kdcore.foundations.kd import distillation_loss
from kdcore.logits.lw_kd import (
    LightweightDistillation,
    TargetBank,
    adversarial_loss,
    discriminator,
    discriminator_loss,
    synthetic_numbers,
    virtual_teacher,
)
from kdcore.metrics import accuracy
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Supervised, fit, predict, seeded

CLASSES = 4
LABELS = torch.tensor([0, 3, 1, 2, 2, 1, 0, 3])
LOG_2 = math.log(2)


def bank_of(rows=40, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    return TargetBank(3 * torch.randn(rows, CLASSES, generator=generator, dtype=dtype), labels), labels


def undecided():
    critic = nn.Linear(CLASSES, 1)
    nn.init.zeros_(critic.weight)
    nn.init.zeros_(critic.bias)
    return critic


def batch_of(seed=0):
    return Arrays(inputs=torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)), labels=LABELS)


def student_of(seed=0):
    with seeded(seed):
        return MLP(6, (5,), CLASSES)


# The synthetic set


@pytest.mark.parametrize(("classes", "places"), [(2, 1), (10, 1), (11, 2), (100, 2), (101, 3)])
def test_numbers_have_as_many_places_as_the_largest(classes, places):
    numbers = synthetic_numbers(data.digits().train, classes, count=2 * classes)
    assert numbers.inputs.shape == (2 * classes, 1, 8, 8 * places)
    assert numbers.labels.bincount(minlength=classes).tolist() == [2] * classes
    assert 0 <= float(numbers.inputs.min()) <= float(numbers.inputs.max()) <= 1


def test_a_number_is_written_with_images_of_its_digits():
    shades = torch.arange(10) / 10 + 0.05  # a digit is a grey square of its own shade, which a shift cannot hide
    digits = Arrays(inputs=shades.view(10, 1, 1, 1).expand(10, 1, 8, 8), labels=torch.arange(10))
    numbers = synthetic_numbers(digits, 100, count=300, noise=0.0)
    tens, ones = numbers.inputs[:, 0, 4, 4], numbers.inputs[:, 0, 4, 12]
    read = 10 * ((tens - 0.05) * 10).round() + ((ones - 0.05) * 10).round()
    assert torch.equal(read.long(), numbers.labels)


def test_numbers_depend_on_the_seed_alone():
    rows = data.digits().train
    first, same, other = (synthetic_numbers(rows, 12, 30, seed=seed).inputs for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# Targets


def test_draws_are_of_the_label_and_reach_every_image():
    bank, labels = bank_of()
    owner = {tuple(row.tolist()): int(label) for row, label in zip(bank.logits, labels.sort().values, strict=True)}
    drawn = bank.draw(torch.arange(4000) % CLASSES)
    assert [owner[tuple(row.tolist())] for row in drawn] == (torch.arange(4000) % CLASSES).tolist()
    assert len({tuple(row.tolist()) for row in drawn}) == 40


def test_mean_gradient_over_draws_is_that_of_the_class_means():
    bank, _ = bank_of()
    student = torch.randn(8, CLASSES, dtype=torch.float64, requires_grad=True)

    def gradient(teacher):
        return torch.autograd.grad(distillation_loss(student, teacher, 4.0), student)[0]

    possible = [gradient(bank.logits[bank.starts[LABELS] + image]) for image in range(10)]  # ten images of each class
    torch.testing.assert_close(sum(possible) / 10, gradient(bank.mean_logits(4.0)[LABELS]))


def test_mean_logits_by_a_loop():
    bank, labels = bank_of()
    soft, owner = (bank.logits / 3).softmax(dim=1), labels.sort().values
    expected = torch.stack([soft[owner == label].mean(dim=0) for label in range(CLASSES)])
    torch.testing.assert_close((bank.mean_logits(3.0) / 3).softmax(dim=1), expected)


def test_a_written_target_is_label_smoothing_up_to_a_constant():
    student = torch.randn(8, CLASSES, dtype=torch.float64, requires_grad=True)
    smoothing = 0.2
    written = virtual_teacher(LABELS, CLASSES, confidence=1 - smoothing + smoothing / CLASSES).double()
    ours = torch.autograd.grad(distillation_loss(student, written, 1.0), student)[0]
    theirs = torch.autograd.grad(F.cross_entropy(student, LABELS, label_smoothing=smoothing), student)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


# The adversary


def test_an_undecided_critic_costs_log_2_each():
    p, q = torch.rand(2, 8, CLASSES).softmax(dim=2)
    assert float(discriminator_loss(undecided(), q, p)) == pytest.approx(2 * LOG_2)
    assert float(adversarial_loss(undecided(), p)) == pytest.approx(LOG_2)


def test_losses_are_logarithms_of_the_critics_probability():
    critic = discriminator(CLASSES).double()
    p, q = torch.rand(2, 8, CLASSES, dtype=torch.float64).softmax(dim=2)
    real, false = (critic(part).sigmoid() for part in (q, p))
    torch.testing.assert_close(discriminator_loss(critic, q, p), -(real.log().mean() + (1 - false).log().mean()))
    torch.testing.assert_close(adversarial_loss(critic, p), -false.log().mean())


def test_the_best_critic_of_equal_distributions_is_undecided():
    vectors = torch.rand(64, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    with seeded(0):
        critic = discriminator(CLASSES)
    optimizer = torch.optim.Adam(critic.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        discriminator_loss(critic, vectors, vectors).backward()
        optimizer.step()
    assert float((critic(vectors).sigmoid() - 0.5).abs().max()) < 0.02


def test_the_critics_step_moves_the_critic_only_and_the_students_the_student_only():
    bank, _ = bank_of(dtype=torch.float32)
    learner = LightweightDistillation(student_of(), bank, warmup=0.0)
    optimizer = torch.optim.SGD(learner.parameter_groups(), 0.1)
    student, critic, teacher = (
        [tensor.clone() for tensor in part]
        for part in (learner.model.parameters(), learner.critic.parameters(), [bank.logits])
    )
    terms = learner.losses(batch_of())  # the critic's step is made here
    assert all(torch.equal(a, b) for a, b in zip(student, learner.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))
    critic = [tensor.clone() for tensor in learner.critic.parameters()]
    sum(terms.values()).backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(student, learner.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(critic, learner.critic.parameters(), strict=True))
    assert torch.equal(teacher[0], bank.logits)


# The whole loss


def test_without_targets_and_adversary_it_is_cross_entropy():
    bank, _ = bank_of(dtype=torch.float32)
    learner = LightweightDistillation(student_of(), bank, kd_weight=0.0, adversarial_weight=0.0)
    expected = F.cross_entropy(learner.model(batch_of().inputs), LABELS)
    torch.testing.assert_close(sum(learner.losses(batch_of()).values()), expected)


def test_a_constant_teacher_is_a_soft_label_per_class():
    rows = torch.randn(CLASSES, CLASSES)
    bank = TargetBank(rows.repeat_interleave(5, dim=0), torch.arange(CLASSES).repeat_interleave(5))
    learner = LightweightDistillation(student_of(), bank, kd_weight=1.0, adversarial_weight=0.0)
    expected = distillation_loss(learner.model(batch_of().inputs), rows[LABELS], 4.0)
    torch.testing.assert_close(learner.losses(batch_of())["distillation"], expected)


def test_renaming_the_classes_everywhere_changes_nothing():
    bank, _ = bank_of()
    order = torch.tensor([2, 0, 3, 1])
    place = order.argsort()  # where each old class has gone
    owner = torch.arange(CLASSES).repeat_interleave(10)
    renamed = TargetBank(bank.logits[:, order], place[owner])
    critic, other = discriminator(CLASSES).double(), discriminator(CLASSES).double()
    other.load_state_dict(critic.state_dict())
    other[0].weight.data = critic[0].weight.data[:, order]
    student = torch.randn(8, CLASSES, dtype=torch.float64)
    means, means_renamed = bank.mean_logits(4.0)[LABELS], renamed.mean_logits(4.0)[place[LABELS]]
    torch.testing.assert_close(means_renamed, means[:, order])
    torch.testing.assert_close(distillation_loss(student[:, order], means_renamed), distillation_loss(student, means))
    p = student.softmax(dim=1)
    torch.testing.assert_close(adversarial_loss(other, p[:, order]), adversarial_loss(critic, p))


def test_the_adversary_warms_up():
    bank, _ = bank_of(dtype=torch.float32)
    learner = LightweightDistillation(student_of(), bank, adversarial_weight=1.0, warmup=0.5).eval()
    found = []
    for progress in (0.0, 0.25, 0.75):
        learner.on_step(progress)
        found.append(float(learner.losses(batch_of())["adversary"]))
    assert found[0] == 0
    assert found[2] == pytest.approx(2 * found[1])


def test_a_run_can_be_resumed_with_its_critics_optimiser():
    bank, _ = bank_of(dtype=torch.float32)
    first, second = (LightweightDistillation(student_of(), bank) for _ in range(2))
    first.losses(batch_of())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            learner.losses(batch_of(1))
    for one, other in zip(first.critic.parameters(), second.critic.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: synthetic_numbers(data.digits().train, 1, 5), "num_classes must be at least 2"),
        (lambda: synthetic_numbers(data.digits().train, 20, 5), "at most count"),
        (lambda: synthetic_numbers(data.digits().train, 5, 5, noise=-1.0), "noise must be"),
        (lambda: synthetic_numbers(data.digits().train[:3], 5, 5), "there is none of"),
        (lambda: virtual_teacher(LABELS, 4, confidence=0.2), "confidence must lie in"),
        (lambda: virtual_teacher(LABELS, 3), r"labels must lie in \[0, 3\)"),
        (lambda: TargetBank(torch.randn(4, 3), torch.tensor([0, 1, 1, 0])), "every class needs a synthetic image"),
        (lambda: TargetBank(torch.full((3, 3), math.nan), torch.arange(3)), "logits must be finite"),
        (lambda: bank_of()[0].draw(torch.tensor([4])), r"labels must lie in \[0, 4\)"),
        (lambda: bank_of()[0].mean_logits(0.0), "temperature must be"),
        (lambda: discriminator(0), "num_classes must be"),
        (lambda: discriminator_loss(undecided(), torch.rand(3, 4), torch.rand(2, 4)), "must have the shape of"),
        (lambda: LightweightDistillation(student_of(), bank_of()[0], temperature=0.0), "temperature must be"),
        (lambda: LightweightDistillation(student_of(), bank_of()[0], kd_weight=1.5), "kd_weight must lie"),
        (lambda: LightweightDistillation(student_of(), bank_of()[0], adversarial_weight=-1.0), "adversarial_weight"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_student_of_another_width_is_refused():
    bank, _ = bank_of(dtype=torch.float32)
    learner = LightweightDistillation(MLP(6, (5,), 7), bank)
    with pytest.raises(ValueError, match="teacher_logits must have the shape of student_logits"):
        learner.losses(batch_of())


def test_learns_and_is_less_certain_than_from_labels_alone():
    images = data.digits()
    numbers = synthetic_numbers(images.train, 10, 400)
    with seeded(0):
        teacher, plain, student = ConvNet(8, 2), MLP(64, (32,)), MLP(64, (32,))
    fit(Supervised(teacher), numbers, Budget(epochs=30, batch_size=50, lr=0.1))
    assert accuracy(predict(teacher, numbers.inputs), numbers.labels) > 90
    bank = TargetBank(predict(teacher, numbers.inputs), numbers.labels)
    few, budget = images.train[:200], Budget(steps=300, batch_size=50, lr=0.1)
    fit(Supervised(plain), few, budget)
    fit(LightweightDistillation(student, bank), few, budget)
    logits = [predict(model, images.test.inputs) for model in (plain, student)]
    assert accuracy(logits[1], images.test.labels) > 85
    confidence = [float(part.softmax(dim=1).max(dim=1).values.mean()) for part in logits]
    assert confidence[1] < confidence[0] - 0.1
