r"""Regularising feature norm and direction: longer features, turned towards the teacher's class means.

Yuzhu Wang, Lechao Cheng, Manni Duan, Yongheng Wang, Zunlei Feng, Shu Kong: *Improving Knowledge Distillation via
Regularizing Feature Norm and Direction*, 2023, arXiv 2305.17007; at ECCV 2024 as *Improving Knowledge Distillation via
Regularizing Feature Direction and Norm*.

**Idea.** That a student's features lie near the teacher's, point by point, does not by itself make it a good
classifier; the means of the teacher's features over each class do form a good one. And students tend to have shorter
features than their teachers. So each of the student's features is turned towards the teacher's mean for its true
class, and made longer as long as it is shorter than the teacher's own feature of that image: one loss for both, added
to plain distillation (KD++) or to another method.

**Equations.** What the classifier sees: student $f^s_i$ and teacher $f^t_i$ in $\mathbb R^d$, labels $y_i$, classes
$k=1..C$ with training samples $I_k$, temperature $\tau$, weights $\lambda_{KD},\lambda_{ND}$, epoch $n$ from 0:

$$c_k=\frac1{|I_k|}\sum_{i\in I_k}f^t_i,\qquad u_k=\frac{c_k}{\lVert c_k\rVert} \tag{1}$$

With the norms $\rho_i=\lVert f^s_i\rVert$ and $R_i=\lVert f^t_i\rVert$ and the angle $\theta_i$ between $f^s_i$ and
$u_{y_i}$,

$$L_{ND}=\frac1B\sum_i\Bigl(1-\frac{\langle f^s_i,u_{y_i}\rangle}{\max(\rho_i,R_i)}\Bigr) \tag{2}$$

$$L_{ND}=\frac1B\sum_i\Bigl(1-\min\bigl(1,\tfrac{\rho_i}{R_i}\bigr)\cos\theta_i\Bigr) \tag{3}$$

are the same, and with a ramp of $E$ epochs before distillation,

$$L=\mathrm{CE}(z^s,y)+\min\bigl(1,\tfrac nE\bigr)\,\lambda_{KD}\,\tau^2\,\mathrm{KL}(p^t\|p^s)+\lambda_{ND}L_{ND}
\tag{9}$$

The rivals are the direction alone,

$$L_D=\frac1B\sum_i(1-\cos\theta_i)$$

and the norm alone, a step $r$ longer than it is, where $\mathrm{sg}$ stops the gradient:

$$L_N=\frac1B\sum_i\bigl(\rho_i-\mathrm{sg}(\rho_i)-r\bigr)^2$$

In place of (1) means may be kept while training. A batch with $B_k$ samples of class $k$ and their mean $m_k$ gives

$$c_k\leftarrow c_k+\beta_k(m_k-c_k) \tag{11}$$

with $\beta_k=B_k$ divided by the number of the class's samples so far, which after one pass over the data is (1), or
with a constant $\beta_k=\beta$ that forgets.

**The two branches of (2).** A feature shorter than the teacher's has the gradient $-u_{y_i}/(BR_i)$, the same wherever
it lies. A longer one has that of $1-\cos\theta_i$, which is orthogonal to $f^s_i$, so that its length is left alone;
for this, gradient must flow through $\rho_i$. At equal norms `torch.maximum` gives each of the two half of the
gradient, which is the mean of both branches.

**Different widths.** Batch norm, dropout of one half and a linear layer take the student's feature to the teacher's
width for (2) alone; the student's own classifier never sees them, and they are dropped after training.

**Conventions.** The published code loops over samples and builds the matrix of means anew for each; here rows are
gathered. It takes the means over augmented images and rounds them to four decimals; here images are as they are and
nothing is rounded. The paper writes (2) without the constant 1. Teacher and means are constants. Norms are computed in
float32 at least, and below by $10^{-12}$ where both features are zero.

**Source status.** (1), (2), (9) and the adapter read from the authors' code for CIFAR, weights from its README; of the
paper only the abstract was read. $L_N$ is from memory. (11) is an addition made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_finite,
    check_labels,
    check_not_negative,
    check_positive,
    check_same_shape,
    readable,
)
from kdcore.data.arrays import Arrays
from kdcore.foundations.kd import distillation_loss
from kdcore.models import MLP, StagedNetwork, inference
from kdcore.precision import at_least_float32, full_precision
from kdcore.training.learners import Learner

__all__ = [
    "FeatureAdapter",
    "FeatureLoss",
    "NormDirectionDistillation",
    "RunningMeans",
    "class_means",
    "direction_loss",
    "embeddings",
    "mean_cosines",
    "nd_loss",
    "norm_loss",
    "ramp",
    "with_features",
]

FeatureLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A loss of (student features, teacher features, class means, labels), as `nd_loss` is."""

_SMALLEST_NORM = 1e-12


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean feature of each class, equation (1).

    Args:
        features: shape (N, d), the teacher's on the training images.
        labels: shape (N,), integers in [0, C).
        num_classes: C.

    Returns:
        Shape (C, d), float32 where `features` has half precision.

    Raises:
        ValueError: `features` is not a finite (N, d) matrix, a label is out of range, or a class has no sample.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [4.0, 2.0], [0.0, 1.0]])
        >>> class_means(features, torch.tensor([0, 0, 1]), num_classes=2)
        tensor([[3., 1.],
                [0., 1.]])
    """
    _check_features(features=features)
    check_labels(labels, len(features), num_classes)
    means, counts = _batch_means(features.detach(), labels, num_classes)
    if readable(counts) and int(counts.min()) == 0:
        absent = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(f"labels must hold every class, got no sample of {absent} among {len(labels)}.")
    return means


class RunningMeans(nn.Module):
    """Class means that are kept up to date batch by batch, equation (11).

    For training in which the teacher sees new, augmented images at each step, or a data set that one does not want to
    pass once more.

    Args:
        num_classes: C.
        width: d.
        rate: β in (0, 1], the weight of a batch's mean against what is known; None for the mean of all that was seen.
            What comes first is taken as it is in either case.

    Attributes:
        means: shape (C, d); zero for a class that was never seen.
        counts: shape (C,), samples seen.

    Raises:
        ValueError: a size is not positive or the rate lies outside (0, 1].

    Example:
        >>> running = RunningMeans(num_classes=2, width=1)
        >>> for value in (1.0, 2.0, 6.0):
        ...     running.update(torch.tensor([[value]]), torch.tensor([1]))
        >>> running.means.flatten().tolist()
        [0.0, 3.0]
    """

    means: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, width: int, rate: float | None = None) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, width=width)
        if rate is not None and not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], or be None, got {rate!r}.")
        self.rate = rate
        self.register_buffer("means", torch.zeros(num_classes, width))
        self.register_buffer("counts", torch.zeros(num_classes))

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch of features (B, d) with labels (B,).

        Raises:
            ValueError: `features` is not a finite matrix of the width d, or a label is out of range.
        """
        _check_features(features=features)
        classes, width = self.means.shape
        if features.shape[1] != width:
            raise ValueError(f"features must have shape (B, {width}), got {tuple(features.shape)}.")
        check_labels(labels, len(features), classes)
        means, counts = _batch_means(features.to(self.means.dtype), labels, classes)
        known = self.counts > 0
        self.counts += counts
        share = counts / self.counts.clamp(min=1)
        if self.rate is not None:
            share = torch.where(known, self.rate, 1.0) * (counts > 0)
        self.means += share.unsqueeze(1) * (means - self.means)


@full_precision
def mean_cosines(features: Tensor, means: Tensor) -> Tensor:
    """Cosine of each feature with each class mean: the logits of the nearest-mean classifier.

    Args:
        features: shape (B, d).
        means: shape (C, d).

    Returns:
        Shape (B, C), in [−1, 1].

    Raises:
        ValueError: `features` or `means` is not a finite matrix, or their widths differ.

    Example:
        >>> mean_cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([[0.6000, 0.8000]])
    """
    _check_features(features=features)
    _check_means(means, features.shape[1])
    return F.normalize(features, dim=1) @ F.normalize(means, dim=1).T


def nd_loss(student_features: Tensor, teacher_features: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """Norm and direction in one loss, equation (2).

    Args:
        student_features: shape (B, d), after the adapter where widths differ.
        teacher_features: shape (B, d); no gradient flows into them.
        means: shape (C, d), class means or other vectors to point at; constants, of which only the direction counts.
        labels: shape (B,), integers in [0, C).

    Returns:
        Scalar in [0, 2]; 0 where each feature has its class mean's direction and at least the teacher's norm.

    Raises:
        ValueError: shapes do not fit, a value is not finite, a label is out of range, or the mean of a class in
            `labels` is zero.

    Example:
        >>> teacher, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[7.0, 0.0], [0.0, 7.0]])
        >>> nd_loss(torch.tensor([[2.0, 0.0]]), teacher, means, torch.tensor([0]))  # right direction, 2 of 5 long
        tensor(0.6000)
        >>> nd_loss(torch.tensor([[9.0, 0.0]]), teacher, means, torch.tensor([0]))
        tensor(0.)
    """
    _check_features(student_features=student_features, teacher_features=teacher_features)
    student, targets = at_least_float32(student_features), _directions(means, labels, student_features)
    norms = torch.linalg.vector_norm(student, dim=1)
    teacher_norms = torch.linalg.vector_norm(at_least_float32(teacher_features.detach()), dim=1)
    longer = torch.maximum(norms, teacher_norms).clamp(min=_SMALLEST_NORM)
    return (1 - (student * targets).sum(dim=1) / longer).mean()


def direction_loss(student_features: Tensor, means: Tensor, labels: Tensor) -> Tensor:
    """One minus the cosine with the class mean: the direction alone.

    Args:
        student_features: shape (B, d).
        means: shape (C, d), constants.
        labels: shape (B,), integers in [0, C).

    Returns:
        Scalar in [0, 2]; the same for features of any positive length.

    Raises:
        ValueError: as `nd_loss`.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> direction_loss(torch.tensor([[3.0, 4.0], [30.0, 40.0]]), means, torch.tensor([0, 0]))
        tensor(0.4000)
    """
    _check_features(student_features=student_features)
    targets = _directions(means, labels, student_features)
    unit = F.normalize(at_least_float32(student_features), dim=1, eps=_SMALLEST_NORM)
    return (1 - (unit * targets).sum(dim=1)).mean()


def norm_loss(student_features: Tensor, step: float = 1.0) -> Tensor:
    """Distance of each norm from one that is a step larger: the norm alone.

    Its value is r² always. Its gradient, −2r/B along the feature, is the same at any length: nothing says when a
    feature is long enough.

    Args:
        student_features: shape (B, d).
        step: r > 0.

    Returns:
        Scalar, r².

    Raises:
        ValueError: `student_features` is not a finite (B, d) matrix, or `step` is not positive.

    Example:
        >>> features = torch.tensor([[3.0, 4.0]], requires_grad=True)
        >>> norm_loss(features, step=0.5).backward()
        >>> features.grad
        tensor([[-0.6000, -0.8000]])
    """
    _check_features(student_features=student_features)
    check_positive(step=step)
    norms = torch.linalg.vector_norm(at_least_float32(student_features), dim=1)
    return (norms - (norms.detach() + step)).square().mean()


def ramp(epoch: int, ramp_epochs: float) -> float:
    """Factor of the distillation term in equation (9).

    Args:
        epoch: counted from 0.
        ramp_epochs: E ≥ 0, the epoch from which the factor is 1; at 0 it is 1 throughout.

    Returns:
        In [0, 1]; 0 in the first epoch, if there is a ramp.

    Raises:
        ValueError: an argument is negative or not finite.

    Example:
        >>> [ramp(epoch, 4) for epoch in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    check_not_negative(epoch=epoch, ramp_epochs=ramp_epochs)
    return min(1.0, epoch / ramp_epochs) if ramp_epochs else 1.0


class FeatureAdapter(nn.Sequential):
    """From the student's width to the teacher's, for the feature loss alone: batch norm, dropout, linear layer.

    Args:
        in_features: of the student.
        out_features: of the teacher.
        dropout: probability in [0, 1), one half in the published code.

    Raises:
        ValueError: a width is not positive or `dropout` lies outside [0, 1).

    Shape: (B, in_features) to (B, out_features).

    Example:
        >>> FeatureAdapter(8, 32)(torch.randn(4, 8)).shape
        torch.Size([4, 32])
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.5) -> None:
        check_positive(in_features=in_features, out_features=out_features)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout!r}.")
        super().__init__(nn.BatchNorm1d(in_features), nn.Dropout(dropout), nn.Linear(in_features, out_features))


class NormDirectionDistillation(Learner):
    """Cross-entropy, ramped distillation and a loss on features, equation (9).

    Where the batch carries `teacher_features` and `teacher_logits` (see `with_features`) they are used; else the
    teacher runs, without gradient and in evaluation mode.

    Args:
        student: trained; the attribute `model`. All that is asked of a network is `embed`, from inputs to features
            (B, d), and `classifier`, from these to logits (B, C).
        means: where to point at: class means (C, d) of the teacher's features, or `RunningMeans`, which then learn
            from each training batch before it is used.
        teacher: a network of the same kind, frozen by this learner; may be left out if the data carry its outputs.
        adapter: takes the student's features to the teacher's width; None where they agree.
        feature_loss: of (student features, teacher features, means, labels); the default is (2).
        kd_weight: λ_KD ≥ 0; at 0 there is no distillation term.
        nd_weight: λ_ND ≥ 0; at 0 there is no feature term.
        temperature: τ > 0.
        ramp_epochs: E ≥ 0 of (9).

    Raises:
        ValueError: a weight or `ramp_epochs` is negative, or `temperature` is not positive.

    Example:
        >>> from kdcore.models import MLP
        >>> student, teacher = MLP(4, (8,), 3), MLP(4, (8,), 3)
        >>> batch = with_features(Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3), teacher)
        >>> learner = NormDirectionDistillation(student, class_means(batch.teacher_features, batch.labels, 3))
        >>> sorted(learner.losses(batch))
        ['cross_entropy', 'distillation', 'features']
        >>> learner.losses(batch)["distillation"].item()  # off in the first epoch
        0.0
    """

    fixed_means: Tensor
    ramp_factor: Tensor

    def __init__(
        self,
        student: StagedNetwork | MLP,
        means: Tensor | RunningMeans,
        *,
        teacher: StagedNetwork | MLP | None = None,
        adapter: nn.Module | None = None,
        feature_loss: FeatureLoss = nd_loss,
        kd_weight: float = 1.0,
        nd_weight: float = 2.0,
        temperature: float = 4.0,
        ramp_epochs: float = 20.0,
    ) -> None:
        super().__init__()
        check_not_negative(kd_weight=kd_weight, nd_weight=nd_weight)
        check_positive(temperature=temperature)
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.frozen = ("teacher",) if teacher is not None else ()
        self.adapter = nn.Identity() if adapter is None else adapter
        self.running = means if isinstance(means, RunningMeans) else None
        if isinstance(means, Tensor):
            self.register_buffer("fixed_means", means.detach().clone())
        self.feature_loss = feature_loss
        self.kd_weight = kd_weight
        self.nd_weight = nd_weight
        self.temperature = temperature
        self.ramp_epochs = ramp_epochs
        # A buffer, so that a run which resumes from a checkpoint goes on at its place on the ramp.
        self.register_buffer("ramp_factor", torch.tensor(ramp(0, ramp_epochs)))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of (9) for `batch.inputs` and `batch.labels`."""
        features = self.model.embed(batch.inputs)
        logits = self.model.classifier(features)
        check_labels(batch.labels, *logits.shape)
        terms = {"cross_entropy": F.cross_entropy(logits, batch.labels)}
        teacher_features, teacher_logits = self.teacher_outputs(batch)
        if self.kd_weight:
            divergence = distillation_loss(logits, teacher_logits, self.temperature)
            terms["distillation"] = self.ramp_factor * self.kd_weight * divergence
        if self.nd_weight:
            means = self._means(teacher_features, batch.labels)
            value = self.feature_loss(self.adapter(features), teacher_features, means, batch.labels)
            terms["features"] = self.nd_weight * value
        return terms

    def on_epoch_end(self, epoch: int) -> None:
        """Move on along the ramp."""
        self.ramp_factor.fill_(ramp(epoch, self.ramp_epochs))

    def teacher_outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The teacher's features (B, d) and logits (B, C), from the batch where it carries them, else by running it.

        Raises:
            ValueError: there are neither.
        """
        if "teacher_features" in batch and "teacher_logits" in batch:
            return batch.teacher_features, batch.teacher_logits
        if self.teacher is None:
            raise ValueError(
                "batch must carry teacher_features and teacher_logits (see with_features), or the learner needs a "
                f"teacher; got {', '.join(batch)}."
            )
        with torch.no_grad():
            features = self.teacher.embed(batch.inputs)
            return features, self.teacher.classifier(features)

    def _means(self, teacher_features: Tensor, labels: Tensor) -> Tensor:
        if self.running is None:
            return self.fixed_means
        if self.training:  # before use, so that each class of the batch has a mean from the first step on
            self.running.update(teacher_features, labels)
        return self.running.means


def embeddings(network: StagedNetwork | MLP, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """What the classifier of a network sees, in evaluation mode and without gradient.

    Args:
        network: has `embed`, like the networks of `kdcore.models`; its mode is restored afterwards.
        inputs: shape (N, …).
        batch_size: rows at a time.

    Returns:
        Shape (N, d).

    Example:
        >>> from kdcore.models import ConvNet
        >>> embeddings(ConvNet(width=4, depth=2), torch.zeros(5, 1, 8, 8), batch_size=2).shape
        torch.Size([5, 8])
    """
    with inference(network):
        return torch.cat([network.embed(part) for part in inputs.split(batch_size)])


def with_features(data: Arrays, teacher: StagedNetwork | MLP) -> Arrays:
    """`data` with the teacher's `teacher_features` and `teacher_logits`, computed once.

    Exact when inputs are not augmented; with augmentation give the learner the teacher instead.

    Args:
        data: with `inputs` (N, …).
        teacher: has `embed` and `classifier`.

    Returns:
        The same rows, with two tensors more.

    Example:
        >>> from kdcore.models import MLP
        >>> with_features(Arrays(inputs=torch.zeros(5, 4)), MLP(4, (8,), 3)).teacher_features.shape
        torch.Size([5, 8])
    """
    features = embeddings(teacher, data.inputs)
    with torch.no_grad():
        logits = teacher.classifier(features)
    return data.with_(teacher_features=features, teacher_logits=logits)


@full_precision
def _batch_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean (C, d) and number of samples (C,) of each class; the mean of none is zero."""
    # A product with the indicator matrix is deterministic on a GPU, where scattered sums are not.
    members = F.one_hot(labels, classes).to(features.dtype)
    counts = members.sum(dim=0)
    return members.T @ features / counts.clamp(min=1).unsqueeze(1), counts


def _directions(means: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Unit vectors (B, d) of each sample's class, without gradient."""
    _check_means(means, features.shape[1])
    check_labels(labels, len(features), len(means))
    own = at_least_float32(means.detach())[labels]
    norms = torch.linalg.vector_norm(own, dim=1, keepdim=True)
    if readable(norms) and float(norms.min()) < _SMALLEST_NORM:
        empty = sorted(set(labels[norms.flatten() < _SMALLEST_NORM].tolist()))
        raise ValueError(f"means must not be zero, got no direction for class {empty}.")
    return own / norms.clamp(min=_SMALLEST_NORM)


def _check_features(**features: Tensor) -> None:
    """Raise `ValueError` unless all are finite floating-point matrices (B, d) of one shape, with at least one row."""
    for name, tensor in features.items():
        if tensor.ndim != 2 or tensor.numel() == 0:
            raise ValueError(f"{name} must have shape (B, d) with at least one row, got {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
    check_same_shape(**features)
    check_finite(**features)


def _check_means(means: Tensor, width: int) -> None:
    """Raise `ValueError` unless `means` is a finite floating-point matrix (C, width)."""
    if means.ndim != 2 or means.shape[1] != width or means.shape[0] < 1:
        raise ValueError(f"means must have shape (C, {width}), as wide as the features, got {tuple(means.shape)}.")
    _check_features(means=means)
