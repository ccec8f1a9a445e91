r"""Learning embedding linear projections: pseudo-subclasses from a frozen teacher's embeddings.

Noel Loo, Fotis Iliopoulos, Wei Hu, Erik Vee: *Linear Projections of Teacher Embeddings for Few-Class Distillation*,
preprint 2024, arXiv 2409.20449.

**Idea.** With two classes a teacher's probabilities are one number per sample, and distillation has little to pass on.
The embedding in front of the teacher's last layer still holds the structure inside each class. So its principal
directions, class by class, are turned into soft pseudo-subclasses, and the student learns all of them with one
cross-entropy: no second loss, no projector, no retrained teacher, and no labels.

**Equations.** Embedding $f(x)\in\mathbb R^D$, last layer $W\in\mathbb R^{C\times D}$, teacher logits $z^t=Wf+b$,
$S$ subclasses per class, student outputs $o\in\mathbb R^{SC}$ with index $(c,s)=cS+s$. What moves the logits is left
out (optional), since the class probabilities carry it:

$$\tilde f=\Pi f,\qquad\Pi=I-W^\top(WW^\top)^{+}W \tag{1}$$

Over the training samples of class $c$: mean $\mu_c$ of $\tilde f$ and its first $S$ principal directions
$V_c\in\mathbb R^{D\times S}$, rotated by a random orthogonal matrix $R_c$ so that all columns have the same expected
variance; then scores of every sample for every class, divided by $\kappa_c$, which is 1 or the root of the scores' mean
variance in class $c$:

$$U_c=V_cR_c,\qquad a_{c,s}(x)=u_{c,s}^\top(\tilde f(x)-\mu_c)/\kappa_c \tag{2}$$

Targets, and in them the shares of the subclasses:

$$p_{c,s}=p_c\,q_{s|c},\qquad q_{s|c}=\frac{e^{a_{c,s}/\beta}}{\sum_je^{a_{c,j}/\beta}},\qquad
p_c=\mathrm{softmax}(z^t/\tau)_c \tag{4}$$

With $P=\mathrm{softmax}(o/\tau)$ over all $SC$ outputs, the loss, its mixture with labels, and the class scores:

$$L_D=\frac{\tau^2}B\sum_i\sum_{c,s}p_{c,s}\log\frac{p_{c,s}}{P_{c,s}} \tag{5}$$

$$L=\alpha L_D+(1-\alpha)\,\frac1B\sum_i-\log\sum_s\mathrm{softmax}(o)_{y_i,s}$$

$$\hat y=\arg\max_c\log\sum_se^{o_{c,s}}$$

**Source status.** Reconstructed. Read were the abstract, a summary, and reviews that quote the target formula and parts
of the tables; the paper's own equations were not seen and no code of the authors is known. Quoted: projection, PCA by
class, random rotation, (4), one cross-entropy, and that all experiments go without labels. From memory or **ours**: the
centring in (2), the scale $\kappa_c$, the factor $\tau^2$ (it matters only beside labels or with plain SGD), the sum in
$\hat y$, that the temperature acts on the student too, and every value of $S$, $\beta$, $\tau$.

**Conventions.** $\alpha$ weighs the distillation term, as everywhere here; the paper's $\alpha$ weighs the labels and
is $1-\alpha$, so that its $\alpha=0$ is ``alpha=1``. The divergence in (5) has the same gradient as the paper's
cross-entropy and is 0 at the target; with $S=1$ it is plain distillation, exactly. PCA runs in double precision.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_fraction,
    check_labels,
    check_logits,
    check_positive,
    readable,
)
from kdcore.foundations.kd import soften
from kdcore.training import Learner

__all__ = [
    "SubclassDistillation",
    "SubclassProjection",
    "SummedSubclasses",
    "class_logits",
    "fit_projection",
    "known_shares",
    "null_space_projection",
    "principal_directions",
    "random_rotation",
    "subclass_loss",
    "subclass_shares",
    "subclass_targets",
]

Split = Literal["pca", "random", "kmeans"]
Scale = Literal["none", "class"]


def null_space_projection(weight: Tensor) -> Tensor:
    """The orthogonal projection on what the last layer does not see, equation (1).

    Args:
        weight: W of the teacher's last layer, shape (C, D).

    Returns:
        Π of shape (D, D), float64.

    Raises:
        ValueError: `weight` is not a finite matrix.

    Example:
        >>> import torch
        >>> null_space_projection(torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).diagonal()
        tensor([0., 1., 1.], dtype=torch.float64)
    """
    _check_matrix(weight=weight)
    weight = weight.detach().double()
    _, lengths, directions = torch.linalg.svd(weight, full_matrices=False)
    seen = directions[lengths > lengths.max() * max(weight.shape) * torch.finfo(torch.float64).eps]
    return torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device) - seen.T @ seen


def principal_directions(embeddings: Tensor, num_directions: int) -> tuple[Tensor, Tensor]:
    """Mean of one class's embeddings, and the orthonormal directions along which they vary most, before rotation (2).

    Args:
        embeddings: training embeddings of one class, shape (N_c, D).
        num_directions: S.

    Returns:
        Mean (D,) and directions (D, S), float64, by falling variance.

    Raises:
        ValueError: `embeddings` is not a finite matrix, or they vary along fewer than S directions.

    Example:
        >>> import torch
        >>> mean, directions = principal_directions(torch.tensor([[1.0, 0.0], [5.0, 0.1], [3.0, -0.1]]), 1)
        >>> mean, directions[:, 0].abs().round(decimals=1)
        (tensor([3., 0.], dtype=torch.float64), tensor([1., 0.], dtype=torch.float64))
    """
    _check_matrix(embeddings=embeddings)
    points = embeddings.detach().double().cpu().numpy()
    possible = min(len(points) - 1, points.shape[1])
    if not 1 <= num_directions <= possible:
        raise ValueError(
            f"num_directions must lie between 1 and {possible} for {len(points)} embeddings of width "
            f"{points.shape[1]}, got {num_directions}."
        )
    found = PCA(num_directions, svd_solver="full").fit(points)
    if found.explained_variance_[-1] <= 1e-12 * found.explained_variance_[0]:
        raise ValueError(
            f"num_directions must be at most the number of directions along which the embeddings vary, "
            f"got {num_directions} with variances {found.explained_variance_.tolist()}."
        )
    device = embeddings.device
    return torch.from_numpy(found.mean_).to(device), torch.from_numpy(found.components_.T.copy()).to(device)


def random_rotation(size: int, generator: torch.Generator) -> Tensor:
    """A matrix drawn evenly from the orthogonal group, for equation (2).

    Args:
        size: S.
        generator: on the CPU; the only source of chance.

    Returns:
        Shape (S, S), float64.

    Raises:
        ValueError: `size` is not positive.

    Example:
        >>> import torch
        >>> rotation = random_rotation(3, torch.Generator().manual_seed(0))
        >>> torch.allclose(rotation @ rotation.T, torch.eye(3).double())
        True
    """
    check_positive(size=size)
    orthogonal, triangular = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    # QR leaves the signs to the library; without this line the distribution would not be the even one.
    return orthogonal * triangular.diagonal().sign()


def subclass_shares(scores: Tensor, beta: float = 1.0) -> Tensor:
    """How each class is shared among its subclasses, q of equation (4).

    Args:
        scores: a, shape (B, C, S).
        beta: β > 0; small values make one subclass take all, large ones give all of them the same.

    Returns:
        Shares of the shape of `scores`; they sum to 1 over the last dimension.

    Raises:
        ValueError: `scores` is not finite or not of shape (B, C, S), or `beta` is not positive.

    Example:
        >>> import torch
        >>> subclass_shares(torch.tensor([[[2.0, 0.0]]]), beta=2.0)
        tensor([[[0.7311, 0.2689]]])
    """
    check_positive(beta=beta)
    if scores.ndim != 3:
        raise ValueError(f"scores must have shape (B, C, S), got {tuple(scores.shape)}.")
    check_finite(scores=scores)
    return (scores / beta).softmax(dim=2)


def known_shares(labels: Tensor, subclasses: Tensor, num_classes: int, num_subclasses: int) -> Tensor:
    """Shares where the true subclasses are known: all to the true one; a class that is not the label's shares evenly.

    Args:
        labels: classes, shape (B,).
        subclasses: number within its class of each sample's subclass, shape (B,), in [0, S).
        num_classes: C.
        num_subclasses: S.

    Returns:
        Shape (B, C, S).

    Raises:
        ValueError: labels or subclasses have another shape, type or range.

    Example:
        >>> import torch
        >>> known_shares(torch.tensor([1]), torch.tensor([0]), num_classes=2, num_subclasses=2)
        tensor([[[0.5000, 0.5000],
                 [1.0000, 0.0000]]])
    """
    check_positive(num_classes=num_classes, num_subclasses=num_subclasses)
    check_labels(labels, len(labels), num_classes)
    check_labels(subclasses, len(labels), num_subclasses, "subclasses")
    own = F.one_hot(labels, num_classes).unsqueeze(2)
    return torch.where(own == 1, F.one_hot(subclasses, num_subclasses).unsqueeze(1), 1 / num_subclasses)


def subclass_targets(teacher_logits: Tensor, shares: Tensor, temperature: float = 1.0) -> Tensor:
    """The teacher's class probabilities, shared among subclasses, equation (4).

    Args:
        teacher_logits: shape (B, C).
        shares: shape (B, C, S), as `subclass_shares` returns.
        temperature: τ > 0 of the class probabilities.

    Returns:
        p of shape (B, SC), subclass s of class c at place cS + s; each row sums to 1.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> subclass_targets(torch.zeros(1, 2), torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
        tensor([[0.3750, 0.1250, 0.2500, 0.2500]])
    """
    probabilities = soften(teacher_logits.detach(), temperature)
    if shares.ndim != 3 or shares.shape[:2] != teacher_logits.shape:
        raise ValueError(
            f"shares must have shape (B, C, S) with (B, C) = {tuple(teacher_logits.shape)}, got {tuple(shares.shape)}."
        )
    return (probabilities.unsqueeze(2) * shares).flatten(1)


def subclass_loss(outputs: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of the student's SC probabilities from the targets, times τ², equation (5).

    Args:
        outputs: o of the student, shape (B, SC).
        targets: p, shape (B, SC); no gradient flows into them.
        temperature: τ > 0, the one of the targets.

    Returns:
        Scalar, at least 0; 0 if and only if the student says what the targets say.

    Raises:
        ValueError: shapes differ, a value is not finite, a row of `targets` is no distribution, or `temperature` is
            not positive.

    Example:
        >>> import torch
        >>> outputs = torch.zeros(1, 4, requires_grad=True)
        >>> subclass_loss(outputs, torch.tensor([[0.5, 0.5, 0.0, 0.0]])).backward()
        >>> outputs.grad
        tensor([[-0.2500, -0.2500,  0.2500,  0.2500]])
    """
    check_logits(outputs=outputs, targets=targets)
    check_positive(temperature=temperature)
    targets = targets.detach()
    if readable(targets) and (float(targets.min()) < 0 or float((targets.sum(dim=1) - 1).abs().max()) > 1e-3):
        raise ValueError("targets must be probabilities that sum to 1 in each row, see subclass_targets.")
    return F.kl_div(F.log_softmax(outputs / temperature, dim=1), targets, reduction="batchmean") * temperature**2


def class_logits(outputs: Tensor, num_classes: int, temperature: float = 1.0) -> Tensor:
    """Class scores of a student with SC outputs: the softmax of these is the sum over subclasses.

    Args:
        outputs: shape (B, SC).
        num_classes: C, which divides the number of outputs.
        temperature: τ > 0. Subclass probabilities at τ sum to the softmax of the result divided by τ.

    Returns:
        Shape (B, C).

    Raises:
        ValueError: `outputs` is not a finite matrix whose width C divides, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> class_logits(torch.log(torch.tensor([[1.0, 3.0, 2.0, 2.0]])), num_classes=2).exp()
        tensor([[4., 4.]])
    """
    check_logits(outputs=outputs)
    check_positive(num_classes=num_classes, temperature=temperature)
    if outputs.shape[1] % num_classes:
        raise ValueError(f"num_classes must divide the number of outputs, {outputs.shape[1]}, got {num_classes}.")
    grouped = outputs.unflatten(1, (num_classes, -1))
    return temperature * torch.logsumexp(grouped / temperature, dim=2)


class SubclassProjection(nn.Module):
    r"""From a teacher's embeddings and logits to subclass targets, equations (2) and (4); made by `fit_projection`.

    As directions lie in the null space, $u^\top\tilde f=u^\top f$, so that the scores of (2) are one linear map. It is
    constant.

    Args:
        directions: $u_{c,s}/\kappa_c$, shape (C, D, S).
        offsets: what is added to the scores, shape (C, S); $-u_{c,s}^\top\mu_c/\kappa_c$ for (2).
        beta: β > 0.
        temperature: τ > 0 of the class probabilities.

    Raises:
        ValueError: shapes do not fit, or a number is not positive.

    Shape: embeddings (B, D) and teacher logits (B, C); targets (B, SC).

    Example:
        >>> import torch
        >>> projection = SubclassProjection(torch.eye(2).repeat(2, 1, 1), torch.zeros(2, 2))
        >>> projection(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    directions: Tensor
    offsets: Tensor

    def __init__(self, directions: Tensor, offsets: Tensor, beta: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive(beta=beta, temperature=temperature)
        if directions.ndim != 3 or offsets.shape != (directions.shape[0], directions.shape[2]):
            raise ValueError(
                f"directions and offsets must have shapes (C, D, S) and (C, S), got {tuple(directions.shape)} and "
                f"{tuple(offsets.shape)}."
            )
        self.register_buffer("directions", directions)
        self.register_buffer("offsets", offsets)
        self.beta = beta
        self.temperature = temperature

    def scores(self, embeddings: Tensor) -> Tensor:
        """Scores a of shape (B, C, S) from embeddings (B, D)."""
        _check_matrix(embeddings=embeddings)
        if embeddings.shape[1] != self.directions.shape[1]:
            raise ValueError(f"embeddings must have width {self.directions.shape[1]}, got {embeddings.shape[1]}.")
        return torch.einsum("bd,cds->bcs", embeddings.detach(), self.directions) + self.offsets

    def forward(self, embeddings: Tensor, teacher_logits: Tensor) -> Tensor:
        """Targets (B, SC) from embeddings (B, D) and teacher logits (B, C)."""
        return subclass_targets(teacher_logits, subclass_shares(self.scores(embeddings), self.beta), self.temperature)


def fit_projection(
    embeddings: Tensor,
    labels: Tensor,
    weight: Tensor,
    num_subclasses: int,
    *,
    split: Split = "pca",
    null_space: bool = True,
    rotate: bool = True,
    scale: Scale = "none",
    beta: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
) -> SubclassProjection:
    r"""Find the subclasses of a frozen teacher's embeddings, equations (1) and (2).

    Args:
        embeddings: of the teacher's training samples, shape (N, D).
        labels: their classes, shape (N,).
        weight: W of the teacher's last layer, shape (C, D).
        num_subclasses: S.
        split: "pca" as in (2); "random" for orthonormal directions drawn evenly; "kmeans" for the clusters of each
            class, by the scores $m_s^\top(\tilde f-\mu_c)-\frac12\lVert m_s\rVert^2$ with centres $m_s$ relative to
            the mean: their softmax at β = 1 is that of half the squared distances, negated.
        null_space: leave out what moves the logits, (1); without effect where nothing would be left (D ≤ C).
        rotate: the rotation of (2), "pca" only.
        scale: "none" for κ = 1, "class" to make β a multiple of the scores' standard deviation.
        beta: β > 0.
        temperature: τ > 0 of the class probabilities.
        seed: of rotation, random directions and clustering.

    Returns:
        The projection, in the precision and on the device of `embeddings`.

    Raises:
        ValueError: a value is not finite, shapes do not fit, a class has no sample, S exceeds N_c − 1 or the rank of
            Π, a number is not positive, or a choice is unknown.

    Example:
        >>> import torch
        >>> embeddings = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        >>> projection = fit_projection(embeddings, torch.arange(40) % 2, torch.eye(6)[:2], num_subclasses=3)
        >>> projection(embeddings, torch.zeros(40, 2)).shape
        torch.Size([40, 6])
    """
    _check_matrix(embeddings=embeddings, weight=weight)
    check_choice("split", split, ("pca", "random", "kmeans"))
    check_choice("scale", scale, ("none", "class"))
    if weight.shape[1] != embeddings.shape[1]:
        raise ValueError(f"weight must have the width of embeddings, {embeddings.shape[1]}, got {weight.shape[1]}.")
    check_labels(labels, len(embeddings), len(weight))
    projection = null_space_projection(weight)
    rank = round(float(projection.trace()))
    if not null_space or rank == 0:
        projection, rank = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device), weight.shape[1]
    counts = torch.bincount(labels, minlength=len(weight))
    largest = min(int(counts.min()) - 1, rank)
    if not 1 <= num_subclasses <= largest:
        raise ValueError(
            f"num_subclasses must lie between 1 and {largest}, got {num_subclasses}: the smallest class has "
            f"{int(counts.min())} samples, the projection rank {rank}."
        )
    generator = torch.Generator().manual_seed(seed)
    projected = embeddings.detach().double() @ projection
    found = []
    for label in range(len(weight)):
        mean, directions, offsets = _split(projected[labels == label], projection, num_subclasses, split, generator)
        if rotate and split == "pca":
            directions = directions @ random_rotation(num_subclasses, generator).to(directions.device)
        own = (projected[labels == label] - mean) @ directions
        unit = own.var(dim=0, unbiased=False).mean().sqrt() if scale == "class" else 1.0
        found.append((directions / unit, (offsets - mean @ directions) / unit))
    directions, offsets = (torch.stack(parts).to(embeddings.dtype) for parts in zip(*found, strict=True))
    return SubclassProjection(directions, offsets, beta, temperature)


def _split(
    points: Tensor, projection: Tensor, num_subclasses: int, split: Split, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), directions (D, S) and offsets (S,) of one class's projected embeddings (N_c, D)."""
    offsets = points.new_zeros(num_subclasses)
    if split == "pca":
        mean, directions = principal_directions(points, num_subclasses)
        return mean, projection @ directions, offsets
    mean = points.mean(dim=0)
    if split == "random":
        drawn = torch.randn(len(projection), num_subclasses, generator=generator, dtype=torch.float64)
        return mean, torch.linalg.qr(projection @ drawn.to(points.device)).Q, offsets
    state = int(torch.randint(2**31, (), generator=generator))
    clusters = KMeans(num_subclasses, n_init=10, random_state=state).fit((points - mean).cpu().numpy())
    centres = torch.from_numpy(clusters.cluster_centers_).to(points)
    return mean, centres.T, -centres.square().sum(dim=1) / 2


class SummedSubclasses(nn.Module):
    """A student of SC outputs seen as one of C classes: for prediction, and for baselines with its head.

    Args:
        student: maps inputs (B, …) to outputs (B, SC).
        num_classes: C.

    Raises:
        ValueError: `num_classes` is not positive.

    Shape: inputs of the student; logits (B, C).

    Example:
        >>> import torch
        >>> SummedSubclasses(nn.Linear(3, 10), num_classes=2)(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, student: nn.Module, num_classes: int) -> None:
        super().__init__()
        check_positive(num_classes=num_classes)
        self.student = student
        self.num_classes = num_classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C)."""
        return class_logits(self.student(inputs), self.num_classes)


class SubclassDistillation(Learner):
    """A student of SC outputs that learns subclass targets: equation (5), mixed with labels if wanted.

    Where the batch carries `subclass_targets` they are used. Else, as augmentation needs it, the teacher runs and a
    fixed projection makes them.

    Args:
        student: maps inputs (B, …) to outputs (B, SC).
        num_classes: C.
        temperature: τ > 0, the one of the targets.
        alpha: weight α in [0, 1] of the subclass term; the labels get 1 − α, which is 0 in the paper and by default.
        teacher: network with `embed` and `classifier`, frozen by this learner; may be left out if data carry targets.
        projection: from `fit_projection`; wanted with a teacher.

    Raises:
        ValueError: a number is out of range, or only one of `teacher` and `projection` is given; in training, neither
            they nor targets are there.

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import MLP
        >>> targets = torch.full((6, 10), 0.1)
        >>> batch = Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 2, subclass_targets=targets)
        >>> list(SubclassDistillation(MLP(4, (8,), 10), num_classes=2).losses(batch))
        ['subclasses']
    """

    def __init__(
        self,
        student: nn.Module,
        num_classes: int,
        temperature: float = 1.0,
        alpha: float = 1.0,
        teacher: nn.Module | None = None,
        projection: SubclassProjection | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, temperature=temperature)
        check_fraction(alpha=alpha)
        if (teacher is None) != (projection is None):
            raise ValueError("teacher and projection must be given together, got one of them.")
        if projection is not None and not math.isclose(projection.temperature, temperature):
            raise ValueError(f"temperature must be that of projection, {projection.temperature}, got {temperature}.")
        self.model = student
        self.num_classes = num_classes
        self.temperature = temperature
        self.alpha = alpha
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.projection = projection
        self.frozen = ("teacher",) if teacher is not None else ()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        outputs = self.model(batch.inputs)
        soft = subclass_loss(outputs, self._targets(batch), self.temperature)
        if self.alpha == 1:
            return {"subclasses": soft}
        hard = F.cross_entropy(class_logits(outputs, self.num_classes), batch.labels)
        return {"subclasses": self.alpha * soft, "cross_entropy": (1 - self.alpha) * hard}

    def _targets(self, batch: Any) -> Tensor:
        if "subclass_targets" in batch:
            return batch.subclass_targets
        if self.teacher is None or self.projection is None:
            raise ValueError("SubclassDistillation needs a teacher and a projection, or data with subclass_targets.")
        teacher: Any = self.teacher
        with torch.no_grad():
            embeddings = teacher.embed(batch.inputs)
            return self.projection(embeddings, teacher.classifier(embeddings))


def _check_matrix(**matrices: Tensor) -> None:
    for name, matrix in matrices.items():
        if matrix.ndim != 2 or matrix.numel() == 0 or not matrix.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point matrix that is not empty, got {matrix.dtype} of shape "
                f"{tuple(matrix.shape)}."
            )
        check_finite(**{name: matrix})
