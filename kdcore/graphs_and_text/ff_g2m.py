r"""FF-G2M: distil a graph network into an MLP, low and high frequencies apart.

Lirong Wu, Haitao Lin, Yufei Huang, Tianyu Fan, Stan Z. Li: *Extracting Low-/High-Frequency Knowledge from Graph
Neural Networks and Injecting it into MLPs: An Effective GNN-to-MLP Distillation Framework*, AAAI 2023,
arXiv 2305.10758.

**Idea.** An MLP classifies a node from its own features, without fetching neighbours, and learns what the graph knows
by copying a graph network's outputs. Those outputs are mostly smooth along edges, so plain copying is dominated by
the smooth part and the small differences between neighbours drown. FF-G2M teaches the two parts by losses of their
own: each node also copies its neighbours' outputs, and along each edge the size of the difference is preserved.

**Equations.** $N$ nodes, $C$ classes; logits $z^s,z^t\in\mathbb R^{N\times C}$ of student and teacher,
$p_i=\mathrm{softmax}(z_i)$; $\mathcal E$ holds every edge in both directions, without self loops,
$\mathcal E^+=\mathcal E\cup\{(i,i)\}$; $A$ is the adjacency matrix, $D$ its degrees,
$\tilde A=D^{-1/2}AD^{-1/2}$. A signal on the nodes is the sum of a low-pass and a high-pass part:

$$x=\tfrac12(I+\tilde A)\,x+\tfrac12(I-\tilde A)\,x \tag{1}$$

The low-frequency loss compares each student row with the teacher's at the node and at each neighbour,

$$L_{LFD}=\frac1{|\mathcal E^+|}\sum_{(i,j)\in\mathcal E^+}\mathrm{KL}\big(p^t_j\,\|\,p^s_i\big) \tag{4}$$

It is computed from the sums over neighbours, which do not change in training:

$$L_{LFD}=-\frac1{|\mathcal E^+|}\sum_i\Big\langle\sum_{j:(i,j)\in\mathcal E^+}p^t_j,\;\log p^s_i\Big\rangle
-\text{const} \tag{5}$$

The inner sum is row $i$ of $A^+p^t$ with $A^+=A+I$, so one product with the graph is enough for a whole training; the
constant is the mean entropy of the targets, $\frac1{|\mathcal E^+|}\sum_{(i,j)\in\mathcal E^+}\mathrm H(p^t_j)$. The
high-frequency loss has a temperature $\tau$,

$$L_{HFD}=\frac1{|\mathcal E|}\sum_{(i,j)\in\mathcal E}\mathrm{KL}\big(q^t_{ij}\,\|\,q^s_{ij}\big),\qquad
q_{ij}=\mathrm{softmax}\big(|z_i-z_j|/\tau\big) \tag{7}$$

and since $|z_i-z_j|=|z_j-z_i|$, both directions of an edge give the same summand: the mean over undirected edges is
the same number at half the price. With the label loss $L_{label}$, the mean of $-\log p^s_{iy_i}$ over the labelled
nodes $V_L$, and its weight $\lambda$,

$$L=\lambda L_{label}+(1-\lambda)\big(L_{LFD}+L_{HFD}\big) \tag{9}$$

The rival, GLNN (Zhang et al. 2022), copies node by node:

$$L_{GLNN}=\lambda L_{label}+(1-\lambda)\frac1N\sum_i\mathrm{KL}\big(p^t_i\,\|\,p^s_i\big)$$

**Conventions.** The published code is followed. KL is summed over classes and averaged over edges, so a node counts
as often as it has neighbours. Only (7) has a temperature, and no factor $\tau^2$. The absolute value is taken of raw
logits, class by class; $q$ is not what the classes' probabilities would give, and it forgets the sign, so (7) alone
cannot say which class is right. The paper puts the teacher at $i$ and the student at the neighbour $j$; on a
symmetric graph the sum is the same. One training step takes the whole graph.

**Source status.** Read from the authors' code; of the paper only the abstract was read, its spectral derivation and
its ablation rest on memory. `high_frequency_distance` is our choice of a measure for a quantity that our source only
names.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_fraction,
    check_labels,
    check_logits,
    check_positive,
    readable,
)
from kdcore.data.arrays import Arrays
from kdcore.data.graphs import GraphData
from kdcore.foundations.kd import distillation_loss
from kdcore.models import inference
from kdcore.training.learners import Learner

__all__ = [
    "GraphDistillation",
    "GraphTeacher",
    "NeighbourTargets",
    "add_self_loops",
    "difference_log_probabilities",
    "full_batch",
    "high_frequency_distance",
    "high_frequency_loss",
    "high_pass",
    "label_loss",
    "laplacian_spectrum",
    "low_frequency_cosine",
    "low_frequency_loss",
    "low_pass",
    "neighbour_cross_entropy",
    "neighbour_targets",
    "node_distillation_loss",
    "spectral_energy",
    "undirected_edges",
]

Mode = Literal["mlp", "glnn", "lfd", "hfd", "ff_g2m"]


# The graph


def undirected_edges(edges: Tensor, nodes: int) -> Tensor:
    """Each edge once, the smaller node number first.

    Args:
        edges: every edge in both directions, without self loops, int64, shape (2, E), E ≥ 2.
        nodes: N; node numbers lie in [0, N).

    Returns:
        Shape (2, E/2).

    Raises:
        ValueError: `edges` is no such tensor; a directed edge, which has no partner, is refused.

    Example:
        >>> import torch
        >>> undirected_edges(torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2]]), nodes=3)
        tensor([[0, 1],
                [1, 2]])
    """
    _check_edges(edges, nodes)
    _check_no_loops(edges)
    _check_symmetric(edges, nodes)
    return edges[:, edges[0] < edges[1]]


def add_self_loops(edges: Tensor, nodes: int) -> Tensor:
    """The edges and a loop at every node, from E to E⁺.

    Args:
        edges: without self loops, int64, shape (2, E); may be empty.
        nodes: N.

    Returns:
        Shape (2, E + N).

    Raises:
        ValueError: `edges` has another shape or type, a node number outside [0, N), or a self loop.

    Example:
        >>> import torch
        >>> add_self_loops(torch.tensor([[0, 1], [1, 0]]), nodes=3)
        tensor([[0, 1, 0, 1, 2],
                [1, 0, 0, 1, 2]])
    """
    _check_edges(edges, nodes, may_be_empty=True)
    _check_no_loops(edges)
    return torch.cat([edges, torch.arange(nodes, device=edges.device).expand(2, -1)], dim=1)


def low_pass(signal: Tensor, edges: Tensor) -> Tensor:
    """The part of a signal that is smooth along edges, first term of equation (1).

    Args:
        signal: shape (N, F).
        edges: every edge in both directions, without self loops, int64, shape (2, E).

    Returns:
        Shape (N, F); of a node without neighbours half its value.

    Raises:
        ValueError: `signal` is not a finite (N, F) matrix, or `edges` is no symmetric set of edges between N nodes.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[0, 1], [1, 0]])
        >>> low_pass(torch.tensor([[1.0], [3.0]]), pair).flatten()
        tensor([2., 2.])
    """
    return (signal + _normalised_neighbours(signal, edges)) / 2


def high_pass(signal: Tensor, edges: Tensor) -> Tensor:
    """The part of a signal that differs between neighbours, second term of equation (1).

    Args:
        signal: shape (N, F).
        edges: every edge in both directions, without self loops, int64, shape (2, E).

    Returns:
        Shape (N, F); of a node without neighbours half its value.

    Raises:
        ValueError: `signal` is not a finite (N, F) matrix, or `edges` is no symmetric set of edges between N nodes.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[0, 1], [1, 0]])
        >>> high_pass(torch.tensor([[1.0], [3.0]]), pair).flatten()
        tensor([-1.,  1.])
    """
    return (signal - _normalised_neighbours(signal, edges)) / 2


# The losses


def label_loss(student_logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Cross-entropy with the labels of the labelled nodes, $L_{label}$ of equation (9).

    Args:
        student_logits: of all nodes, shape (N, C).
        labels: of all nodes, int64, shape (N,); only those of labelled nodes are used.
        labelled: node numbers V_L, int64, shape (L,), L ≥ 1.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes, types, class or node numbers do not fit, or no node is labelled.

    Example:
        >>> import torch
        >>> label_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), labelled=torch.tensor([1]))
        tensor(0.6931)
    """
    check_logits(student_logits=student_logits)
    nodes, classes = student_logits.shape
    check_labels(labels, nodes, classes)
    if labelled.ndim != 1 or len(labelled) == 0:
        raise ValueError(f"labelled must have shape (L,) with L >= 1, got {tuple(labelled.shape)}.")
    check_labels(labelled, len(labelled), nodes, "labelled")
    return F.cross_entropy(student_logits.index_select(0, labelled), labels.index_select(0, labelled))


def node_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Each node copies the teacher's output at this node, the second term of GLNN.

    This is `kdcore.foundations.kd.distillation_loss` at temperature 1.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C); no gradient flows into them.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes differ, C < 2, or a value is not finite.

    Example:
        >>> import torch
        >>> node_distillation_loss(torch.zeros(1, 2), torch.tensor([[0.0, 50.0]]))
        tensor(0.6931)
    """
    return distillation_loss(student_logits, teacher_logits, temperature=1.0)


def low_frequency_loss(student_logits: Tensor, teacher_logits: Tensor, edges_with_loops: Tensor) -> Tensor:
    """Each node copies the teacher's outputs at this node and at its neighbours, equation (4), edge by edge.

    `neighbour_targets` and `neighbour_cross_entropy` give the same number faster where the teacher stays.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C); no gradient flows into them.
        edges_with_loops: E⁺, every edge in both directions and a loop at every node, int64, shape (2, E + N).

    Returns:
        Scalar, at least 0; 0 only if every node and its neighbours share one distribution.

    Raises:
        ValueError: logits do not fit, or `edges_with_loops` is empty, directed, has unknown nodes or lacks a loop.

    Example:
        >>> import torch
        >>> logits, loops = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 1]])
        >>> low_frequency_loss(logits, logits, loops)
        tensor(0.)
        >>> low_frequency_loss(logits, logits, torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]])) > 0.3
        tensor(True)
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _check_edges(edges_with_loops, len(student_logits), "edges_with_loops")
    _check_symmetric(edges_with_loops, len(student_logits), "edges_with_loops")
    _check_all_loops(edges_with_loops, len(student_logits))
    receiver, sender = edges_with_loops
    student = F.log_softmax(student_logits, dim=1).index_select(0, receiver)
    teacher = F.log_softmax(teacher_logits.detach(), dim=1).index_select(0, sender)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class NeighbourTargets(NamedTuple):
    """What equation (5) needs of the teacher and the graph.

    Attributes:
        probabilities: $A^+p^t/|E^+|$, shape (N, C); all entries together sum to 1.
        entropy: the subtracted constant, a scalar.

    Example:
        >>> import torch
        >>> loops = torch.tensor([[0, 1], [0, 1]])
        >>> round(neighbour_targets(torch.zeros(2, 4), loops).entropy.item(), 4)  # log 4: a teacher that knows nothing
        1.3863
    """

    probabilities: Tensor
    entropy: Tensor


def neighbour_targets(teacher_logits: Tensor, edges_with_loops: Tensor) -> NeighbourTargets:
    """The parts of equation (5) that stay the same throughout training.

    Args:
        teacher_logits: shape (N, C); no gradient flows into them.
        edges_with_loops: E⁺, every edge in both directions and a loop at every node, int64, shape (2, E + N).

    Returns:
        Target probabilities (N, C) and the mean entropy of the targets.

    Raises:
        ValueError: logits do not fit, or `edges_with_loops` is empty, directed, has unknown nodes or lacks a loop.

    Example:
        >>> import torch
        >>> pair = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]])
        >>> neighbour_targets(torch.tensor([[0.0, 50.0], [0.0, 0.0]]), pair).probabilities
        tensor([[0.1250, 0.3750],
                [0.1250, 0.3750]])
    """
    check_logits(teacher_logits=teacher_logits)
    _check_edges(edges_with_loops, len(teacher_logits), "edges_with_loops")
    _check_symmetric(edges_with_loops, len(teacher_logits), "edges_with_loops")
    _check_all_loops(edges_with_loops, len(teacher_logits))
    receiver, sender = edges_with_loops
    log_probabilities = F.log_softmax(teacher_logits.detach(), dim=1)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities).sum(dim=1).index_select(0, sender).mean()
    sums = torch.zeros_like(probabilities).index_add_(0, receiver, probabilities.index_select(0, sender))
    return NeighbourTargets(sums / edges_with_loops.shape[1], entropy)


def neighbour_cross_entropy(student_logits: Tensor, targets: NeighbourTargets) -> Tensor:
    """The low-frequency loss from precomputed targets, equation (5).

    Args:
        student_logits: shape (N, C).
        targets: of the same nodes and classes, from `neighbour_targets`.

    Returns:
        Scalar; equal to `low_frequency_loss` up to rounding.

    Raises:
        ValueError: `student_logits` is not finite or has another shape than the targets.

    Example:
        >>> import torch
        >>> logits, loops = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 1]])
        >>> neighbour_cross_entropy(logits, neighbour_targets(logits, loops)).abs() < 1e-6
        tensor(True)
    """
    check_logits(student_logits=student_logits, targets=targets.probabilities)
    return -(targets.probabilities * F.log_softmax(student_logits, dim=1)).sum() - targets.entropy


def difference_log_probabilities(logits: Tensor, edges: Tensor, temperature: float = 1.5) -> Tensor:
    """Logarithm of q, the softmax over the sizes of logit differences along edges, equation (7).

    Args:
        logits: shape (N, C).
        edges: without self loops, int64, shape (2, E), E ≥ 1.
        temperature: τ > 0.

    Returns:
        Shape (E, C), row e for edge e; the same for both directions of an edge.

    Raises:
        ValueError: `logits` is not a finite (N, C) matrix, `edges` is empty, has unknown nodes or a loop, or
            `temperature` is not positive.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> difference_log_probabilities(logits, torch.tensor([[0], [1]]), temperature=1.0).exp()
        tensor([[0.2689, 0.7311]])
    """
    check_logits(logits=logits)
    check_positive(temperature=temperature)
    _check_edges(edges, len(logits))
    _check_no_loops(edges)
    return F.log_softmax(_edge_differences(logits, edges) / temperature, dim=1)


def high_frequency_loss(
    student_logits: Tensor, teacher_logits: Tensor, edges: Tensor, temperature: float = 1.5
) -> Tensor:
    """Along each edge the sizes of logit differences keep the teacher's proportions, equation (7).

    Where student logits of neighbours agree in a class, the absolute value has subgradient 0: identical outputs
    get no gradient.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C); no gradient flows into them.
        edges: without self loops, int64, shape (2, E), E ≥ 1; each edge once (`undirected_edges`) or each in both
            directions, which gives the same number.
        temperature: τ > 0.

    Returns:
        Scalar, at least 0; unchanged by the sign of all student logits and by a row added to all of them.

    Raises:
        ValueError: logits do not fit, `edges` is empty, has unknown nodes or a loop, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> logits, edge = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0], [1]])
        >>> high_frequency_loss(5 - logits, logits, edge)
        tensor(0.)
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    student = difference_log_probabilities(student_logits, edges, temperature)
    teacher = difference_log_probabilities(teacher_logits.detach(), edges, temperature)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


# What a student has taken over


def low_frequency_cosine(student_logits: Tensor, teacher_logits: Tensor, edges: Tensor) -> Tensor:
    """Cosine between student's and teacher's mean logits over a node's neighbours, averaged over nodes.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C).
        edges: every edge in both directions, without self loops, int64, shape (2, E), E ≥ 2; nodes without
            neighbours do not count.

    Returns:
        Scalar in [−1, 1]; 1 if all neighbourhood means point the same way.

    Raises:
        ValueError: logits do not fit, or `edges` is no symmetric set of edges between N nodes.

    Example:
        >>> import torch
        >>> logits, pair = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0, 1], [1, 0]])
        >>> low_frequency_cosine(-3 * logits, logits, pair)
        tensor(-1.)
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    nodes = len(student_logits)
    undirected_edges(edges, nodes)
    # The cosine does not see the division by the degree: sums over neighbours do.
    student, teacher = (_neighbour_sum(logits, edges) for logits in (student_logits, teacher_logits))
    cosine = F.cosine_similarity(student, teacher, dim=1)
    return cosine[torch.bincount(edges[0], minlength=nodes) > 0].mean()


def high_frequency_distance(student_logits: Tensor, teacher_logits: Tensor, edges: Tensor) -> Tensor:
    r"""How far the student's differences along edges are from the teacher's: mean length of the gap over edges.

    Euclidean norm over classes of what equation (7) compares, before softmax and temperature. A constant added to
    one node's logits changes nothing in its prediction but would change differences, so each node's mean over
    classes is subtracted first.

    Args:
        student_logits: shape (N, C).
        teacher_logits: shape (N, C).
        edges: without self loops, int64, shape (2, E), E ≥ 1; each edge once or each in both directions.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: logits do not fit, or `edges` is empty, has unknown nodes or a loop.

    Example:
        >>> import torch
        >>> logits, edge = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[0], [1]])
        >>> high_frequency_distance(0 * logits, logits, edge)
        tensor(1.4142)
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    _check_edges(edges, len(student_logits))
    _check_no_loops(edges)
    student, teacher = (
        _edge_differences(logits - logits.mean(dim=1, keepdim=True), edges)
        for logits in (student_logits, teacher_logits)
    )
    return (student - teacher).norm(dim=1).mean()


def laplacian_spectrum(edges: Tensor, nodes: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    r"""Frequencies of a graph: eigenvalues and eigenvectors of $I-\tilde A$.

    Dense, of cost N³: some thousand nodes.

    Args:
        edges: every edge in both directions, without self loops, int64, shape (2, E), E ≥ 2.
        nodes: N.
        dtype: of the result.

    Returns:
        Eigenvalues (N,) from 0 to at most 2, rising, and eigenvectors (N, N), one a column.

    Raises:
        ValueError: `edges` is no symmetric set of edges between N nodes.

    Example:
        >>> import torch
        >>> values, _ = laplacian_spectrum(torch.tensor([[0, 1], [1, 0]]), nodes=2)
        >>> values.round(decimals=6).abs()
        tensor([0., 2.], dtype=torch.float64)
    """
    identity = torch.eye(nodes, dtype=dtype, device=edges.device)
    values, vectors = torch.linalg.eigh(identity - _normalised_neighbours(identity, edges))
    return values, vectors


def spectral_energy(signal: Tensor, eigenvectors: Tensor) -> Tensor:
    """Energy of a signal at each frequency of the graph.

    Args:
        signal: shape (N, F).
        eigenvectors: orthonormal columns, shape (N, N), from `laplacian_spectrum`.

    Returns:
        Shape (N,), each at least 0; their sum is the sum of squares of `signal`.

    Raises:
        ValueError: `signal` is not finite, or shapes do not fit.

    Example:
        >>> import torch
        >>> _, vectors = laplacian_spectrum(torch.tensor([[0, 1], [1, 0]]), nodes=2)
        >>> spectral_energy(torch.tensor([[1.0], [3.0]]), vectors).round(decimals=6)
        tensor([8., 2.], dtype=torch.float64)
    """
    if signal.ndim != 2 or eigenvectors.shape != (len(signal), len(signal)):
        raise ValueError(
            "signal must have shape (N, F) and eigenvectors (N, N), "
            f"got {tuple(signal.shape)} and {tuple(eigenvectors.shape)}."
        )
    check_finite(signal=signal)
    return (eigenvectors.T @ signal.to(eigenvectors.dtype)).square().sum(dim=1)


# The learners


def full_batch(graph: GraphData) -> Arrays:
    """Data for `kdcore.training.fit` when a learner takes the whole graph at each step: one row, one step per epoch.

    Args:
        graph: the learner's own graph; only its device matters.

    Returns:
        `Arrays` of length 1 that the learners here do not look at.

    Example:
        >>> from kdcore.data.graphs import digits_graph
        >>> len(full_batch(digits_graph()))
        1
    """
    return Arrays(graph=torch.zeros(1, device=graph.features.device))


class GraphTeacher(Learner):
    """A graph network learns the labelled nodes of its graph by the label loss, full batch.

    Args:
        model: maps features (N, F) and edges (2, E) to logits (N, C), like `kdcore.models.GraphNetwork`.
        graph: its features and edges of all nodes are used, of its labels those of the nodes in `graph.train`.

    Raises:
        ValueError: the graph is directed, has loops, no edge or no labelled node.

    Example:
        >>> from kdcore.data.graphs import digits_graph
        >>> from kdcore.models import GraphNetwork
        >>> from kdcore.training import Budget, fit
        >>> graph = digits_graph()
        >>> teacher = GraphTeacher(GraphNetwork("gcn", hidden=16), graph)
        >>> history = fit(teacher, full_batch(graph), Budget(epochs=2, optimizer="adam", lr=0.01))
        >>> teacher.logits().shape
        torch.Size([1797, 10])
    """

    features: Tensor
    edges: Tensor
    labels: Tensor
    labelled: Tensor

    def __init__(self, model: nn.Module, graph: GraphData) -> None:
        super().__init__()
        undirected_edges(graph.edges, len(graph.features))
        self.model = model
        _register(self, features=graph.features, edges=graph.edges, labels=graph.labels, labelled=graph.train)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy on the labelled nodes; `batch` is not used, a step takes the whole graph."""
        return {"label": label_loss(self.model(self.features, self.edges), self.labels, self.labelled)}

    def logits(self) -> Tensor:
        """Logits (N, C) of all nodes in evaluation mode, without gradient; the learner's mode is as before."""
        with inference(self):
            return self.model(self.features, self.edges)


class GraphDistillation(Learner):
    """An MLP learns from labels and from a graph network's logits, equation (9) or GLNN, full batch.

    The student sees features alone; the graph enters through the losses. What they need of teacher and graph is
    computed once: the targets of equation (5) and the teacher's part of equation (7), per undirected edge.

    Args:
        student: maps features (N, F) to logits (N, C).
        graph: features of all nodes are used (transductive training), labels of `graph.train` only.
        teacher_logits: of all nodes, computed in evaluation mode, shape (N, C).
        mode: "ff_g2m" is (9); "lfd" and "hfd" keep one of its two distillation terms; "glnn" copies node by node;
            "mlp" is the label loss alone, without λ.
        temperature: τ > 0 of equation (7).
        label_weight: λ in [0, 1].

    Raises:
        ValueError: an argument is out of range, teacher logits do not fit the graph, or the graph is directed, has
            loops, no edge or no labelled node.

    Example:
        >>> import torch
        >>> from kdcore.data.graphs import digits_graph
        >>> from kdcore.models import MLP
        >>> graph = digits_graph()
        >>> learner = GraphDistillation(MLP(64), graph, teacher_logits=torch.zeros(1797, 10))
        >>> list(learner.losses(full_batch(graph)))
        ['label', 'low_frequency', 'high_frequency']
    """

    features: Tensor
    labels: Tensor
    labelled: Tensor
    teacher_logits: Tensor
    edges: Tensor
    target_probabilities: Tensor
    target_entropy: Tensor
    teacher_differences: Tensor

    def __init__(
        self,
        student: nn.Module,
        graph: GraphData,
        teacher_logits: Tensor,
        mode: Mode = "ff_g2m",
        temperature: float = 1.5,
        label_weight: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, get_args(Mode))
        check_positive(temperature=temperature)
        check_fraction(label_weight=label_weight)
        nodes = len(graph.features)
        if len(teacher_logits) != nodes:
            raise ValueError(f"teacher_logits must have a row for each of {nodes} nodes, got {len(teacher_logits)}.")
        self.model = student
        self.mode: Mode = mode
        self.temperature = temperature
        self.label_weight = label_weight
        edges = undirected_edges(graph.edges, nodes)
        targets = neighbour_targets(teacher_logits, add_self_loops(graph.edges, nodes))
        _register(self, features=graph.features, labels=graph.labels, labelled=graph.train, edges=edges)
        _register(self, target_probabilities=targets.probabilities, target_entropy=targets.entropy)
        _register(self, teacher_logits=teacher_logits.detach())
        _register(self, teacher_differences=difference_log_probabilities(self.teacher_logits, edges, temperature))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The weighted terms of the mode; `batch` is not used, a step takes the whole graph."""
        logits = self.model(self.features)
        labels = label_loss(logits, self.labels, self.labelled)
        if self.mode == "mlp":
            return {"label": labels}
        terms = {"label": self.label_weight * labels}
        if self.mode == "glnn":
            terms["node"] = (1 - self.label_weight) * node_distillation_loss(logits, self.teacher_logits)
        if self.mode in ("lfd", "ff_g2m"):
            terms["low_frequency"] = (1 - self.label_weight) * self._low_frequency(logits)
        if self.mode in ("hfd", "ff_g2m"):
            terms["high_frequency"] = (1 - self.label_weight) * self._high_frequency(logits)
        return terms

    def _low_frequency(self, logits: Tensor) -> Tensor:
        return neighbour_cross_entropy(logits, NeighbourTargets(self.target_probabilities, self.target_entropy))

    def _high_frequency(self, logits: Tensor) -> Tensor:
        # As `difference_log_probabilities`, of edges that have been checked once.
        student = F.log_softmax(_edge_differences(logits, self.edges) / self.temperature, dim=1)
        return F.kl_div(student, self.teacher_differences, reduction="batchmean", log_target=True)


def _register(learner: nn.Module, **tensors: Tensor) -> None:
    """Tensors that move with the learner but are data, not weights: they stay out of its state."""
    for name, tensor in tensors.items():
        learner.register_buffer(name, tensor, persistent=False)


def _neighbour_sum(signal: Tensor, edges: Tensor) -> Tensor:
    return torch.zeros_like(signal).index_add(0, edges[0], signal.index_select(0, edges[1]))


def _edge_differences(signal: Tensor, edges: Tensor) -> Tensor:
    """Sizes of differences along edges, (E, F)."""
    return (signal.index_select(0, edges[0]) - signal.index_select(0, edges[1])).abs()


def _normalised_neighbours(signal: Tensor, edges: Tensor) -> Tensor:
    r"""$\tilde Ax$; 0 where a node has no neighbour."""
    if signal.ndim != 2:
        raise ValueError(f"signal must have shape (N, F), got {tuple(signal.shape)}.")
    check_finite(signal=signal)
    undirected_edges(edges, len(signal))
    degree = torch.bincount(edges[0], minlength=len(signal)).to(signal.dtype)
    scale = degree.clamp(min=1).rsqrt()[:, None]
    return scale * _neighbour_sum(scale * signal, edges)


def _check_edges(edges: Tensor, nodes: int, name: str = "edges", may_be_empty: bool = False) -> None:
    """Raise `ValueError` unless `edges` are pairs of node numbers in [0, nodes)."""
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise ValueError(f"{name} must be int64 of shape (2, E), got {edges.dtype} {tuple(edges.shape)}.")
    if edges.shape[1] == 0 and not may_be_empty:
        raise ValueError(f"{name} must hold at least one edge, got none.")
    if edges.shape[1] and readable(edges) and (int(edges.min()) < 0 or int(edges.max()) >= nodes):
        raise ValueError(
            f"{name} must lie in [0, {nodes}), got node numbers from {int(edges.min())} to {int(edges.max())}."
        )


def _check_no_loops(edges: Tensor) -> None:
    if readable(edges) and bool((edges[0] == edges[1]).any()):
        raise ValueError(f"edges must not hold self loops, got {int((edges[0] == edges[1]).sum())}.")


def _check_all_loops(edges: Tensor, nodes: int) -> None:
    """Raise `ValueError` unless every node has exactly one self loop."""
    if not readable(edges):
        return
    loops = torch.bincount(edges[0][edges[0] == edges[1]], minlength=nodes)
    if bool((loops != 1).any()):
        raise ValueError(
            f"edges_with_loops must hold one self loop for each of {nodes} nodes, got {int(loops.sum())} "
            f"at {int((loops > 0).sum())} nodes."
        )


def _check_symmetric(edges: Tensor, nodes: int, name: str = "edges") -> None:
    """Raise `ValueError` unless every edge occurs as often in one direction as in the other."""
    if not readable(edges):
        return
    forward, backward = edges[0] * nodes + edges[1], edges[1] * nodes + edges[0]
    if not torch.equal(forward.sort().values, backward.sort().values):
        lonely = int((~torch.isin(forward, backward)).sum())
        raise ValueError(f"{name} must list both directions of every edge, got {lonely} that have no opposite.")
