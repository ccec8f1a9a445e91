"""Checks of the chapter on ALDA: the gradient of its target loss by hand, and the loss itself."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.adaptation import alda
from kdcore.exercises.checking import Exercise, gradient_of

__all__ = ["EXERCISES"]


def _cases(learned: bool) -> list[dict]:
    """Scores on both sides of what makes the weight vanish; `learned` asks for gradients too."""
    generator, cases = torch.Generator().manual_seed(2001), []
    for rows, classes in [(6, 4), (5, 3), (1, 10), (8, 2)]:
        logits, scores = (torch.randn(rows, classes, generator=generator) for _ in range(2))
        pseudo = logits.argmax(dim=1)
        scores = 3 * scores - 1
        cases.append(
            {
                "logits": logits.requires_grad_(learned),
                "scores": scores.requires_grad_(learned),
                "pseudo": pseudo,
            }
        )
    return cases


def _loss(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    kept = torch.ones_like(pseudo, dtype=torch.bool)
    return alda.corrected_target_loss(logits, scores, pseudo, kept, reduction="paper")


def _weighted(logits: Tensor, pseudo: Tensor, weight: Tensor) -> Tensor:
    """Mean of −w p at the pseudo-label, which has the gradient of (9) for the right weights."""
    return -(weight * logits.softmax(dim=1).gather(1, pseudo[:, None]).squeeze(1)).mean()


def _weight(trust: Tensor, classes: int) -> Tensor:
    return (classes * trust - 1) / (classes - 1)


def _clamped(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    trust = scores.gather(1, pseudo[:, None]).squeeze(1).sigmoid()
    return _weighted(logits, pseudo, _weight(trust, scores.shape[1]).clamp(min=0))


def _bare_trust(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    return _weighted(logits, pseudo, scores.gather(1, pseudo[:, None]).squeeze(1).sigmoid())


def _softmax_trust(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    trust = scores.softmax(dim=1).gather(1, pseudo[:, None]).squeeze(1)
    return _weighted(logits, pseudo, _weight(trust, scores.shape[1]))


def _log_likelihood(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    """Cross-entropy in place of the unhinged loss: its gradient lacks the factor p."""
    trust = scores.gather(1, pseudo[:, None]).squeeze(1).sigmoid()
    logs = logits.log_softmax(dim=1).gather(1, pseudo[:, None]).squeeze(1)
    return -(_weight(trust, scores.shape[1]) * logs).mean()


def _corrected_cross_entropy(logits: Tensor, scores: Tensor, pseudo: Tensor) -> Tensor:
    corrected = alda.corrected_labels(scores.detach(), pseudo)
    return -(corrected * logits.log_softmax(dim=1)).sum(dim=1).mean()


_gradient = gradient_of(_loss)

EXERCISES = {
    "alda.1": Exercise(
        _cases(learned=False),
        _gradient,
        {
            "The sign is turned round: where the trust is large, the loss must fall as p at the pseudo-label rises.": (
                lambda z, s, y: -_gradient(z, s, y)
            ),
            "The average over the batch is missing.": lambda z, s, y: _gradient(z, s, y) * len(z),
            "This is the form of the published code, divided by C: equation (9) is not.": lambda z, s, y: (
                _gradient(z, s, y) / z.shape[1]
            ),
            "The weight never gets negative: below ξ = 1/C the image is pushed away from its pseudo-label.": (
                gradient_of(_clamped)
            ),
            "The weight is ξ itself: the other classes share 1 − ξ, and this lowers it.": gradient_of(_bare_trust),
            "The trust comes from a softmax over the scores: each score has a sigmoid of its own.": (
                gradient_of(_softmax_trust)
            ),
            "A factor p at the pseudo-label is missing: this is the gradient of −w log p.": (
                gradient_of(_log_likelihood)
            ),
        },
    ),
    "alda.2": Exercise(
        _cases(learned=True),
        _loss,
        {
            "The average over the batch is missing.": lambda z, s, y: _loss(z, s, y) * len(z),
            "The mean is taken over the classes as well: sum over classes, average over the batch alone.": (
                lambda z, s, y: _loss(z, s, y) / z.shape[1]
            ),
            "This is the cross-entropy with the corrected labels: L_T is linear in the probabilities.": (
                _corrected_cross_entropy
            ),
            "The constant of (9) is missing: L_T is 0 where corrected label and prediction are one class.": (
                lambda z, s, y: _loss(z, s, y) - 1
            ),
        },
    ),
}
"""The checks, by name."""
