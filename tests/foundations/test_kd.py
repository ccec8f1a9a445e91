"""Plain distillation: closed forms, limits, gradient facts, bad input, learning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from kdcore import data, metrics, models, training
from kdcore.foundations.kd import KnowledgeDistillation, distillation_loss, soften


def logits(batch: int = 6, classes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_equals_a_slow_obvious_loop(dtype):
    student, teacher, temperature = logits(seed=1, dtype=dtype), logits(seed=2, dtype=dtype), 2.5
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / temperature) / sum(math.exp(w / temperature) for w in s) for v in s]
        q = [math.exp(v / temperature) / sum(math.exp(w / temperature) for w in t) for v in t]
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    wanted = torch.tensor(temperature**2 * total / 6, dtype=dtype)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), wanted)


@given(temperature=st.floats(0.3, 50), seed=st.integers(0, 1000), shift=st.floats(-20, 20))
def test_loss_is_zero_for_equal_probabilities_and_positive_otherwise(temperature, seed, shift):
    teacher = logits(seed=seed)
    assert abs(float(distillation_loss(teacher + shift, teacher, temperature))) < 1e-9 * temperature**2
    assert float(distillation_loss(logits(seed=seed + 1), teacher, temperature)) > 0


def test_gradient_is_temperature_times_the_difference_of_probabilities():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    for temperature in (0.5, 1.0, 4.0):
        (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, temperature), student)
        wanted = temperature * (soften(student, temperature) - soften(teacher, temperature)) / len(student)
        torch.testing.assert_close(gradient, wanted)
        torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(6, dtype=torch.float64))


def test_high_temperature_is_least_squares_on_centred_logits():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, 1e4), student)
    gap = student.detach() - teacher
    centred = gap - gap.mean(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, centred / 5 / 6, rtol=1e-3, atol=1e-5)


def test_alpha_mixes_the_two_terms():
    student, teacher, labels = logits(seed=1), logits(seed=2), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(KnowledgeDistillation(3, 0)(student, teacher, labels), F.cross_entropy(student, labels))
    torch.testing.assert_close(
        KnowledgeDistillation(3, 1)(student, teacher, labels), distillation_loss(student, teacher, 3)
    )


def test_teacher_gets_no_gradient():
    teacher = logits().requires_grad_()
    assert not distillation_loss(logits(seed=1), teacher, 2.0).requires_grad


@pytest.mark.parametrize(
    ("student", "teacher", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), torch.tensor([0, 1]), "teacher_logits must have the shape"),
        (torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0, 0]), "C >= 2"),
        (torch.full((2, 3), float("nan")), torch.zeros(2, 3), torch.tensor([0, 1]), "student_logits must be finite"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]), r"labels must lie in \[0, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0]), r"labels must have shape \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integer class numbers"),
    ],
)
def test_bad_input_is_refused(student, teacher, labels, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDistillation()(student, teacher, labels)


@pytest.mark.parametrize(("temperature", "alpha"), [(0, 0.5), (-1, 0.5), (float("inf"), 0.5), (1, -0.1), (1, 1.1)])
def test_bad_settings_are_refused(temperature, alpha):
    with pytest.raises(ValueError, match=r"temperature|alpha"):
        KnowledgeDistillation(temperature, alpha)


def test_loss_works_under_vmap_and_compile_like_transforms():
    student, teacher = logits(seed=1), logits(seed=2)
    per_sample = torch.func.vmap(lambda s, t: distillation_loss(s[None], t[None], 2.0))(student, teacher)
    torch.testing.assert_close(per_sample.mean(), distillation_loss(student, teacher, 2.0))


def test_student_learns_more_from_soft_targets_than_from_few_labels():
    digits = data.digits(train_size=800)
    with training.seeded(0):
        teacher = models.ConvNet(width=12)
    training.fit(
        training.Supervised(teacher), digits.train, training.Budget(epochs=12, batch_size=64), augment=data.shift(1)
    )
    few, _ = training.with_teacher(digits.train, teacher).split(150, 10)
    budget = training.Budget(steps=200, batch_size=64, lr=0.1)
    score = {}
    for name, learner in {
        "labels": training.Supervised,
        "soft": lambda student: training.Distillation(student, KnowledgeDistillation(4.0, 0.9)),
    }.items():
        with training.seeded(1):
            student = models.MLP(64, (32,))
        training.fit(learner(student), few, budget)
        score[name] = metrics.accuracy(training.predict(student, digits.test.inputs), digits.test.labels)
    assert score["soft"] > score["labels"] + 0.5
