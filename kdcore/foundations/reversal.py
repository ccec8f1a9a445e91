r"""Gradient reversal and the domain-adversarial loss (DANN).

Yaroslav Ganin, Victor Lempitsky: *Unsupervised Domain Adaptation by Backpropagation*, ICML 2015, arXiv 1409.7495.

**Idea.** A discriminator tries to tell source features from target features; the feature extractor is trained
to defeat it. A layer that is the identity forward and multiplies the gradient by $-\lambda$ backward trains both
with one backward pass.

$$R_\lambda(f)=f,\qquad \frac{\partial R_\lambda}{\partial f}=-\lambda I \tag{1}$$

$$L_{dom}=-\frac1{2B_s}\sum_{i\in S}\log\sigma(D(f_i))-\frac1{2B_t}\sum_{j\in T}\log(1-\sigma(D(f_j))) \tag{2}$$

$$\lambda(t)=\frac{2}{1+e^{-\gamma t}}-1,\qquad t\in[0,1],\ \gamma=10 \tag{3}$$

$$L=\frac1{B_s}\sum_{i\in S}-\log p_{iy_i}+L_{dom}\big(D(R_{\lambda(t)}(f))\big) \tag{4}$$

**Conventions.** The discriminator minimises (2) at full strength from the first step; only what reaches the
features is scaled by λ. Its shape (two hidden layers with dropout 0.5, Xavier-normal weights) is the one of later
published code for this family of methods, so that arms that compare losses can share it. Batch norm sees one
domain at a time unless the two batches are joined (`forward_domains`): apart, each domain is normalised by its own
statistics in training, while the running averages that evaluation uses mix both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_fraction, check_positive
from kdcore.training.learners import Learner

__all__ = [
    "Discriminator",
    "DomainAdversarial",
    "domain_loss",
    "forward_domains",
    "linear_classifier",
    "ramp",
    "reverse_gradient",
]


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def reverse_gradient(features: Tensor, strength: float = 1.0) -> Tensor:
    """Identity forward; multiplies the gradient by −`strength` backward, equation (1). Any shape.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000])
    """
    return _Reversal.apply(features, strength)


def domain_loss(source_scores: Tensor, target_scores: Tensor) -> Tensor:
    """Binary cross-entropy of a domain discriminator, equation (2); source is class 1.

    Args:
        source_scores: discriminator outputs before the sigmoid, shape (B_s,) or (B_s, 1).
        target_scores: likewise for the target, shape (B_t,) or (B_t, 1).

    Returns:
        Scalar; log 2 ≈ 0.693 for a discriminator that cannot tell the domains apart.

    Raises:
        ValueError: a tensor is empty or has more than one score per sample.

    Example:
        >>> import torch
        >>> round(float(domain_loss(torch.zeros(4), torch.zeros(6))), 4)
        0.6931
    """
    for name, scores in {"source_scores": source_scores, "target_scores": target_scores}.items():
        if scores.ndim not in (1, 2) or scores.numel() != scores.shape[0] or scores.numel() == 0:
            raise ValueError(f"{name} must have shape (B,) or (B, 1) with B >= 1, got {tuple(scores.shape)}.")
    return 0.5 * (F.softplus(-source_scores).mean() + F.softplus(target_scores).mean())


def ramp(progress: float, steepness: float = 10.0) -> float:
    """Strength λ that rises from 0 to nearly 1 with training progress in [0, 1], equation (3).

    Example:
        >>> ramp(0.0), round(ramp(0.1), 6), round(ramp(1.0), 6)
        (0.0, 0.462117, 0.999909)
    """
    check_fraction(progress=progress)
    return 2 / (1 + math.exp(-steepness * progress)) - 1


def forward_domains(
    network: Callable[[Tensor], Tensor], source_inputs: Tensor, target_inputs: Tensor, joint: bool = False
) -> tuple[Tensor, Tensor]:
    """Outputs of one network for a source batch and a target batch.

    Args:
        network: maps inputs (B, …) to outputs (B, …).
        source_inputs: shape (B_s, …).
        target_inputs: shape (B_t, …).
        joint: one pass over both, so that batch norm normalises with the statistics of the mixture; else two
            passes, source first, each with the statistics of its own domain.

    Returns:
        Source outputs (B_s, …) and target outputs (B_t, …).

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]])
        >>> [bool(part.mean().abs() < 1e-6) for part in forward_domains(norm, source, target)]
        [True, True]
        >>> [bool(part.mean().abs() < 1e-6) for part in forward_domains(norm, source, target, joint=True)]
        [False, False]
    """
    if not joint:
        return network(source_inputs), network(target_inputs)
    outputs = network(torch.cat([source_inputs, target_inputs]))
    return outputs[: len(source_inputs)], outputs[len(source_inputs) :]


def linear_classifier(model: nn.Module) -> nn.Linear:
    """The last layer of a model that splits into ``embed(inputs) -> (B, d)`` and a linear ``classifier``.

    Raises:
        ValueError: `model` does not split that way.

    Example:
        >>> from kdcore.models import MLP
        >>> linear_classifier(MLP(4, (8,), 3))
        Linear(in_features=8, out_features=3, bias=True)
    """
    classifier = getattr(model, "classifier", None)
    if not callable(getattr(model, "embed", None)) or not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"model must have embed(inputs) and a torch.nn.Linear named classifier, got {type(model).__name__}."
        )
    return classifier


class Discriminator(nn.Module):
    """Two hidden layers with ReLU and dropout 0.5, then scores before any sigmoid.

    Dropout is a factor that can be drawn beforehand with `dropout_masks`, so that two passes can share it.

    Args:
        in_features: d, numbers per embedding.
        hidden: width of both hidden layers.
        outputs: scores per sample: 1 for source against target, C for one per class.

    Raises:
        ValueError: an argument is not positive.

    Shape: features (B, in_features); scores (B, outputs).

    Example:
        >>> import torch
        >>> discriminator, features = Discriminator(4, hidden=8, outputs=3), torch.ones(2, 4)
        >>> masks = discriminator.dropout_masks(features)
        >>> torch.equal(discriminator(features, masks), discriminator(features, masks))
        True
    """

    def __init__(self, in_features: int, hidden: int = 500, outputs: int = 1) -> None:
        super().__init__()
        check_positive(in_features=in_features, hidden=hidden, outputs=outputs)
        self.layers = nn.ModuleList([nn.Linear(in_features, hidden), nn.Linear(hidden, hidden)])
        self.output = nn.Linear(hidden, outputs)
        for layer in (*self.layers, self.output):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def dropout_masks(self, features: Tensor) -> list[Tensor]:
        """One factor (B, hidden) per hidden layer: 0 or 2 in training mode, 1 in evaluation mode."""
        shape = (len(self.layers), len(features), self.output.in_features)
        if not self.training:
            return list(features.new_ones(shape))
        # Fair coins are integers: three times as fast on a CPU as drawing with a probability.
        return list(2 * torch.randint(2, shape, dtype=features.dtype, device=features.device))

    def forward(self, features: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Scores (B, outputs) of features (B, in_features); fresh dropout unless `masks` are given."""
        if masks is None:
            masks = self.dropout_masks(features)
        for layer, mask in zip(self.layers, masks, strict=True):
            features = layer(features).relu() * mask
        return self.output(features)


class DomainAdversarial(Learner):
    """Domain-adversarial training, equation (4). Batches have the streams `source` (with labels) and `target`.

    Args:
        model: has ``embed(inputs) -> (B, d)`` and a linear ``classifier``.
        hidden: width of the discriminator's hidden layers.
        adapt_after: fraction of training, in [0, 1], before which only the cross-entropy is minimised.
        steepness: γ > 0 of equation (3), with t the fraction of training done, warm-up included.
        joint: one forward pass for both domains, see `forward_domains`.

    Raises:
        ValueError: `model` does not split into embedding and classifier, or a number is out of range.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import MLP
        >>> learner = DomainAdversarial(MLP(4, (8,), 3), hidden=16)
        >>> learner.on_step(0.5)
        >>> source = Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)
        >>> list(learner.losses(SimpleNamespace(source=source, target=Arrays(inputs=torch.rand(5, 4)))))
        ['source_cross_entropy', 'domain']
    """

    def __init__(
        self,
        model: nn.Module,
        hidden: int = 500,
        adapt_after: float = 0.0,
        steepness: float = 10.0,
        joint: bool = False,
    ) -> None:
        super().__init__()
        check_fraction(adapt_after=adapt_after)
        check_positive(steepness=steepness)
        self.discriminator = Discriminator(linear_classifier(model).in_features, hidden)
        self.model: Any = model
        self.adapt_after = adapt_after
        self.steepness = steepness
        self.joint = joint
        self.progress = 0.0

    def on_step(self, progress: float) -> None:
        """Remember the fraction of training done; it sets λ."""
        self.progress = progress

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy on the source and domain loss (0 before `adapt_after`)."""
        source, target = forward_domains(self.model.embed, batch.source.inputs, batch.target.inputs, self.joint)
        loss = F.cross_entropy(self.model.classifier(source), batch.source.labels)
        domain = loss.new_zeros(())
        if self.progress >= self.adapt_after:
            strength = ramp(self.progress, self.steepness)
            scores = self.discriminator(reverse_gradient(torch.cat([source, target]), strength))
            domain = domain_loss(scores[: len(source)], scores[len(source) :])
        return {"source_cross_entropy": loss, "domain": domain}
