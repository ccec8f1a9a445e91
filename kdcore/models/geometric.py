"""The parts of PyTorch Geometric that the book uses, imported without transformers.

Its import loads transformers where that is installed, for some annotations; kept from it, it takes about a second less.
Whoever has loaded transformers before keeps it, and who asks for it later gets it. Warnings of the import are left
out: it compiles functions in a way that newer torch deprecates.

Importing this module without PyTorch Geometric (extra "graphs") raises `ImportError`.
"""

from __future__ import annotations

import sys
import warnings

_hidden = "transformers" not in sys.modules
if _hidden:
    sys.modules["transformers"] = None  # type: ignore[assignment]
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from torch_geometric.nn import GATConv, GCNConv, SAGEConv
        from torch_geometric.nn.conv.gcn_conv import gcn_norm
finally:
    if _hidden:
        del sys.modules["transformers"]

__all__ = ["GATConv", "GCNConv", "SAGEConv", "gcn_norm"]
