r"""Self-training: a network's confident predictions on unlabelled data serve as their labels.

Dong-Hyun Lee: *Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks*,
ICML 2013 workshop on challenges in representation learning.

**Idea.** A prediction that is already likely becomes more so when it is used as a label; decision boundaries move
out of dense regions of the unlabelled data. Predictions that are wrong are reinforced just the same, so only
confident ones are used, and only after the labelled data have been learned.

**Equations.** Probabilities $p$ of the unlabelled (target) batch $T$, threshold $\delta$, fraction of training
$t$, of which $t_1$ and $t_2$ bound the rise of the weight:

$$\hat y_j=\arg\max_k p_{jk},\qquad T_\delta=\{j\in T:\max_k p_{jk}>\delta\} \tag{1}$$

$$L_{PL}=\frac1{|T_\delta|}\sum_{j\in T_\delta}-\log p_{j\hat y_j} \tag{2}$$

$$\lambda(t)=\lambda_{max}\cdot\min\Big(1,\max\Big(0,\frac{t-t_1}{t_2-t_1}\Big)\Big) \tag{3}$$

$$L=\frac1{B_s}\sum_{i\in S}-\log p_{iy_i}+\lambda(t)\,L_{PL} \tag{4}$$

**Conventions.** Lee uses every unlabelled sample; $\delta=0$ is that case. The threshold is the usual addition
where a domain shift makes many predictions wrong; (2) is a mean over the samples that pass it, and 0 if none does.

**Source status.** Reconstructed from memory of the paper; the threshold and the defaults are choices made here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_fraction, check_logits, check_positive
from kdcore.foundations.reversal import forward_domains
from kdcore.training.learners import Learner

__all__ = ["PseudoLabels", "SelfTraining", "check_threshold", "pseudo_label_loss", "pseudo_labels", "rising_weight"]


class PseudoLabels(NamedTuple):
    """What a network believes about unlabelled samples; no gradient flows through it.

    Attributes:
        labels: most likely class of each sample, (B,).
        confidence: its probability, (B,).
        keep: whether the confidence exceeds the threshold, (B,), bool.

    Example:
        >>> import torch
        >>> believed = pseudo_labels(torch.tensor([[0.0, 4.0]]), threshold=0.9)
        >>> believed.labels.item(), round(believed.confidence.item(), 3), believed.keep.item()
        (1, 0.982, True)
    """

    labels: Tensor
    confidence: Tensor
    keep: Tensor


def check_threshold(threshold: float) -> None:
    """Raise `ValueError` unless `threshold` lies in [0, 1); from 1 on nothing could pass it.

    Example:
        >>> check_threshold(1.0)
        Traceback (most recent call last):
        ValueError: threshold must lie in [0, 1), got 1.0.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), got {threshold!r}.")


def pseudo_labels(logits: Tensor, threshold: float = 0.0) -> PseudoLabels:
    """Most likely classes, their probabilities and which are kept, equation (1).

    Args:
        logits: shape (B, C).
        threshold: δ in [0, 1); the probability must be strictly greater. 0 keeps every sample.

    Returns:
        Labels, confidences and mask, each (B,).

    Raises:
        ValueError: `logits` is not a finite (B, C) matrix, or `threshold` lies outside [0, 1).

    Example:
        >>> import torch
        >>> pseudo_labels(torch.tensor([[0.0, 0.2], [3.0, 0.0]]), threshold=0.6).keep
        tensor([False,  True])
    """
    check_logits(logits=logits)
    check_threshold(threshold)
    confidence, labels = logits.detach().softmax(dim=1).max(dim=1)
    return PseudoLabels(labels, confidence, confidence > threshold)


def pseudo_label_loss(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """Cross-entropy with one's own confident predictions, equation (2).

    Args:
        logits: shape (B, C).
        threshold: δ in [0, 1).

    Returns:
        Scalar, at least 0; 0 if no sample is kept.

    Raises:
        ValueError: as for `pseudo_labels`.

    Example:
        >>> import torch
        >>> round(float(pseudo_label_loss(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), threshold=0.6)), 4)
        0.0486
    """
    labels, _, keep = pseudo_labels(logits, threshold)
    rows = F.cross_entropy(logits, labels, reduction="none")
    return (rows * keep).sum() / keep.sum().clamp(min=1)


def rising_weight(progress: float, adapt_after: float, full_after: float, weight: float = 1.0) -> float:
    """Weight λ: 0 until `adapt_after`, then linear up to `weight` at `full_after`, equation (3).

    Args:
        progress: fraction of training done, in [0, 1].
        adapt_after: t_1 in [0, 1].
        full_after: t_2 in [adapt_after, 1]; equal to `adapt_after` for a jump.
        weight: λ_max > 0.

    Raises:
        ValueError: a fraction lies outside [0, 1], `full_after` < `adapt_after`, or `weight` is not positive.

    Example:
        >>> [rising_weight(progress, 0.25, 0.75, weight=3.0) for progress in (0.1, 0.5, 0.9)]
        [0.0, 1.5, 3.0]
    """
    check_fraction(progress=progress, adapt_after=adapt_after, full_after=full_after)
    check_positive(weight=weight)
    if full_after < adapt_after:
        raise ValueError(f"full_after must be at least adapt_after, {adapt_after!r}, got {full_after!r}.")
    if progress < adapt_after:
        return 0.0
    if full_after == adapt_after:
        return weight
    return weight * min(1.0, (progress - adapt_after) / (full_after - adapt_after))


class SelfTraining(Learner):
    """Source cross-entropy and thresholded pseudo-labels on the target, equation (4).

    Batches have the streams `source` (with labels) and `target`.

    Args:
        model: maps inputs (B, …) to logits (B, C).
        threshold: δ in [0, 1).
        adapt_after: t_1, fraction of training before which only the source counts.
        full_after: t_2 in [adapt_after, 1], from where the pseudo-labels have their full weight.
        weight: λ_max > 0.
        joint: one forward pass for both domains, see `kdcore.foundations.reversal.forward_domains`.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from kdcore.data import Arrays
        >>> learner = SelfTraining(torch.nn.Linear(4, 3), adapt_after=0.1)
        >>> source = Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)
        >>> list(learner.losses(SimpleNamespace(source=source, target=Arrays(inputs=torch.rand(5, 4)))))
        ['source_cross_entropy', 'pseudo_label']
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.6,
        adapt_after: float = 0.1,
        full_after: float = 0.6,
        weight: float = 1.0,
        joint: bool = False,
    ) -> None:
        super().__init__()
        check_threshold(threshold)
        rising_weight(0.0, adapt_after, full_after, weight)  # refuses a bad schedule now, not at the first step
        self.model = model
        self.threshold = threshold
        self.adapt_after = adapt_after
        self.full_after = full_after
        self.weight = weight
        self.joint = joint
        self.progress = 0.0

    def on_step(self, progress: float) -> None:
        """Remember the fraction of training done; it sets λ."""
        self.progress = progress

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy on the source, and λ times that on confident target samples."""
        source, target = forward_domains(self.model, batch.source.inputs, batch.target.inputs, self.joint)
        weight = rising_weight(self.progress, self.adapt_after, self.full_after, self.weight)
        return {
            "source_cross_entropy": F.cross_entropy(source, batch.source.labels),
            "pseudo_label": weight * pseudo_label_loss(target, self.threshold),
        }
