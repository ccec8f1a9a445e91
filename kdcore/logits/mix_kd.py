r"""Mixup in knowledge distillation: partial mixup of the student's images, and logits scaled to unit deviation.

Hongjun Choi, Eun Som Jeon, Ankita Shukla, Pavan Turaga: *Understanding the Role of Mixup in Knowledge Distillation:
An Empirical Study*, WACV 2023, arXiv 2211.03946.

**Idea.** Mixup and distillation both make targets soft, and together they can make them too soft. The study finds that
a teacher trained with mixup is smoother and teaches worse, that a standard teacher which labels the student's mixed
images teaches well, and that a high temperature then does harm. Its remedies: mix only a small part of each batch, and
divide both networks' logits by their own standard deviation, which takes the place of the temperature.

**Equations.** Images $x_i$ with labels $y_i$, a batch of $B$, classes $C$; $e_k$ is a unit vector. Two independent
permutations $\pi,\rho$ of the batch and one weight $\lambda_i\sim\mathrm{Beta}(a,a)$ per image give mixed images and
targets

$$\tilde x_i=\lambda_ix_{\pi(i)}+(1-\lambda_i)x_{\rho(i)} \tag{1}$$

$$\tilde y_i=\lambda_ie_{y_{\pi(i)}}+(1-\lambda_i)e_{y_{\rho(i)}} \tag{2}$$

Full mixup stops here. Partial mixup sets $\lambda_i=1$ at $n=\lfloor Bu\rfloor$ places, for a share $u$ to be left
unmixed. Drawn without replacement, the share of the batch that stays mixed is $1-n/B$; the published code draws with
replacement, so that it is, in expectation,

$$\Bigl(1-\frac1B\Bigr)^{n}\approx e^{-u} \tag{4}$$

At $u=0.9$, called ten percent mixed, that is 41 percent. Student and teacher see $\tilde x$ and answer with logits
$z^s,z^t$. With the unbiased standard deviation $s(z_i)$ over classes (divisor $C-1$) and a multiplier $m$, 1 in the
published code,

$$\hat z_i=m\,\frac{z_i}{s(z_i)} \tag{5}$$

$$\begin{aligned}
L={}&\gamma\,\frac1B\sum_i\sum_k-\tilde y_{ik}\log\mathrm{softmax}(\hat z^s_i)_k\\
&+\alpha\,\frac1B\sum_i\mathrm{KL}\bigl(\mathrm{softmax}(\hat z^t_i)\,\|\,\mathrm{softmax}(\hat z^s_i)\bigr)
\end{aligned} \tag{6}$$

without temperature and without centring, which the softmax does not see. The rival of (6) is distillation of mixed
images at a temperature. With $p_i(\tau)=\mathrm{softmax}(z_i/\tau)$,

$$\begin{aligned}
L_\tau={}&\gamma\,\frac1B\sum_i\sum_k-\tilde y_{ik}\log p^s_{ik}(1)\\
&+\alpha\,\frac{\tau^2}B\sum_i\mathrm{KL}\bigl(p^t_i(\tau)\,\|\,p^s_i(\tau)\bigr)
\end{aligned} \tag{7}$$

**The floor.** Logits of deviation $m$ favour one class most if the others are equal. The gap is then $m\sqrt C$, so

$$\max_kp_k\le\frac1{1+(C-1)\,e^{-m\sqrt C}} \tag{9}$$

and the cross-entropy with labels is at least minus the logarithm of that: 0.323 nats for ten classes and $m=1$.

**Conventions.** Unlike usual mixup there is one weight per image and there are two permutations: an image may meet
itself, and a batch may hold an image twice or not at all. The multiplier is ours; 1 is what was published. Partial
mixup draws without replacement unless ``exact=False``. The published code is written for 100 classes of 32×32 colour
images and mixes in float64; here shapes and types are those of the arguments. Its branch for plain distillation of
mixed images pairs them with labels that are neither mixed nor permuted and cannot be selected; (7) takes the mixed
targets. A constant row of logits has no deviation: its variance is raised to $10^{-7}$.

**Source status.** Read from the authors' code (loss, mixing, training loop, options, README with its result surface)
and from abstract and introduction; the tables of the paper are from memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_fraction, check_labels, check_logits, check_not_negative, check_positive
from kdcore.foundations.kd import distillation_loss
from kdcore.precision import at_least_float32
from kdcore.training import Learner

__all__ = [
    "Mixing",
    "Mixup",
    "MixupDistillation",
    "MixupSupervised",
    "TemperatureLoss",
    "UnitStdLoss",
    "confidence_ceiling",
    "expected_mixed_share",
    "mix_inputs",
    "mix_targets",
    "scale_logits",
]

_VARIANCE_FLOOR = 1e-7


class Mixing(NamedTuple):
    """Who is mixed with whom in a batch, and how much of the first remains.

    Attributes:
        first: permutation of the batch, shape (B,).
        second: another, independent one, shape (B,).
        weight: λ in [0, 1], the share of the first image, shape (B,).

    Example:
        >>> Mixing(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 1.0])).weight
        tensor([0.2500, 1.0000])
    """

    first: Tensor
    second: Tensor
    weight: Tensor


def mix_inputs(inputs: Tensor, mixing: Mixing) -> Tensor:
    """Images mixed pair by pair, equation (1).

    Args:
        inputs: floating point, shape (B, …).
        mixing: partners and weights for a batch of B.

    Returns:
        Shape and type of `inputs`.

    Raises:
        ValueError: `inputs` is not floating point, or `mixing` is for another batch size.

    Example:
        >>> mixing = Mixing(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 1.0]))
        >>> mix_inputs(torch.tensor([[0.0, 0.0], [8.0, 4.0]]), mixing)
        tensor([[2., 1.],
                [0., 0.]])
    """
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating point, got {inputs.dtype}.")
    _check_mixing(mixing, len(inputs))
    weight = mixing.weight.to(inputs.dtype).view(-1, *[1] * (inputs.ndim - 1))
    return torch.lerp(inputs[mixing.second], inputs[mixing.first], weight)


def mix_targets(labels: Tensor, num_classes: int, mixing: Mixing) -> Tensor:
    """Class probabilities of mixed images, equation (2).

    Args:
        labels: shape (B,), in [0, C).
        num_classes: C ≥ 2.
        mixing: partners and weights for a batch of B.

    Returns:
        Shape (B, C), of the weight's type; rows sum to 1 and have at most two entries that are not 0.

    Raises:
        ValueError: `num_classes` is below 2, a label lies outside [0, C), or `mixing` is for another batch size.

    Example:
        >>> mixing = Mixing(torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.25, 1.0]))
        >>> mix_targets(torch.tensor([0, 2]), 3, mixing)
        tensor([[0.7500, 0.0000, 0.2500],
                [1.0000, 0.0000, 0.0000]])
    """
    _check_classes(num_classes)
    check_labels(labels, len(labels), num_classes)
    _check_mixing(mixing, len(labels))
    weight = mixing.weight.unsqueeze(1)
    targets = torch.zeros(len(labels), num_classes, dtype=weight.dtype, device=weight.device)
    targets.scatter_add_(1, labels[mixing.first].unsqueeze(1), weight)
    return targets.scatter_add_(1, labels[mixing.second].unsqueeze(1), 1 - weight)


def expected_mixed_share(batch_size: int, unmixed: float, exact: bool = True) -> float:
    """Share of a batch that partial mixup leaves mixed; in expectation, equation (4), where it is not exact.

    Args:
        batch_size: B ≥ 1.
        unmixed: share u in [0, 1] that is to be left unmixed.
        exact: places drawn without replacement; else with, as published.

    Returns:
        In [0, 1].

    Raises:
        ValueError: `batch_size` is below 1, or `unmixed` lies outside [0, 1].

    Example:
        >>> round(expected_mixed_share(64, 0.9), 3), round(expected_mixed_share(64, 0.9, exact=False), 3)
        (0.109, 0.408)
    """
    check_positive(batch_size=batch_size)
    check_fraction(unmixed=unmixed)
    places = math.floor(batch_size * unmixed)
    return 1 - places / batch_size if exact else (1 - 1 / batch_size) ** places


@dataclass(frozen=True)
class Mixup:
    """How a batch is mixed: full mixup, partial mixup, or none.

    Draws come from torch's generator on the CPU, the one that `kdcore.training.fit` seeds, so that they do not depend
    on the device.

    Attributes:
        unmixed: share u in [0, 1] left unmixed; 0 is full mixup. The published default is 0.9.
        exact: places drawn without replacement; False draws with replacement, as published, and mixes more.
        concentration: a > 0 of Beta(a, a); 1 draws weights uniformly, small values mix little.

    Raises:
        ValueError: `unmixed` lies outside [0, 1], or `concentration` is not positive.

    Example:
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     weight = Mixup(unmixed=0.75).draw(8).weight
        >>> int((weight == 1).sum())
        6
    """

    unmixed: float = 0.0
    exact: bool = True
    concentration: float = 1.0

    def __post_init__(self) -> None:
        check_fraction(unmixed=self.unmixed)
        check_positive(concentration=self.concentration)

    def draw(self, batch_size: int, device: torch.device | str = "cpu") -> Mixing:
        """Partners and weights for a batch; fresh ones at each call."""
        check_positive(batch_size=batch_size)
        first, second = torch.randperm(batch_size), torch.randperm(batch_size)
        weight = torch.distributions.Beta(self.concentration, self.concentration, validate_args=False).sample(
            (batch_size,)
        )
        count = math.floor(batch_size * self.unmixed)
        if self.exact:
            weight[torch.randperm(batch_size)[:count]] = 1
        else:
            weight[torch.randint(batch_size, (count,))] = 1
        return Mixing(first.to(device), second.to(device), weight.to(device))


def scale_logits(logits: Tensor, multiplier: float = 1.0) -> Tensor:
    """Logits divided by their own standard deviation over classes, times m, equation (5).

    The gradient flows through the deviation.

    Args:
        logits: shape (B, C).
        multiplier: m > 0, the unbiased standard deviation of each row afterwards; 1 is what was published.

    Returns:
        Shape (B, C), at least float32; not centred. A row of equal logits stays a row of equal logits.

    Raises:
        ValueError: `logits` is not a finite (B, C) matrix with C ≥ 2, or `multiplier` is not positive.

    Example:
        >>> scale_logits(torch.tensor([[3.0, 1.0, -1.0], [10.0, 20.0, 30.0]]))
        tensor([[ 1.5000,  0.5000, -0.5000],
                [ 1.0000,  2.0000,  3.0000]])
    """
    check_logits(logits=logits)
    check_positive(multiplier=multiplier)
    return _scaled(logits, multiplier)


def confidence_ceiling(num_classes: int, multiplier: float = 1.0) -> float:
    """The highest probability that scaled logits can give to a class, equation (9).

    Args:
        num_classes: C ≥ 2.
        multiplier: m > 0.

    Returns:
        In (1/C, 1); minus its logarithm is the least cross-entropy with labels.

    Raises:
        ValueError: `num_classes` is below 2, or `multiplier` is not positive.

    Example:
        >>> [round(confidence_ceiling(classes), 3) for classes in (2, 10, 100)]
        [0.804, 0.724, 0.996]
        >>> round(-math.log(confidence_ceiling(10)), 3), round(-math.log(confidence_ceiling(10, 2.0)), 3)
        (0.323, 0.016)
    """
    _check_classes(num_classes)
    check_positive(multiplier=multiplier)
    return 1 / (1 + (num_classes - 1) * math.exp(-multiplier * math.sqrt(num_classes)))


class UnitStdLoss(nn.Module):
    """Distillation of scaled logits with mixed targets, equation (6).

    Args:
        gamma: weight γ ≥ 0 of the cross-entropy with the targets.
        alpha: weight α ≥ 0 of the divergence from the teacher.
        multiplier: m > 0, the standard deviation of both networks' logits.

    Raises:
        ValueError: a weight is negative, or `multiplier` is not positive.

    Example:
        >>> loss = UnitStdLoss(gamma=0.0, alpha=1.0)
        >>> teacher, targets = torch.tensor([[9.0, 3.0, 0.0]]), torch.tensor([[0.8, 0.2, 0.0]])
        >>> loss(teacher / 10 + 1, teacher, targets).abs() < 1e-6
        tensor(True)
    """

    def __init__(self, gamma: float = 0.1, alpha: float = 0.9, multiplier: float = 1.0) -> None:
        super().__init__()
        check_not_negative(gamma=gamma, alpha=alpha)
        check_positive(multiplier=multiplier)
        self.gamma = gamma
        self.alpha = alpha
        self.multiplier = multiplier

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and class probabilities (B, C)."""
        check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
        _check_targets(targets, student_logits)
        student = _scaled(student_logits, self.multiplier)
        soft = distillation_loss(student, _scaled(teacher_logits.detach(), self.multiplier), temperature=1.0)
        return self.gamma * F.cross_entropy(student, targets.to(student.dtype)) + self.alpha * soft


class TemperatureLoss(nn.Module):
    """Distillation at a temperature with mixed targets, equation (7): what scaled logits are compared with.

    Args:
        temperature: τ > 0.
        gamma: weight γ ≥ 0 of the cross-entropy with the targets.
        alpha: weight α ≥ 0 of the divergence from the teacher.

    Raises:
        ValueError: a weight is negative, or `temperature` is not positive.

    Example:
        >>> loss = TemperatureLoss(temperature=4.0, gamma=1.0, alpha=0.0)
        >>> float(loss(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[0.5, 0.5]]))) == torch.log(torch.tensor(2.0))
        tensor(True)
    """

    def __init__(self, temperature: float = 4.0, gamma: float = 0.1, alpha: float = 0.9) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_not_negative(gamma=gamma, alpha=alpha)
        self.temperature = temperature
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and class probabilities (B, C)."""
        check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
        _check_targets(targets, student_logits)
        student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
        hard = F.cross_entropy(student, targets.to(student.dtype))
        return self.gamma * hard + self.alpha * distillation_loss(student, teacher, self.temperature)


class MixupSupervised(Learner):
    """Cross-entropy with mixed images and targets: how a mixup teacher is trained, and a student without a teacher.

    Args:
        model: maps inputs (B, …) to logits (B, C).
        mixup: how each batch is mixed; full mixup if left out.

    Example:
        >>> from kdcore.data import Arrays
        >>> learner = MixupSupervised(nn.Linear(4, 3))
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 4), labels=torch.tensor([0, 2]))))
        ['cross_entropy']
    """

    def __init__(self, model: nn.Module, mixup: Mixup | None = None) -> None:
        super().__init__()
        self.model = model
        self.mixup = mixup or Mixup()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        mixing = self.mixup.draw(len(batch.labels), batch.labels.device)
        logits = at_least_float32(self.model(mix_inputs(batch.inputs, mixing)))
        targets = mix_targets(batch.labels, logits.shape[1], mixing)
        return {"cross_entropy": F.cross_entropy(logits, targets.to(logits.dtype))}


class MixupDistillation(Learner):
    """A frozen teacher labels the mixed images that the student sees.

    The teacher runs at every step: no image comes twice, so its answers cannot be computed beforehand.

    Args:
        student: maps inputs (B, …) to logits (B, C).
        teacher: likewise; frozen by this learner, and kept in evaluation mode lest mixed images move the statistics
            of its batch normalisation.
        loss: function or module of (student_logits, teacher_logits, targets), such as `UnitStdLoss`.
        mixup: how each batch is mixed; full mixup if left out.

    Example:
        >>> from kdcore.data import Arrays
        >>> learner = MixupDistillation(nn.Linear(4, 3), nn.Linear(4, 3), UnitStdLoss(), Mixup(unmixed=0.9))
        >>> list(learner.losses(Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)))
        ['distillation']
    """

    frozen = ("teacher",)

    def __init__(self, student: nn.Module, teacher: nn.Module, loss: nn.Module, mixup: Mixup | None = None) -> None:
        super().__init__()
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.loss = loss
        self.mixup = mixup or Mixup()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        mixing = self.mixup.draw(len(batch.labels), batch.labels.device)
        inputs = mix_inputs(batch.inputs, mixing)
        with torch.no_grad():
            teacher_logits = self.teacher(inputs)
        student_logits = self.model(inputs)
        targets = mix_targets(batch.labels, student_logits.shape[1], mixing)
        return {"distillation": self.loss(student_logits, teacher_logits, targets)}


def _scaled(logits: Tensor, multiplier: float) -> Tensor:
    logits = at_least_float32(logits)
    # The floor also keeps the gradient finite: the derivative of a square root at 0 is not.
    deviation = logits.var(dim=1, keepdim=True).clamp(min=_VARIANCE_FLOOR).sqrt()
    return logits * (multiplier / deviation)


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")


def _check_mixing(mixing: Mixing, batch: int) -> None:
    for name, tensor in mixing._asdict().items():
        if tensor.shape != (batch,):
            raise ValueError(f"mixing.{name} must have shape ({batch},), got {tuple(tensor.shape)}.")


def _check_targets(targets: Tensor, logits: Tensor) -> None:
    if targets.shape != logits.shape or not targets.is_floating_point():
        raise ValueError(
            f"targets must be class probabilities of shape {tuple(logits.shape)}, "
            f"got {targets.dtype} of shape {tuple(targets.shape)}."
        )
