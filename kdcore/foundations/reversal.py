r"""Gradient reversal and the domain-adversarial loss (DANN).

Yaroslav Ganin, Victor Lempitsky: *Unsupervised Domain Adaptation by Backpropagation*, ICML 2015, arXiv 1409.7495.

**Idea.** A discriminator tries to tell source features from target features; the feature extractor is trained
to defeat it. A layer that is the identity forward and multiplies the gradient by $-\lambda$ backward trains both
with one backward pass.

$$R_\lambda(f)=f,\qquad \frac{\partial R_\lambda}{\partial f}=-\lambda I \tag{1}$$

$$L_{dom}=-\frac1{2B_s}\sum_{i\in S}\log\sigma(D(f_i))-\frac1{2B_t}\sum_{j\in T}\log(1-\sigma(D(f_j))) \tag{2}$$

$$\lambda(t)=\frac{2}{1+e^{-\gamma t}}-1,\qquad t\in[0,1],\ \gamma=10 \tag{3}$$
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.checks import check_fraction

__all__ = ["domain_loss", "ramp", "reverse_gradient"]


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
