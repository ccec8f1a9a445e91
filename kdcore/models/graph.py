"""Graph networks by PyTorch Geometric (extra "graphs")."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_positive

__all__ = ["GraphNetwork"]


class GraphNetwork(nn.Module):
    """Graph convolutions with ReLU and dropout between them.

    Args:
        kind: "gcn" (Kipf and Welling 2017), "sage" (Hamilton et al. 2017, mean) or "gat" (4 heads, Veličković 2018).
        in_features: F.
        hidden: width of the hidden layers.
        num_classes: C.
        layers: number of convolutions.
        dropout: before every convolution but the first.

    Raises:
        ValueError: unknown `kind`.
        ImportError: PyTorch Geometric is not installed.

    Shape: features (N, F) and edges (2, E); logits (N, C).

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> GraphNetwork("gcn", in_features=4, hidden=8, num_classes=3)(torch.zeros(2, 4), edges).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        kind: str = "gcn",
        in_features: int = 64,
        hidden: int = 128,
        num_classes: int = 10,
        layers: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, ("gcn", "sage", "gat"))
        check_positive(in_features=in_features, hidden=hidden, num_classes=num_classes, layers=layers)
        try:
            from kdcore.models.geometric import GATConv, GCNConv, SAGEConv, gcn_norm
        except ImportError as error:
            raise ImportError("graph networks need PyTorch Geometric: pip install 'kdcore[graphs]'") from error

        def convolution(before: int, after: int, last: bool) -> nn.Module:
            if kind == "gat":
                return GATConv(before, after if last else after // 4, heads=1 if last else 4)
            return GCNConv(before, after, normalize=False) if kind == "gcn" else SAGEConv(before, after)

        widths = [in_features, *[hidden] * (layers - 1), num_classes]
        self.convolutions = nn.ModuleList(
            convolution(a, b, last=k == layers - 1) for k, (a, b) in enumerate(pairwise(widths))
        )
        self.dropout = dropout
        self.weigh = gcn_norm if kind == "gcn" else None  # once for all layers, which would each do it anew

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """Logits (N, C) of node features (N, F) and edges (2, E)."""
        weighted = self.weigh(edges, num_nodes=len(features), dtype=features.dtype) if self.weigh else (edges,)
        for number, convolution in enumerate(self.convolutions):
            if number:
                features = F.dropout(F.relu(features), self.dropout, self.training)
            features = convolution(features, *weighted)
        return features
