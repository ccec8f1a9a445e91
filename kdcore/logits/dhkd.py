r"""Dual-head knowledge distillation: a head for the labels, a second one for the teacher's logits.

Penghui Yang, Chen-Chen Zong, Sheng-Jun Huang, Lei Feng, Bo An: *Dual-Head Knowledge Distillation: Enhancing Logits
Utilization with an Auxiliary Head*, KDD 2025, arXiv 2411.08937.

**Idea.** A softmax hides the absolute level of each logit; a loss on logits, class by class, keeps it. Added to
cross-entropy on one linear classifier such a loss is said to make the student worse than either loss alone, because
the two pull the class weights in contrary directions, while further down they mostly agree. So each loss gets a head
of its own on shared features, and the teacher's head is thrown away after training.

**Equations.** Embeddings $f\in\mathbb R^{B\times d}$ of the student, heads $z^{ce}=h_1(f)$ and $z^a=h_2(f)$, teacher
logits $z^t$, all logits in $\mathbb R^{B\times C}$, temperature $\tau$, logistic function $\sigma$. BinaryKL compares
$u=\sigma(z/\tau)$ with $q=\sigma(z^t/\tau)$ as $C$ coins:

$$L_B=\frac{\tau^2}B\sum_{i,c}\Bigl[q\log\frac qu+(1-q)\log\frac{1-q}{1-u}\Bigr],\qquad
\frac{\partial L_B}{\partial z}=\frac\tau B(u-q) \tag{1}$$

BinaryKL-Norm, the default, compares the difference $d=z-z^t$ with 0, that is $\sigma(d/\tau)$ with a fair coin:

$$L_{BN}=\frac{\tau^2}B\sum_{i,c}\log\cosh\frac{d_{ic}}{2\tau},\qquad
\frac{\partial L_{BN}}{\partial d}=\frac\tau{2B}\tanh\frac d{2\tau} \tag{2}$$

$$L=\gamma L_{CE}(z^{ce},y)+\alpha L_{BN}(z^a,z^t) \tag{3}$$

Gradient alignment takes the gradients of both terms over all parameters of the student, heads included,
$g_1=\nabla(\gamma L_{CE})$ and $g_2=\nabla(\alpha L_{BN})$, zero where a term does not reach. If they disagree, $g_2$
loses its part along $g_1$:

$$\kappa=\max\Bigl(0,-\frac{g_1\cdot g_2}{\lVert g_1\rVert^2}\Bigr),\qquad g_2'=g_2+\kappa\,g_1 \tag{8}$$

$$g=g_1+g_2'=(1+\kappa)\,g_1+g_2 \tag{9}$$

It is one-sided, $g_1$ is never projected, and there is one test per step for the whole vector. Read (9) again: nothing
is taken away. The step is the one that (3) would have made with $\gamma$ raised to $(1+\kappa)\gamma$, in the backbone
and in the first head; the auxiliary head's gradient is what it was. As the heads are disjoint, $g_1\cdot g_2$ has
terms from the backbone only, while $\lVert g_1\rVert^2$ includes the first head.

**Paper and code.** The published code clamps $u$, $q$ and $\sigma(d/\tau)$ to $[\epsilon,1-\epsilon]$ with
$\epsilon=10^{-8}$. Where the clamp acts, the gradient is exactly 0: in (2) beyond $\lvert d\rvert=\tau\log(10^8)$,
about $18.4\,\tau$. In float32, $1-10^{-8}$ is 1, so that the upper clamp is void and a logarithm of 0 may be taken.
Here the clamp is put on the argument of $\sigma$, which is the same in exact arithmetic and holds in every precision;
``eps=0``, the default, leaves it out. The ImageNet script sets $\alpha$ to 0 for the second half of training; here
$\alpha$ is constant. The control with both losses on one head, on which the paper's story rests, is no option of the
published script; it is ``auxiliary=None`` here.

**Conventions.** Sum over classes, mean over samples, factor $\tau^2$. A mean over classes would shrink the term $C$
times. Parameters that a term does not reach get a zero gradient, not none, so that weight decay acts on them.

**Source status.** Losses, alignment, heads, training scripts and README were read in the authors' code, beside the
abstract and three reviews of an earlier submission. The theory section and the result tables are from memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_labels, check_logits, check_not_negative, check_positive
from kdcore.precision import at_least_float32
from kdcore.training import Distillation

__all__ = [
    "DualHeadDistillation",
    "DualHeadLoss",
    "aligned_loss",
    "auxiliary_head",
    "binary_kl",
    "binary_kl_norm",
    "conflict",
    "gradient_cosine",
    "gradients",
    "merge_gradients",
]

HeadKind = Literal["linear", "nonlinear"]
LogitLoss = Literal["norm", "binary_kl"]


def binary_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, eps: float = 0.0) -> Tensor:
    """Divergence of C coins per sample, the student's from the teacher's, times τ², equation (1).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ > 0.
        eps: ε in [0, ½) of the clamp; 1e-8 is the published one, 0 none.

    Returns:
        Scalar, at least 0; without a clamp 0 if and only if the logits are equal.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, `temperature` is not positive, or `eps` lies
            outside [0, ½).

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[4.0, -4.0]])
        >>> binary_kl(teacher, teacher).item(), binary_kl(teacher + 2, teacher) > 0.4
        (0.0, tensor(True))
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    bound = _bound(eps)
    student = (at_least_float32(student_logits) / temperature).clamp(-bound, bound)
    teacher = (at_least_float32(teacher_logits.detach()) / temperature).clamp(-bound, bound)
    # With log u = a - softplus(a) and log(1 - u) = -softplus(a) no logarithm of a rounded probability is taken.
    # logsigmoid is softplus without the threshold above which torch replaces softplus(a) by a.
    softplus = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    each = softplus - teacher.sigmoid() * (student - teacher)
    return each.sum() * (temperature**2 / len(student))


def binary_kl_norm(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, eps: float = 0.0
) -> Tensor:
    """BinaryKL-Norm: the logits' differences against a fair coin, equation (2).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ > 0.
        eps: ε in [0, ½) of the clamp; 1e-8 is the published one, 0 none.

    Returns:
        Scalar, at least 0; 0 if and only if the logits are equal.

    Raises:
        ValueError: as `binary_kl`.

    Example:
        >>> import torch
        >>> far = torch.tensor([[100.0, 0.0]], requires_grad=True)
        >>> [torch.autograd.grad(binary_kl_norm(far, torch.zeros(1, 2), eps=eps), far)[0][0, 0] for eps in (0.0, 1e-8)]
        [tensor(1.), tensor(0.)]
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    bound = _bound(eps)
    difference = (at_least_float32(student_logits) - at_least_float32(teacher_logits.detach())) / temperature
    difference = difference.clamp(-bound, bound)
    # log cosh(x / 2) = x / 2 + softplus(-x) - log 2, finite for every x.
    each = difference / 2 - F.logsigmoid(difference) - math.log(2)
    return each.sum() * (temperature**2 / len(difference))


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of a loss at each parameter, zero where it does not reach; the graph is kept for a second loss.

    Args:
        loss: scalar.
        parameters: tensors that require a gradient.

    Returns:
        One tensor per parameter, of its shape.

    Raises:
        ValueError: there is no parameter.

    Example:
        >>> import torch
        >>> used, other = torch.tensor(3.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
        >>> gradients(used**2, [used, other])
        (tensor(6.), tensor(0.))
    """
    if not parameters:
        raise ValueError("parameters must hold at least one tensor, got none.")
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)


def conflict(leading: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """κ of equation (8): how much of the leading gradient must be added to the other until they are orthogonal.

    Args:
        leading: g₁ as one tensor per parameter.
        other: g₂, likewise.

    Returns:
        Scalar, at least 0; 0 if the gradients do not disagree, or if g₁ is 0.

    Raises:
        ValueError: the lists are empty, or do not match in length or shapes.

    Example:
        >>> import torch
        >>> conflict([torch.tensor([2.0, 0.0])], [torch.tensor([-1.0, 5.0])])
        tensor(0.5000)
    """
    _check_pair(leading, other)
    square = _inner(leading, leading)
    return (-_inner(leading, other)).clamp(min=0) / square.clamp(min=torch.finfo(square.dtype).tiny)


def merge_gradients(leading: Sequence[Tensor], other: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The aligned gradient, equation (9): g₁ plus what projection leaves of g₂, which is (1 + κ)·g₁ + g₂.

    Args:
        leading: g₁ as one tensor per parameter.
        other: g₂, likewise.

    Returns:
        One tensor per parameter.

    Raises:
        ValueError: the lists are empty, or do not match in length or shapes.

    Example:
        >>> import torch
        >>> merge_gradients([torch.tensor([2.0, 0.0])], [torch.tensor([-1.0, 5.0])])
        (tensor([2., 5.]),)
    """
    factor = 1 + conflict(leading, other)
    return tuple(factor * first + second for first, second in zip(leading, other, strict=True))


def gradient_cosine(leading: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Cosine of the angle between two gradients, each given as one tensor per parameter.

    Args:
        leading: one gradient.
        other: the other.

    Returns:
        Scalar in [-1, 1]; 0 if one of them is 0.

    Raises:
        ValueError: the lists are empty, or do not match in length or shapes.

    Example:
        >>> import torch
        >>> gradient_cosine([torch.tensor([3.0, 0.0])], [torch.tensor([-2.0, 0.0])])
        tensor(-1.)
    """
    _check_pair(leading, other)
    lengths = _inner(leading, leading).sqrt() * _inner(other, other).sqrt()
    return _inner(leading, other) / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def aligned_loss(leading_loss: Tensor, other_loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """The sum of two losses with the aligned gradient of equation (9) in place of its own.

    Use it where a training loop calls `backward` on a scalar. It runs both backward passes at once, on one graph; the
    later `backward` is a copy. A loop that scales losses (float16) scales the finished gradient, so that the test of
    (8) is not disturbed, but float16 may round small gradients to 0 on the way to it; bfloat16 does not.

    Args:
        leading_loss: scalar whose gradient is kept.
        other_loss: scalar whose gradient is projected.
        parameters: of the student and its heads; no gradient reaches anything else.

    Returns:
        Scalar; its gradient is defined at `parameters` only, and once.

    Raises:
        ValueError: there is no parameter.

    Example:
        >>> import torch
        >>> weight = torch.tensor([2.0, 0.0], requires_grad=True)
        >>> aligned_loss(weight[0] ** 2, 5 * weight[1] - weight[0], [weight]).backward()
        >>> weight.grad  # (4, 0) + (-1, 5) without the part of (-1, 5) along (4, 0)
        tensor([4., 5.])
    """
    parameters = list(parameters)
    # A loop may call this under autocast, which is not meant for backward passes.
    with torch.autocast(leading_loss.device.type, enabled=False):
        merged = merge_gradients(gradients(leading_loss, parameters), gradients(other_loss, parameters))
        # The gradient of <merged, parameters> at the parameters is `merged`; its value is taken off again.
        carrier = _inner(merged, parameters)
        return (leading_loss + other_loss).detach() + carrier - carrier.detach()


def auxiliary_head(in_features: int, num_classes: int, kind: HeadKind = "linear") -> nn.Module:
    """A second head for the teacher's logits.

    Args:
        in_features: d, width of the embeddings.
        num_classes: C.
        kind: "linear", or "nonlinear" with 200 hidden units, dropout 0.1 and batch normalisation before the ReLU, as
            published for networks that differ in kind. The latter needs batches of at least 2 in training.

    Returns:
        Module from embeddings (B, d) to logits (B, C).

    Raises:
        ValueError: a number is not positive, or `kind` is unknown.

    Example:
        >>> import torch
        >>> auxiliary_head(16, 10, "nonlinear")(torch.zeros(4, 16)).shape
        torch.Size([4, 10])
    """
    check_positive(in_features=in_features, num_classes=num_classes)
    check_choice("kind", kind, ("linear", "nonlinear"))
    if kind == "linear":
        return nn.Linear(in_features, num_classes)
    return nn.Sequential(
        nn.Linear(in_features, 200), nn.Dropout(0.1), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, num_classes)
    )


class DualHeadLoss(nn.Module):
    """The two terms of equation (3), apart, so that their gradients can be aligned or just added.

    Args:
        temperature: τ > 0 of the logit-level term.
        gamma: weight γ ≥ 0 of cross-entropy.
        alpha: weight α ≥ 0 of the logit-level term.
        kind: "norm" for equation (2), "binary_kl" for (1).
        eps: ε in [0, ½) of the clamp; 1e-8 is the published one.

    Raises:
        ValueError: a number is out of range, or `kind` is unknown.

    Example:
        >>> import torch
        >>> main, auxiliary, teacher = torch.zeros(2, 4), torch.eye(4)[:2], torch.eye(4)[:2]
        >>> [round(term.item(), 4) for term in DualHeadLoss()(main, auxiliary, teacher, torch.tensor([0, 1]))]
        [1.3863, 0.0]
    """

    def __init__(
        self,
        temperature: float = 2.0,
        gamma: float = 1.0,
        alpha: float = 1.0,
        kind: LogitLoss = "norm",
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_not_negative(gamma=gamma, alpha=alpha)
        check_choice("kind", kind, ("norm", "binary_kl"))
        _bound(eps)
        self.temperature = temperature
        self.gamma = gamma
        self.alpha = alpha
        self.kind = kind
        self.eps = eps

    def forward(
        self, main_logits: Tensor, auxiliary_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted terms of logits (B, C) of both heads, teacher logits (B, C) and labels (B,)."""
        check_logits(main_logits=main_logits, auxiliary_logits=auxiliary_logits, teacher_logits=teacher_logits)
        check_labels(labels, *main_logits.shape)
        logit_loss = binary_kl_norm if self.kind == "norm" else binary_kl
        hard = F.cross_entropy(at_least_float32(main_logits), labels)
        soft = logit_loss(auxiliary_logits, teacher_logits, self.temperature, self.eps)
        return self.gamma * hard, self.alpha * soft


class DualHeadDistillation(Distillation):
    """A student with an auxiliary head in training; `model`, the student as it came, is what is used afterwards.

    Args:
        student: has `embed` from inputs to embeddings (B, d), and `classifier` from embeddings to logits (B, C).
        auxiliary: from embeddings to logits (B, C), see `auxiliary_head`; None gives both losses to the classifier.
        loss: the two terms.
        align: update with the aligned gradient, equation (9); costs a second backward pass.
        teacher: frozen by this learner; may be left out if the data carry `teacher_logits`.

    Raises:
        ValueError: `student` has no `embed` or no `classifier`.

    Example:
        >>> import torch
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import MLP
        >>> learner = DualHeadDistillation(MLP(4, (8,), 3), auxiliary_head(8, 3), teacher=MLP(4, (32,), 3))
        >>> list(learner.losses(Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)))
        ['cross_entropy', 'logits']
    """

    model: Any  # a module with `embed` and `classifier`
    loss: Any  # other than its base, this learner takes a loss of two heads

    def __init__(
        self,
        student: nn.Module,
        auxiliary: nn.Module | None,
        loss: DualHeadLoss | None = None,
        *,
        align: bool = True,
        teacher: nn.Module | None = None,
    ) -> None:
        missing = [name for name in ("embed", "classifier") if not hasattr(student, name)]
        if missing:
            raise ValueError(f"student must have embed and classifier, {type(student).__name__} lacks {missing[0]}.")
        super().__init__(student, loss or DualHeadLoss(), teacher)
        self.auxiliary = auxiliary
        self.align = align

    def terms(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The two terms of equation (3) on a batch, each with its own gradient."""
        embeddings = self.model.embed(batch.inputs)
        main = self.model.classifier(embeddings)
        auxiliary = main if self.auxiliary is None else self.auxiliary(embeddings)
        return self.loss(main, auxiliary, self.teacher_logits_of(batch), batch.labels)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        hard, soft = self.terms(batch)
        if not self.align:
            return {"cross_entropy": hard, "logits": soft}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        # The first term carries the whole gradient and the second none, so that both values reach the history.
        return {"cross_entropy": aligned_loss(hard, soft, trained) - soft.detach(), "logits": soft.detach()}

    def cosines(self, batch: Any) -> dict[str, float]:
        """Cosine between the gradients of the two terms: in the classifier, in the backbone, and their κ.

        It reads values from the device; call it once per epoch.

        Args:
            batch: as for `losses`; the learner's mode, training or evaluation, is left as it is.

        Returns:
            `classifier` (0 where the terms have heads of their own), `backbone`, and `conflict`, κ of equation (8).
        """
        head = list(self.model.classifier.parameters())
        heads = {id(parameter) for parameter in head}
        backbone = [parameter for parameter in self.model.parameters() if id(parameter) not in heads]
        hard, soft = (gradients(term, head + backbone) for term in self.terms(batch))
        parts = {"classifier": slice(len(head)), "backbone": slice(len(head), None)}
        found = {name: gradient_cosine(hard[part], soft[part]) for name, part in parts.items()}
        return {name: float(value) for name, value in (found | {"conflict": conflict(hard, soft)}).items()}


def _bound(eps: float) -> float:
    """The argument at which σ reaches 1 − ε."""
    if not 0 <= eps < 0.5:
        raise ValueError(f"eps must lie in [0, 0.5), got {eps!r}.")
    return math.log((1 - eps) / eps) if eps else math.inf


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    products = [torch.dot(one.reshape(-1), other.reshape(-1)) for one, other in zip(first, second, strict=True)]
    return torch.stack(products).sum()


def _check_pair(leading: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (leading, other)]
    if not leading or shapes[0] != shapes[1]:
        raise ValueError(f"leading and other must hold tensors of the same shapes, got {shapes[0]} and {shapes[1]}.")
