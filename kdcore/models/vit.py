"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["VisionTransformer"]


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-norm encoder layers, mean over tokens, one linear layer.

    Dosovitskiy et al. 2021, arXiv 2010.11929, with mean pooling in place of the class token.

    Args:
        image_size: side of the square images.
        patch_size: side of a patch; divides `image_size`.
        width: of a token.
        depth: encoder layers.
        heads: of the attention; divides `width`.
        in_channels: of the input.
        num_classes: C.

    Raises:
        ValueError: `patch_size` does not divide `image_size`.

    Shape: inputs (B, in_channels, image_size, image_size); logits (B, C).

    Example:
        >>> import torch
        >>> VisionTransformer(image_size=8, patch_size=2, width=16, heads=2)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size {image_size}, got {patch_size}.")
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.classifier = nn.Linear(width, num_classes)

    def tokens(self, inputs: Tensor) -> Tensor:
        """Encoded tokens (B, patches, width)."""
        return self.encoder(self.patches(inputs).flatten(2).transpose(1, 2) + self.positions)

    def embed(self, inputs: Tensor) -> Tensor:
        """Mean token (B, width)."""
        return self.tokens(inputs).mean(dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classifier(self.embed(inputs))
