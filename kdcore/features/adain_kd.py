r"""AdaIN-KD: the teacher judges the student's channel statistics by running on them.

Jing Yang, Brais Martinez, Adrian Bulat, Georgios Tzimiropoulos: *Knowledge distillation via adaptive instance
normalization*, 2020, arXiv 2003.04289.

**Idea.** The mean and standard deviation of each channel summarise what a layer has learned, but matching them by an
L2 loss treats all channels alike. Adaptive instance normalization instead transplants the student's statistics into
the teacher's map, and the rest of the frozen teacher runs on it. The damage to the teacher's output is the loss, so
that every statistic counts as much as it matters to the teacher.

**Equations.** At stages $\ell\in\mathcal S$: teacher map $F^t_\ell\in\mathbb R^{B\times C_\ell\times H\times W}$,
student map $F^s_\ell\in\mathbb R^{B\times C_\ell\times H'\times W'}$ after its connector, teacher's tail
$\mathcal T_{>\ell}$ from that map to logits, teacher logits $z^t\in\mathbb R^{B\times C}$:

$$\begin{aligned}
\mu_{bc}(F)&=\frac1{HW}\sum_{hw}F_{bchw},\\
\sigma_{bc}(F)&=\sqrt{\frac1{HW}\sum_{hw}\big(F_{bchw}-\mu_{bc}(F)\big)^2+\epsilon},\qquad\epsilon=10^{-5}
\end{aligned} \tag{1}$$

$$L_{SM}=\sum_\ell\frac1{BC_\ell}\sum_{bc}\Big[\big(\mu_{bc}(F^s_\ell)-\mu_{bc}(F^t_\ell)\big)^2
+\big(\sigma_{bc}(F^s_\ell)-\sigma_{bc}(F^t_\ell)\big)^2\Big] \tag{2}$$

$$\tilde F_\ell=\sigma(F^s_\ell)\odot\frac{F^t_\ell-\mu(F^t_\ell)}{\sigma(F^t_\ell)}+\mu(F^s_\ell) \tag{3}$$

$$\begin{aligned}
L_A&=\sum_\ell\frac1{BC}\big\lVert\mathcal T_{>\ell}(\tilde F_\ell)-z^t\big\rVert_2^2,\\
L&=\mathrm{CE}(z^s,y)+\lambda_{SM}L_{SM}+\lambda_AL_A
\end{aligned} \tag{4}$$

**Conventions.** Statistics are taken per sample, never over the batch, and the variance is the biased one; much AdaIN
code divides by $HW-1$. Only statistics of the student enter, so its maps may differ in height and width from the
teacher's. $F^t_\ell$ is a constant: the student's gradient passes through $\mu(F^s_\ell)$ and $\sigma(F^s_\ell)$ alone.
The tail runs with frozen weights and batch norm in evaluation mode, once per stage. Statistics are computed in
float32 at least, as $\epsilon$ is below half precision's normal range.

**Paper and code.** The authors published no code for this paper. Their follow-up (KD_SRRL, ICLR 2021) keeps the means
of (2) at the last map, without the deviations, and the squared distance of (4) between logits, both with weight 1.
Other output distances are offered because the paper's is not known: divergence at temperature $\tau$, or cross-entropy
with the labels.

**Source status.** Reconstructed: the idea and (3) from the abstract and memory; connector, reductions, weights and
distance from the authors' follow-up code. Adding $\epsilon$ inside the root, biased variance, the sum over stages
and the default stages are choices made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_labels,
    check_logits,
    check_maps,
    check_not_negative,
    check_positive,
)
from kdcore.foundations.hints import build_connectors
from kdcore.foundations.kd import distillation_loss
from kdcore.models.staged import StagedNetwork
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner

__all__ = [
    "EPSILON",
    "AdaINDistillation",
    "Inject",
    "OutputDistance",
    "adaptive_instance_norm",
    "channel_mean",
    "channel_std",
    "evaluation_loss",
    "mean_matching_loss",
    "statistics_matching_loss",
    "std_matching_loss",
]

EPSILON = 1e-5
"""ε inside the square root of equation (1)."""

Inject = Literal["both", "mean", "std"]
OutputDistance = Literal["mse", "kl", "ce"]


def channel_mean(features: Tensor) -> Tensor:
    """Mean of each sample's channels over the pixels, μ of equation (1).

    Args:
        features: shape (B, C, H, W).

    Returns:
        Shape (B, C), float32 where `features` has half precision.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, or is empty.

    Example:
        >>> import torch
        >>> channel_mean(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        tensor([[2., 5.]])
    """
    check_maps(features=features)
    return _mean(features)


def channel_std(features: Tensor) -> Tensor:
    """Standard deviation of each sample's channels over the pixels, σ of equation (1).

    Args:
        features: shape (B, C, H, W) with at least two pixels.

    Returns:
        Shape (B, C), float32 where `features` has half precision; at least √ε, also for a constant channel.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, is empty or has a single pixel.

    Example:
        >>> import torch
        >>> channel_std(torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]]))
        tensor([[1.0000, 0.0032]])
    """
    check_maps(features=features)
    return _std(features)


def mean_matching_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared difference of channel means, mean over channels and batch: the first half of (2), for one stage.

    Args:
        student_map: shape (B, C, H', W').
        teacher_map: shape (B, C, H, W); no gradient flows into it.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a map is not a finite floating-point (B, C, H, W) tensor, or batch sizes or channels differ.

    Example:
        >>> import torch
        >>> mean_matching_loss(torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 2, 2))
        tensor(4.)
    """
    check_maps(student_map=student_map, teacher_map=teacher_map)
    return F.mse_loss(_mean(student_map), _mean(teacher_map.detach()))


def std_matching_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared difference of channel deviations, mean over channels and batch: the second half of (2), for one stage.

    Args:
        student_map: shape (B, C, H', W') with at least two pixels.
        teacher_map: shape (B, C, H, W) with at least two pixels; no gradient flows into it.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: as `mean_matching_loss`, or a map has a single pixel.

    Example:
        >>> import torch
        >>> teacher_map = torch.tensor([[[[1.0, 3.0]]]])
        >>> std_matching_loss(3 * teacher_map, teacher_map)
        tensor(4.0000)
    """
    check_maps(student_map=student_map, teacher_map=teacher_map)
    return F.mse_loss(_std(student_map), _std(teacher_map.detach()))


def statistics_matching_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Distance of the statistics of one stage, means and deviations: a summand of equation (2).

    Args:
        student_map: shape (B, C, H', W') with at least two pixels.
        teacher_map: shape (B, C, H, W) with at least two pixels; no gradient flows into it.

    Returns:
        Scalar, at least 0; a constant a added to all of a student's map adds a² if the means were equal.

    Raises:
        ValueError: as `std_matching_loss`.

    Example:
        >>> import torch
        >>> teacher_map = torch.tensor([[[[1.0, 3.0]]]])
        >>> statistics_matching_loss(teacher_map.flip(3) + 2, teacher_map)
        tensor(4.)
    """
    return mean_matching_loss(student_map, teacher_map) + std_matching_loss(student_map, teacher_map)


def adaptive_instance_norm(student_map: Tensor, teacher_map: Tensor, inject: Inject = "both") -> Tensor:
    """The teacher's map with the student's channel statistics, equation (3).

    Args:
        student_map: shape (B, C, H', W'); gradient reaches it through its statistics.
        teacher_map: shape (B, C, H, W); a constant.
        inject: which of the student's statistics to put in; with "mean" or "std" the teacher keeps its other one.

    Returns:
        Shape (B, C, H, W), in the teacher map's precision. Values may be negative even where the teacher's are not.

    Raises:
        ValueError: a map is not a finite floating-point (B, C, H, W) tensor, batch sizes or channels differ, `inject`
            is unknown, or a map has a single pixel while the deviation is asked for.

    Example:
        >>> import torch
        >>> student_map, teacher_map = torch.tensor([[[[4.0, 8.0]]]]), torch.tensor([[[[1.0, 3.0]]]])
        >>> adaptive_instance_norm(student_map, teacher_map)
        tensor([[[[4.0000, 8.0000]]]])
        >>> adaptive_instance_norm(student_map, teacher_map, inject="mean")
        tensor([[[[5., 7.]]]])
    """
    check_choice("inject", inject, ("both", "mean", "std"))
    check_maps(student_map=student_map, teacher_map=teacher_map)
    fixed = at_least_float32(teacher_map.detach())
    mean = _mean(fixed)
    centred = fixed - mean[:, :, None, None]
    if inject != "mean":
        centred = centred * (_std(student_map) / _std(fixed))[:, :, None, None]
    new_mean = mean if inject == "std" else _mean(student_map)
    return (centred + new_mean[:, :, None, None]).to(teacher_map.dtype)


def evaluation_loss(
    evaluated_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    output_distance: OutputDistance = "mse",
    temperature: float = 4.0,
) -> Tensor:
    """Damage that the student's statistics do to the teacher's output, a summand of L_A in equation (4).

    Args:
        evaluated_logits: the teacher's logits on the transplanted map, shape (B, C).
        teacher_logits: the teacher's own logits, shape (B, C); no gradient flows into them.
        labels: shape (B,), integers in [0, C); used by "ce" alone.
        output_distance: "mse" is (4); "kl" the divergence of softened probabilities times τ²; "ce" the cross-entropy
            of the evaluated logits with the labels.
        temperature: τ > 0 of "kl".

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, a label is out of range, `output_distance` is
            unknown, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> evaluation_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), torch.tensor([1]))
        tensor(5.)
    """
    check_choice("output_distance", output_distance, ("mse", "kl", "ce"))
    check_positive(temperature=temperature)
    check_logits(evaluated_logits=evaluated_logits, teacher_logits=teacher_logits)
    check_labels(labels, *evaluated_logits.shape)
    if output_distance == "mse":
        return F.mse_loss(evaluated_logits, teacher_logits.detach())
    if output_distance == "kl":
        return distillation_loss(evaluated_logits, teacher_logits, temperature)
    return F.cross_entropy(evaluated_logits, labels)


class AdaINDistillation(Learner):
    """Cross-entropy, matched statistics and the teacher's evaluation of them, equation (4).

    Where channels differ, a connector (1×1 convolution, batch norm, ReLU) is trained along with the student.

    Args:
        student: trained; the attribute `model`.
        teacher: frozen by this learner.
        stages: the set S, from 0 or negative from the end, read in each network's own count.
        statistics_weight: λ_SM ≥ 0; at 0 statistics are not matched.
        evaluation_weight: λ_A ≥ 0; at 0 the teacher's tail is not run, and with both at 0 neither is the teacher.
        output_distance: see `evaluation_loss`.
        temperature: τ > 0 of the output distance "kl".
        inject: see `adaptive_instance_norm`; the matched statistics (2) are not affected.
        relu_after: clip the transplanted map at 0, as the tail was trained on maps that are never negative.

    Raises:
        ValueError: a weight is negative or not finite, `stages` does not fit the networks, `temperature` is not
            positive, or a choice is unknown.

    Example:
        >>> import torch
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> learner = AdaINDistillation(ConvNet(width=4), ConvNet(width=8))
        >>> batch = Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))
        >>> sorted(learner.losses(batch))
        ['cross_entropy', 'evaluation', 'statistics']
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork,
        stages: Sequence[int] = (-2, -1),
        statistics_weight: float = 1.0,
        evaluation_weight: float = 1.0,
        output_distance: OutputDistance = "mse",
        temperature: float = 4.0,
        inject: Inject = "both",
        relu_after: bool = False,
    ) -> None:
        super().__init__()
        check_not_negative(statistics_weight=statistics_weight, evaluation_weight=evaluation_weight)
        check_choice("output_distance", output_distance, ("mse", "kl", "ce"))
        check_choice("inject", inject, ("both", "mean", "std"))
        check_positive(temperature=temperature)
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.connectors = build_connectors(student, teacher, stages)
        self.stages = tuple(stages)
        self.statistics_weight = statistics_weight
        self.evaluation_weight = evaluation_weight
        self.output_distance = output_distance
        self.temperature = temperature
        self.inject = inject
        self.relu_after = relu_after

    def student_maps(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Student maps at `stages` after their connectors, each (B, C_l, H', W'), and student logits (B, C)."""
        maps, logits = self.model.maps(inputs)
        connected = zip(self.connectors, self.stages, strict=True)
        return [connector(maps[stage]) for connector, stage in connected], logits

    @torch.no_grad()
    def teacher_maps(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Teacher maps at `stages`, each (B, C_l, H, W), and teacher logits (B, C), without gradient."""
        maps, logits = self.teacher.maps(inputs)
        return [maps[stage] for stage in self.stages], logits

    def evaluated_logits(self, student_maps: list[Tensor], teacher_maps: list[Tensor]) -> list[Tensor]:
        """The teacher's logits (B, C) on each transplanted map, which equation (4) compares with its own.

        Args:
            student_maps: as `student_maps` gives them.
            teacher_maps: as `teacher_maps` gives them.

        Returns:
            One tensor (B, C) per stage; each stage is transplanted by itself.
        """
        logits = []
        for stage, student_map, teacher_map in zip(self.stages, student_maps, teacher_maps, strict=True):
            transplanted = adaptive_instance_norm(student_map, teacher_map, self.inject)
            tail = self.teacher.tail(stage)
            logits.append(tail(transplanted.relu() if self.relu_after else transplanted))
        return logits

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The three terms of L in equation (4), weighted, of `batch.inputs` and `batch.labels`."""
        if not (self.statistics_weight or self.evaluation_weight):
            return {"cross_entropy": _cross_entropy(self.model(batch.inputs), batch.labels)}
        teacher_maps, teacher_logits = self.teacher_maps(batch.inputs)
        student_maps, student_logits = self.student_maps(batch.inputs)
        terms = {"cross_entropy": _cross_entropy(student_logits, batch.labels)}
        if self.statistics_weight:
            matched = [statistics_matching_loss(*pair) for pair in zip(student_maps, teacher_maps, strict=True)]
            terms["statistics"] = self.statistics_weight * torch.stack(matched).sum()
        if self.evaluation_weight:
            judged = [
                evaluation_loss(logits, teacher_logits, batch.labels, self.output_distance, self.temperature)
                for logits in self.evaluated_logits(student_maps, teacher_maps)
            ]
            terms["evaluation"] = self.evaluation_weight * torch.stack(judged).sum()
        return terms


def _cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    check_labels(labels, *student_logits.shape)
    return F.cross_entropy(student_logits, labels)


def _mean(features: Tensor) -> Tensor:
    return at_least_float32(features).mean(dim=(2, 3))


def _std(features: Tensor) -> Tensor:
    if features.shape[2:].numel() < 2:
        raise ValueError(f"a map must have at least two pixels for a deviation, got {tuple(features.shape)}.")
    features = at_least_float32(features)
    centred = features - features.mean(dim=(2, 3), keepdim=True)
    return (centred.square().mean(dim=(2, 3)) + EPSILON).sqrt()  # almost three times as fast as var() on a CPU
