r"""Distillation and data pruning: train on a part of the data, with the predictions of a teacher that saw all of it.

Emanuel Ben-Baruch, Adam Botach, Igor Kviatkovsky, Manoj Aggarwal, Gérard Medioni: *Distilling the Knowledge in Data
Pruning*, ICML 2025, arXiv 2403.07854.

**Idea.** Data pruning keeps the share $f$ of a training set, mostly its hardest samples by some score. With few
samples left, clever scores lose to chance. The paper lets the student see soft predictions of a teacher trained on
all samples. Then every score gains, chance is as good as any, and the less data is kept, the more weight the teacher
should have.

**Equations.** Training set of $N$ samples, kept share $f\in(0,1]$, $N_f=\mathrm{round}(fN)$ samples with the largest
score. Student logits $z^s$, teacher logits $z^t$, temperature $\tau$, weight $\alpha$; on a batch of kept samples

$$\begin{aligned}
L={}&(1-\alpha)\,L_{CE}(z^s,y)\\
&+\alpha\,\tau^2\,\frac1B\sum_i\mathrm{KL}\bigl(\mathrm{softmax}(z^t_i/\tau)\,\|\,
\mathrm{softmax}(z^s_i/\tau)\bigr)
\end{aligned} \tag{1}$$

which is `kdcore.foundations.kd.KnowledgeDistillation`. The scores, larger for harder samples, with $R$ networks
$z^{(r)}$ early in training, embeddings $h_i$ and one-hot labels $e_{y_i}$:

$$\mathrm{EL2N}_i=\frac1R\sum_r\bigl\lVert\mathrm{softmax}(z^{(r)}_i)-e_{y_i}\bigr\rVert_2 \tag{2}$$

$$\mathrm{GraNd}_i=\frac1R\sum_r\bigl\lVert\mathrm{softmax}(z^{(r)}_i)-e_{y_i}\bigr\rVert_2
\sqrt{\lVert h^{(r)}_i\rVert_2^2+1} \tag{3}$$

(3) is the norm of the gradient of the sample's loss at the last layer's weights and bias. *Forgetting* counts how
often a sample goes from right to wrong in training; *memorisation* is what the probability of its label loses when the
sample is left out.

**Theory.** In ridge regression, $y=X^\top\theta^*+\eta$ with $X\in\mathbb R^{d\times N}$ and noise of deviation
$\sigma$, the teacher fits a share of the columns and the student mixes labels and the teacher's predictions on its
own share. With $M_f=(X_fX_f^\top+\lambda I)^{-1}$ and $A_f=M_fX_fX_f^\top$,

$$\hat\theta_s(\alpha)=M_fX_f\bigl((1-\alpha)\,y_f+\alpha X_f^\top\hat\theta_t\bigr)
=(1-\alpha)\,M_fX_fy_f+\alpha A_f\hat\theta_t \tag{4}$$

The expected squared error over the noise is a parabola in $\alpha$,

$$\begin{aligned}
E\lVert\hat\theta_s-\theta^*\rVert^2={}&\bigl\lVert\underbrace{(A_f-I)\theta^*}_{b_0}
+\alpha\underbrace{A_f(A_t-I)\theta^*}_{b_1}\bigr\rVert^2\\
&+\sigma^2\bigl\lVert\underbrace{P_f}_{N_0}+\alpha\underbrace{(A_fP_t-P_f)}_{N_1}\bigr\rVert_F^2
\end{aligned} \tag{5}$$

where $P_f\in\mathbb R^{d\times N}$ holds $M_fX_f$ in the kept columns and zero elsewhere, and $P_t$ likewise. Its
minimum is at

$$\alpha^*=-\frac{b_0\cdot b_1+\sigma^2\langle N_0,N_1\rangle}
{\lVert b_1\rVert^2+\sigma^2\lVert N_1\rVert_F^2} \tag{6}$$

which may lie outside [0, 1].

**Conventions.** $f$ is the share that is kept; many works name the share that is thrown away. Scores and teacher use
all samples. $\tau^2$ and the divergence in (1) follow plain distillation; soft cross-entropy has the same gradient.
`alpha_for_fraction` is ours: the paper advises a larger weight for a smaller $f$ and, as far as known, gives no
formula.

**Source status.** Reconstructed from the abstracts, a digest and three reviews. The scores are those of the works
that proposed them: Paul et al. 2021 (arXiv 2107.07075) for (2) and (3), Toneva et al. 2019 (arXiv 1812.05159) for
forgetting, Feldman and Zhang 2020 (arXiv 2008.03703) for memorisation. (4) is from memory; (5) and (6) are derived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdcore.checks import check_finite, check_fraction, check_labels, check_not_negative, check_positive
from kdcore.data import Arrays
from kdcore.precision import at_least_float32
from kdcore.training import Budget, Supervised, fit, predict, seeded

__all__ = [
    "RidgePair",
    "alpha_for_fraction",
    "early_outputs",
    "el2n_score",
    "forgetting_score",
    "grand_score",
    "keep_hardest",
    "keep_random",
    "kept_count",
    "memorisation_score",
    "watch_training",
]


def kept_count(total: int, fraction: float) -> int:
    """Number of samples that are kept, N_f.

    Args:
        total: N ≥ 1.
        fraction: f in (0, 1], the share to keep.

    Returns:
        f·N, rounded to the nearest integer.

    Raises:
        ValueError: `fraction` lies outside (0, 1], or no sample would be left.

    Example:
        >>> kept_count(1000, 0.05), kept_count(7, 0.5)
        (50, 4)
    """
    check_positive(total=total)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], the share to keep, got {fraction!r}.")
    count = int(total * fraction + 0.5)
    if count < 1:
        raise ValueError(f"fraction {fraction!r} of {total} samples keeps none.")
    return count


def keep_hardest(scores: Tensor, fraction: float) -> Tensor:
    """The samples with the largest scores; those kept at a smaller share are among those kept at a larger one.

    Args:
        scores: shape (N,), larger for harder samples; of equal ones, the first are kept.
        fraction: f in (0, 1].

    Returns:
        Indices, shape (N_f,), the hardest first.

    Raises:
        ValueError: `scores` is not a finite vector, or `fraction` lies outside (0, 1] or keeps no sample.

    Example:
        >>> keep_hardest(torch.tensor([0.1, 0.9, 0.5, 0.9]), fraction=0.5)
        tensor([1, 3])
    """
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must have shape (N,) with at least one sample, got {tuple(scores.shape)}.")
    check_finite(scores=scores)
    return scores.argsort(descending=True, stable=True)[: kept_count(len(scores), fraction)]


def keep_random(total: int, fraction: float, seed: int = 0, labels: Tensor | None = None) -> Tensor:
    """Samples drawn without replacement; with one seed, a smaller share is part of a larger one.

    Args:
        total: N ≥ 1.
        fraction: f in (0, 1].
        seed: of the draw.
        labels: shape (N,); where given, every class is kept in proportion to its frequency.

    Returns:
        Indices, shape (N_f,).

    Raises:
        ValueError: `fraction` lies outside (0, 1] or keeps no sample, or `labels` has another length.

    Example:
        >>> keep_random(6, 0.5, seed=1).tolist() == keep_random(6, 1.0, seed=1)[:3].tolist()
        True
    """
    count = kept_count(total, fraction)
    if labels is None:
        return torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
    if labels.shape != (total,):
        raise ValueError(f"labels must have shape ({total},), got {tuple(labels.shape)}.")
    (kept,) = Arrays(labels=labels, row=torch.arange(total, device=labels.device)).split(count, seed=seed)
    return kept.row


def el2n_score(logits: Tensor, labels: Tensor) -> Tensor:
    """Length of the error of the predicted probabilities, mean over networks, equation (2).

    Args:
        logits: shape (R, N, C) of R networks, or (N, C) of one.
        labels: shape (N,).

    Returns:
        Shape (N,), in [0, √2]: 0 if sure and right, √2 if sure and wrong.

    Raises:
        ValueError: wrong shapes, a label out of range, or a value that is not finite.

    Example:
        >>> logits = torch.tensor([[30.0, 0.0], [0.0, 0.0], [0.0, 30.0]])
        >>> [round(score, 4) for score in el2n_score(logits, torch.tensor([0, 0, 0])).tolist()]
        [0.0, 0.7071, 1.4142]
    """
    return _error_lengths(logits, labels).mean(dim=0)


def grand_score(logits: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Norm of the gradient of a sample's loss at the last linear layer, mean over networks, equation (3).

    Args:
        logits: shape (R, N, C) of R networks, or (N, C) of one.
        embeddings: input of the last layer, shape (R, N, d), or (N, d).
        labels: shape (N,).

    Returns:
        Shape (N,), at least 0.

    Raises:
        ValueError: wrong shapes, a label out of range, or a value that is not finite.

    Example:
        >>> grand_score(torch.zeros(1, 2), torch.tensor([[3.0]]), torch.tensor([0]))
        tensor([2.2361])
    """
    errors = _error_lengths(logits, labels)
    embeddings = embeddings if embeddings.ndim == 3 else embeddings.unsqueeze(0)
    if embeddings.ndim != 3 or embeddings.shape[:2] != errors.shape:
        raise ValueError(f"embeddings must have shape {(*errors.shape, 'd')}, got {tuple(embeddings.shape)}.")
    check_finite(embeddings=embeddings)
    return (errors * (at_least_float32(embeddings).square().sum(dim=2) + 1).sqrt()).mean(dim=0)


def forgetting_score(right: Tensor) -> Tensor:
    """How often each sample goes from right to wrong; one that is never right gets more than any that is.

    Args:
        right: whether the sample was predicted correctly after each epoch, bool, shape (E, N).

    Returns:
        float32, shape (N,): a count from 0 to E/2, or E for a sample that is never right.

    Raises:
        ValueError: `right` is not a bool matrix with at least one epoch.

    Example:
        >>> forgetting_score(torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]).bool())
        tensor([2., 0., 4.])
    """
    if right.ndim != 2 or not len(right) or right.dtype != torch.bool:
        raise ValueError(
            f"right must be bool of shape (E, N) with at least one epoch, got {right.dtype} {tuple(right.shape)}."
        )
    forgotten = (right[:-1] & ~right[1:]).sum(dim=0)
    return torch.where(right.any(dim=0), forgotten, len(right)).float()


def memorisation_score(label_probabilities: Tensor, trained_on: Tensor) -> Tensor:
    """What the probability of a sample's label loses when the sample is left out, estimated from random subsets.

    Args:
        label_probabilities: probability that each of R networks gives to each sample's label, shape (R, N).
        trained_on: whether the network's training set held the sample, bool, shape (R, N).

    Returns:
        Shape (N,), in [-1, 1].

    Raises:
        ValueError: wrong shapes, or a sample that no network, or every network, was trained on.

    Example:
        >>> memorisation_score(torch.tensor([[0.9, 0.5], [0.2, 0.5]]), torch.tensor([[True, False], [False, True]]))
        tensor([0.7000, 0.0000])
    """
    if label_probabilities.ndim != 2 or trained_on.shape != label_probabilities.shape or trained_on.dtype != torch.bool:
        raise ValueError(
            f"trained_on must be bool of the shape (R, N) of label_probabilities, {tuple(label_probabilities.shape)}, "
            f"got {trained_on.dtype} {tuple(trained_on.shape)}."
        )
    seen = trained_on.sum(dim=0)
    if bool(((seen == 0) | (seen == len(trained_on))).any()):
        raise ValueError("every sample must be in the training set of some networks and not of others.")
    member = trained_on.to(label_probabilities.dtype)
    with_it = (label_probabilities * member).sum(dim=0) / member.sum(dim=0)
    without = (label_probabilities * (1 - member)).sum(dim=0) / (1 - member).sum(dim=0)
    return with_it - without


def early_outputs(
    build: Callable[[], nn.Module], rows: Arrays, budget: Budget, *, runs: int = 1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits and embeddings of the training samples after a few epochs: what EL2N and GraNd look at.

    Args:
        build: makes a network with `embed` and `classifier`, on the device of `rows`.
        rows: all training samples: `inputs` and `labels`.
        budget: a few epochs, at a constant rate as at the beginning of a longer training.
        runs: R ≥ 1, networks, each with a seed of its own.
        seed: of the first network.

    Returns:
        Logits (R, N, C) and embeddings (R, N, d).

    Raises:
        ValueError: `runs` is not positive.

    Example:
        >>> from kdcore.data import digits
        >>> from kdcore.models import MLP
        >>> rows, short = digits().train[:100], Budget(epochs=2, batch_size=50, schedule="constant")
        >>> [tuple(found.shape) for found in early_outputs(lambda: MLP(64), rows, short, runs=2)]
        [(2, 100, 10), (2, 100, 128)]
    """
    check_positive(runs=runs)
    found: list[tuple[Tensor, Tensor]] = []
    for run in range(seed, seed + runs):
        with seeded(run):
            network: Any = build()
        fit(Supervised(network), rows, budget, seed=run)
        with torch.no_grad():
            embeddings = network.embed(rows.inputs)
            found.append((network.classifier(embeddings), embeddings))
    logits, embeddings = zip(*found, strict=True)
    return torch.stack(logits), torch.stack(embeddings)


def watch_training(build: Callable[[], nn.Module], rows: Arrays, budget: Budget, *, seed: int = 0) -> Tensor:
    """Whether each training sample is predicted correctly, epoch by epoch: what forgetting counts.

    Args:
        build: makes a network on the device of `rows`.
        rows: all training samples: `inputs` and `labels`.
        budget: of the whole training.
        seed: of the network and of the order of its batches.

    Returns:
        bool, shape (E, N), one row per epoch.

    Example:
        >>> from kdcore.data import digits
        >>> from kdcore.models import MLP
        >>> watch_training(lambda: MLP(64), digits().train[:100], Budget(epochs=3, batch_size=50)).shape
        torch.Size([3, 100])
    """
    with seeded(seed):
        network = build()
    right: list[Tensor] = []

    def look() -> dict[str, float]:
        right.append(predict(network, rows.inputs).argmax(dim=1) == rows.labels)
        return {}

    fit(Supervised(network), rows, budget, seed=seed, evaluate=look)
    return torch.stack(right)


def alpha_for_fraction(fraction: float, low: float = 0.5, high: float = 1.0) -> float:
    """A weight of the teacher that falls linearly from `high` to `low` as more data is kept; ours, not the paper's.

    Args:
        fraction: f in (0, 1].
        low: weight for all data, in [0, 1].
        high: weight in the limit of no data, in [0, 1], at least `low`.

    Returns:
        α in [low, high].

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> alpha_for_fraction(0.1), alpha_for_fraction(1.0)
        (0.95, 0.5)
    """
    check_fraction(low=low, high=high)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], the share to keep, got {fraction!r}.")
    if low > high:
        raise ValueError(f"low must be at most high, got {low!r} and {high!r}.")
    return high - (high - low) * fraction


class RidgePair:
    """A ridge-regression teacher on some samples, and a student that mixes labels and teacher on others.

    Args:
        inputs: X, one sample per column, shape (d, N).
        student: the student's samples, indices of shape (N_f,).
        teacher: the teacher's samples, indices of shape (N_t,).
        regularisation: λ ≥ 0; 0 wants at least d samples for each.

    Raises:
        ValueError: wrong shapes, a negative λ, or λ = 0 with fewer samples than weights.

    Example:
        >>> pair = RidgePair(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), regularisation=1.0)
        >>> pair.solve(torch.tensor([4.0, 8.0]), alpha=0.0), pair.solve(torch.tensor([4.0, 8.0]), alpha=1.0)
        (tensor([2., 4.]), tensor([1., 2.]))
    """

    def __init__(self, inputs: Tensor, student: Tensor, teacher: Tensor, regularisation: float = 1.0) -> None:
        if inputs.ndim != 2 or student.ndim != 1 or teacher.ndim != 1:
            raise ValueError(
                "inputs must have shape (d, N), student and teacher must be indices, "
                f"got shapes {tuple(inputs.shape)}, {tuple(student.shape)}, {tuple(teacher.shape)}."
            )
        check_not_negative(regularisation=regularisation)
        self._student_map = _ridge_map(inputs, student, regularisation)  # P_f
        self._teacher_map = _ridge_map(inputs, teacher, regularisation)  # P_t
        self._shrink = self._student_map @ inputs.T  # A_f
        self._teacher_shrink = self._teacher_map @ inputs.T  # A_t

    def solve(self, targets: Tensor, alpha: float) -> Tensor:
        """The student's weights, equation (4).

        Args:
            targets: y of all samples, shape (N,).
            alpha: weight of the teacher.

        Returns:
            Shape (d,).
        """
        return (1 - alpha) * self._student_map @ targets + alpha * self._shrink @ (self._teacher_map @ targets)

    def expected_error(self, truth: Tensor, noise: float, alpha: float) -> float:
        """Squared distance of the student from the truth, expected over the noise, equation (5).

        Args:
            truth: θ*, shape (d,).
            noise: σ ≥ 0, standard deviation.
            alpha: weight of the teacher.
        """
        offset, bias, noise_offset, noise_slope = self._parabola(truth)
        squared_bias = (offset + alpha * bias).square().sum()
        variance = noise**2 * (noise_offset + alpha * noise_slope).square().sum()
        return float(squared_bias + variance)

    def best_alpha(self, truth: Tensor, noise: float) -> float:
        """The weight at which the expected error is least, equation (6); it may lie outside [0, 1].

        Args:
            truth: θ*, shape (d,).
            noise: σ ≥ 0, standard deviation.

        Returns:
            α*; NaN where the error does not depend on the weight.
        """
        offset, bias, noise_offset, noise_slope = self._parabola(truth)
        slope = offset @ bias + noise**2 * (noise_offset * noise_slope).sum()
        curvature = bias.square().sum() + noise**2 * noise_slope.square().sum()
        return float(-slope / curvature)

    def _parabola(self, truth: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b₀, b₁, N₀ and N₁ of equation (5)."""
        own, taught = self._shrink @ truth, self._shrink @ (self._teacher_shrink @ truth)
        taught_map = self._shrink @ self._teacher_map
        return own - truth, taught - own, self._student_map, taught_map - self._student_map


def _ridge_map(inputs: Tensor, kept: Tensor, regularisation: float) -> Tensor:
    """(X_f X_fᵀ + λI)⁻¹ X_f in the kept columns, zero in the others; shape (d, N)."""
    chosen = inputs[:, kept]
    gram = chosen @ chosen.T + regularisation * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
    if not regularisation and len(kept) < len(inputs):
        raise ValueError(f"{len(kept)} samples do not determine {len(inputs)} weights; regularisation must be above 0.")
    return torch.zeros_like(inputs).index_copy(1, kept, torch.linalg.solve(gram, chosen))


def _error_lengths(logits: Tensor, labels: Tensor) -> Tensor:
    """Length of softmax minus one-hot for each network and sample, shape (R, N)."""
    logits = logits if logits.ndim == 3 else logits.unsqueeze(0)
    if logits.ndim != 3 or logits.shape[2] < 2 or not logits.is_floating_point():
        raise ValueError(f"logits must have shape (R, N, C) or (N, C) with C >= 2, got {tuple(logits.shape)}.")
    check_labels(labels, *logits.shape[1:])
    check_finite(logits=logits)
    probabilities = at_least_float32(logits).softmax(dim=2)
    return (probabilities - nn.functional.one_hot(labels, logits.shape[2])).norm(dim=2)
