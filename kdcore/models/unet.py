"""A small U-Net for segmentation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_positive

__all__ = ["UNet"]


class UNet(nn.Module):
    """Encoder and decoder over `depth` resolutions, joined by skip connections.

    Level l (from 0) works at 1/2^l of the input's resolution with ``width · 2**l`` channels; each level is two 3×3
    convolutions, batch norm and ReLU on the way down (max pooling between levels) and one on the way up (bilinear
    upsampling, concatenated with the encoder's map of that level). A 1×1 convolution gives the logits.

    With `auxiliary` a second 1×1 convolution reads the decoder's map at half resolution; its logits are upsampled to
    the input's size. This low-level head sees the whole image but not the finest skip connection.

    Args:
        width: channels of the first level.
        depth: number of levels.
        in_channels: of the input.
        num_classes: C.
        auxiliary: add the low-level head, for `heads`; needs depth ≥ 2.

    Raises:
        ValueError: an argument is not positive, or `auxiliary` with depth < 2; on a call: inputs are not
            (B, in_channels, H, W) with H and W divisible by 2**(depth − 1).

    Shape: inputs (B, in_channels, H, W); logits (B, C, H, W).

    Example:
        >>> import torch
        >>> UNet(width=4)(torch.zeros(2, 3, 32, 16)).shape
        torch.Size([2, 6, 32, 16])
    """

    def __init__(
        self, width: int = 16, depth: int = 3, in_channels: int = 3, num_classes: int = 6, auxiliary: bool = False
    ) -> None:
        super().__init__()
        check_positive(width=width, depth=depth, in_channels=in_channels, num_classes=num_classes)
        if auxiliary and depth < 2:
            raise ValueError(f"depth must be at least 2 with auxiliary=True, got {depth}.")
        self.widths = [width * 2**level for level in range(depth)]
        self.in_channels = in_channels
        before = [in_channels, *self.widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(_convolution(a, b), _convolution(b, b)) for a, b in zip(before, self.widths, strict=True)
        )
        # In the order of use: from the second coarsest level to the finest.
        self.decoder = nn.ModuleList(_convolution(2 * b + b, b) for b in reversed(self.widths[:-1]))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.auxiliary = nn.Conv2d(self.widths[1], num_classes, 1) if auxiliary else None
        self.to(memory_format=torch.channels_last)  # a quarter faster on a CPU, and what tensor cores want

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C, H, W) of inputs (B, in_channels, H, W)."""
        return self.classifier(self._decode(inputs)[-1])

    def heads(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the final and of the low-level head, both (B, C, H, W).

        Raises:
            ValueError: the network was built without `auxiliary`.
        """
        if self.auxiliary is None:
            raise ValueError("heads needs UNet(auxiliary=True), got a network with one head.")
        maps = self._decode(inputs)
        return self.classifier(maps[-1]), _upsample(self.auxiliary(maps[-2]))

    def _decode(self, inputs: Tensor) -> list[Tensor]:
        """The decoder's maps from coarse to fine, the bottleneck first."""
        self._check(inputs)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            skips.append(block(F.max_pool2d(skips[-1], 2) if level else inputs))
        maps = [skips.pop()]
        for block in self.decoder:
            maps.append(block(torch.cat([_upsample(maps[-1]), skips.pop()], dim=1)))
        return maps

    def _check(self, inputs: Tensor) -> None:
        if inputs.ndim != 4 or inputs.shape[1] != self.in_channels:
            raise ValueError(f"inputs must have shape (B, {self.in_channels}, H, W), got {tuple(inputs.shape)}.")
        factor = 2 ** (len(self.widths) - 1)
        height, width = inputs.shape[2:]
        if min(height, width) < 1 or height % factor or width % factor:
            raise ValueError(f"inputs must have H and W divisible by {factor}, got {height} × {width}.")


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def _upsample(features: Tensor) -> Tensor:
    """Twice the height and width."""
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
