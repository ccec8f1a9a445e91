r"""Maximum squares loss: adapt a segmenter to unlabelled images without letting easy pixels take over.

Minghao Chen, Hongyang Xue, Deng Cai: *Domain Adaptation for Semantic Segmentation with Maximum Squares Loss*,
ICCV 2019, arXiv 1909.13589.

**Idea.** Minimising the entropy of predictions on target images sharpens them, but its gradient, compared with that
of a linear loss, grows without bound as a prediction becomes confident, so the pixels that are already easy dominate.
The negative sum of squared probabilities sharpens as well, with a gradient that is only linear in the probability;
hard pixels keep their share. Two additions: each image's own predicted label histogram weights its pixels against
class imbalance, and where a network has two heads, their average labels the target pixels for the weaker one.

**Equations.** Two classes show the difference. For a pixel with logit $x$ and $p=\sigma(x)$, entropy $H$ and
$S=-\frac12(p^2+(1-p)^2)$ have

$$\frac{dH}{dp}=-\log\frac p{1-p} \tag{1}$$

$$\frac{dS}{dp}=1-2p \tag{2}$$

and with respect to the logit both times $dp/dx=p(1-p)$, so that

$$\frac{dH/dx}{dS/dx}=\frac{\log\frac p{1-p}}{2p-1} \tag{3}$$

The ratio is 2 at $p=\frac12$ and grows without bound towards $p=1$. Logits of $N$ images,
$z\in\mathbb R^{N\times C\times H\times W}$ (of shape (B, C, H, W) below), give $p=\mathrm{softmax}_C(z)$, with $M=HW$
pixels $m$ per image $n$. The loss, and what it has to do with a divergence from the uniform distribution $u$:

$$L_{MS}=-\frac1{2NCM}\sum_{n,c,m}p_{ncm}^2 \tag{4}$$

$$\chi^2(p\,\|\,u)=\sum_c\frac{(p_c-1/C)^2}{1/C}=C\sum_cp_c^2-1 \tag{5}$$

The mean of (5) over all pixels is $-2C^2L_{MS}-1$, so minimising (4) maximises the mean Pearson divergence. Its rival
is the entropy,

$$L_{ENT}=-\frac1{NCM}\sum_{n,c,m}p_{ncm}\log p_{ncm}$$

Image-wise weighting counts, in each image by itself, the number $N_c$ of pixels of each predicted class
$\hat c_{nm}=\arg\max_cp_{ncm}$,

$$w_c=\frac1{\max(N_c^\alpha M^{1-\alpha},\,1)},\qquad
L_{IW}=-\frac1{NC}\sum_{n,m}w_{\hat c_{nm}}\sum_cp_{ncm}^2 \tag{6}$$

without gradient through $w$. Multi-level guidance labels a target pixel by the average of the final head $p^{(1)}$
and the low-level head $p^{(2)}$ wherever one of the two exceeds a threshold $\delta$,

$$\begin{aligned}
\hat y_m&=\arg\max_c\tfrac12\bigl(p^{(1)}_{cm}+p^{(2)}_{cm}\bigr)\\
&\text{if }\max\bigl(\max_cp^{(1)}_{cm},\,\max_cp^{(2)}_{cm}\bigr)>\delta,\text{ else ignored}
\end{aligned}$$

and the whole objective is

$$\begin{aligned}
L={}&\mathrm{CE}(z^{(1)}_s,y_s)+\lambda_{seg}\mathrm{CE}(z^{(2)}_s,y_s)\\
&+\lambda_TL_{IW}(p^{(1)}_t)+\lambda_T\lambda_{seg}\mathrm{CE}(z^{(2)}_t,\hat y)
\end{aligned}$$

**Conventions.** Followed here is the published code.

- It divides (4) and the entropy by classes and pixels; the paper's formula divides by pixels only, $C$ times larger.
  The weight $\lambda_T=0.1$ belongs to the code's normalisation.
- It has no ½ in (6): at $\alpha=0$, where $w=1/M$, (6) is twice (4).
- It weights a whole pixel by its argmax class; the paper's formula gives each term $p_{ncm}^2$ the weight of its own
  class index $c$ (and the factor ½, and no $1/C$). ``weight_by="class"`` follows that reading of the index with the
  code's constants, so that $\lambda_T$ keeps its meaning.
- Its weighted losses only hold for one image at a time (weights without a class axis do not fit a batch); here every
  image of a batch has its own histogram.
- A mean over labelled pixels is undefined where every pixel is ignored; here it is 0.

**Source status.** Read from the authors' code; of the paper only the abstract was read, and its normalisation and
class-index reading are from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_fraction,
    check_labels,
    check_maps,
    check_not_negative,
    check_same_shape,
    readable,
)
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner

__all__ = [
    "SegmentationAdaptation",
    "binary_gradients",
    "confident_gradient_share",
    "entropy_loss",
    "guided_pseudo_labels",
    "image_weighted_entropy",
    "image_weighted_loss",
    "image_weights",
    "maximum_squares_loss",
    "pixel_cross_entropy",
    "pseudo_labels",
]

WeightBy = Literal["pixel", "class"]
TargetLoss = Literal["none", "entropy", "maxsquare", "image_weighted", "pseudo_labels"]


def maximum_squares_loss(probabilities: Tensor) -> Tensor:
    """Negative half mean of squared probabilities, equation (4).

    Takes probabilities, not logits: it needs no logarithm, and its bounds are stated for them.

    Args:
        probabilities: shape (B, C, H, W); the classes of each pixel sum to 1.

    Returns:
        Scalar in [−1/(2C), −1/(2C²)]: lowest for one-hot, highest for uniform predictions.

    Raises:
        ValueError: not a (B, C, H, W) tensor with C ≥ 2 and at least one pixel, or no probabilities over classes.

    Example:
        >>> import torch
        >>> uniform, one_hot = torch.full((1, 2, 1, 1), 0.5), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> maximum_squares_loss(uniform), maximum_squares_loss(one_hot)
        (tensor(-0.1250), tensor(-0.2500))
    """
    _check_probabilities(probabilities=probabilities)
    return -probabilities.square().mean() / 2


def entropy_loss(logits: Tensor) -> Tensor:
    """Entropy of the predictions, averaged over classes and pixels; the rival "MinEnt".

    Takes logits, because the logarithm of a probability that underflows to 0 is infinite. The gradient flows
    through both factors of p log p.

    Args:
        logits: shape (B, C, H, W), finite.

    Returns:
        Scalar in [0, log(C) / C].

    Raises:
        ValueError: not a finite (B, C, H, W) tensor with C ≥ 2 and at least one pixel.

    Example:
        >>> import torch
        >>> entropy_loss(torch.zeros(1, 2, 1, 1))
        tensor(0.3466)
    """
    _check_maps(logits=logits)
    log_probabilities = logits.log_softmax(dim=1)
    return -(log_probabilities.exp() * log_probabilities).mean()


def binary_gradients(probability: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of two-class entropy and maximum squares with respect to the logit: p(1 − p) times (1) and (2).

    Args:
        probability: p in (0, 1) of the first class, any shape.

    Returns:
        dH/dx and dS/dx, each of the shape of `probability`. Both are 0 at p = ½, and tend to 0 at 0 and 1.

    Raises:
        ValueError: a value lies outside (0, 1).

    Example:
        >>> import torch
        >>> entropy, squares = binary_gradients(torch.tensor([0.6, 0.99]))
        >>> entropy / squares
        tensor([2.0273, 4.6889])
    """
    if readable(probability) and not bool(((probability > 0) & (probability < 1)).all()):
        raise ValueError("probability must lie in (0, 1) everywhere, got values outside.")
    slope = probability * (1 - probability)
    return -slope * probability.logit(), slope * (1 - 2 * probability)


def confident_gradient_share(loss: Callable[[Tensor], Tensor], logits: Tensor, threshold: float = 0.95) -> Tensor:
    """Share of a loss's logit gradient that falls on pixels which are already confident.

    Args:
        loss: from logits (B, C, H, W) to a scalar.
        logits: shape (B, C, H, W).
        threshold: in [0, 1]; a pixel is confident if its largest probability exceeds it.

    Returns:
        Scalar in [0, 1]: the gradient's Euclidean norms over classes, summed over confident pixels, divided by
        their sum over all pixels; 0 if there is no gradient at all.

    Raises:
        ValueError: `logits` is not a finite (B, C, H, W) tensor with C ≥ 2, or `threshold` lies outside [0, 1].

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 4.0], [0.0, 0.0]]).view(1, 2, 1, 2)
        >>> confident_gradient_share(entropy_loss, logits)
        tensor(0.2643)
        >>> confident_gradient_share(lambda z: maximum_squares_loss(z.softmax(dim=1)), logits)
        tensor(0.1578)
    """
    _check_maps(logits=logits)
    check_fraction(threshold=threshold)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    norms = gradient.norm(dim=1)
    confident = logits.softmax(dim=1).amax(dim=1) > threshold
    return (norms * confident).sum() / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny)


def image_weights(probabilities: Tensor, alpha: float = 0.2) -> Tensor:
    """Weight of each class in each image by how often it is predicted there, w in equation (6).

    Args:
        probabilities: shape (B, C, H, W); the classes of each pixel sum to 1.
        alpha: in [0, 1]; 0 gives every class 1/M, 1 gives each predicted class the same total weight.

    Returns:
        Shape (B, C), in (0, 1], without gradient, at least float32. A class that an image does not show has
        weight 1 (1/M at α = 0).

    Raises:
        ValueError: not probabilities of shape (B, C, H, W), or `alpha` lies outside [0, 1].

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, 0, 0, 1]])
        >>> probabilities = torch.eye(2)[labels].permute(0, 2, 1).view(1, 2, 2, 2)
        >>> image_weights(probabilities, alpha=1.0)
        tensor([[0.3333, 1.0000]])
    """
    _check_probabilities(probabilities=probabilities)
    check_fraction(alpha=alpha)
    return _class_weights(probabilities, probabilities.argmax(dim=1), alpha)


def image_weighted_loss(probabilities: Tensor, alpha: float = 0.2, weight_by: WeightBy = "pixel") -> Tensor:
    """Maximum squares loss against class imbalance, equation (6).

    Args:
        probabilities: shape (B, C, H, W); the classes of each pixel sum to 1.
        alpha: in [0, 1]; at 0 this is twice `maximum_squares_loss`.
        weight_by: "pixel" weights a pixel by its predicted class (the published code), "class" weights each squared
            probability by its own class (the paper's formula). There a class that an image does not show counts as
            one with a single pixel, weight M^(α−1); the weight 1 of equation (6) would let it outweigh all others.

    Returns:
        Scalar below 0, the mean over images.

    Raises:
        ValueError: not probabilities of shape (B, C, H, W), `alpha` outside [0, 1], or an unknown `weight_by`.

    Example:
        >>> import torch
        >>> p = torch.rand(2, 3, 4, 4).softmax(dim=1)
        >>> bool(torch.isclose(image_weighted_loss(p, alpha=0.0), 2 * maximum_squares_loss(p)))
        True
    """
    _check_probabilities(probabilities=probabilities)
    check_fraction(alpha=alpha)
    check_choice("weight_by", weight_by, ("pixel", "class"))
    predicted = probabilities.argmax(dim=1)
    weights = _class_weights(probabilities, predicted, alpha)
    if weight_by == "pixel":
        weights = _per_pixel(weights, predicted)
    else:
        weights = weights.clamp(max=predicted[0].numel() ** (alpha - 1))[:, :, None, None]
    return -(weights * probabilities.square()).sum() / _images_times_classes(probabilities)


def image_weighted_entropy(logits: Tensor, alpha: float = 0.2) -> Tensor:
    """Entropy with the pixel weights of equation (6), which the published code offers beside the weighted squares.

    Args:
        logits: shape (B, C, H, W), finite.
        alpha: in [0, 1]; at 0 this is `entropy_loss`.

    Returns:
        Scalar, at least 0, the mean over images.

    Raises:
        ValueError: not a finite (B, C, H, W) tensor with C ≥ 2, or `alpha` lies outside [0, 1].

    Example:
        >>> import torch
        >>> z = torch.rand(2, 3, 4, 4)
        >>> bool(torch.isclose(image_weighted_entropy(z, alpha=0.0), entropy_loss(z)))
        True
    """
    _check_maps(logits=logits)
    check_fraction(alpha=alpha)
    log_probabilities = logits.log_softmax(dim=1)
    probabilities, predicted = log_probabilities.exp(), logits.argmax(dim=1)
    weights = _per_pixel(_class_weights(probabilities, predicted, alpha), predicted)
    return -(weights * probabilities * log_probabilities).sum() / _images_times_classes(logits)


def pseudo_labels(probabilities: Tensor, threshold: float = 0.95, ignore_index: int = -100) -> Tensor:
    """The predicted class of each confident pixel, all others ignored; the rival "hard pseudo-labels".

    Args:
        probabilities: shape (B, C, H, W); the classes of each pixel sum to 1.
        threshold: in [0, 1]; a pixel is labelled if its largest probability exceeds it.
        ignore_index: label of the others.

    Returns:
        Labels (B, H, W), int64.

    Raises:
        ValueError: not probabilities of shape (B, C, H, W), or `threshold` lies outside [0, 1].

    Example:
        >>> import torch
        >>> pseudo_labels(torch.tensor([[0.99, 0.6], [0.01, 0.4]]).view(1, 2, 1, 2))
        tensor([[[   0, -100]]])
    """
    return guided_pseudo_labels(probabilities, probabilities, threshold, ignore_index)


def guided_pseudo_labels(
    final_probabilities: Tensor, low_probabilities: Tensor, threshold: float = 0.95, ignore_index: int = -100
) -> Tensor:
    """Labels from the average of two heads where at least one of them is confident.

    Args:
        final_probabilities: of the final head, shape (B, C, H, W).
        low_probabilities: of the low-level head, same shape.
        threshold: δ in [0, 1]; confident means a largest probability above it.
        ignore_index: label of the pixels where neither head is confident.

    Returns:
        Labels (B, H, W), int64.

    Raises:
        ValueError: a tensor does not hold probabilities of shape (B, C, H, W), shapes differ, or `threshold` lies
            outside [0, 1].

    Example:
        >>> import torch
        >>> final = torch.tensor([[0.97, 0.60], [0.03, 0.40]]).view(1, 2, 1, 2)
        >>> low = torch.tensor([[0.30, 0.60], [0.70, 0.40]]).view(1, 2, 1, 2)
        >>> guided_pseudo_labels(final, low)
        tensor([[[   0, -100]]])
    """
    _check_probabilities(final_probabilities=final_probabilities, low_probabilities=low_probabilities)
    check_fraction(threshold=threshold)
    confident = torch.maximum(final_probabilities.amax(dim=1), low_probabilities.amax(dim=1)) > threshold
    return torch.where(confident, (final_probabilities + low_probabilities).argmax(dim=1), ignore_index)


def pixel_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Cross-entropy, averaged over the labelled pixels of the batch; 0 where there is none.

    Args:
        logits: shape (B, C, H, W), finite.
        labels: shape (B, H, W), integers in [0, C) or `ignore_index`.
        ignore_index: label that does not count.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a shape is wrong, a label is no class, or a logit is not finite.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 1, 2)
        >>> pixel_cross_entropy(logits, torch.tensor([[[1, -100]]])), pixel_cross_entropy(logits, logits[:, 0].long())
        (tensor(0.6931), tensor(0.6931))
    """
    _check_maps(logits=logits)
    expected = (logits.shape[0], *logits.shape[2:])
    if labels.shape != expected:
        raise ValueError(f"labels must have shape {expected}, got {tuple(labels.shape)}.")
    counted = labels != ignore_index
    check_labels(torch.where(counted, labels, 0).flatten(), labels.numel(), logits.shape[1])
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / counted.sum().clamp(min=1)


class SegmentationAdaptation(Learner):
    """Supervised segmentation of source images plus an unsupervised loss on target images.

    The batch has two streams: ``batch.source`` with `inputs` (B, channels, H, W) and `labels` (B, H, W), and
    ``batch.target`` with `inputs`. Source and target pass through the model one after the other, so that each has its
    own batch-norm statistics. Every loss of the target amplifies what the model already believes: start from a
    model trained on the source (``target_loss="none"``).

    Args:
        model: from inputs to logits (B, C, H, W); with `multi_level` it also offers ``heads(inputs)``, the logits of
            the final and of the low-level head.
        target_loss: "none" (the target stream is not read), "entropy", "maxsquare", "image_weighted" or
            "pseudo_labels" (cross-entropy with the model's own confident predictions).
        target_weight: λ_T ≥ 0, of everything on the target; the paper has 0.1, and 0.09 with two heads. At 0 the
            target images still enter the batch-norm statistics, which shows what that alone brings.
        alpha: in [0, 1], of "image_weighted".
        weight_by: "pixel" or "class", of "image_weighted".
        threshold: δ in [0, 1], of "pseudo_labels" and of the guidance.
        multi_level: train a low-level head along, guided by the average of both heads.
        auxiliary_weight: λ_seg ≥ 0, of the low-level head.
        ignore_index: source label that does not count.

    Raises:
        ValueError: an argument is out of range, or `multi_level` with a model that has no `heads`.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from kdcore.data.arrays import Arrays
        >>> learner = SegmentationAdaptation(torch.nn.Conv2d(1, 3, 1), "image_weighted")
        >>> source = Arrays(inputs=torch.rand(2, 1, 4, 4), labels=torch.zeros(2, 4, 4, dtype=torch.long))
        >>> batch = SimpleNamespace(source=source, target=Arrays(inputs=torch.rand(2, 1, 4, 4)))
        >>> sorted(learner.losses(batch))
        ['cross_entropy', 'image_weighted']
    """

    def __init__(
        self,
        model: nn.Module,
        target_loss: TargetLoss = "maxsquare",
        target_weight: float = 0.1,
        alpha: float = 0.2,
        weight_by: WeightBy = "pixel",
        threshold: float = 0.95,
        multi_level: bool = False,
        auxiliary_weight: float = 0.1,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_choice("target_loss", target_loss, ("none", "entropy", "maxsquare", "image_weighted", "pseudo_labels"))
        check_choice("weight_by", weight_by, ("pixel", "class"))
        check_fraction(alpha=alpha, threshold=threshold)
        check_not_negative(target_weight=target_weight, auxiliary_weight=auxiliary_weight)
        if multi_level and not callable(getattr(model, "heads", None)):
            raise ValueError(f"model must offer heads(inputs) with multi_level=True, got {type(model).__name__}.")
        self.model = model
        self.target_loss = target_loss
        self.target_weight = target_weight
        self.alpha = alpha
        self.weight_by = weight_by
        self.threshold = threshold
        self.multi_level = multi_level
        self.auxiliary_weight = auxiliary_weight
        self.ignore_index = ignore_index

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Source terms, then target terms named for the target loss; those of the low-level head end in ``_low``."""
        final, low = self._heads(batch.source.inputs)
        terms = {"cross_entropy": pixel_cross_entropy(final, batch.source.labels, self.ignore_index)}
        if low is not None:
            source_low = pixel_cross_entropy(low, batch.source.labels, self.ignore_index)
            terms["cross_entropy_low"] = self.auxiliary_weight * source_low
        if self.target_loss == "none":
            return terms
        final, low = self._heads(batch.target.inputs)
        terms[self.target_loss] = self.target_weight * self._adapt(final)
        if low is not None:
            labels = guided_pseudo_labels(final.softmax(dim=1), low.softmax(dim=1), self.threshold)
            terms["guidance_low"] = self.target_weight * self.auxiliary_weight * pixel_cross_entropy(low, labels)
        return terms

    def _heads(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.model.heads(inputs) if self.multi_level else (self.model(inputs), None)  # type: ignore[operator]

    def _adapt(self, logits: Tensor) -> Tensor:
        """The unweighted target loss of the final head."""
        if self.target_loss == "entropy":
            return entropy_loss(logits)
        probabilities = logits.softmax(dim=1)
        if self.target_loss == "maxsquare":
            return maximum_squares_loss(probabilities)
        if self.target_loss == "image_weighted":
            return image_weighted_loss(probabilities, self.alpha, self.weight_by)
        return pixel_cross_entropy(logits, pseudo_labels(probabilities, self.threshold))


def _class_weights(probabilities: Tensor, predicted: Tensor, alpha: float) -> Tensor:
    """The weights of equation (6), given the predicted classes (B, H, W)."""
    classes = torch.arange(probabilities.shape[1], device=predicted.device)
    # Half precision cannot hold the number of pixels of a street scene.
    counts = (predicted[:, None] == classes[:, None, None]).sum(dim=(2, 3)).to(at_least_float32(probabilities).dtype)
    return 1 / (counts**alpha * predicted[0].numel() ** (1 - alpha)).clamp(min=1)


def _per_pixel(weights: Tensor, predicted: Tensor) -> Tensor:
    """Weights (B, 1, H, W) of the predicted classes (B, H, W), from weights (B, C)."""
    return weights.gather(1, predicted.flatten(start_dim=1)).view_as(predicted)[:, None]


def _images_times_classes(maps: Tensor) -> int:
    return maps.shape[0] * maps.shape[1]


def _check_maps(**maps: Tensor) -> None:
    """Raise `ValueError` unless all tensors are finite, floating point and of one shape (B, C, H, W), C ≥ 2."""
    check_same_shape(**maps)
    check_maps(**maps)
    for name, tensor in maps.items():
        if tensor.shape[1] < 2:
            raise ValueError(f"{name} must have shape (B, C, H, W) with C >= 2, got {tuple(tensor.shape)}.")


def _check_probabilities(**maps: Tensor) -> None:
    """Raise `ValueError` unless `_check_maps` passes and the classes of every pixel are probabilities."""
    _check_maps(**maps)
    for name, tensor in maps.items():
        if not readable(tensor):
            continue
        tolerance = max(1e-4, 4 * torch.finfo(tensor.dtype).eps)
        values = tensor.detach()
        lowest, error = float(values.min()), float((values.sum(dim=1) - 1).abs().max())
        if lowest < 0 or error > tolerance:
            raise ValueError(
                f"{name} must be at least 0 and sum to 1 over classes (a softmax over dim 1), "
                f"got values from {lowest:.4g} and sums off by up to {error:.4g}."
            )
