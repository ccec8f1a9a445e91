r"""Spherical knowledge distillation: put both networks' logits on one sphere, then distil.

Jia Guo, Minghao Chen, Yao Hu, Chen Zhu, Xiaofei He, Deng Cai: *Reducing the Teacher-Student Gap via Spherical
Knowledge Distillation*, 2020, arXiv 2010.07485 (first version: *Spherical Knowledge Distillation*).

**Idea.** A larger teacher is more confident, which shows in the norm of its logits; the classes' similarities show in
their direction. A small student that must copy both spends capacity on confidence, and this is offered as the reason
why a stronger teacher can give a worse student. So both networks' logits are centred and scaled to one fixed norm
before the softmax, in the distillation term and in the student's cross-entropy: only the direction is left to learn.

**Equations.** Student logits $z^s$, teacher logits $z^t$ in $\mathbb R^{B\times C}$, labels $y$, temperature $\tau$,
weight $\alpha$, multiplier $m$. With the mean $\mu_i$ of the $C$ logits of sample $i$ and their biased standard
deviation $\sigma_i$,

$$\tilde z_{ik}=m\,\frac{z_{ik}-\mu_i}{\sigma_i},\qquad
\sigma_i=\sqrt{\tfrac1C\sum_k(z_{ik}-\mu_i)^2+10^{-7}} \tag{1}$$

$$L_{KD}=\frac{\tau^2}{B}\sum_i\mathrm{KL}\bigl(\mathrm{softmax}(\tilde z^t_i/\tau)\,\|\,
\mathrm{softmax}(\tilde z^s_i/\tau)\bigr) \tag{2}$$

$$L_{CE}=-\frac1B\sum_i\log\mathrm{softmax}(\tilde z^s_i)_{y_i} \tag{3}$$

$$L=\alpha L_{KD}+(1-\alpha)L_{CE} \tag{4}$$

Equation (2) is plain distillation (`kdcore.foundations.kd`) of the normalised logits. The gradient flows through the
student's $\mu_i$ and $\sigma_i$. A second variant gives the student's logits the teacher's spread, sample by sample,
and leaves the teacher as it is; with the unbiased standard deviation $s$ (divisor $C-1$),

$$\hat z^s_{ik}=z^s_{ik}\,\frac{s(z^t_i)}{s(z^s_i)} \tag{5}$$

takes the place of $\tilde z^s$, and $z^t$ that of $\tilde z^t$, in (2) to (4).

**The radius.** By (1), $\|\tilde z_i\|_2=m\sqrt C$: the multiplier is a standard deviation, not a norm. The paper's
norm, the average norm of the teacher's centred logits, is had with

$$m=\frac1N\sum_i\sigma^t_i \tag{6}$$

where the $10^{-7}$ is left out; usually 2 to 3. On the sphere the cross-entropy (3) cannot reach 0. It is least where
$\tilde z_i$ points to the label, one logit of $m\sqrt{C-1}$ and the others $-m/\sqrt{C-1}$:

$$L_{CE}\ge\log\Bigl(1+(C-1)\,e^{-mC/\sqrt{C-1}}\Bigr) \tag{7}$$

**Conventions.** Two states of the published code disagree: that of 2020 does (1), that of 2023 does (5) in training
and evaluates with (1) at $10^{-9}$. Followed here is the first; ``variant="teacher_std"`` is the second. Where (5)
divides by zero, that is for constant logits, the student's variance is raised to the $10^{-7}$ of (1). Half-precision
logits are normalised in float32. The predicted class is that of the raw logits; a probability or likelihood of the
student needs the normalised ones. The code for ImageNet lowers $\alpha$ from 0.9 to 0.5 and 0.1 after 60 and 80 of
100 epochs; here $\alpha$ is constant.

**Source status.** Read from the authors' code and README, at both states; of the paper only the abstracts were read.
Its norm, equation (6), is from memory.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_fraction, check_labels, check_logits, check_positive
from kdcore.foundations.kd import distillation_loss
from kdcore.precision import at_least_float32

__all__ = ["SphericalDistillation", "cross_entropy_floor", "match_teacher_std", "measure_multiplier", "normalise"]

Variant = Literal["sphere", "teacher_std"]

_VARIANCE_FLOOR = 1e-7


def normalise(logits: Tensor, multiplier: float = 2.0) -> Tensor:
    """Logits on the sphere: centred over classes, with standard deviation m, equation (1).

    Args:
        logits: shape (B, C).
        multiplier: m > 0, the standard deviation of each row afterwards; its norm is m·√C.

    Returns:
        Shape (B, C), at least float32. Rows sum to 0. A row of equal logits becomes 0.

    Raises:
        ValueError: `logits` is not a finite (B, C) matrix with C ≥ 2, or `multiplier` is not positive.

    Example:
        >>> import torch
        >>> normalise(torch.tensor([[3.0, 1.0], [70.0, 20.0]]), multiplier=2.0)
        tensor([[ 2., -2.],
                [ 2., -2.]])
    """
    check_logits(logits=logits)
    check_positive(multiplier=multiplier)
    return _on_sphere(logits, multiplier)


def match_teacher_std(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Student logits scaled to the teacher's standard deviation of the same sample, equation (5).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.

    Returns:
        Shape (B, C), at least float32; not centred. A row of equal student logits stays a row of equal logits.

    Raises:
        ValueError: shapes differ, C < 2, or a value is not finite.

    Example:
        >>> import torch
        >>> match_teacher_std(torch.tensor([[1.0, 0.0]]), torch.tensor([[5.0, 9.0]]))
        tensor([[4., 0.]])
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    student = at_least_float32(student_logits)
    teacher_std = at_least_float32(teacher_logits.detach()).std(dim=1, keepdim=True)
    # The floor also keeps the gradient finite: the derivative of a square root at 0 is not.
    student_std = student.var(dim=1, keepdim=True).clamp(min=_VARIANCE_FLOOR).sqrt()
    return student * (teacher_std / student_std)


def measure_multiplier(teacher_logits: Tensor) -> float:
    """The teacher's mean standard deviation over classes, equation (6): the multiplier of the paper's norm.

    Call it once, on the teacher's logits of the training set; it reads a value from the device.

    Args:
        teacher_logits: shape (N, C).

    Returns:
        m > 0; m·√C is the mean norm of the centred logits.

    Raises:
        ValueError: `teacher_logits` is not a finite (N, C) matrix with C ≥ 2, or each row's logits are all equal.

    Example:
        >>> import torch
        >>> measure_multiplier(torch.tensor([[2.0, 0.0], [0.0, 6.0]]))
        2.0
    """
    check_logits(teacher_logits=teacher_logits)
    logits = at_least_float32(teacher_logits.detach())
    centred = logits - logits.mean(dim=1, keepdim=True)
    multiplier = float(centred.square().mean(dim=1).sqrt().mean())
    if not multiplier > 0:
        raise ValueError(
            f"teacher_logits must differ between classes, got a mean standard deviation of {multiplier!r} "
            f"over {len(teacher_logits)} rows."
        )
    return multiplier


def cross_entropy_floor(num_classes: int, multiplier: float = 2.0) -> float:
    """The least cross-entropy that logits on the sphere can have, equation (7).

    Args:
        num_classes: C ≥ 2.
        multiplier: m > 0.

    Returns:
        Nats, above 0 and below log(C).

    Raises:
        ValueError: `num_classes` is below 2, or `multiplier` is not positive.

    Example:
        >>> round(cross_entropy_floor(2, multiplier=1.0), 4), round(cross_entropy_floor(10, multiplier=2.0), 4)
        (0.1269, 0.0114)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
    check_positive(multiplier=multiplier)
    others = num_classes - 1
    return math.log1p(others * math.exp(-multiplier * num_classes / math.sqrt(others)))


class SphericalDistillation(nn.Module):
    """Distillation and cross-entropy of normalised logits, equation (4).

    Args:
        temperature: τ > 0 of the distillation term.
        alpha: weight α in [0, 1] of the distillation term; the labels get 1 − α.
        multiplier: m > 0, the standard deviation of normalised logits; see `measure_multiplier`. Only "sphere"
            uses it.
        variant: "sphere" normalises both networks by equation (1), "teacher_std" the student by equation (5).
        normalise_labels_term: False takes the cross-entropy (3) of the student's raw logits instead: the ablation
            that normalises for the teacher only.

    Raises:
        ValueError: `temperature` or `multiplier` is not positive, `alpha` lies outside [0, 1], or the variant is
            unknown.

    Example:
        >>> import torch
        >>> loss = SphericalDistillation(temperature=4.0, alpha=1.0)
        >>> teacher = torch.tensor([[9.0, 3.0, 0.0]])
        >>> loss(teacher / 10 + 1, teacher, torch.tensor([0])).abs() < 1e-5
        tensor(True)
    """

    def __init__(
        self,
        temperature: float = 4.0,
        alpha: float = 0.9,
        multiplier: float = 2.0,
        variant: Variant = "sphere",
        normalise_labels_term: bool = True,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, multiplier=multiplier)
        check_fraction(alpha=alpha)
        check_choice("variant", variant, ("sphere", "teacher_std"))
        self.temperature = temperature
        self.alpha = alpha
        self.multiplier = multiplier
        self.variant = variant
        self.normalise_labels_term = normalise_labels_term

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and labels (B,)."""
        check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
        check_labels(labels, *student_logits.shape)
        student, teacher = self._rescale(student_logits, teacher_logits.detach())
        soft = distillation_loss(student, teacher, self.temperature)
        hard = F.cross_entropy(student if self.normalise_labels_term else at_least_float32(student_logits), labels)
        return self.alpha * soft + (1 - self.alpha) * hard

    def _rescale(self, student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Both networks' logits as the softmax sees them."""
        if self.variant == "teacher_std":
            return match_teacher_std(student_logits, teacher_logits), at_least_float32(teacher_logits)
        return _on_sphere(student_logits, self.multiplier), _on_sphere(teacher_logits, self.multiplier)


def _on_sphere(logits: Tensor, multiplier: float) -> Tensor:
    # A square overflows float16 from 256 on, and bfloat16 has too few digits for a difference from the mean.
    return multiplier * F.layer_norm(at_least_float32(logits), logits.shape[1:], eps=_VARIANCE_FLOOR)
