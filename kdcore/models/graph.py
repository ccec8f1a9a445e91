"""Graph networks by PyTorch Geometric (extra "graphs")."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import torch
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
            from kdcore.models.geometric import GATConv, GCNConv, SAGEConv
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
        self.kind = kind
        self._of_last_edges: tuple[Tensor, int, Tensor] | None = None

    def forward(self, features: Tensor, edges: Tensor) -> Tensor:
        """Logits (N, C) of node features (N, F) and edges (2, E)."""
        graph = self._adjacency(edges, features) if self.kind == "gcn" else edges
        for number, convolution in enumerate(self.convolutions):
            if number:
                features = F.dropout(F.relu(features), self.dropout, self.training)
            features = convolution(features, graph)
        return features

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_of_last_edges": None}  # such a matrix can be neither copied nor pickled

    def _adjacency(self, edges: Tensor, features: Tensor) -> Tensor:
        """The weighted adjacency matrix (N, N) of a "gcn", target by source, kept for the next call with these edges.

        A product with it is three times as fast as gathering and scattering the rows of every edge.
        """
        from kdcore.models.geometric import gcn_norm

        kept, nodes = self._of_last_edges, len(features)
        same_edges = kept is not None and kept[0] is edges and kept[1] == edges._version
        if kept is None or not same_edges or len(kept[2]) != nodes or kept[2].dtype != features.dtype:
            (source, target), weights = gcn_norm(edges, num_nodes=nodes, dtype=features.dtype)
            places = torch.stack([target, source])
            matrix = torch.sparse_coo_tensor(places, weights, (nodes, nodes), check_invariants=True).coalesce()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that this layout is in beta
                kept = self._of_last_edges = edges, edges._version, matrix.to_sparse_csr()
        return kept[2]
