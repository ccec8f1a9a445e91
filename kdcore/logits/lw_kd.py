r"""Light-weight distillation: soft targets from a tiny teacher that has only seen synthesised digits.

Yuang Liu, Wei Zhang, Jun Wang: *Learning from a Lightweight Teacher for Efficient Knowledge Distillation*, 2020,
arXiv 2005.09163.

**Idea.** Training a teacher costs more than training its student. Soft labels written by hand cost nothing but are the
same for all samples of a class. In between: a very small teacher learns a *synthesised* task, images of digits, which
can have any number of classes. Each sample of the real task is paired with a synthetic image of the same class number,
and the teacher's output for that image is its soft target. An adversary makes the student's outputs as a whole look
like the teacher's. As the synthetic images have nothing to do with the real ones, no likeness between classes is
taught; what is left is a regulariser whose targets vary from sample to sample.

**Equations.** Real samples $(x_i,y_i)$ of $C$ classes; synthetic images $\tilde x$ with labels $\tilde y$ of as many
classes; teacher logits $z^t(\tilde x)$, student logits $z^s(x)$, temperature $\tau$. For each visit of $x_i$ a
synthetic image with $\tilde y=y_i$ is drawn, and

$$q_i=\mathrm{softmax}(z^t(\tilde x_i)/\tau),\qquad p_i=\mathrm{softmax}(z^s(x_i)/\tau) \tag{1}$$

$$L_{KD}=\frac{\tau^2}B\sum_i\mathrm{KL}(q_i\,\|\,p_i) \tag{2}$$

What is the draw worth? $q_i$ depends on $x_i$ through $y_i$ and chance alone. With the class means
$\bar q_k=E[q\mid\tilde y=k]$, the expected gradient of (2) at the student's logits is

$$E\Bigl[\frac{\partial L_{KD}}{\partial z^s_i}\Bigr]=\frac\tau B\,(p_i-\bar q_{y_i}) \tag{3}$$

the one of a fixed soft label per class. Label smoothing is the case in which $\bar q_k$ is even off the label.

A discriminator $D$ on the simplex calls the teacher's vectors real and the student's false,

$$\begin{aligned}
L_D&=-\frac1B\sum_i\bigl[\log D(q_i)+\log(1-D(p_i))\bigr],\\
L_{adv}&=-\frac1B\sum_i\log D(p_i)
\end{aligned} \tag{4}$$

$$L=(1-\lambda)L_{CE}+\lambda L_{KD}+\mu L_{adv} \tag{5}$$

Steps on $L_D$ and on $L$ take turns; $L_D$ moves the discriminator only, $L$ the student only.

**Conventions.** Only the abstract of the paper could be read. Ours are: the way in which a class number is written in
digits (base 10, side by side), a fresh draw at each visit, the factor $\tau^2$, the discriminator's shape and the
non-saturating $L_{adv}$, its place on probabilities at $\tau$, and all numbers. Remembered of the paper, and possibly
wrong, are digits composed into one image to get more than ten classes, and a LeNet-like teacher.

**Source status.** Reconstructed from the abstract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_finite,
    check_fraction,
    check_labels,
    check_logits,
    check_not_negative,
    check_positive,
    check_same_shape,
)
from kdcore.data import Arrays, shift
from kdcore.foundations.kd import distillation_loss
from kdcore.training import Learner
from kdcore.training.optimizers import Adam

__all__ = [
    "LightweightDistillation",
    "TargetBank",
    "adversarial_loss",
    "discriminator",
    "discriminator_loss",
    "synthetic_numbers",
    "virtual_teacher",
]


def synthetic_numbers(digits: Arrays, num_classes: int, count: int, noise: float = 0.1, seed: int = 0) -> Arrays:
    """Images of the numbers 0 to C − 1, each written with real digit images side by side.

    Args:
        digits: `inputs` (N, channels, H, W) in [0, 1] and `labels` 0 to 9; every digit must be there.
        num_classes: C ≥ 2; as many places as C − 1 has decimals.
        count: images, spread evenly over the classes up to rounding.
        noise: standard deviation of the noise that is added to each pixel.
        seed: of the choice of images, shifts by up to a pixel, and noise.

    Returns:
        `inputs` (count, channels, H, W·places) in [0, 1] and `labels`, on the device of `digits`.

    Raises:
        ValueError: `num_classes` is below 2, `count` below `num_classes`, `noise` negative, or a digit is missing.

    Example:
        >>> from kdcore.data import digits
        >>> numbers = synthetic_numbers(digits().train, num_classes=20, count=100)
        >>> numbers.inputs.shape, numbers.labels.bincount().unique().tolist()
        (torch.Size([100, 1, 8, 16]), [5])
    """
    check_not_negative(noise=noise)
    if num_classes < 2 or count < num_classes:
        raise ValueError(f"num_classes must be at least 2 and at most count, got {num_classes!r} and {count!r}.")
    members = [(digits.labels == digit).nonzero().flatten() for digit in range(10)]
    missing = [digit for digit, rows in enumerate(members) if not len(rows)]
    if missing:
        raise ValueError(f"digits must hold an image of every digit, there is none of {missing}.")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count)[torch.randperm(count, generator=generator)] % num_classes
    places = []
    for power in reversed(range(len(str(num_classes - 1)))):
        drawn = torch.rand(count, generator=generator)
        wanted = (labels // 10**power % 10).tolist()
        rows = torch.stack([members[d][int(u * len(members[d]))] for d, u in zip(wanted, drawn.tolist(), strict=True)])
        places.append(digits.inputs[rows])
    images = shift(1)(torch.cat(places, dim=3), generator)
    images = images + noise * torch.randn(images.shape, generator=generator).to(images)
    return Arrays(inputs=images.clamp(0, 1), labels=labels.to(images.device))


def virtual_teacher(labels: Tensor, num_classes: int, confidence: float = 0.99) -> Tensor:
    """Logits of a soft label written by hand, the same for all samples of a class: teacher-free distillation.

    Yuan et al. 2020, arXiv 1909.11723: one probability for the label, the rest spread evenly.

    Args:
        labels: shape (B,).
        num_classes: C ≥ 2.
        confidence: probability of the label at temperature 1, in (1/C, 1).

    Returns:
        Shape (B, C).

    Raises:
        ValueError: a label lies outside [0, C), or `confidence` outside (1/C, 1).

    Example:
        >>> virtual_teacher(torch.tensor([1]), 3, confidence=0.8).softmax(dim=1)
        tensor([[0.1000, 0.8000, 0.1000]])
    """
    check_labels(labels, len(labels), num_classes)
    if not 1 / num_classes < confidence < 1:
        raise ValueError(f"confidence must lie in (1/{num_classes}, 1), got {confidence!r}.")
    rest = (1 - confidence) / (num_classes - 1)
    return torch.where(F.one_hot(labels, num_classes).bool(), confidence, rest).log()


class TargetBank(nn.Module):
    """The teacher's outputs on the synthetic set, ready to be drawn class by class.

    Args:
        logits: of the teacher on the synthetic images, shape (N, C).
        labels: of the synthetic images, shape (N,); every class must be there.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a class has no synthetic image.

    Example:
        >>> bank = TargetBank(torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 5.0]]), torch.tensor([0, 1, 1]))
        >>> drawn = bank.draw(torch.tensor([1, 0, 1]))
        >>> drawn.argmax(dim=1)
        tensor([1, 0, 1])
    """

    logits: Tensor
    starts: Tensor
    counts: Tensor

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        super().__init__()
        check_logits(logits=logits)
        check_labels(labels, *logits.shape)
        counts = labels.bincount(minlength=logits.shape[1])
        if bool((counts == 0).any()):
            raise ValueError(
                f"every class needs a synthetic image, {(counts == 0).nonzero().flatten().tolist()} do not."
            )
        self.register_buffer("logits", logits.detach()[labels.argsort(stable=True)])
        self.register_buffer("counts", counts)
        self.register_buffer("starts", counts.cumsum(0) - counts)

    def draw(self, labels: Tensor) -> Tensor:
        """Teacher logits (B, C) of a random synthetic image for each label; a fresh draw at each call.

        Chance comes from torch's generator on the CPU, the one that `kdcore.training.fit` seeds.
        """
        check_labels(labels, len(labels), self.logits.shape[1])
        chance = torch.rand(len(labels)).to(labels.device)
        offset = (chance * self.counts[labels]).long()
        return self.logits[self.starts[labels] + offset]

    def mean_logits(self, temperature: float) -> Tensor:
        """Logits (C, C) whose softmax at the temperature is the mean target of each class, as in equation (3)."""
        check_positive(temperature=temperature)
        soft = (self.logits / temperature).softmax(dim=1)
        owner = torch.repeat_interleave(torch.arange(len(self.counts), device=soft.device), self.counts)
        sums = torch.zeros(len(self.counts), soft.shape[1], dtype=soft.dtype, device=soft.device)
        return temperature * (sums.index_add(0, owner, soft) / self.counts[:, None]).log()


def discriminator(num_classes: int, hidden: int = 64) -> nn.Module:
    """A perceptron from probability vectors (B, C) to logits (B, 1): above zero for "a teacher's".

    Args:
        num_classes: C.
        hidden: width of its hidden layer.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> discriminator(10)(torch.full((3, 10), 0.1)).shape
        torch.Size([3, 1])
    """
    check_positive(num_classes=num_classes, hidden=hidden)
    return nn.Sequential(nn.Linear(num_classes, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))


def discriminator_loss(critic: nn.Module, teacher: Tensor, student: Tensor) -> Tensor:
    """What the discriminator minimises, L_D of equation (4); no gradient flows into the vectors.

    Args:
        critic: maps (B, C) to logits (B, 1).
        teacher: q, probability vectors (B, C).
        student: p, likewise.

    Returns:
        Scalar; 2·log 2 for a critic that always says one half.

    Raises:
        ValueError: shapes differ, or a value is not finite.

    Example:
        >>> undecided = torch.nn.Linear(3, 1)
        >>> _ = [parameter.data.zero_() for parameter in undecided.parameters()]
        >>> discriminator_loss(undecided, torch.eye(3), torch.eye(3))
        tensor(1.3863, grad_fn=<AddBackward0>)
    """
    check_same_shape(teacher=teacher, student=student)
    check_finite(teacher=teacher, student=student)
    real, false = critic(teacher.detach()), critic(student.detach())
    # -log D and -log(1 - D) of a logit are softplus: no logarithm of a rounded probability is taken.
    return F.softplus(-real).mean() + F.softplus(false).mean()


def adversarial_loss(critic: nn.Module, student: Tensor) -> Tensor:
    """What the student pays for being told from the teacher, L_adv of equation (4).

    Args:
        critic: maps (B, C) to logits (B, 1).
        student: p, probability vectors (B, C); the gradient flows into them.

    Returns:
        Scalar; log 2 for a critic that always says one half.

    Raises:
        ValueError: a value is not finite.

    Example:
        >>> always = torch.nn.Linear(3, 1)
        >>> _ = always.weight.data.zero_(), always.bias.data.fill_(50.0)
        >>> round(adversarial_loss(always, torch.eye(3)).item(), 6)
        0.0
    """
    check_finite(student=student)
    return F.softplus(-critic(student)).mean()


class LightweightDistillation(Learner):
    """A student with targets drawn from a bank, and an adversary, equation (5).

    The discriminator has an optimiser of its own (Adam), which acts before the student's step; it is part of the
    learner's state, so that a run can be resumed.

    Args:
        student: maps inputs (B, …) to logits (B, C).
        bank: where targets are drawn from.
        temperature: τ > 0.
        kd_weight: λ in [0, 1] of the soft targets; the labels get 1 − λ.
        adversarial_weight: μ ≥ 0; 0 leaves the adversary out.
        warmup: fraction of training over which μ rises from 0.
        critic_lr: of the discriminator's Adam.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> bank = TargetBank(9 * torch.eye(3), torch.arange(3))
        >>> learner = LightweightDistillation(nn.Linear(4, 3), bank)
        >>> list(learner.losses(Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)))
        ['cross_entropy', 'distillation', 'adversary']
    """

    def __init__(
        self,
        student: nn.Module,
        bank: TargetBank,
        temperature: float = 4.0,
        kd_weight: float = 0.5,
        adversarial_weight: float = 0.1,
        warmup: float = 0.1,
        critic_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, critic_lr=critic_lr)
        check_fraction(kd_weight=kd_weight, warmup=warmup)
        check_not_negative(adversarial_weight=adversarial_weight)
        self.model = student
        self.bank = bank
        self.critic = discriminator(bank.logits.shape[1])
        self.temperature = temperature
        self.kd_weight = kd_weight
        self.adversarial_weight = adversarial_weight
        self.warmup = warmup
        self.reached = 0.0
        self.critic_optimizer = Adam(self.critic.parameters(), lr=critic_lr, betas=(0.5, 0.999))

    def parameter_groups(self) -> list[dict]:
        """The student's parameters; the discriminator has its own optimiser."""
        return [{"params": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}]

    def on_step(self, progress: float) -> None:
        """Note how far training is, for the warm-up."""
        self.reached = progress

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The three weighted terms of equation (5); before them a step of the discriminator."""
        logits, teacher_logits = self.model(batch.inputs), self.bank.draw(batch.labels)
        terms = {
            "cross_entropy": (1 - self.kd_weight) * F.cross_entropy(logits, batch.labels),
            "distillation": self.kd_weight * distillation_loss(logits, teacher_logits, self.temperature),
        }
        if not self.adversarial_weight:
            return terms
        student, teacher = ((z / self.temperature).softmax(dim=1) for z in (logits, teacher_logits))
        if self.training:
            self._critic_step(teacher, student)
        rising = min(1.0, self.reached / self.warmup) if self.warmup else 1.0
        return terms | {"adversary": self.adversarial_weight * rising * adversarial_loss(self.critic, student)}

    def get_extra_state(self) -> dict[str, Any]:
        """The discriminator's optimiser, so that checkpoints hold it."""
        return {"critic_optimizer": self.critic_optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned."""
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])

    def _critic_step(self, teacher: Tensor, student: Tensor) -> None:
        weights = list(self.critic.parameters())
        slopes = torch.autograd.grad(discriminator_loss(self.critic, teacher, student), weights)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = slope
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()
        # The student's backward pass also reaches the critic; its gradient is never used and is dropped here.
