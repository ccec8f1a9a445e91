r"""ALDA: a domain discriminator that learns how wrong the pseudo-labels are.

Minghao Chen, Shuai Zhao, Haifeng Liu, Deng Cai: *Adversarial-Learned Loss for Domain Adaptation*, AAAI 2020,
arXiv 2001.01046.

**Idea.** Aligning two domains says nothing about classes, and training on pseudo-labels repeats their errors. ALDA
gives the discriminator one sigmoid per class, the probability that a pseudo-label of this class is right, and lets
it correct pseudo-labels: on the source towards the truth, on the target towards anything but the pseudo-label. The
features learn to defeat it, which aligns the domains, and what it has learned of the noise defines the loss on
unlabelled target samples.

**Equations.** Logits give probabilities $p$ and pseudo-labels $\hat y=\arg\max_k p_k$; discriminator scores
$s\in\mathbb{R}^C$ of the same features give $\xi=\sigma(s)$. Source batch $S$ of $B$ samples ($B_s$ in the shapes
below) with labels $y$; $T_\delta$ are the target samples with $\max_k p_k>\delta$. Per sample, the probability that
class $k$ is true given pseudo-label $l$:

$$\eta_{kl}=\xi_l\;\text{ for }k=l,\qquad \eta_{kl}=\frac{1-\xi_l}{C-1}\;\text{ for }k\ne l \tag{1}$$

$$c_k=\eta_{k\hat y} \tag{2}$$

Corrected labels are compared with the true label on the source and, on the target, with the opposite vector
$u_k=\mathbb 1[k\ne\hat y]/(C-1)$, by $\mathrm{BCE}(c,t)=-\sum_k t_k\log c_k+(1-t_k)\log(1-c_k)$:

$$L_{adv}=\frac1{B+|T_\delta|}\Big[\sum_{i\in S}\mathrm{BCE}(c_i,\mathrm{onehot}(y_i))
+\sum_{j\in T_\delta}\mathrm{BCE}(c_j,u_j)\Big] \tag{3}$$

**How (3) is computed.** A corrected label has only two distinct values, so that its cross-entropy depends on the
scores through $\xi=\xi_{\hat y}$ and on the target vector through $a=t_{\hat y}$ alone (its entries sum to 1):

$$\begin{aligned}
E_a(\xi)={}&-a\log\xi-(1-a)\Big[\log(1-\xi)+\log\frac{1-\xi}{C-1}\Big]\\
&-(C-2+a)\log\frac{C-2+\xi}{C-1}
\end{aligned} \tag{4}$$

with $a=\mathbb 1[\hat y=y]$ on the source and $a=0$ on the target. With $\log\xi=\log\sigma(s_{\hat y})$ and
$\log(1-\xi)=\log\sigma(-s_{\hat y})$ nothing saturates and nothing is clamped.

**Who minimises what.** The other two losses are

$$L_{reg}=\frac1B\sum_{i\in S}-\log\mathrm{softmax}(s_i)_{y_i} \tag{8}$$

$$L_T=\frac1{|T_\delta|}\sum_{j\in T_\delta}\sum_k c_{jk}(1-p_{jk}) \tag{9}$$

The discriminator minimises $L_{adv}+L_{reg}$; the network minimises

$$\frac1B\sum_{i\in S}-\log p_{iy_i}+\lambda(t)\,(L_T-L_{adv}) \tag{10}$$

with the rising λ of `kdcore.foundations.reversal.ramp`; $c$ is a constant in $L_T$, and $L_{reg}$ does not reach
the network.

**Paper and code.** The published code is followed by default. (a) Its $L_{adv}$ is one mean over the source samples
and the kept target samples, as in (3); the paper has one expectation per domain. (b) Its $L_T$ is
$-\frac1{C|T_\delta|}\sum_j\sum_k c_{jk}p_{jk}$: the constant of (9) is gone, and a factor $1/C$ is there
(``reduction="code"``; ``"paper"`` is (9)). (c) λ weighs $L_T$ in its scripts for Office, not in those for digits
(`ramp_target`). (d) A batch without confident target sample gives NaN there and 0 here. (e) The scripts count λ in
iterations, $t=\text{iteration}/10000$ without an end, here $t$ is the fraction of training;
``steepness=10 * iterations / 10000`` is the former.

**Source status.** Read from the authors' code; of the paper only the abstract was read, its equations rest on memory
checked against that code.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_fraction, check_labels, check_logits, check_positive
from kdcore.foundations.reversal import Discriminator, forward_domains, linear_classifier, ramp, reverse_gradient
from kdcore.foundations.self_training import check_threshold, pseudo_labels
from kdcore.models import inference
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner

__all__ = [
    "ALDA",
    "NoiseScores",
    "adversarial_loss",
    "confusion_matrix",
    "corrected_labels",
    "corrected_target_loss",
    "correction_error",
    "regulariser_loss",
]

TargetVector = Literal["opposite", "uniform"]
Reduction = Literal["code", "paper"]


def confusion_matrix(scores: Tensor) -> Tensor:
    """Probability of each true class given each pseudo-label, equation (1).

    Args:
        scores: discriminator outputs before the sigmoid, shape (B, C).

    Returns:
        η of shape (B, C, C), true class by pseudo-label; each column ``[b, :, l]`` sums to 1.

    Raises:
        ValueError: `scores` is not a finite (B, C) matrix with C ≥ 2.

    Example:
        >>> import torch
        >>> confusion_matrix(torch.tensor([[0.0, 20.0]]))
        tensor([[[0.5000, 0.0000],
                 [0.5000, 1.0000]]])
    """
    check_logits(scores=scores)
    classes = scores.shape[1]
    right = at_least_float32(scores).sigmoid().unsqueeze(1)
    diagonal = torch.eye(classes, dtype=torch.bool, device=scores.device)
    return torch.where(diagonal, right, (1 - right) / (classes - 1))


def corrected_labels(scores: Tensor, labels: Tensor) -> Tensor:
    """Soft labels after correction: the pseudo-label's column of the confusion matrix, equation (2).

    Args:
        scores: discriminator outputs before the sigmoid, shape (B, C).
        labels: pseudo-labels, shape (B,); on the source too, never the true labels.

    Returns:
        c of shape (B, C); each row sums to 1.

    Raises:
        ValueError: `scores` is not a finite (B, C) matrix with C ≥ 2, or `labels` are not B class numbers.

    Example:
        >>> import torch
        >>> corrected_labels(torch.zeros(1, 3), torch.tensor([2]))
        tensor([[0.2500, 0.2500, 0.5000]])
    """
    check_logits(scores=scores)
    check_labels(labels, *scores.shape)
    right = at_least_float32(scores).gather(1, labels[:, None]).sigmoid()
    others = (1 - right) / (scores.shape[1] - 1)
    return others.expand_as(scores).scatter(1, labels[:, None], right)


def correction_error(scores: Tensor, labels: Tensor, agreement: Tensor) -> Tensor:
    """Cross-entropy of every sample's corrected label with a target vector, equation (4).

    Args:
        scores: discriminator outputs before the sigmoid, shape (B, C).
        labels: pseudo-labels, shape (B,).
        agreement: a, the entry of the target vector at the pseudo-label, in [0, 1], shape (B,).

    Returns:
        Shape (B,), each at least 0.

    Raises:
        ValueError: `scores` is not a finite (B, C) matrix with C ≥ 2, `labels` are not B class numbers, or
            `agreement` does not have shape (B,).

    Example:
        >>> import torch
        >>> correction_error(torch.zeros(2, 2), torch.tensor([0, 0]), torch.tensor([1.0, 0.0]))
        tensor([1.3863, 1.3863])
    """
    check_logits(scores=scores)
    check_labels(labels, *scores.shape)
    if agreement.shape != labels.shape:
        raise ValueError(f"agreement must have shape {tuple(labels.shape)}, got {tuple(agreement.shape)}.")
    classes = scores.shape[1]
    score = at_least_float32(scores).gather(1, labels[:, None]).squeeze(1)
    log_right, log_wrong = F.logsigmoid(score), F.logsigmoid(-score)
    # log(C − 2 + σ(s)) as a sum of exponentials: for C = 2 it is log σ(s), which must not go through σ(s) = 0.
    log_rest = math.log(classes - 2) if classes > 2 else -math.inf
    log_not_other = torch.logaddexp(torch.full_like(score, log_rest), log_right) - math.log(classes - 1)
    return -(
        agreement * log_right
        + (1 - agreement) * (2 * log_wrong - math.log(classes - 1))
        + (classes - 2 + agreement) * log_not_other
    )


def adversarial_loss(
    source_scores: Tensor,
    target_scores: Tensor,
    source_pseudo: Tensor,
    target_pseudo: Tensor,
    source_labels: Tensor,
    keep: Tensor,
    target_vector: TargetVector = "opposite",
) -> Tensor:
    """How far the discriminator is from correcting source labels and refusing target labels, equation (3).

    Args:
        source_scores: discriminator outputs before the sigmoid, shape (B_s, C).
        target_scores: likewise for the target, shape (B_t, C).
        source_pseudo: pseudo-labels of the source, shape (B_s,).
        target_pseudo: pseudo-labels of the target, shape (B_t,).
        source_labels: true labels, shape (B_s,).
        keep: which target samples count, bool, shape (B_t,).
        target_vector: what corrected target labels should be: "opposite" is u of equation (3), "uniform" is 1/C
            everywhere, which asks nothing of the pseudo-label and leaves the features no adversary.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes, types or class numbers do not fit, or `target_vector` is unknown.

    Example:
        >>> import torch
        >>> sure, zero, no = torch.full((1, 3), 50.0), torch.tensor([0]), torch.tensor([False])
        >>> float(adversarial_loss(sure, sure, zero, zero, zero, keep=no).abs()) < 1e-6
        True
    """
    check_choice("target_vector", target_vector, ("opposite", "uniform"))
    check_logits(source_scores=source_scores)
    batch, classes = source_scores.shape
    if target_scores.shape[1:] != (classes,):
        raise ValueError(f"target_scores must have shape (B_t, {classes}), got {tuple(target_scores.shape)}.")
    check_labels(source_labels, batch, classes, "source_labels")
    check_labels(source_pseudo, batch, classes, "source_pseudo")
    check_labels(target_pseudo, len(target_scores), classes, "target_pseudo")
    _check_keep(keep, target_scores)
    source_scores, target_scores = at_least_float32(source_scores), at_least_float32(target_scores)
    right = (source_pseudo == source_labels).to(source_scores.dtype)
    accepted = torch.full_like(target_scores[:, 0], 0.0 if target_vector == "opposite" else 1 / classes)
    scores, pseudo = torch.cat([source_scores, target_scores]), torch.cat([source_pseudo, target_pseudo])
    counted = torch.cat([torch.ones_like(right), keep.to(right.dtype)])
    return (correction_error(scores, pseudo, torch.cat([right, accepted])) * counted).sum() / counted.sum()


def regulariser_loss(source_scores: Tensor, source_labels: Tensor) -> Tensor:
    """Cross-entropy of the discriminator as a classifier of the source, equation (8).

    Args:
        source_scores: discriminator outputs, shape (B_s, C), of features without gradient: the loss is for the
            discriminator alone.
        source_labels: true labels, shape (B_s,).

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: `source_scores` is not a finite (B_s, C) matrix, or `source_labels` are not B_s class numbers.

    Example:
        >>> import torch
        >>> regulariser_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    check_logits(source_scores=source_scores)
    batch, classes = source_scores.shape
    check_labels(source_labels, batch, classes, "source_labels")
    return F.cross_entropy(at_least_float32(source_scores), source_labels)


def corrected_target_loss(
    target_logits: Tensor, target_scores: Tensor, target_pseudo: Tensor, keep: Tensor, reduction: Reduction = "code"
) -> Tensor:
    """Unhinged loss of the classifier with the corrected labels, equation (9).

    Args:
        target_logits: shape (B_t, C).
        target_scores: discriminator outputs before the sigmoid, shape (B_t, C); no gradient flows into them.
        target_pseudo: pseudo-labels, shape (B_t,).
        keep: which samples count, bool, shape (B_t,).
        reduction: "paper" is (9), in [0, 1]; "code" is (9) less 1, divided by C, in [−1/C, 0].

    Returns:
        Scalar; 0 if no sample is kept.

    Raises:
        ValueError: shapes, types or class numbers do not fit, or `reduction` is unknown.

    Example:
        >>> import torch
        >>> logits, sure = torch.tensor([[9.0, 0.0]]), torch.full((1, 2), 50.0)
        >>> zero, kept = torch.tensor([0]), torch.tensor([True])
        >>> round(float(corrected_target_loss(logits, sure, zero, kept, reduction="paper")), 4)
        0.0001
        >>> round(float(corrected_target_loss(logits, sure, zero, kept)), 4)
        -0.4999
    """
    check_choice("reduction", reduction, ("code", "paper"))
    check_logits(target_logits=target_logits, target_scores=target_scores)
    batch, classes = target_scores.shape
    check_labels(target_pseudo, batch, classes, "target_pseudo")
    _check_keep(keep, target_scores)
    corrected = corrected_labels(target_scores.detach(), target_pseudo)
    agreement = (corrected * at_least_float32(target_logits).softmax(dim=1)).sum(dim=1)
    rows = 1 - agreement if reduction == "paper" else -agreement / classes
    return (rows * keep).sum() / keep.sum().clamp(min=1)


class NoiseScores(NamedTuple):
    """What the discriminator makes of pseudo-labels, without gradient.

    Attributes:
        labels: pseudo-labels, (B,).
        confidence: their probability by the classifier, (B,).
        trust: ξ at the pseudo-label, the probability that it is right by the discriminator, (B,).

    Example:
        >>> import torch
        >>> answer = NoiseScores(torch.tensor([3]), torch.tensor([0.9]), torch.tensor([0.2]))
        >>> bool(answer.trust < answer.confidence)
        True
    """

    labels: Tensor
    confidence: Tensor
    trust: Tensor


class ALDA(Learner):
    """Adversarial-learned loss for domain adaptation, equation (10), in one backward pass.

    The gradient of $L_{adv}$ is reversed on its way from the discriminator to the features. $L_{reg}$ comes from a
    second pass of the discriminator, over detached features and with the dropout of the first, so that the
    discriminator gets the gradient of a single pass and the network none. Batches have the streams `source` (with
    labels) and `target`.

    Args:
        model: has ``embed(inputs) -> (B, d)`` and a linear ``classifier`` to C ≥ 2 classes.
        threshold: δ in [0, 1); target samples need a greater probability.
        hidden: width of the discriminator's hidden layers (1024 for Office, 500 for digits).
        adapt_after: fraction of training, in [0, 1], before which only the source cross-entropy is minimised.
        steepness: γ > 0 of λ's rise, in units of the whole training, warm-up included.
        joint: one forward pass for both domains (the SVHN script), else one each (the others); it matters to batch
            norm, see `kdcore.foundations.reversal.forward_domains`.
        ramp_target: weigh $L_T$ with λ (scripts for Office), else with 1 (scripts for digits).
        reduction: of $L_T$, see `corrected_target_loss`.
        target_vector: see `adversarial_loss`; "uniform" is an ablation.
        use_target_loss: False leaves out $L_T$, an ablation.
        use_regulariser: False leaves out $L_{reg}$, an ablation.

    Raises:
        ValueError: `model` does not split into embedding and classifier, it has one class, or an argument is out of
            range.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import MLP
        >>> learner = ALDA(MLP(4, (8,), 3), threshold=0.0, hidden=16)
        >>> learner.on_step(0.5)
        >>> source = Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)
        >>> list(learner.losses(SimpleNamespace(source=source, target=Arrays(inputs=torch.rand(5, 4)))))
        ['source_cross_entropy', 'adversarial', 'regulariser', 'corrected_target']
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float = 0.6,
        hidden: int = 500,
        adapt_after: float = 0.0,
        steepness: float = 10.0,
        joint: bool = False,
        ramp_target: bool = True,
        reduction: Reduction = "code",
        target_vector: TargetVector = "opposite",
        use_target_loss: bool = True,
        use_regulariser: bool = True,
    ) -> None:
        super().__init__()
        classifier = linear_classifier(model)
        if classifier.out_features < 2:
            raise ValueError(f"model must have at least 2 classes, got {classifier.out_features}.")
        check_threshold(threshold)
        check_fraction(adapt_after=adapt_after)
        check_positive(steepness=steepness)
        check_choice("reduction", reduction, ("code", "paper"))
        check_choice("target_vector", target_vector, ("opposite", "uniform"))
        self.discriminator = Discriminator(classifier.in_features, hidden, classifier.out_features)
        self.model: Any = model
        self.threshold = threshold
        self.adapt_after = adapt_after
        self.steepness = steepness
        self.joint = joint
        self.ramp_target = ramp_target
        self.reduction: Reduction = reduction
        self.target_vector: TargetVector = target_vector
        self.use_target_loss = use_target_loss
        self.use_regulariser = use_regulariser
        self.progress = 0.0

    def on_step(self, progress: float) -> None:
        """Remember the fraction of training done; it sets λ."""
        self.progress = progress

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Terms of equation (10), already weighted; those not in use, or not yet, are 0."""
        parts = forward_domains(self.model.embed, batch.source.inputs, batch.target.inputs, self.joint)
        features, labels = torch.cat(parts), batch.source.labels
        logits = self.model.classifier(features)  # a linear layer treats every row alone, whatever its domain
        loss = F.cross_entropy(logits[: len(labels)], labels)
        terms = {"source_cross_entropy": loss}
        terms |= dict.fromkeys(("adversarial", "regulariser", "corrected_target"), loss.new_zeros(()))
        if self.progress >= self.adapt_after:
            terms |= self._adaptation(features, logits, labels)
        return terms

    def _adaptation(self, features: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms beside the cross-entropy; features (B_s + B_t, d) and logits (B_s + B_t, C), source first."""
        strength = ramp(self.progress, self.steepness)
        masks = self.discriminator.dropout_masks(features)
        scores = self.discriminator(reverse_gradient(features, strength), masks)
        batch = len(labels)
        pseudo, _, confident = pseudo_labels(logits, self.threshold)
        target_scores, target_pseudo, keep = scores[batch:], pseudo[batch:], confident[batch:]
        terms = {
            "adversarial": adversarial_loss(
                scores[:batch], target_scores, pseudo[:batch], target_pseudo, labels, keep, self.target_vector
            )
        }
        if self.use_regulariser:
            alone = self.discriminator(features[:batch].detach(), [mask[:batch] for mask in masks])
            terms["regulariser"] = regulariser_loss(alone, labels)
        if self.use_target_loss:
            loss = corrected_target_loss(logits[batch:], target_scores, target_pseudo, keep, self.reduction)
            terms["corrected_target"] = (strength if self.ramp_target else 1.0) * loss
        return terms

    def noise_scores(self, inputs: Tensor) -> NoiseScores:
        """Pseudo-labels, the classifier's confidence and the discriminator's trust ξ, in evaluation mode.

        Args:
            inputs: shape (B, …).

        Returns:
            Three tensors of shape (B,); the learner's mode is as before.
        """
        with inference(self):
            features = self.model.embed(inputs)
            labels, confidence, _ = pseudo_labels(self.model.classifier(features))
            trust = self.discriminator(features).gather(1, labels[:, None]).squeeze(1).sigmoid()
        return NoiseScores(labels, confidence, trust)


def _check_keep(keep: Tensor, target_scores: Tensor) -> None:
    """Raise `ValueError` unless `keep` is one bool per target sample."""
    if keep.dtype != torch.bool or keep.shape != target_scores.shape[:1]:
        raise ValueError(
            f"keep must be bool of shape {tuple(target_scores.shape[:1])}, got {keep.dtype} {tuple(keep.shape)}."
        )
