"""Checks of the chapter on MDCS: the adjusted cross-entropy, and self-distillation on confident instances."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.exercises.checking import Exercise
from kdcore.self_distillation import mdcs

__all__ = ["EXERCISES"]


def _label_cases() -> list[dict]:
    """Raw logits of one expert, labels, counts of a long tail, and a strength other than 1."""
    generator, cases = torch.Generator().manual_seed(2308), []
    for rows, counts, strength in [
        (6, [90, 20, 4], 2.5),
        (5, [40, 30, 7, 2], -0.5),
        (8, [12, 3], 0.5),
        (3, [100, 50, 25, 12, 6], 2.0),
    ]:
        logits = (3 * torch.randn(rows, len(counts), generator=generator)).requires_grad_()
        labels = torch.randint(len(counts), (rows,), generator=generator)
        cases.append({"logits": logits, "labels": labels, "counts": torch.tensor(counts), "strength": strength})
    return cases


def _view_cases() -> list[dict]:
    """Adjusted logits of two views of one expert; in each batch some weak views are right and some are wrong."""
    generator, cases = torch.Generator().manual_seed(9922), []
    for rows, classes in [(6, 3), (9, 4), (5, 2), (8, 6)]:
        weak, strong = (2 * torch.randn(2, rows, classes, generator=generator)).unbind()
        labels = weak.argmax(dim=1)
        labels[rows // 2 :] = (labels[rows // 2 :] + 1) % classes
        cases.append({"weak": weak.requires_grad_(), "strong": strong.requires_grad_(), "labels": labels})
    return cases


def _adjusted(logits: Tensor, labels: Tensor, counts: Tensor, strength: float) -> Tensor:
    offsets = mdcs.logit_offsets(counts, (strength,)).to(logits.dtype)
    return mdcs.diversity_loss((logits + offsets).unsqueeze(0), labels)


def _of_the_label(logits: Tensor, labels: Tensor, counts: Tensor, strength: float) -> Tensor:
    own = F.one_hot(labels, logits.shape[1]) * (strength * counts.log())
    return F.cross_entropy(logits + own, labels)


def _confident(weak: Tensor, strong: Tensor, labels: Tensor) -> Tensor:
    views = weak.unsqueeze(0), strong.unsqueeze(0)
    return mdcs.consistency_loss(*views, mdcs.confident(views[0], labels))


def _divergence(weak: Tensor, strong: Tensor) -> Tensor:
    return F.kl_div(strong.log_softmax(dim=1), weak.log_softmax(dim=1), reduction="none", log_target=True).sum(dim=1)


def _mean_where(values: Tensor, selected: Tensor) -> Tensor:
    return (values * selected).sum() / selected.sum().clamp(min=1)


EXERCISES = {
    "mdcs.1": Exercise(
        _label_cases(),
        _adjusted,
        {
            "The offset is subtracted: in training it is added.": lambda z, y, n, a: _adjusted(z, y, n, -a),
            "The strength is missing: λ log n, not log n.": lambda z, y, n, a: _adjusted(z, y, n, 1.0),
            "The offset is missing: this is plain cross-entropy.": lambda z, y, n, a: F.cross_entropy(z, y),
            "The offset is 1 − λ times log n: that is what the raw logits are left with, not what is added.": (
                lambda z, y, n, a: _adjusted(z, y, n, 1 - a)
            ),
            "The counts themselves are added: it is the logarithm of n^λ that is.": lambda z, y, n, a: F.cross_entropy(
                z + n.float() ** a, y
            ),
            "Each image is weighted by its class instead: the offset belongs into the softmax.": lambda z, y, n, a: (
                F.cross_entropy(z, y, reduction="none") * n[y].float() ** a
            ).mean(),
            "Only the label's own logit gets its offset: every class gets one.": _of_the_label,
        },
    ),
    "mdcs.2": Exercise(
        _view_cases(),
        _confident,
        {
            "All images are distilled: only those count whose weak view is right.": lambda w, s, y: _divergence(
                w.detach(), s
            ).mean(),
            "The mean runs over the whole batch: divide by the number of selected images.": lambda w, s, y: (
                _divergence(w.detach(), s) * (w.argmax(dim=1) == y)
            ).mean(),
            "The strong view decides which images count: it is the weak one that must be right.": lambda w, s, y: (
                _mean_where(_divergence(w.detach(), s), s.argmax(dim=1) == y)
            ),
            "The views are exchanged: the weak one decides and teaches, the strong one learns.": lambda w, s, y: (
                _mean_where(_divergence(s.detach(), w), s.argmax(dim=1) == y)
            ),
            "The values are right, but a gradient flows into the weak view: it is a constant.": lambda w, s, y: (
                _mean_where(_divergence(w, s), w.argmax(dim=1) == y)
            ),
            "The arguments of the divergence are exchanged: the weak view comes first.": lambda w, s, y: _mean_where(
                _divergence(s, w.detach()), w.argmax(dim=1) == y
            ),
            "The images that are wrong were selected.": lambda w, s, y: _mean_where(
                _divergence(w.detach(), s), w.argmax(dim=1) != y
            ),
        },
    ),
}
"""The checks, by name."""
