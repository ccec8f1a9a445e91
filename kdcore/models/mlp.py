"""A multilayer perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from kdcore.checks import check_positive

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them; inputs are flattened.

    Args:
        in_features: numbers per sample after flattening.
        hidden: width of each hidden layer, in order.
        num_classes: C.
        dropout: probability, after each hidden layer.

    Shape: inputs (B, …) with in_features numbers per sample; logits (B, C).

    Example:
        >>> import torch
        >>> MLP(64, (16,), 10)(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self, in_features: int, hidden: tuple[int, ...] = (128,), num_classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, num_classes=num_classes)
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(in_features, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_features, num_classes)

    def embed(self, inputs: Tensor) -> Tensor:
        """The last hidden layer, (B, d)."""
        return self.layers(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classifier(self.embed(inputs))
