r"""Hints: a student's feature maps learn to predict the teacher's feature maps (FitNets).

Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, Carlo Gatta, Yoshua Bengio: *FitNets: Hints
for Thin Deep Nets*, ICLR 2015, arXiv 1412.6550.

**Idea.** Logits say what a teacher concluded, its inner maps say how it got there. A hint is such a map: the student's
map at a corresponding depth must allow a small regressor to reproduce it, pixel by pixel. The regressor bridges the
different numbers of channels and is thrown away after training.

**Equations.** Student map $F^s_\ell$, teacher map $F^t_\ell\in\mathbb R^{B\times C_\ell\times H\times W}$ at stage
$\ell\in\mathcal S$, connector $r_\ell$, student logits $z^s$, labels $y$, weight $\lambda$:

$$r(F)=\mathrm{ReLU}\big(\mathrm{BN}(W*F)\big),\qquad W\in\mathbb R^{C^t\times C^s\times1\times1} \tag{1}$$

$$L_{hint}(F^s,F^t)=\frac1{BCHW}\sum_{bchw}\big(F^s_{bchw}-F^t_{bchw}\big)^2 \tag{2}$$

$$L=\mathrm{CE}(z^s,y)+\lambda\sum_{\ell\in\mathcal S}L_{hint}\big(r_\ell(F^s_\ell),F^t_\ell\big) \tag{3}$$

**Conventions.** The paper has half the squared norm per sample where (2) has the mean over all elements, and it
trains in two phases: the hint on the lower part of the student first, then distillation of the logits. Widely used
re-implementations minimise (2) together with the cross-entropy, often with $\lambda=100$; (3) follows them. Where
height or width differ, both maps are averaged down to the smaller size, while the paper shrinks the student's map
with a larger convolution kernel.

**Source status.** Equations from knowledge of the paper, reduction read from a re-implementation (RepDistiller);
the average pooling is a choice made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_labels, check_maps, check_not_negative, check_positive
from kdcore.models.staged import StagedNetwork
from kdcore.training.learners import Learner
from kdcore.training.teachers import layers_of

__all__ = ["Connector", "HintDistillation", "build_connectors", "hint_loss"]


class Connector(nn.Sequential):
    """Changes the number of channels of a map with a 1×1 convolution, equation (1).

    The convolution starts He-normal (fan-out).

    Args:
        in_channels: of the student's map.
        out_channels: of the teacher's map.
        batch_norm_relu: follow the convolution, then without bias, by batch norm and ReLU, which suits a teacher map
            taken after its ReLU; else the connector is an affine map of the channels.

    Raises:
        ValueError: a number of channels is not positive.

    Shape: (B, in_channels, H, W) to (B, out_channels, H, W).

    Example:
        >>> import torch
        >>> Connector(4, 16)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, batch_norm_relu: bool = True) -> None:
        check_positive(in_channels=in_channels, out_channels=out_channels)
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=not batch_norm_relu)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, *([nn.BatchNorm2d(out_channels), nn.ReLU()] if batch_norm_relu else []))


def build_connectors(
    student: StagedNetwork, teacher: StagedNetwork, stages: Sequence[int], batch_norm_relu: bool = True
) -> nn.ModuleList:
    """One connector per stage, from the student's channels to the teacher's; the identity where they agree.

    Args:
        student: its `widths` give the channels that go in.
        teacher: its `widths` give the channels that come out.
        stages: numbers of stages, from 0 or negative from the end, read in each network's own count.
        batch_norm_relu: see `Connector`.

    Returns:
        As many modules as `stages`, in that order.

    Raises:
        ValueError: `stages` is empty, names a stage twice, or one that a network does not have.

    Example:
        >>> from kdcore.models import ConvNet
        >>> build_connectors(ConvNet(8), ConvNet(8), stages=(-1,))
        ModuleList(
          (0): Identity()
        )
    """
    for name, network in {"student": student, "teacher": teacher}.items():
        depth = len(network.widths)
        if not all(-depth <= stage < depth for stage in stages):
            raise ValueError(f"stages must lie in [{-depth}, {depth}) for the {name}, got {tuple(stages)}.")
        if not stages or len({stage % depth for stage in stages}) < len(stages):
            raise ValueError(f"stages must name at least one stage and none twice, got {tuple(stages)}.")
    pairs = [(student.widths[stage], teacher.widths[stage]) for stage in stages]
    return nn.ModuleList(nn.Identity() if a == b else Connector(a, b, batch_norm_relu) for a, b in pairs)


def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of two maps, equation (2).

    Args:
        student_map: shape (B, C, H, W), after the connector.
        teacher_map: shape (B, C, H', W'); no gradient flows into it. Where the sizes differ, each axis of both maps
            is reduced to the smaller size by adaptive average pooling.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a map is not a floating-point (B, C, H, W) tensor with elements, batch sizes or channels differ,
            or a value is not finite.

    Example:
        >>> import torch
        >>> hint_loss(torch.full((2, 3, 4, 4), 3.0), torch.ones(2, 3, 2, 2))
        tensor(4.)
    """
    check_maps(student_map=student_map, teacher_map=teacher_map)
    size = min(student_map.shape[2], teacher_map.shape[2]), min(student_map.shape[3], teacher_map.shape[3])
    return F.mse_loss(_pool(student_map, size), _pool(teacher_map.detach(), size))


def _pool(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else F.adaptive_avg_pool2d(features, size)


class HintDistillation(Learner):
    """Cross-entropy plus weighted hint losses at some stages, equation (3).

    Args:
        student: trained; the attribute `model`.
        teacher: frozen by this learner; not run where the batch carries its stages, the layers ``stages.0`` and so on
            (see `kdcore.training.with_layers`).
        stages: where hints are given, see `build_connectors`; the default is the last stage but one, the middle of
            three.
        weight: λ ≥ 0 of the sum of hint losses, 100 as in common re-implementations; at 0 the teacher is not run.
        batch_norm_relu: see `Connector`.

    Raises:
        ValueError: `weight` is negative or not finite, or `stages` does not fit the networks.

    Example:
        >>> import torch
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> learner = HintDistillation(ConvNet(width=4), ConvNet(width=8))
        >>> batch = Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))
        >>> sorted(learner.losses(batch))
        ['cross_entropy', 'hint']
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork,
        stages: Sequence[int] = (-2,),
        weight: float = 100.0,
        batch_norm_relu: bool = True,
    ) -> None:
        super().__init__()
        check_not_negative(weight=weight)
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.connectors = build_connectors(student, teacher, stages, batch_norm_relu)
        self.stages = tuple(stages)
        self.weight = weight

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy, and λ times the sum over stages of (2), of `batch.inputs` and `batch.labels`."""
        student_maps, student_logits = self.model.maps(batch.inputs)
        check_labels(batch.labels, *student_logits.shape)
        terms = {"cross_entropy": F.cross_entropy(student_logits, batch.labels)}
        if self.weight:
            names = [f"stages.{self.teacher.stage_number(stage)}" for stage in self.stages]
            pairs = zip(self.connectors, self.stages, layers_of(batch, names, self.teacher), strict=True)
            hints = [hint_loss(connector(student_maps[stage]), teacher_map) for connector, stage, teacher_map in pairs]
            terms["hint"] = self.weight * torch.stack(hints).sum()
        return terms
