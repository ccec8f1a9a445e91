r"""MDCS: experts that lean to frequent and to rare classes, each taught by itself across two views of an image.

Qihao Zhao, Chen Jiang, Wei Hu, Fan Zhang, Jun Liu: *MDCS: More Diverse Experts with Consistency Self-distillation for
Long-tailed Recognition*, ICCV 2023, pp. 11597-11608, arXiv 2308.09922.

**Idea.** On long-tailed data several experts that share a trunk can do better than one network, if they differ from
one another and if each varies little. A diversity loss makes them differ: they train under logit adjustments of
different strength, so that one leans to frequent classes, one is balanced, one leans to rare ones. Consistency
self-distillation is to make them vary less: each expert's prediction on a weakly augmented view teaches its prediction
on a strongly augmented view, on the images whose weak view it has right. For a prediction the raw logits of the
experts are averaged.

**Equations.** $E$ experts, $C$ classes with $n_c$ training images each, a batch of $B$ images $x$ with labels $y$ in a
weak and a strong view. Expert $e$ has features $f^e$, a classifier $W^e$ without bias, and the strength $\lambda_e$.

$$z^e_c=s\,\frac{f^e\cdot W^e_c}{\|f^e\|\,\|W^e_c\|} \tag{1}$$

$$\tilde z^e_c=z^e_c+\log\bigl(n_c^{\lambda_e}+10^{-9}\bigr) \tag{2}$$

$$L_{DL}=\sum_e\frac1{2B}\sum_{v\in\{w,s\}}\sum_i-\log\mathrm{softmax}(\tilde z^e_{v,i})_{y_i} \tag{3}$$

**What the strengths do.** Where training has found the class frequencies of the training set, the raw logits are those
of a set in which class $c$ has the frequency $n_c^{1-\lambda_e}$: the experts lean to the head ($n^{1.5}$), to no
class, and to the tail ($n^{-1.5}$). The mean of the strengths is 1, so the average, which predicts, leans to no class.

$$z^e_c=\log p(x\mid c)+(1-\lambda_e)\log n_c \tag{4}$$

$$z_c=\frac1E\sum_ez^e_c=\log p(x\mid c)+\Bigl(1-\frac1E\sum_e\lambda_e\Bigr)\log n_c \tag{5}$$

Each expert teaches itself, on the images that its weak view has right:

$$c^e_i=\mathbb 1\bigl[\arg\max_c\tilde z^e_{w,i,c}=y_i\bigr] \tag{6}$$

$$L_{CS}=\sum_e\frac1{\sum_ic^e_i}\sum_ic^e_i\,\mathrm{KL}\bigl(\mathrm{softmax}(\tilde z^e_{w,i})\,\|\,
\mathrm{softmax}(\tilde z^e_{s,i})\bigr) \tag{7}$$

$$L=L_{DL}+w\,\min(t/T,1)\,L_{CS} \tag{8}$$

In (7) the weak view is a constant, and an expert with nothing right adds 0. In (8), $w=0.6$, $t$ is the time since the
beginning and $T$ the length of the ramp, 20 of 400 epochs. Three experts have $\lambda=(-0.5,1,2.5)$ and $s=30$.

**Conventions.** Counts are not normalised; a common factor cancels in the softmax, apart from the $10^{-9}$. The
published code counts $t$ in epochs from 1; here it advances with every step. The code holds further losses, centre
buffers and class weights that nothing reads; they are left out. Its strong view has AutoAugment and a square cut out;
here it is noise and a square. The strengths are one triple for all data sets in the code; whether the paper tunes them
is unknown. Half-precision logits are compared in float32.

**Source status.** Read from the authors' code (fistyee/MDCS, commit 1a1d54e); of the paper only the abstract was read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_fraction,
    check_labels,
    check_not_negative,
    check_positive,
)
from kdcore.models.staged import StagedNetwork
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner

__all__ = [
    "STRENGTHS",
    "CosineClassifier",
    "DiverseExperts",
    "Experts",
    "MDCSLoss",
    "confident",
    "consistency_loss",
    "diversity_loss",
    "logit_offsets",
    "ramp_up",
    "spread_strengths",
    "strong_view",
    "two_views",
]

STRENGTHS = (-0.5, 1.0, 2.5)
"""Strengths λ of the three experts in the published code."""

Instances = Literal["confident", "all"]
Compared = Literal["adjusted", "raw"]
View = Callable[[Tensor, Generator], Tensor]

_EPSILON = 1e-9


def spread_strengths(experts: int, spread: float = 1.5) -> tuple[float, ...]:
    """Evenly spaced strengths around 1, from 1 − spread to 1 + spread; a single expert gets 1.

    Args:
        experts: E ≥ 1.
        spread: half the distance of the outermost strengths, at least 0; 1.5 gives `STRENGTHS` for three experts.

    Returns:
        E numbers with mean 1.

    Raises:
        ValueError: `experts` is not positive or `spread` is negative.

    Example:
        >>> spread_strengths(3), spread_strengths(2, spread=0.5), spread_strengths(1)
        ((-0.5, 1.0, 2.5), (0.5, 1.5), (1.0,))
    """
    check_positive(experts=experts)
    check_not_negative(spread=spread)
    if experts == 1:
        return (1.0,)
    return tuple(1 + spread * (2 * number / (experts - 1) - 1) for number in range(experts))


def logit_offsets(class_counts: Tensor | Sequence[int], strengths: Sequence[float] = STRENGTHS) -> Tensor:
    """What each expert's logits get added in training, the second summand of equation (2).

    Args:
        class_counts: training images of each class, shape (C,), each at least 1.
        strengths: λ of each expert.

    Returns:
        Shape (E, C), float64.

    Raises:
        ValueError: `class_counts` is not a vector of at least two counts, a count is below 1, or there is no strength
            or one that is not finite.

    Example:
        >>> logit_offsets([100, 10], strengths=(1.0, 2.0))
        tensor([[4.6052, 2.3026],
                [9.2103, 4.6052]], dtype=torch.float64)
    """
    counts = torch.as_tensor(class_counts).to(torch.float64)
    if counts.ndim != 1 or len(counts) < 2:
        raise ValueError(f"class_counts must have shape (C,) with C >= 2, got {tuple(counts.shape)}.")
    if not bool(torch.isfinite(counts).all()) or float(counts.min()) < 1:
        raise ValueError(f"class_counts must be at least 1 each, got {counts.tolist()}: no class may be empty.")
    exponents = torch.as_tensor(tuple(strengths), dtype=torch.float64)
    if len(exponents) < 1 or not bool(torch.isfinite(exponents).all()):
        raise ValueError(f"strengths must be at least one finite number, got {tuple(strengths)}.")
    return (counts ** exponents.unsqueeze(1) + _EPSILON).log()


def diversity_loss(adjusted_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each expert's adjusted logits, summed over experts, equation (3).

    Args:
        adjusted_logits: shape (E, R, C), of R rows, all views.
        labels: shape (R,).

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: the logits are not finite (E, R, C), or labels do not fit.

    Example:
        >>> diversity_loss(torch.zeros(3, 4, 2), torch.tensor([0, 1, 0, 1]))  # 3 log 2
        tensor(2.0794)
    """
    _check_expert_logits(adjusted_logits=adjusted_logits)
    check_labels(labels, *adjusted_logits.shape[1:])
    return _label_loss(at_least_float32(adjusted_logits).log_softmax(dim=2), labels)


def confident(weak_logits: Tensor, labels: Tensor) -> Tensor:
    """Which images each expert has right in the weak view, equation (6).

    Args:
        weak_logits: adjusted logits of the weak view, shape (E, B, C).
        labels: shape (B,).

    Returns:
        Boolean, shape (E, B).

    Raises:
        ValueError: the logits are not finite (E, B, C), or labels do not fit.

    Example:
        >>> confident(torch.tensor([[[2.0, 1.0], [2.0, 1.0]]]), torch.tensor([0, 1]))
        tensor([[ True, False]])
    """
    _check_expert_logits(weak_logits=weak_logits)
    check_labels(labels, *weak_logits.shape[1:])
    return weak_logits.argmax(dim=2) == labels


def consistency_loss(weak_logits: Tensor, strong_logits: Tensor, selected: Tensor) -> Tensor:
    """Divergence of the strong view from the weak one, mean over the selected images, summed over experts, (7).

    Args:
        weak_logits: adjusted logits of the weak view, shape (E, B, C); no gradient flows into them.
        strong_logits: those of the strong view, of the same shape.
        selected: boolean, shape (E, B), as `confident` gives it.

    Returns:
        Scalar, at least 0; an expert without a selected image adds 0.

    Raises:
        ValueError: the logits are not finite (E, B, C) of one shape, or `selected` does not fit.

    Example:
        >>> weak, strong = torch.tensor([[[1.0, 0.0], [5.0, 0.0]]]), torch.zeros(1, 2, 2)
        >>> consistency_loss(weak, strong, torch.tensor([[True, False]]))
        tensor(0.1109)
        >>> consistency_loss(weak, strong, torch.tensor([[False, False]]))
        tensor(0.)
    """
    _check_expert_logits(weak_logits=weak_logits, strong_logits=strong_logits)
    if selected.shape != weak_logits.shape[:2] or selected.dtype != torch.bool:
        raise ValueError(
            f"selected must be boolean of shape {tuple(weak_logits.shape[:2])}, "
            f"got {selected.dtype} of shape {tuple(selected.shape)}."
        )
    weak, strong = (at_least_float32(logits).log_softmax(dim=2) for logits in (weak_logits.detach(), strong_logits))
    return _view_loss(weak, strong, selected)


def ramp_up(elapsed: float, length: float) -> float:
    """Factor min(t/T, 1) of the self-distillation, equation (8).

    Args:
        elapsed: t, at least 0, in the unit of `length`.
        length: T, at least 0; at 0 there is no ramp.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: an argument is negative.

    Example:
        >>> ramp_up(5, 20), ramp_up(400, 20), ramp_up(0, 0)
        (0.25, 1.0, 1.0)
    """
    check_not_negative(elapsed=elapsed, length=length)
    return 1.0 if elapsed >= length else elapsed / length


class MDCSLoss(nn.Module):
    """Diversity loss and consistency self-distillation, equation (8).

    Args:
        class_counts: training images of each class, shape (C,), each at least 1.
        strengths: λ of each expert.
        weight: w ≥ 0 of the self-distillation.
        instances: "confident" distils the images that the weak view has right; "all" distils every image, the
            ablation of the selection.
        compared: "adjusted" compares the views' adjusted logits, equation (7); "raw" takes the raw ones in both
            places, the ablation of the offset there. The selection (6) always looks at adjusted logits.

    Raises:
        ValueError: as `logit_offsets`, `weight` is negative, or `instances` or `compared` is unknown.

    Example:
        >>> loss = MDCSLoss([30, 3], strengths=(1.0,))
        >>> views = torch.zeros(1, 2, 2)  # one expert; one image, weak and strong
        >>> {name: round(term.item(), 4) for name, term in loss.terms(views, torch.tensor([1])).items()}
        {'diversity': 2.3979, 'consistency': 0.0}
    """

    offsets: Tensor

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        strengths: Sequence[float] = STRENGTHS,
        weight: float = 0.6,
        instances: Instances = "confident",
        compared: Compared = "adjusted",
    ) -> None:
        super().__init__()
        check_not_negative(weight=weight)
        check_choice("instances", instances, ("confident", "all"))
        check_choice("compared", compared, ("adjusted", "raw"))
        self.register_buffer("offsets", logit_offsets(class_counts, strengths))
        self.weight = weight
        self.instances = instances
        self.compared = compared

    def adjust(self, expert_logits: Tensor) -> Tensor:
        """Adjusted logits (E, R, C), at least float32, of raw ones, equation (2)."""
        _check_expert_logits(expert_logits=expert_logits)
        experts, classes = self.offsets.shape
        if (expert_logits.shape[0], expert_logits.shape[2]) != (experts, classes):
            raise ValueError(
                f"expert_logits must have {experts} experts and {classes} classes, got shape "
                f"{tuple(expert_logits.shape)}."
            )
        logits = at_least_float32(expert_logits)
        return logits + self.offsets.unsqueeze(1).to(logits.dtype)

    def terms(self, expert_logits: Tensor, labels: Tensor, ramp: float = 1.0) -> dict[str, Tensor]:
        """The two summands of equation (8), weighted.

        Args:
            expert_logits: raw logits, shape (E, 2B, C): the weak views of all images, then the strong ones.
            labels: shape (B,).
            ramp: factor of the self-distillation, in [0, 1]; see `ramp_up`.

        Returns:
            "diversity", and where the weight is not 0 "consistency".
        """
        check_fraction(ramp=ramp)
        adjusted = self.adjust(expert_logits)
        if adjusted.shape[1] != 2 * len(labels):
            raise ValueError(f"expert_logits must have two rows per label, got {adjusted.shape[1]} for {len(labels)}.")
        check_labels(labels, len(labels), adjusted.shape[2])
        log_probabilities = adjusted.log_softmax(dim=2)
        terms = {"diversity": _label_loss(log_probabilities, labels.repeat(2))}
        if self.weight:
            selected = log_probabilities[:, : len(labels)].argmax(dim=2) == labels
            if self.instances == "all":
                selected = torch.ones_like(selected)
            if self.compared == "raw":
                log_probabilities = at_least_float32(expert_logits).log_softmax(dim=2)
            weak, strong = log_probabilities.chunk(2, dim=1)
            terms["consistency"] = self.weight * ramp * _view_loss(weak.detach(), strong, selected)
        return terms

    def forward(self, expert_logits: Tensor, labels: Tensor, ramp: float = 1.0) -> Tensor:
        """Scalar loss of raw logits (E, 2B, C), weak views first, and labels (B,)."""
        return torch.stack(list(self.terms(expert_logits, labels, ramp).values())).sum()


class CosineClassifier(nn.Module):
    """Logits from angles between features and class weights, equation (1).

    Args:
        features: d, length of the embeddings.
        num_classes: C.
        scale: s > 0, the largest absolute logit.

    Raises:
        ValueError: an argument is not positive.

    Example:
        >>> classifier = CosineClassifier(4, 3, scale=10.0)
        >>> bool(classifier(torch.randn(5, 4)).abs().max() <= 10)
        True
    """

    def __init__(self, features: int, num_classes: int, scale: float = 30.0) -> None:
        super().__init__()
        check_positive(features=features, num_classes=num_classes, scale=scale)
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, features), dim=1))
        self.scale = scale

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, d)."""
        return self.scale * F.linear(F.normalize(embeddings, dim=1), F.normalize(self.weight, dim=1))


class Experts(nn.Module):
    """Experts that share stem and first stages, each with the later stages and a cosine classifier of its own.

    The trunk is that of the first network; the classifiers of all networks are replaced. Called as a module it gives
    the average of the experts' raw logits, equation (5), which is what predicts.

    Args:
        networks: one per expert, of equal architecture.
        shared_stages: how many stages belong to the trunk, fewer than a network has.
        scale: s of the cosine classifiers.

    Raises:
        ValueError: there is no network, `shared_stages` leaves an expert no stage or is negative, or `scale` is not
            positive.

    Example:
        >>> from kdcore.models import ConvNet
        >>> experts = Experts([ConvNet(width=4, depth=2) for _ in range(3)], scale=10.0)
        >>> images = torch.rand(5, 1, 8, 8)
        >>> experts.expert_logits(images).shape, experts(images).shape
        (torch.Size([3, 5, 10]), torch.Size([5, 10]))
    """

    def __init__(self, networks: Sequence[StagedNetwork], shared_stages: int = 1, scale: float = 30.0) -> None:
        super().__init__()
        if not networks:
            raise ValueError("networks must hold at least one network, got none.")
        first = networks[0]
        if not 0 <= shared_stages < len(first.stages):
            raise ValueError(f"shared_stages must lie in [0, {len(first.stages)}), got {shared_stages}.")
        self.trunk = nn.Sequential(first.stem, *first.stages[:shared_stages])
        self.branches = nn.ModuleList(
            nn.Sequential(
                *network.stages[shared_stages:],
                network.pool,
                CosineClassifier(network.widths[-1], _num_classes(network), scale),
            )
            for network in networks
        )

    def expert_logits(self, inputs: Tensor) -> Tensor:
        """Raw logits (E, B, C) of inputs (B, channels, H, W)."""
        features = self.trunk(inputs)
        return torch.stack([branch(features) for branch in self.branches])

    def forward(self, inputs: Tensor) -> Tensor:
        """Average of the experts' raw logits, shape (B, C)."""
        return self.expert_logits(inputs).mean(dim=0)


class DiverseExperts(Learner):
    """Trains experts on two views of each image, equation (8). Give `fit` its views with ``augment=two_views(…)``.

    Args:
        model: trained; the attribute `model`.
        loss: with as many strengths as the model has experts.
        ramp: fraction of training over which the weight of the self-distillation rises, in [0, 1]; the published
            code has 20 of 400 epochs.

    Raises:
        ValueError: numbers of experts differ, or `ramp` lies outside [0, 1].

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> model = Experts([ConvNet(width=4, depth=2) for _ in range(3)])
        >>> learner = DiverseExperts(model, MDCSLoss([9] * 10))
        >>> views = torch.rand(2, 2, 1, 8, 8)  # two images, each weak and strong
        >>> list(learner.losses(Arrays(inputs=views, labels=torch.tensor([3, 5]))))
        ['diversity', 'consistency']
    """

    def __init__(self, model: Experts, loss: MDCSLoss, ramp: float = 0.05) -> None:
        super().__init__()
        check_fraction(ramp=ramp)
        if len(model.branches) != len(loss.offsets):
            raise ValueError(
                f"loss must have a strength for each of the {len(model.branches)} experts, got {len(loss.offsets)}."
            )
        self.model = model
        self.loss = loss
        self.ramp = ramp
        self._progress = 0.0

    def on_step(self, progress: float) -> None:
        """Remember how much of training is done, for the ramp."""
        self._progress = progress

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of (8), of `batch.inputs` (B, 2, channels, H, W), weak view first, and `batch.labels`."""
        if batch.inputs.ndim != 5 or batch.inputs.shape[1] != 2:
            raise ValueError(
                "inputs must hold two views of each image, of shape (B, 2, channels, H, W), as two_views makes them, "
                f"got {tuple(batch.inputs.shape)}."
            )
        logits = self.model.expert_logits(batch.inputs.transpose(0, 1).flatten(0, 1))
        return self.loss.terms(logits, batch.labels, ramp_up(self._progress, self.ramp))


def two_views(weak: View, strong: View) -> View:
    """Augmentation for `fit` that gives each image in two views, the weak one first.

    Args:
        weak, strong: functions of (inputs (B, channels, H, W), generator), as `kdcore.data.shift` returns.

    Returns:
        Function of the same arguments whose result has shape (B, 2, channels, H, W).

    Example:
        >>> from kdcore.data import shift
        >>> views = two_views(shift(1), strong_view(cutout=3))
        >>> views(torch.ones(5, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 2, 1, 8, 8])
    """

    def apply(inputs: Tensor, generator: Generator) -> Tensor:
        return torch.stack([weak(inputs, generator), strong(inputs, generator)], dim=1)

    return apply


def strong_view(weak: View | None = None, noise: float = 0.2, cutout: int = 3) -> View:
    """The weak view, then Gaussian noise and a square cut out at a random place, which may reach over the border.

    Args:
        weak: what is done first; nothing if left out.
        noise: standard deviation, at least 0.
        cutout: side of the square, at least 0.

    Returns:
        Function of (inputs (B, channels, H, W), generator) for `two_views`; values stay in [0, 1].

    Raises:
        ValueError: `noise` or `cutout` is negative.

    Example:
        >>> blank = strong_view(noise=0.0, cutout=2)(torch.ones(1, 1, 8, 8), torch.Generator().manual_seed(3))
        >>> 1 <= int((blank == 0).sum()) <= 4
        True
    """
    check_not_negative(noise=noise, cutout=cutout)

    def apply(inputs: Tensor, generator: Generator) -> Tensor:
        views = inputs if weak is None else weak(inputs, generator)
        if noise:
            drawn = torch.randn(views.shape, generator=generator).to(views.device, views.dtype)
            views = (views + noise * drawn).clamp(0, 1)
        return views * _holes(views, cutout, generator) if cutout else views

    return apply


def _holes(images: Tensor, side: int, generator: Generator) -> Tensor:
    """1 where an image is kept and 0 in its square; its middle lies anywhere in the image."""
    outside = []
    for length in images.shape[2:]:
        start = torch.randint(length, (len(images), 1), generator=generator) - side // 2
        place = torch.arange(length) - start
        outside.append((place < 0) | (place >= side))
    rows, columns = outside
    return (rows.unsqueeze(2) | columns.unsqueeze(1)).unsqueeze(1).to(images.device, images.dtype)


def _label_loss(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Equation (3) of log-probabilities (E, R, C) and labels (R,)."""
    experts, rows, _ = log_probabilities.shape
    return -log_probabilities.gather(2, labels.expand(experts, rows).unsqueeze(2)).sum() / rows


def _view_loss(weak: Tensor, strong: Tensor, selected: Tensor) -> Tensor:
    """Equation (7) of log-probabilities (E, B, C); the denominator is raised to 1 where nothing is selected."""
    divergence = F.kl_div(strong, weak, reduction="none", log_target=True).sum(dim=2)
    return ((divergence * selected).sum(dim=1) / selected.sum(dim=1).clamp(min=1)).sum()


def _num_classes(network: StagedNetwork) -> int:
    if not isinstance(network.classifier, nn.Linear):
        raise ValueError(f"a network must end in a linear classifier, got {type(network.classifier).__name__}.")
    return network.classifier.out_features


def _check_expert_logits(**logits: Tensor) -> None:
    (first, reference), *_ = logits.items()
    for name, tensor in logits.items():
        if tensor.ndim != 3 or 0 in tensor.shape or tensor.shape[2] < 2:
            raise ValueError(f"{name} must have shape (E, B, C) with C >= 2, got {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} must have the shape of {first}, {tuple(reference.shape)}, got {tuple(tensor.shape)}."
            )
    check_finite(**logits)
