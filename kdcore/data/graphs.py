"""Graphs for node classification: digits joined to their nearest neighbours, and Cora."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcore.checks import check_positive
from kdcore.data.dataset import MissingDataError, data_folders, verify_file
from kdcore.data.digits import all_digits

__all__ = ["GraphData", "cora", "digits_graph", "nearest_neighbour_graph"]

_CORA_FILES = {
    "ind.cora.x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
}


@dataclass(frozen=True)
class GraphData:
    """One graph whose nodes are to be classified.

    Attributes:
        features: (N, F) float32.
        labels: (N,) int64.
        edges: (2, E) int64, both directions listed, no self loops, no duplicates.
        train: node numbers whose labels may be used.
        validation: node numbers for early stopping.
        test: node numbers for the report.

    Example:
        >>> graph = digits_graph()
        >>> graph.num_classes, len(graph.train), bool((graph.edges[0] == graph.edges[1]).any())
        (10, 50, False)
    """

    features: Tensor
    labels: Tensor
    edges: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1

    def to(self, device: torch.device | str) -> GraphData:
        """The same graph on `device`."""
        return GraphData(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


def nearest_neighbour_graph(points: Tensor, neighbours: int = 5) -> Tensor:
    """Edges (2, E) of the symmetrised graph that joins each point to its nearest neighbours.

    Args:
        points: (N, F).
        neighbours: k ≥ 1, fewer than N.

    Raises:
        ValueError: `neighbours` is out of range.

    Example:
        >>> nearest_neighbour_graph(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1)
        tensor([[0, 1, 1, 2],
                [1, 0, 2, 1]])
    """
    from sklearn.neighbors import kneighbors_graph

    if not 1 <= neighbours < len(points):
        raise ValueError(f"neighbours must lie in [1, {len(points)}), got {neighbours}.")
    adjacency = kneighbors_graph(points.flatten(1).numpy(), neighbours)
    rows, columns = adjacency.maximum(adjacency.T).nonzero()
    return torch.from_numpy(np.stack([rows, columns])).long()


def digits_graph(
    labels_per_class: int = 5,
    *,
    neighbours: int = 5,
    noise: float = 0.3,
    validation_size: int = 300,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> GraphData:
    """The 1,797 digits as nodes; neighbours by clean pixels, features with noise, so that the graph adds knowledge.

    Args:
        labels_per_class: labelled nodes of each class.
        neighbours: k of the nearest-neighbour graph.
        noise: standard deviation of the Gaussian noise added to the features (pixels in [0, 1]).
        validation_size: nodes for early stopping; the rest is for testing.
        seed: of noise and split.
        device: where the tensors lie.

    Example:
        >>> digits_graph().train.shape
        torch.Size([50])
    """
    check_positive(labels_per_class=labels_per_class, validation_size=validation_size)
    data = all_digits()
    pixels = data.inputs.flatten(1)
    generator = torch.Generator().manual_seed(seed)
    features = pixels + noise * torch.randn(pixels.shape, generator=generator)
    order = torch.randperm(len(pixels), generator=generator)
    rank = torch.zeros(len(order), dtype=torch.long)
    for label in range(10):
        members = data.labels[order] == label
        rank[members] = torch.arange(int(members.sum()))
    train, rest = order[rank < labels_per_class], order[rank >= labels_per_class]
    edges = nearest_neighbour_graph(pixels, neighbours)
    validation, test = rest[:validation_size], rest[validation_size:]
    return GraphData(features, data.labels, edges, train, validation, test).to(device)


def cora(data_dir: str | Path | None = None, *, device: torch.device | str = "cpu") -> GraphData:
    """Cora: 2,708 papers, 7 topics, bags of words, the public Planetoid split (20 labels per class).

    Args:
        data_dir: folder that holds `planetoid/ind.cora.*`; see `data_folders` for the others tried.
        device: where the tensors lie.

    Raises:
        MissingDataError: the files are in none of the folders.
        ValueError: a file is corrupt or holds anything but arrays.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "planetoid").mkdir()
        >>> for name in _CORA_FILES:
        ...     _ = (folder / "planetoid" / name).write_bytes(b"not the original")
        >>> cora(folder)
        Traceback (most recent call last):
        ValueError: ...ind.cora.x is corrupt (...); delete it and try again.
    """
    folders = [folder / "planetoid" for folder in data_folders(data_dir)]
    found = [folder for folder in folders if all((folder / name).exists() for name in _CORA_FILES)]
    if not found:
        raise MissingDataError(
            f"Cora is not on this machine. Put the Planetoid files {', '.join(_CORA_FILES)} into {folders[0]}, "
            "or name the folder above by data_dir or KDCORE_DATA."
        )
    for name, sha256 in _CORA_FILES.items():
        verify_file(found[0] / name, sha256)
    parts = {name.rsplit(".", 1)[1]: _read(found[0] / name) for name in _CORA_FILES}
    order = parts["index"]
    rows = len(parts["allx"]) if isinstance(parts["allx"], np.ndarray) else parts["allx"].shape[0]
    features, labels = np.zeros((rows + len(order), parts["allx"].shape[1])), np.zeros(rows + len(order), dtype=int)
    features[:rows], labels[:rows] = parts["allx"].toarray(), parts["ally"].argmax(1)
    features[order], labels[order] = parts["tx"].toarray(), parts["ty"].argmax(1)
    features /= np.maximum(features.sum(axis=1, keepdims=True), 1)
    pairs = np.array([(a, b) for a, neighbours in parts["graph"].items() for b in neighbours if a != b])
    edges = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0).T.copy()
    labelled = parts["y"].shape[0]
    return GraphData(
        features=torch.from_numpy(features).float(),
        labels=torch.from_numpy(labels).long(),
        edges=torch.from_numpy(edges).long(),
        train=torch.arange(labelled),
        validation=torch.arange(labelled, labelled + 500),
        test=torch.from_numpy(np.sort(order)).long(),
    ).to(device)


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything but arrays, sparse matrices and dictionaries."""

    def find_class(self, module: str, name: str) -> Any:
        import importlib

        modern = {"numpy.core.multiarray": "numpy._core.multiarray", "scipy.sparse.csr": "scipy.sparse"}
        allowed = {
            ("collections", "defaultdict"),
            ("_codecs", "encode"),
            ("builtins", "list"),
            ("__builtin__", "list"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("scipy.sparse.csr", "csr_matrix"),
        }
        if (module, name) not in allowed:
            raise ValueError(f"refused to unpickle {module}.{name}: the file should hold arrays only.")
        return list if name == "list" else getattr(importlib.import_module(modern.get(module, module)), name)


def _read(path: Path) -> Any:
    if path.suffix == ".index":
        return np.loadtxt(path, dtype=int)
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()
