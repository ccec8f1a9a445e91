"""Residual networks for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.models.staged import StagedNetwork

__all__ = ["ResNet"]


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, option B where shapes change)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(StagedNetwork):
    """ResNet for 32×32 images: three stages of 16, 32, 64 channels times `widen`.

    He et al. 2016, section 4.2; depth 6n + 2 for n blocks per stage: 8, 14, 20, 32, 56, 110. "resnet32x4" of the
    distillation literature is ``ResNet(32, widen=4)`` with a stem of 32 channels there, 64 here.

    Args:
        depth: 6n + 2.
        widen: multiplies the channels.
        in_channels: of the input.
        num_classes: C.

    Raises:
        ValueError: `depth` is not 6n + 2.

    Shape: inputs (B, in_channels, H, W), usually 32×32; logits (B, C).

    Example:
        >>> import torch
        >>> ResNet(8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int = 20, widen: int = 1, in_channels: int = 3, num_classes: int = 10) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, …), got {depth}.")
        widths = [16 * widen, 32 * widen, 64 * widen]
        before = [16 * widen, *widths[:-1]]
        blocks = (depth - 2) // 6
        stages: list[nn.Module] = [
            nn.Sequential(*[_Block(a if k == 0 else b, b, stride if k == 0 else 1) for k in range(blocks)])
            for a, b, stride in zip(before, widths, (1, 2, 2), strict=True)
        ]
        stem = nn.Sequential(
            nn.Conv2d(in_channels, before[0], 3, 1, 1, bias=False), nn.BatchNorm2d(before[0]), nn.ReLU()
        )
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(stem, stages, pool, nn.Linear(widths[-1], num_classes), widths)
