"""A plain convolutional network."""

from __future__ import annotations

from torch import nn

from kdcore.checks import check_positive
from kdcore.models.staged import StagedNetwork

__all__ = ["ConvNet"]


class ConvNet(StagedNetwork):
    """`depth` stages of 3×3 convolution, batch norm, ReLU; every stage but the first halves the map.

    Stage l (from 0) has ``width · 2**l`` channels. Global average pooling and one linear layer follow.

    Args:
        width: channels of the first stage.
        depth: number of stages.
        in_channels: of the input.
        num_classes: C.
        convolutions: convolutions per stage.

    Raises:
        ValueError: an argument is not positive.

    Shape: inputs (B, in_channels, H, W) with H, W ≥ 2**(depth − 1); logits (B, C).

    Example:
        >>> import torch
        >>> ConvNet(width=8, depth=2)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, width: int = 16, depth: int = 3, in_channels: int = 1, num_classes: int = 10, convolutions: int = 1
    ) -> None:
        check_positive(
            width=width, depth=depth, in_channels=in_channels, num_classes=num_classes, convolutions=convolutions
        )
        widths = [width * 2**level for level in range(depth)]
        before = [in_channels, *widths[:-1]]
        stages: list[nn.Module] = [
            _stage(a, b, stride=1 if level == 0 else 2, convolutions=convolutions)
            for level, (a, b) in enumerate(zip(before, widths, strict=True))
        ]
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Identity(), stages, pool, nn.Linear(widths[-1], num_classes), widths)


def _stage(in_channels: int, out_channels: int, stride: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(convolutions):
        first = number == 0
        layers += [
            nn.Conv2d(in_channels if first else out_channels, out_channels, 3, stride if first else 1, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
