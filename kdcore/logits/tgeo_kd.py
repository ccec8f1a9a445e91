r"""Trilateral geometry: how much of the teacher, sample by sample, learned on held-out data.

Chengming Hu, Haolun Wu, Xuan Li, Chen Ma, Xi Chen, Jun Yan, Boyu Wang, Xue Liu: *Less or More From Teacher: Exploiting
Trilateral Geometry For Knowledge Distillation*, ICLR 2024, arXiv 2312.15112.

**Idea.** Plain distillation mixes teacher and label with one constant. Here each sample has a weight of its own, which
a small network, the controller, reads off the triangle of the student's prediction, the teacher's, and the label; a
second triangle, with the teacher's mean prediction for the class, is meant to expose outliers. The controller is
trained so that a student that follows its weights does well on held-out samples: a bilevel problem.

**Equations.** For sample $i$ let $S_i,T_i$ be the probabilities of student and teacher at temperature 1, $G_i$ the
one-hot label, and $M_i$ the teacher's mean probabilities over the training samples of class $y_i$, the class centre.
Squares are taken class by class. The state of the sample is

$$\begin{aligned}
x_i=\bigl[&S,\,T,\,G,\,M,\\
&(M-S)^2,\,(G-S)^2,\,(T-S)^2,\,(T-G)^2,\,(M-G)^2\bigr]_i\in\mathbb R^{9C}
\end{aligned} \tag{1}$$

and its weight, with the controller $f_\omega$, a perceptron with hidden layers of 32 and 16 units and leaky ReLU,

$$\alpha_i=\sigma(f_\omega(x_i)) \tag{2}$$

With $\ell^{kd}_i=\mathrm{KL}(\mathrm{softmax}(z^t_i/\tau)\,\|\,\mathrm{softmax}(z^s_i/\tau))$ and the cross-entropy
$\ell^{gt}_i$ of the label, the student with weights $\theta$ minimises

$$L_{low}(\theta,\omega)=\frac1B\sum_i\alpha_i\tau^2\ell^{kd}_i+(1-\alpha_i)\,\ell^{gt}_i \tag{3}$$

and the controller the mean cross-entropy on held-out samples of the student that results,

$$\min_\omega L_{val}(\theta^*(\omega)),\qquad\theta^*(\omega)=\arg\min_\theta L_{low}(\theta,\omega)$$

The student's optimum is replaced by one gradient step of size $\eta$, kept as a function of $\omega$:

$$\theta'(\omega)=\theta-\eta\nabla_\theta L_{low}(\theta,\omega),\qquad
\omega\leftarrow\omega-\eta_\omega\nabla_\omega L_{val}(\theta'(\omega)) \tag{5}$$

With $g=\nabla L_{val}(\theta')$, the chain rule gives its gradient at the weights in closed form:

$$\frac{\partial L_{val}(\theta')}{\partial\alpha_i}=
-\frac\eta B\,g\cdot\bigl(\tau^2\nabla_\theta\ell^{kd}_i-\nabla_\theta\ell^{gt}_i\bigr) \tag{6}$$

A weight rises where the gradient of distillation agrees with held-out samples better than that of the label does.

**Conventions.** One-step unrolling is our reading of this bilevel problem; the paper does not pin a solver down. In
(5) the state uses a detached $S$: otherwise the student could lower (3) by steering its own weights. The step (5) is
one of plain gradient descent, while the student's real step may have momentum. It is taken in evaluation mode, so that
batch normalisation uses, and keeps, its running statistics. Centres are computed once, over the training set.

**Where the published code disagrees.** It exists in three states, none of which solves the bilevel problem. The release
computes $\alpha$ without gradient, and its upper loss does not contain $\omega$: the controller stays as it was
initialised (``solver="frozen"``). It also feeds probabilities to a cross-entropy that takes a softmax itself
(``softmax_twice=True``). The deleted code for CIFAR-100 trains the controller on (3) itself, detaches nothing
(``solver="joint"``), and computes the centres on test samples; its controller has one hidden layer of 128 ReLU units,
$\tau$ is 1, and its state has absolute differences and products in place of some squares, which is not reproduced here.
An earlier script trains the student at the constant 0.5 while the controller learns which loss is the smaller.

**Source status.** Read from the authors' code at three states, the abstract, the public reviews, and a review that
quotes tables; the paper's printed equations were not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kdcore.checks import check_choice, check_labels, check_logits, check_not_negative, check_positive
from kdcore.data import Arrays
from kdcore.models import inference
from kdcore.precision import at_least_float32
from kdcore.training import Distillation
from kdcore.training.optimizers import Adam

__all__ = [
    "PARTS",
    "Controller",
    "TrilateralDistillation",
    "TrilateralLoss",
    "class_centres",
    "hypergradient",
    "sample_terms",
    "trilateral_state",
    "virtual_step",
    "weighted_loss",
]

PARTS = ("S", "T", "G", "M", "MS", "GS", "TS", "TG", "MG")
"""Parts of the state (1), each of C numbers: four vertices and five sides; "TS" is the side from T to S."""

Solver = Literal["bilevel", "frozen", "joint"]


def class_centres(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """The teacher's mean probabilities over the samples of each class: row y is M of the samples labelled y.

    Call it once, on the training set; a batch gives noisy centres, and none for a class that it lacks.

    Args:
        teacher_logits: shape (N, C).
        labels: shape (N,), as the student gets them, wrong ones included.

    Returns:
        Shape (C, C), at least float32; each row sums to 1, or is 0 for a class without samples.

    Raises:
        ValueError: `teacher_logits` is not a finite (N, C) matrix with C ≥ 2, or `labels` are not N class numbers.

    Example:
        >>> import torch
        >>> class_centres(torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, 200.0]]), torch.tensor([0, 0, 1]))
        tensor([[0.7500, 0.2500],
                [0.0000, 1.0000]])
    """
    check_logits(teacher_logits=teacher_logits)
    check_labels(labels, *teacher_logits.shape)
    probabilities = at_least_float32(teacher_logits.detach()).softmax(dim=1)
    members = F.one_hot(labels, probabilities.shape[1]).to(probabilities.dtype)
    return members.T @ probabilities / members.sum(dim=0).clamp(min=1)[:, None]


def trilateral_state(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, centres: Tensor, parts: Sequence[str] = PARTS
) -> Tensor:
    """Vertices and squared sides of both triangles of each sample, equation (1).

    Args:
        student_logits: shape (B, C); the gradient flows through them, detach them for equation (5).
        teacher_logits: shape (B, C); no gradient flows into them.
        labels: shape (B,).
        centres: shape (C, C), from `class_centres`.
        parts: which of `PARTS`, in which order.

    Returns:
        Shape (B, len(parts)·C), every entry in [0, 1].

    Raises:
        ValueError: shapes do not fit, labels are no class numbers, or a part is unknown or missing.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[200.0, 0.0]])
        >>> trilateral_state(0 * logits, logits, torch.tensor([0]), torch.eye(2), parts=("S", "TS", "TG"))
        tensor([[0.5000, 0.5000, 0.2500, 0.2500, 0.0000, 0.0000]])
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    classes = student_logits.shape[1]
    check_labels(labels, *student_logits.shape)
    if centres.shape != (classes, classes):
        raise ValueError(f"centres must have shape ({classes}, {classes}), got {tuple(centres.shape)}.")
    _check_parts(parts)
    student = at_least_float32(student_logits).softmax(dim=1)
    vertex = {
        "S": student,
        "T": at_least_float32(teacher_logits.detach()).softmax(dim=1),
        "G": F.one_hot(labels, classes).to(student.dtype),
        "M": centres.to(student.dtype)[labels],
    }
    blocks = [vertex[part] if len(part) == 1 else (vertex[part[0]] - vertex[part[1]]).square() for part in parts]
    return torch.cat(blocks, dim=1)


def sample_terms(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.5
) -> tuple[Tensor, Tensor]:
    """Both terms of each sample: divergence from the teacher, without τ², and cross-entropy with the label.

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        labels: shape (B,).
        temperature: τ > 0 of the first term.

    Returns:
        Two tensors of shape (B,), each at least 0.

    Raises:
        ValueError: shapes differ, C < 2, labels are no class numbers, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1, 2)
        >>> sample_terms(zero, zero, torch.tensor([1]))
        (tensor([0.]), tensor([0.6931]))
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_labels(labels, *student_logits.shape)
    check_positive(temperature=temperature)
    student = at_least_float32(student_logits)
    teacher = F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    soft = F.kl_div(F.log_softmax(student / temperature, dim=1), teacher, reduction="none", log_target=True)
    return soft.sum(dim=1), F.cross_entropy(student, labels, reduction="none")


def weighted_loss(alpha: Tensor, soft: Tensor, hard: Tensor, temperature: float = 1.5) -> Tensor:
    """The student's loss, equation (3).

    Args:
        alpha: weights in [0, 1] of the distillation terms, shape (B,).
        soft: distillation terms without τ², shape (B,).
        hard: cross-entropies, shape (B,).
        temperature: τ > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes differ, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> weighted_loss(torch.tensor([0.0, 1.0]), torch.tensor([9.0, 1.0]), torch.tensor([2.0, 9.0]), temperature=2.0)
        tensor(3.)
    """
    check_positive(temperature=temperature)
    for name, tensor in {"soft": soft, "hard": hard}.items():
        if tensor.shape != alpha.shape:
            raise ValueError(f"{name} must have the shape of alpha, {tuple(alpha.shape)}, got {tuple(tensor.shape)}.")
    return (alpha * temperature**2 * soft + (1 - alpha) * hard).mean()


def virtual_step(
    model: nn.Module, loss: Tensor, step_size: float, unrolled: Sequence[str] = ("",)
) -> dict[str, Tensor]:
    """The model's weights after one step of gradient descent, as functions of what the loss depends on, equation (5).

    Args:
        model: whose parameters the loss was computed with; it is left as it is.
        loss: scalar.
        step_size: η > 0.
        unrolled: only parameters whose name begins with one of these move; the empty string is all. Fewer cost less
            memory.

    Returns:
        Moved weights by name, for `torch.func.functional_call`; they carry the graph.

    Raises:
        ValueError: `step_size` is not positive, or no trainable parameter has such a name.

    Example:
        >>> import torch
        >>> line, slope = torch.nn.Linear(1, 1, bias=False), torch.tensor(3.0, requires_grad=True)
        >>> moved = virtual_step(line, slope * line.weight.sum(), step_size=0.5)
        >>> torch.autograd.grad(moved["weight"].sum(), slope)
        (tensor(-0.5000),)
    """
    check_positive(step_size=step_size)
    moving = _moving(model, unrolled)
    gradients = torch.autograd.grad(loss, list(moving.values()), create_graph=True)
    return {name: value - step_size * slope for (name, value), slope in zip(moving.items(), gradients, strict=True)}


def hypergradient(
    model: nn.Module,
    train: Arrays,
    alpha: Tensor,
    validation: Arrays,
    temperature: float = 1.5,
    step_size: float = 0.1,
) -> Tensor:
    """The gradient of the held-out loss at each sample's weight, in closed form, equation (6).

    Negative values say that more of the teacher would help. The products of all samples with g are had at once, without
    the gradient of each.

    Args:
        model: the student, maps inputs (B, …) to logits (B, C); should be in evaluation mode.
        train: `inputs`, `labels`, `teacher_logits` of B samples.
        alpha: their weights, shape (B,); held fixed.
        validation: `inputs`, `labels` of held-out samples.
        temperature: τ > 0.
        step_size: η > 0.

    Returns:
        Shape (B,), without graph.

    Raises:
        ValueError: shapes do not fit, or a number is not positive.

    Example:
        >>> import torch
        >>> from kdcore.data import Arrays
        >>> train = Arrays(inputs=torch.eye(2), labels=torch.tensor([0, 0]), teacher_logits=9 * torch.eye(2))
        >>> flat = torch.nn.Linear(2, 2, bias=False)
        >>> _ = flat.weight.data.zero_()
        >>> held_out = Arrays(inputs=torch.eye(2), labels=torch.tensor([0, 1]))
        >>> result = hypergradient(flat, train, torch.tensor([0.5, 0.5]), held_out, temperature=1.0)
        >>> bool(result[1] < result[0].abs() * -100)  # the second label is wrong, and the teacher knows
        True
    """
    soft, hard = sample_terms(model(train.inputs), train.teacher_logits, train.labels, temperature)
    moved = virtual_step(model, weighted_loss(alpha.detach(), soft, hard, temperature), step_size)
    held_out = F.cross_entropy(functional_call(model, moved, (validation.inputs,)), validation.labels)
    pull = torch.autograd.grad(held_out, list(moved.values()), retain_graph=True)
    # The gradient of a weighted sum is linear in its weights: its slope at weight i is the gradient of summand i.
    each = torch.zeros_like(soft, requires_grad=True)
    total = (each * (temperature**2 * soft - hard)).sum()
    along = torch.autograd.grad(total, list(_moving(model, ("",)).values()), create_graph=True)
    product = torch.stack([(ours * one.detach()).sum() for ours, one in zip(along, pull, strict=True)]).sum()
    return -step_size / len(alpha) * torch.autograd.grad(product, each)[0]


class Controller(nn.Module):
    """The network that turns a state into a weight, equation (2).

    Args:
        in_features: length of the state, 9C for all parts.
        hidden: width of each hidden layer; the release has (32, 16), the code for CIFAR-100 (128,).
        slope: of the leaky ReLU below zero; 0 is the ReLU of the code for CIFAR-100.

    Raises:
        ValueError: a width is not positive, or `slope` is negative.

    Shape: states (B, in_features); weights (B,) in (0, 1).

    Example:
        >>> import torch
        >>> Controller(90)(torch.rand(4, 90)).shape
        torch.Size([4])
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (32, 16), slope: float = 0.01) -> None:
        super().__init__()
        check_positive(in_features=in_features, **{f"hidden[{k}]": width for k, width in enumerate(hidden)})
        check_not_negative(slope=slope)
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.LeakyReLU(slope)]
            in_features = width
        self.layers = nn.Sequential(*layers, nn.Linear(in_features, 1))

    def forward(self, state: Tensor) -> Tensor:
        """Weights (B,) of states (B, in_features)."""
        return self.layers(state).squeeze(1).sigmoid()


class TrilateralLoss(nn.Module):
    """Distillation and cross-entropy, weighted sample by sample, equations (1) to (3).

    Called as it is, the gradient flows everywhere: into the controller, and through S into the student. In a plain
    `kdcore.training.Distillation` that is joint training; `TrilateralDistillation` detaches what (5) wants detached.

    Args:
        centres: shape (C, C), from `class_centres` on the training set.
        temperature: τ > 0.
        parts: of the state, see `PARTS`.
        softmax_twice: take the cross-entropy of probabilities as if they were logits, as the release does.
        hidden: of the controller.

    Raises:
        ValueError: `centres` is no square matrix of at least two classes, `temperature` is not positive, or a part is
            unknown.

    Example:
        >>> import torch
        >>> loss = TrilateralLoss(torch.eye(3))
        >>> student, teacher = torch.zeros(2, 3), torch.eye(3)[:2]
        >>> bool(loss(student, teacher, torch.tensor([0, 1])) > 0)
        True
    """

    centres: Tensor

    def __init__(
        self,
        centres: Tensor,
        temperature: float = 1.5,
        parts: Sequence[str] = PARTS,
        softmax_twice: bool = False,
        hidden: Sequence[int] = (32, 16),
    ) -> None:
        super().__init__()
        if centres.ndim != 2 or centres.shape[0] != centres.shape[1] or len(centres) < 2:
            raise ValueError(f"centres must have shape (C, C) with C >= 2, got {tuple(centres.shape)}.")
        check_positive(temperature=temperature)
        _check_parts(parts)
        self.register_buffer("centres", centres.detach())
        self.temperature = temperature
        self.parts = tuple(parts)
        self.softmax_twice = softmax_twice
        self.controller = Controller(len(self.parts) * len(centres), hidden)

    def alpha(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Weights (B,) of samples with logits (B, C), teacher logits (B, C) and labels (B,)."""
        return self.controller(trilateral_state(student_logits, teacher_logits, labels, self.centres, self.parts))

    def terms(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms (B,) of each sample, see `sample_terms`."""
        soft, hard = sample_terms(student_logits, teacher_logits, labels, self.temperature)
        if self.softmax_twice:
            probabilities = at_least_float32(student_logits).softmax(dim=1)
            hard = F.cross_entropy(probabilities, labels, reduction="none")
        return soft, hard

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and labels (B,)."""
        alpha = self.alpha(student_logits, teacher_logits, labels)
        return weighted_loss(alpha, *self.terms(student_logits, teacher_logits, labels), self.temperature)


class TrilateralDistillation(Distillation):
    """A student and the controller of its weights; batches have the streams `train` and `validation`.

    The controller has an optimiser of its own (Adam), which acts before the student's step; it is part of the
    learner's state, so that a run can be resumed.

    Args:
        student: maps inputs (B, …) to logits (B, C).
        loss: holds the controller.
        solver: "bilevel" is equation (5). "frozen" never trains the controller, as the release. "joint" trains it on
            (3), along with the student and by its optimiser, with nothing detached, as the code for CIFAR-100. The
            latter two ignore validation samples.
        outer_every: student steps between two steps of the controller.
        step_size: η > 0 of the virtual step.
        controller_lr: of Adam. The release's 0.1 drives the sigmoid into saturation.
        controller_weight_decay: of Adam; 0.05 in the release.
        unrolled: see `virtual_step`.
        teacher: frozen by this learner; may be left out if the training data carry `teacher_logits`.

    Raises:
        ValueError: the solver is unknown, or a number is out of range.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import MLP
        >>> learner = TrilateralDistillation(MLP(4, (8,), 3), TrilateralLoss(torch.eye(3)), teacher=MLP(4, (8,), 3))
        >>> rows = Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)
        >>> list(learner.losses(SimpleNamespace(train=rows, validation=rows)))
        ['distillation', 'cross_entropy']
    """

    loss: TrilateralLoss

    def __init__(
        self,
        student: nn.Module,
        loss: TrilateralLoss,
        *,
        solver: Solver = "bilevel",
        outer_every: int = 2,
        step_size: float = 0.1,
        controller_lr: float = 0.01,
        controller_weight_decay: float = 0.0,
        unrolled: Sequence[str] = ("",),
        teacher: nn.Module | None = None,
    ) -> None:
        check_choice("solver", solver, ("bilevel", "frozen", "joint"))
        check_positive(outer_every=outer_every, step_size=step_size, controller_lr=controller_lr)
        check_not_negative(controller_weight_decay=controller_weight_decay)
        super().__init__(student, loss, teacher)
        self.solver = solver
        self.outer_every = outer_every
        self.step_size = step_size
        self.unrolled = tuple(unrolled)
        self.steps = 0
        self.controller_optimizer = Adam(
            loss.controller.parameters(), lr=controller_lr, weight_decay=controller_weight_decay, fused=True
        )

    def parameter_groups(self) -> list[dict]:
        """The student's parameters; the controller's only if it is trained jointly."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [{"params": trained + (list(self.loss.controller.parameters()) if self.solver == "joint" else [])}]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Both terms of equation (3), weighted; before them a step of the controller where one is due."""
        train = self._with_teacher(batch)
        if self.solver == "bilevel":
            if not hasattr(batch, "validation"):
                raise ValueError("the bilevel solver needs held-out samples: fit with streams train and validation.")
            if self.steps % self.outer_every == 0:
                self._outer_step(train, batch.validation)
            self.steps += 1
        logits = self.model(train.inputs)
        alpha = self._alpha(logits, train)
        soft, hard = self.loss.terms(logits, train.teacher_logits, train.labels)
        return {
            "distillation": (alpha * self.loss.temperature**2 * soft).mean(),
            "cross_entropy": ((1 - alpha) * hard).mean(),
        }

    def upper_loss(self, train: Arrays, validation: Arrays) -> Tensor:
        """The held-out loss after a virtual step, as a function of the controller, equation (5).

        Args:
            train: `inputs`, `labels`, `teacher_logits`.
            validation: `inputs`, `labels`.

        Returns:
            Scalar; the student must be in evaluation mode if its statistics are not to move.
        """
        logits = self.model(train.inputs)
        alpha = self.loss.alpha(logits.detach(), train.teacher_logits, train.labels)
        terms = self.loss.terms(logits, train.teacher_logits, train.labels)
        lower = weighted_loss(alpha, *terms, self.loss.temperature)
        moved = virtual_step(self.model, lower, self.step_size, self.unrolled)
        return F.cross_entropy(functional_call(self.model, moved, (validation.inputs,)), validation.labels)

    def sample_weights(self, data: Arrays) -> Tensor:
        """The present weights of samples with `inputs`, `labels` and `teacher_logits`, shape (N,)."""
        with inference(self):
            return self.loss.alpha(self.model(data.inputs), data.teacher_logits, data.labels)

    def get_extra_state(self) -> dict[str, Any]:
        """The controller's optimiser and the count of steps, so that checkpoints hold them."""
        return {"steps": self.steps, "controller_optimizer": self.controller_optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned."""
        self.steps = state["steps"]
        self.controller_optimizer.load_state_dict(state["controller_optimizer"])

    def _alpha(self, logits: Tensor, train: Arrays) -> Tensor:
        if self.solver == "joint":
            return self.loss.alpha(logits, train.teacher_logits, train.labels)
        with torch.no_grad():
            return self.loss.alpha(logits, train.teacher_logits, train.labels)

    def _outer_step(self, train: Arrays, validation: Arrays) -> None:
        weights = list(self.loss.controller.parameters())
        # Batch normalisation with the statistics it has, which the virtual step must not move; and a loop may call
        # this under autocast, which is not meant for backward passes.
        with inference(self.model), torch.enable_grad(), torch.autocast(train.device.type, enabled=False):
            slopes = torch.autograd.grad(self.upper_loss(train, validation), weights)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = slope
        self.controller_optimizer.step()

    def _with_teacher(self, batch: Any) -> Arrays:
        if not hasattr(batch, "train"):
            raise ValueError("batches must have a stream train: fit with streams train and validation.")
        return batch.train.with_(teacher_logits=self.teacher_logits_of(batch.train))


def _moving(model: nn.Module, unrolled: Sequence[str]) -> dict[str, nn.Parameter]:
    """Trainable parameters whose name begins with one of the prefixes."""
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    moving = {name: value for name, value in named.items() if name.startswith(tuple(unrolled))}
    if not moving:
        raise ValueError(f"unrolled must begin the name of a trainable parameter, got {tuple(unrolled)!r}.")
    return moving


def _check_parts(parts: Sequence[str]) -> None:
    if not parts:
        raise ValueError(f"parts must name at least one of {', '.join(PARTS)}, got none.")
    for part in parts:
        check_choice("parts", part, PARTS)
