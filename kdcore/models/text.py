"""A small text classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcore.checks import check_not_negative, check_positive

__all__ = ["TextEncoder"]

_PADDING = 0


class TextEncoder(nn.Module):
    """Word embeddings, transformer layers, mean over the sentence's tokens, one linear layer.

    With `depth` 0 it is a bag of words: the mean embedding, blind to their order.

    Args:
        num_tokens: size of the vocabulary, padding and unknown word included.
        num_classes: C.
        width: of an embedding.
        depth: pre-norm encoder layers (Vaswani et al. 2017, arXiv 1706.03762), 0 or more.
        heads: of the attention; divides `width`.
        length: the longest sentence, L.
        dropout: probability, of whole embedding entries and inside the layers.

    Raises:
        ValueError: a size is not positive, `depth` is negative, or `heads` does not divide `width`.

    Shape: token numbers (B, L), int64, 0 for padding; logits (B, C).

    Example:
        >>> network = TextEncoder(num_tokens=50, width=8, depth=1, heads=2).eval()
        >>> short = torch.tensor([[5, 7, 0, 0], [9, 3, 4, 1]])
        >>> network(short).shape
        torch.Size([2, 2])
        >>> bool(torch.allclose(network(short)[0], network(short[:1, :2])[0], atol=1e-6))  # padding is not seen
        True
    """

    def __init__(
        self,
        num_tokens: int,
        num_classes: int = 2,
        width: int = 64,
        depth: int = 1,
        heads: int = 4,
        length: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(num_tokens=num_tokens, num_classes=num_classes, width=width, heads=heads, length=length)
        check_not_negative(depth=depth)
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}.")
        self.embedding = nn.Embedding(num_tokens, width, padding_idx=_PADDING)
        self.dropout = nn.Dropout(dropout)
        self.positions = nn.Parameter(0.02 * torch.randn(1, length, width)) if depth else None
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False) if depth else None
        self.classifier = nn.Linear(width, num_classes)

    def embed(self, inputs: Tensor) -> Tensor:
        """Mean over the sentence's tokens (B, width); 0 for a sentence without tokens in a bag of words."""
        padding = inputs == _PADDING
        tokens = self.dropout(self.embedding(inputs))
        if self.encoder is not None and self.positions is not None:
            # Attention needs a key to look at, even in an empty sentence.
            padding = padding.index_fill(1, torch.zeros(1, dtype=torch.long, device=padding.device), False)
            tokens = self.encoder(tokens + self.positions[:, : inputs.shape[1]], src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2)
        return (tokens * kept).sum(1) / kept.sum(1).clamp(min=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classifier(self.embed(inputs))
