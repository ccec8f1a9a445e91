"""Checks of the chapter on multi-aspect distillation: the loss on C + Q outputs, and soft answers from token logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.logits.multi_aspect_kd import MultiAspectLoss, yes_probability

__all__ = ["EXERCISES"]


def _loss_cases() -> list[dict]:
    """Numbers of images, classes and questions all differ, so that no mean can be taken for another."""
    generator, cases = torch.Generator().manual_seed(13341), []
    for rows, classes, questions, alpha in [(5, 4, 6, 4.0), (3, 10, 2, 1.0), (7, 3, 9, 10.0)]:
        outputs = 2 * torch.randn(rows, classes + questions, generator=generator)
        answers = torch.rand(rows, questions, generator=generator)
        labels = torch.randint(classes, (rows,), generator=generator)
        case = {"outputs": outputs.requires_grad_(), "answers": answers.requires_grad_(), "labels": labels}
        cases.append(case | {"num_classes": classes, "alpha": alpha})
    return cases


def _token_cases() -> list[dict]:
    """Logits of a whole vocabulary, in which other words may be likelier than both answers."""
    generator, cases = torch.Generator().manual_seed(2501), []
    for questions, words, yes, no in [(4, 12, 3, 4), (6, 30, 17, 2), (3, 9, 0, 8)]:
        logits = 4 * torch.randn(questions, words, generator=generator)
        cases.append({"logits": logits, "yes": yes, "no": no})
    return cases


def _right(outputs: Tensor, answers: Tensor, labels: Tensor, num_classes: int, alpha: float) -> Tensor:
    return MultiAspectLoss(num_classes, alpha)(outputs, answers, labels)


def _other(aspect_term, class_columns_only: bool = True):
    """The loss with another second term, of aspect logits and answers."""

    def loss(outputs: Tensor, answers: Tensor, labels: Tensor, num_classes: int, alpha: float) -> Tensor:
        classes = outputs[:, :num_classes] if class_columns_only else outputs
        return F.cross_entropy(classes, labels) + alpha * aspect_term(outputs[:, num_classes:], answers.detach())

    return loss


_BCE = F.binary_cross_entropy_with_logits


EXERCISES = {
    "multi_aspect_kd.1": Exercise(
        _loss_cases(),
        _right,
        {
            "The questions are summed: equation (3) takes the mean over images and questions.": _other(
                lambda v, a: _BCE(v, a) * v.shape[1]
            ),
            "Everything is summed: equation (3) takes the mean over images and questions.": _other(
                lambda v, a: _BCE(v, a, reduction="sum")
            ),
            "The sigmoid is taken twice: the loss with logits applies it by itself.": _other(
                lambda v, a: _BCE(v.sigmoid(), a)
            ),
            "The softmax runs over the aspect columns too: equation (2) is about class columns only.": _other(
                _BCE, class_columns_only=False
            ),
            "The answers are rounded: they are probabilities and stay so.": _other(
                lambda v, a: _BCE(v, (a >= 0.5).to(a.dtype))
            ),
            "This is the squared difference of probabilities, not binary cross-entropy.": _other(
                lambda v, a: F.mse_loss(v.sigmoid(), a)
            ),
            "The answers' entropy is subtracted: this is the divergence, and (3) the cross-entropy.": _other(
                lambda v, a: _BCE(v, a) - _BCE(a.logit(), a)
            ),
            "A softmax over the questions makes them exclude each other: each is a question of its own.": _other(
                lambda v, a: -(a * v.log_softmax(dim=1)).mean()
            ),
            "The weight α is missing.": lambda outputs, answers, labels, num_classes, alpha: _right(
                outputs, answers, labels, num_classes, 1.0
            ),
        },
    ),
    "multi_aspect_kd.2": Exercise(
        _token_cases(),
        lambda logits, yes, no: yes_probability(logits[:, yes], logits[:, no]),
        {
            "The softmax runs over the whole vocabulary: equation (1) compares two words.": lambda logits, yes, no: (
                logits.softmax(dim=1)[:, yes]
            ),
            "This is the probability of No.": lambda logits, yes, no: yes_probability(logits[:, no], logits[:, yes]),
            "Only the logit of Yes is looked at: what No has matters as much.": lambda logits, yes, no: logits[
                :, yes
            ].sigmoid(),
            "The answer is rounded: the probability is kept.": lambda logits, yes, no: (
                logits[:, yes] > logits[:, no]
            ).to(logits.dtype),
            "These are logits divided by each other, not their exponentials.": lambda logits, yes, no: (
                logits[:, yes] / (logits[:, yes] + logits[:, no])
            ),
        },
    ),
}
"""The checks, by name."""
