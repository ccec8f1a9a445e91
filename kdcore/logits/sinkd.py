r"""Sinkhorn distillation: transport a batch of student predictions onto the batch of the teacher's.

Xiao Cui, Yulei Qin, Yuting Gao, Enwei Zhang, Zihan Xu, Tong Wu, Ke Li, Xing Sun, Wengang Zhou, Houqiang Li:
*Sinkhorn Distance Minimization for Knowledge Distillation*, LREC-COLING 2024 (extended in IEEE TNNLS 2024),
arXiv 2402.17110.

**Idea.** Divergences such as KL compare teacher and student class by class and say little where the two
distributions hardly overlap. Optimal transport has a cost that grows with distance instead. For a single sample,
with all classes equally far apart, it is only the total variation; so all predictions of a batch are compared with
all of the teacher's, and the entropy-regularised cost of carrying one set onto the other is a term beside labels
and soft labels.

**Equations.** Logits $z^s$, $z^t$ in $\mathbb R^{B\times C}$, temperature $\tau_S=2$, regularisation $\epsilon=0.1$,
$n=20$ iterations. With $p_i=\mathrm{softmax}(z^s_i/\tau_S)$ and $q_j=\mathrm{softmax}(z^t_j/\tau_S)$,

$$W_{ij}=\lVert p_i-q_j\rVert_1\in[0,2] \tag{1}$$

$$K=e^{-W/\epsilon},\qquad K_{ij}\leftarrow\frac{K_{ij}}{\sum_{j'}K_{ij'}},\quad
K_{ij}\leftarrow\frac{K_{ij}}{\sum_{i'}K_{i'j}} \tag{2}$$

where the two divisions are repeated $n$ times and the result is $P$.

$$L_S=\sum_{ij}P_{ij}W_{ij} \tag{3}$$

$$L=(1-\alpha)L_{CE}
-\frac\alpha B\sum_{i,k}\mathrm{softmax}(z^t_i/\tau)_k\log\mathrm{softmax}(z^s_i/\tau)_k+\beta\lambda L_S \tag{4}$$

Columns of $P$ sum to 1 and rows nearly so; its total mass is $B$, not 1. Gradients flow through $W$ and through $P$.
Some tasks anneal $\tau$ over $E$ epochs, from $\tau_0$ to 1:

$$\tau_e=\tau_0+(1-\tau_0)\frac{e}{E-1},\qquad e=0,\dots,E-1$$

**The gradient.** Once (2) has converged, let $a_i$, $b_j$ be the numbers for which $P_{ij}(W_{ij}-a_i-b_j)$ has rows
and columns of sum 0. Then

$$\frac{\partial L_S}{\partial W_{ij}}=P_{ij}\Bigl(1-\frac{W_{ij}-a_i-b_j}{\epsilon}\Bigr) \tag{7}$$

The 1 is the gradient through the cost; the rest is the gradient through the plan. Pairs that are dearer than their
row and column by more than $\epsilon$ have a negative weight: they are pushed apart.

**Rivals.** With the diagonal plan $P=I$, $L_S$ is twice the sum of the total variations $\frac12\lVert
p_i-q_i\rVert_1$. This, the reverse KL and the Jensen-Shannon divergence are here to take the place of (3).

**Conventions.** The published code takes the sum (3), which grows with $B$, and multiplies it by $\lambda=10^{-3}$
($8\cdot10^{-4}$ for GPT-Neo and T0); ``reduction="mean"`` is $L_S/B$. The soft labels' term in (4) carries no factor
$\tau^2$ and keeps the teacher's entropy, other than `kdcore.foundations.kd`. The paper, as remembered, writes weights
near $\alpha=\beta=0.8$ and no $\lambda$. In the published training step the term is added only under another option
than the one that creates it, so that the published scripts do not run as they stand; (4) is their evident intention.
The teacher is detached here. Where $e^{-2/\epsilon}$ comes near the smallest number of the data type, (2) is done
with logarithms, which changes the result by rounding only.

**Source status.** Read from the authors' code; of the paper only the abstract was read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_fraction,
    check_labels,
    check_logits,
    check_not_negative,
    check_positive,
    readable,
)
from kdcore.foundations.kd import soft_cross_entropy, soften
from kdcore.precision import at_least_float32, full_precision
from kdcore.training.learners import Distillation

__all__ = [
    "AnnealedDistillation",
    "SinkhornDistance",
    "SinkhornDistillation",
    "annealed_temperature",
    "jensen_shannon",
    "reverse_divergence",
    "total_variation",
    "transport_cost",
    "transport_plan",
]

Reduction = Literal["sum", "mean"]
_LARGEST_COST = 2.0


def transport_cost(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """L1 distance of every student prediction from every teacher prediction, equation (1).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ_S > 0.

    Returns:
        Shape (B, B), values in [0, 2]; rows are the student's samples, columns the teacher's.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
        >>> transport_cost(sure, sure)
        tensor([[0., 2.],
                [2., 0.]])
    """
    student, teacher = _soft_labels(student_logits, teacher_logits, temperature)
    return torch.cdist(student, teacher, p=1)


@full_precision
def transport_plan(cost: Tensor, epsilon: float = 0.1, iterations: int = 20) -> Tensor:
    """Alternate normalisation of rows and columns of exp(−W/ε), equation (2).

    The plan is kept as its kernel and two vectors of factors, one per row and one per column: the same numbers as
    dividing the matrix, at two products of matrix and vector per iteration. Where ε is so small that the kernel
    could underflow, the factors are kept as logarithms.

    Args:
        cost: W, shape (B, B), values in [0, 2].
        epsilon: ε > 0; towards 0 the plan becomes the best assignment, towards infinity all entries become 1/B.
        iterations: n ≥ 1.

    Returns:
        P, shape (B, B), at least float32; columns sum to 1, and so do rows as n grows.

    Raises:
        ValueError: `cost` is not square, not floating point, or has a value outside [0, 2]; `epsilon` is not
            positive, or `iterations` is below 1.

    Example:
        >>> import torch
        >>> transport_plan(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=1.0)
        tensor([[0.7311, 0.2689],
                [0.2689, 0.7311]])
    """
    _check_cost(cost)
    check_positive(epsilon=epsilon)
    _check_iterations(iterations)
    scaled = cost / -epsilon
    # The square root leaves room for products of two factors, and for the squares in their gradients.
    if math.exp(-_LARGEST_COST / epsilon) > math.sqrt(torch.finfo(scaled.dtype).tiny):
        return _plan_of_kernel(scaled.exp(), iterations)
    return _plan_of_logarithms(scaled, iterations)


def _plan_of_kernel(kernel: Tensor, iterations: int) -> Tensor:
    columns = torch.ones_like(kernel[0])
    for _ in range(iterations):
        rows = 1 / (kernel @ columns)
        columns = 1 / (rows @ kernel)
    return rows.unsqueeze(1) * kernel * columns


def _plan_of_logarithms(kernel: Tensor, iterations: int) -> Tensor:
    columns = torch.zeros_like(kernel[0])
    for _ in range(iterations):
        rows = -torch.logsumexp(kernel + columns, dim=1, keepdim=True)
        columns = -torch.logsumexp(kernel + rows, dim=0)
    return (kernel + rows + columns).exp()


class SinkhornDistance(nn.Module):
    """Transport cost between the student's and the teacher's predictions of a batch, equation (3).

    It does not know which teacher row belongs to which sample: permuting them changes nothing. Alone it cannot train
    a classifier.

    Args:
        temperature: τ_S > 0 of both softmaxes.
        epsilon: ε > 0, regularisation of the plan.
        iterations: n ≥ 1.
        reduction: "sum" as published, which grows with the batch, or "mean", the sum divided by B.
        through_plan: False treats the plan as constant: the ablation that keeps only the 1 in equation (7).

    Raises:
        ValueError: `temperature` or `epsilon` is not positive, `iterations` is below 1, or the reduction is unknown.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 2), torch.tensor([[100.0, 0.0], [0.0, 100.0]])
        >>> SinkhornDistance()(student, teacher), SinkhornDistance(reduction="mean")(student, teacher)
        (tensor(2.), tensor(1.))
    """

    def __init__(
        self,
        temperature: float = 2.0,
        epsilon: float = 0.1,
        iterations: int = 20,
        reduction: Reduction = "sum",
        through_plan: bool = True,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature, epsilon=epsilon)
        _check_iterations(iterations)
        check_choice("reduction", reduction, ("sum", "mean"))
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.reduction = reduction
        self.through_plan = through_plan

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Scalar of logits (B, C) and teacher logits (B, C)."""
        cost = transport_cost(student_logits, teacher_logits, self.temperature)
        plan = transport_plan(cost if self.through_plan else cost.detach(), self.epsilon, self.iterations)
        total = (plan * cost).sum()
        return total if self.reduction == "sum" else total / len(cost)


def annealed_temperature(start: float, epoch: int, epochs: int) -> float:
    """Temperature of an epoch, falling linearly from `start` to 1.

    Args:
        start: τ₀ > 0, the temperature of epoch 0.
        epoch: e, counted from 0.
        epochs: E ≥ 2 in all.

    Returns:
        τ_e; 1 in the last epoch.

    Raises:
        ValueError: `start` is not positive, `epochs` is below 2, or `epoch` lies outside [0, epochs).

    Example:
        >>> [annealed_temperature(4.0, epoch, epochs=4) for epoch in range(4)]
        [4.0, 3.0, 2.0, 1.0]
    """
    check_positive(start=start)
    if epochs < 2:
        raise ValueError(f"epochs must be at least 2 for a temperature to fall, got {epochs!r}.")
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch must lie in [0, {epochs}), got {epoch!r}.")
    return start + (1 - start) * epoch / (epochs - 1)


def total_variation(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Half the L1 distance of both predictions of a sample, mean over samples: transport sample by sample.

    It is the cost of the best plan between two distributions over classes all at distance 1, and half of (3) divided
    by B for the diagonal plan.

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ_S > 0.

    Returns:
        Scalar in [0, 1].

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> total_variation(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]]))
        tensor(0.5000)
    """
    student, teacher = _soft_labels(student_logits, teacher_logits, temperature)
    return (student - teacher).abs().sum(dim=1).mean() / 2


def reverse_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Divergence of the teacher's soft labels from the student's, KL(pˢ‖pᵗ), mean over samples.

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ_S > 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> reverse_divergence(torch.tensor([[100.0, 0.0]]), torch.zeros(1, 2))
        tensor(0.6931)
    """
    student, teacher = _log_soft_labels(student_logits, teacher_logits, temperature)
    return F.kl_div(teacher, student, reduction="batchmean", log_target=True)


def jensen_shannon(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean of both divergences from the even mixture of student and teacher, mean over samples.

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ_S > 0.

    Returns:
        Scalar in [0, log 2].

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> jensen_shannon(torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]]))
        tensor(0.6931)
    """
    student, teacher = _log_soft_labels(student_logits, teacher_logits, temperature)
    middle = torch.logaddexp(student, teacher) - math.log(2)
    halves = [F.kl_div(middle, part, reduction="batchmean", log_target=True) for part in (student, teacher)]
    return (halves[0] + halves[1]) / 2


class SinkhornDistillation(nn.Module):
    """Labels, soft labels and the transport cost of the batch, equation (4).

    Args:
        temperature: τ > 0 of the soft labels.
        alpha: α in [0, 1], weight of the soft labels; the labels get 1 − α.
        beta: β ≥ 0, weight of the transport cost.
        scale: λ ≥ 0, which multiplies β; 10⁻³ belongs to the sum over a batch of 16 or 32.
        distance: function or module of (student_logits, teacher_logits) that takes the place of `SinkhornDistance()`.

    Raises:
        ValueError: `temperature` is not positive, `alpha` lies outside [0, 1], or `beta` or `scale` is negative.

    Example:
        >>> import torch
        >>> student, teacher, labels = torch.zeros(4, 3), torch.eye(4, 3), torch.tensor([0, 1, 2, 0])
        >>> published = SinkhornDistillation(temperature=2.0, alpha=0.8)
        >>> ours = SinkhornDistillation(temperature=2.0, alpha=0.8, distance=SinkhornDistance(reduction="mean"))
        >>> without = SinkhornDistillation(temperature=2.0, alpha=0.8, beta=0.0)(student, teacher, labels)
        >>> bool(published(student, teacher, labels) > ours(student, teacher, labels) > without)
        True
    """

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        beta: float = 0.8,
        scale: float = 1e-3,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_fraction(alpha=alpha)
        check_not_negative(beta=beta, scale=scale)
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.scale = scale
        self.distance = SinkhornDistance() if distance is None else distance

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and labels (B,)."""
        check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
        targets = soften(at_least_float32(teacher_logits), self.temperature)
        soft = soft_cross_entropy(student_logits, targets, self.temperature)
        check_labels(labels, *student_logits.shape)
        hard = F.cross_entropy(at_least_float32(student_logits), labels)
        total = (1 - self.alpha) * hard + self.alpha * soft
        weight = self.beta * self.scale
        return total + weight * self.distance(student_logits, teacher_logits) if weight else total


class AnnealedDistillation(Distillation):
    """Distillation whose soft labels sharpen from epoch to epoch, as `annealed_temperature` says.

    Args:
        student: maps inputs (B, …) to logits (B, C).
        loss: its `temperature` when given is τ₀, and is set before each step.
        epochs: E ≥ 2 of the budget.
        teacher: frozen by this learner; may be left out if the data carry `teacher_logits`.

    Raises:
        ValueError: `epochs` is below 2.

    Example:
        >>> loss = SinkhornDistillation(temperature=4.0)
        >>> learner = AnnealedDistillation(nn.Linear(4, 3), loss, epochs=4)
        >>> learner.on_step(0.99)
        >>> loss.temperature
        1.0
    """

    def __init__(
        self, student: nn.Module, loss: SinkhornDistillation, epochs: int, teacher: nn.Module | None = None
    ) -> None:
        super().__init__(student, loss, teacher)
        self.start = annealed_temperature(loss.temperature, 0, epochs)
        self.epochs = epochs

    def on_step(self, progress: float) -> None:
        """Set the temperature of the epoch that this fraction of training lies in."""
        # A fraction such as 3/10 times 10 may fall short of 3 by rounding.
        epoch = min(int(progress * self.epochs + 1e-6), self.epochs - 1)
        self.loss.temperature = annealed_temperature(self.start, epoch, self.epochs)  # type: ignore[attr-defined]


def _soft_labels(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return student.softmax(dim=1), teacher.softmax(dim=1)


def _log_soft_labels(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    student, teacher = _softened(student_logits, teacher_logits, temperature)
    return student.log_softmax(dim=1), teacher.log_softmax(dim=1)


def _softened(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    return at_least_float32(student_logits) / temperature, at_least_float32(teacher_logits.detach()) / temperature


def _check_cost(cost: Tensor) -> None:
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or cost.shape[0] < 1:
        raise ValueError(f"cost must have shape (B, B) with at least one row, got {tuple(cost.shape)}.")
    if not cost.is_floating_point():
        raise ValueError(f"cost must be floating point, got {cost.dtype}.")
    check_finite(cost=cost)
    if readable(cost):
        low, high = (end.item() for end in cost.detach().aminmax())
        if low < 0 or high > _LARGEST_COST + 1e-3:
            raise ValueError(f"cost must lie in [0, 2], as distances of probabilities do, got {low:.4g} to {high:.4g}.")


def _check_iterations(iterations: Any) -> None:
    if not (isinstance(iterations, int) and iterations >= 1):
        raise ValueError(f"iterations must be an integer of at least 1, got {iterations!r}.")
