r"""AMA-KD: a small module replaces the teacher's later blocks, and makes maps of the student's size from its map.

Zhiyuan Wu, Hong Qi, Yu Jiang, Minghao Zhao, Chupeng Cui, Zongmin Yang, Xinhui Xue: *Activation Map Adaptation for
Effective Knowledge Distillation*, preprint 2020, arXiv 2010.13500.

**Idea.** A map from the middle of a teacher is made for the blocks that follow it there, and it has too many channels
for a small student. So these blocks are taken off, and an adaptation module takes their place: it turns the teacher's
map into one of the student's shape, from which a linear head can still solve the task. The student imitates that map.
The module is trained while the student is, so that the supervision is itself learned.

**Equations.** Teacher front $T_f$ (frozen) with map $M^t=T_f(x)\in\mathbb R^{B\times C_t\times H_t\times W_t}$;
student map $M^s\in\mathbb R^{B\times C_s\times H_s\times W_s}$ and logits $z^s$; labels $y$, $K$ classes; head $G$:
mean over pixels, then linear; $\mathrm{sg}$ stops the gradient.

$$A(M)=\mathrm{ReLU}\,\mathrm{BN}\,W_{1\times1}*\mathrm{ReLU}\,\mathrm{BN}\,W_{3\times3}*\mathrm{Pool}(M)
\in\mathbb R^{B\times C_s\times H_s\times W_s} \tag{1}$$

$$L_A=\mathrm{CE}(z^a,y)+\rho\,\tau^2\,\mathrm{KL}\big(\sigma(z^t/\tau)\,\|\,\sigma(z^a/\tau)\big),\qquad
z^a=G(A(M^t)) \tag{2}$$

$$L_{hint}=\frac1{BC_sH_sW_s}\big\lVert M^s-\mathrm{sg}\,A(M^t)\big\rVert^2 \tag{3}$$

$$L=L_A+\mathrm{CE}(z^s,y)+\lambda L_{hint} \tag{4}$$

A fixed hint asks for the reverse: a regressor must predict $M^t$ from $M^s$. If it is affine in the channels it has at
most $C_s$ directions to do so, and what it leaves of the variance is at least the tail of the spectrum
$\nu_1\ge\nu_2\ge\dots$ of the covariance of the channels of $M^t$ over images and pixels:

$$\min_{R,b}\mathrm E\lVert M^t-RM^s-b\rVert^2\ \ge\ \sum_{j>C_s}\nu_j \tag{5}$$

whatever the student computes. Without the stop in (3) (`mutual`) the module moves towards the student, too. If nothing
else teaches it and it is rich enough, it ends at the student's mean given the teacher's map, and the hint at

$$\min_AL_{hint}=\frac1{C_sH_sW_s}\mathrm E\,\mathrm{Var}\big[M^s\mid M^t\big] \tag{6}$$

which is least for a student map that is constant.

**Source status.** A reconstruction. Of the paper only title, authors and abstract were read. Stated there: an
activation map adaptive module replaces some blocks of the teacher, suitable supervision is sought adaptively during
training, a hidden layer of the teacher then prompts the student, the data are CIFAR-10. Everything else is a choice
made here: the form of (1), with $C_s$ channels between its convolutions, the head, (2) with $\rho=0$, the mean and
the stop in (3), $\lambda$, one backward pass for (4), no distillation of logits (``kd_weight=0``), and the two stages
that it is compared with.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_labels, check_maps, check_not_negative, check_positive, check_same_shape
from kdcore.foundations.kd import distillation_loss
from kdcore.models.staged import StagedNetwork
from kdcore.training.learners import Learner
from kdcore.training.teachers import carried_layers

__all__ = [
    "AdaptationModule",
    "AdaptedTeacher",
    "MapAdaptation",
    "adaptation_loss",
    "adapted_hint_loss",
    "unexplained_share",
]

Phase = Literal["joint", "adaptation", "hint"]


def adaptation_loss(
    adapted_logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    soft_weight: float = 0.0,
    temperature: float = 4.0,
) -> Tensor:
    """What the adaptation module is taught by: labels, and on demand the whole teacher's answers, equation (2).

    Args:
        adapted_logits: z^a, shape (B, K).
        labels: shape (B,).
        teacher_logits: z^t, shape (B, K), without gradient; needed where `soft_weight` is above 0.
        soft_weight: ρ ≥ 0.
        temperature: τ > 0.

    Returns:
        Scalar, at least 0; log K for equal logits and ρ = 0.

    Raises:
        ValueError: shapes, labels or values out of range, or teacher logits missing.

    Example:
        >>> round(adaptation_loss(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
        1.3863
    """
    check_labels(labels, *adapted_logits.shape)
    check_not_negative(soft_weight=soft_weight)
    loss = F.cross_entropy(adapted_logits, labels)
    if not soft_weight:
        return loss
    if teacher_logits is None:
        raise ValueError("soft_weight above 0 needs teacher_logits, got none (data carry them after with_teacher).")
    return loss + soft_weight * distillation_loss(adapted_logits, teacher_logits, temperature)


def adapted_hint_loss(student_map: Tensor, adapted_map: Tensor, mutual: bool = False) -> Tensor:
    """Mean squared difference of the student's map and the adapted one, equation (3).

    Args:
        student_map: M^s, shape (B, C, H, W), after its ReLU as A ends with one.
        adapted_map: A(M^t), of the same shape; no resizing, which is the module's work.
        mutual: let the gradient flow into the adapted map, too.

    Returns:
        Scalar, at least 0; the mean over all elements, so that λ does not depend on the size of the map.

    Raises:
        ValueError: the shapes differ, are not those of maps, or a value is not finite.

    Example:
        >>> adapted_hint_loss(torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 4, 4))
        tensor(4.)
    """
    check_maps(student_map=student_map, adapted_map=adapted_map)
    check_same_shape(student_map=student_map, adapted_map=adapted_map)
    return F.mse_loss(student_map, adapted_map if mutual else adapted_map.detach())


def unexplained_share(teacher_map: Tensor, channels: int) -> Tensor:
    """Least share of a map's variance that any affine map from so few channels leaves unexplained, equation (5).

    Args:
        teacher_map: shape (B, C, H, W).
        channels: C_s, at least 1; from C on nothing is left.

    Returns:
        Scalar in [0, 1]: the tail of the spectrum over its sum, computed in float64; 0 for a map without variance.

    Raises:
        ValueError: not a finite map, or `channels` is not positive.

    Example:
        >>> rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(unexplained_share(rows.view(4, 2, 1, 1), channels=1).item(), 6)
        0.2
    """
    check_maps(teacher_map=teacher_map)
    check_positive(channels=channels)
    pixels = teacher_map.detach().double().movedim(1, 3).flatten(0, 2)
    centred = pixels - pixels.mean(dim=0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).flip(0)
    share = spectrum[channels:].sum() / spectrum.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return share.to(teacher_map.dtype)


class AdaptationModule(nn.Module):
    """From the teacher's map to one of the student's shape that ends in a ReLU as the student's does, equation (1).

    Args:
        in_channels: C_t.
        out_channels: C_s, also between the two convolutions.
        size: height and width of the student's map.

    Raises:
        ValueError: a number is not positive.

    Shape: ``(B, in_channels, H_t, W_t)`` to ``(B, out_channels, *size)``.

    Example:
        >>> AdaptationModule(16, 4, (2, 2))(torch.rand(3, 16, 8, 8)).shape
        torch.Size([3, 4, 2, 2])
    """

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, height=size[0], width=size[1])
        self.size = tuple(size)
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(size),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )

    def forward(self, teacher_map: Tensor) -> Tensor:
        """The adapted map.

        Raises:
            ValueError: `teacher_map` is no map, or smaller than what is to be made of it.
        """
        check_maps(teacher_map=teacher_map)
        height, width = teacher_map.shape[2:]
        if height < self.size[0] or width < self.size[1]:
            raise ValueError(
                f"teacher_map must have at least {self.size} pixels, got {(height, width)}; take an earlier stage."
            )
        return self.layers(teacher_map)


class AdaptedTeacher(nn.Module):
    """The front of a teacher, frozen, followed by an adaptation module and a linear head.

    Args:
        teacher: trained; only its stem and its stages up to `stage` are kept.
        stage: the last stage that is kept, from 0 or negative from the end.
        out_channels: C_s of the student's map.
        size: its height and width.

    Raises:
        ValueError: the teacher has no such stage, or a number is not positive.

    Attributes:
        layer: name of the teacher's module after which it is cut.

    Shape: inputs (B, channels, H, W) and, if it is at hand, what the front makes of them; a pair of the adapted map
    ``(B, out_channels, *size)`` and logits (B, K).

    Example:
        >>> from kdcore.models import ConvNet
        >>> adapted = AdaptedTeacher(ConvNet(16), stage=1, out_channels=4, size=(2, 2))
        >>> adapted_map, logits = adapted(torch.rand(3, 1, 8, 8))
        >>> adapted_map.shape, logits.shape
        (torch.Size([3, 4, 2, 2]), torch.Size([3, 10]))
    """

    def __init__(self, teacher: StagedNetwork, stage: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        last = teacher.stage_number(stage)
        self.front = nn.Sequential(teacher.stem, *teacher.stages[: last + 1]).requires_grad_(False).eval()
        self.layer = f"stages.{last}"
        self.adaptation = AdaptationModule(teacher.widths[last], out_channels, size)
        classes = cast(nn.Linear, teacher.classifier).out_features
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out_channels, classes))

    def forward(self, inputs: Tensor, teacher_map: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if teacher_map is None:
            with torch.no_grad():
                teacher_map = self.front(inputs)
        adapted_map = self.adaptation(teacher_map)
        return adapted_map, self.head(adapted_map)


class MapAdaptation(Learner):
    """The method, equation (4), or one of the phases of its rival in two stages.

    Args:
        student: trained; the attribute `model`, all that is kept.
        adapted: the teacher's front with what is trained behind it; may be shared between phases. The front is not run
            where the batch carries its layer (see `kdcore.training.with_layers`).
        stage: of the student, whose map is compared; from 0 or negative from the end.
        weight: λ ≥ 0 of the hint.
        task_loss: teach the module by (2). Without it the module stays as it was initialised or, with `mutual`,
            follows the student.
        soft_weight: ρ ≥ 0 of (2); above 0 teacher logits are needed.
        kd_weight: of plain distillation of the student's logits, at τ = 4, which is no part of the method; above 0
            teacher logits are needed.
        teacher: the whole of it, frozen by this learner; answers where the data carry no `teacher_logits` (see
            `kdcore.training.with_teacher`), as with augmented images.
        mutual: see `adapted_hint_loss`.
        regressor: between the student's map and (3), trained and thrown away, as in FitNets; none in the method.
        phase: "joint" is the method. "adaptation" trains the module alone, "hint" the student's part up to `stage`
            alone, against a module that is frozen by then.

    Raises:
        ValueError: a weight is negative, the phase unknown, or the student has no such stage.

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> adapted = AdaptedTeacher(ConvNet(16), stage=1, out_channels=8, size=(4, 4))
        >>> batch = Arrays(inputs=torch.rand(3, 1, 8, 8), labels=torch.tensor([3, 5, 0]))
        >>> list(MapAdaptation(ConvNet(width=4, depth=2), adapted).losses(batch))
        ['adaptation', 'cross_entropy', 'hint']
    """

    def __init__(
        self,
        student: StagedNetwork,
        adapted: AdaptedTeacher,
        stage: int = -1,
        weight: float = 1.0,
        task_loss: bool = True,
        soft_weight: float = 0.0,
        kd_weight: float = 0.0,
        teacher: nn.Module | None = None,
        mutual: bool = False,
        regressor: nn.Module | None = None,
        phase: Phase = "joint",
    ) -> None:
        super().__init__()
        check_not_negative(weight=weight, soft_weight=soft_weight, kd_weight=kd_weight)
        check_choice("phase", phase, ("joint", "adaptation", "hint"))
        self.model = student
        self.adapted = adapted
        self.regressor = regressor or nn.Identity()
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.frozen = ("adapted" if phase == "hint" else "adapted.front", *([] if teacher is None else ["teacher"]))
        self.stage = student.stage_number(stage)
        self.weight, self.task_loss = weight, task_loss
        self.soft_weight, self.kd_weight = soft_weight, kd_weight
        self.mutual, self.phase = mutual, phase

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of the phase, weighted, of `batch.inputs` and `batch.labels`."""
        terms = {}
        (teacher_map,) = carried_layers(batch, [self.adapted.layer]) or (None,)
        adapted_map, adapted_logits = self.adapted(batch.inputs, teacher_map)
        if self.task_loss and self.phase != "hint":
            answers = self.teacher_logits(batch) if self.soft_weight else None
            terms["adaptation"] = adaptation_loss(adapted_logits, batch.labels, answers, self.soft_weight)
        if self.phase == "adaptation":
            return terms
        maps, logits = self.model.maps(batch.inputs)
        check_labels(batch.labels, *logits.shape)
        if self.phase == "joint":
            terms["cross_entropy"] = F.cross_entropy(logits, batch.labels)
            if self.kd_weight:
                terms["distillation"] = self.kd_weight * distillation_loss(logits, self.teacher_logits(batch), 4.0)
        terms["hint"] = self.weight * adapted_hint_loss(self.regressor(maps[self.stage]), adapted_map, self.mutual)
        return terms

    def teacher_logits(self, batch: Any) -> Tensor:
        """The whole teacher's answers (B, K), from the batch where it carries them.

        Raises:
            ValueError: it carries none, and there is no teacher.
        """
        if "teacher_logits" in batch:
            return batch.teacher_logits
        if self.teacher is None:
            raise ValueError("soft_weight or kd_weight above 0 needs a teacher, or data after with_teacher.")
        with torch.no_grad():
            return self.teacher(batch.inputs)
