"""Check of the chapter on FF-G2M: the gradient of the low-frequency loss by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise, gradient_of
from kdcore.graphs_and_text import ff_g2m

__all__ = ["EXERCISES"]


def _cases() -> list[dict]:
    """Random graphs in which degrees differ and one node has no neighbour."""
    generator, cases = torch.Generator().manual_seed(2305), []
    for nodes, classes, share in [(12, 3, 0.3), (7, 4, 0.5), (20, 2, 0.1)]:
        linked = (torch.rand(nodes, nodes, generator=generator) < share).triu(diagonal=1)
        linked[:, -1] = False
        edges = (linked | linked.T).nonzero().T
        student, teacher = (2 * torch.randn(nodes, classes, generator=generator) for _ in range(2))
        with_loops = ff_g2m.add_self_loops(edges, nodes)
        cases.append({"student_logits": student, "teacher_logits": teacher, "edges_with_loops": with_loops})
    return cases


def _pairs(edges: Tensor, nodes: int) -> Tensor:
    """How many pairs each node receives, d + 1, as a column."""
    return torch.bincount(edges[0], minlength=nodes)[:, None]


def _each_node_alike(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    return _gradient(student, teacher, edges) / _pairs(edges, len(student)) * edges.shape[1] / len(student)


def _same_weight_per_pair(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    return _gradient(student, teacher, edges) / _pairs(edges, len(student))


def _own_answer(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    return _pairs(edges, len(student)) * (student.softmax(dim=1) - teacher.softmax(dim=1)) / edges.shape[1]


def _node_by_node(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    return gradient_of(ff_g2m.node_distillation_loss)(student, teacher)


def _without_loops(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    pairs = edges[:, edges[0] != edges[1]]
    sums = torch.zeros_like(teacher).index_add(0, pairs[0], teacher.softmax(dim=1)[pairs[1]])
    return (_pairs(pairs, len(student)) * student.softmax(dim=1) - sums) / pairs.shape[1]


def _mean_of_logits(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    counts = _pairs(edges, len(student))
    mean = torch.zeros_like(teacher).index_add(0, edges[0], teacher[edges[1]]) / counts
    return counts * (student.softmax(dim=1) - mean.softmax(dim=1)) / edges.shape[1]


def _over_the_nodes(student: Tensor, teacher: Tensor, edges: Tensor) -> Tensor:
    sums = torch.zeros_like(teacher).index_add(0, edges[0], teacher.softmax(dim=0)[edges[1]])
    return (_pairs(edges, len(student)) * student.softmax(dim=0) - sums) / edges.shape[1]


_gradient = gradient_of(ff_g2m.low_frequency_loss)

EXERCISES = {
    "ff_g2m.1": Exercise(
        _cases(),
        _gradient,
        {
            "The sign is turned round: prediction minus target.": lambda s, t, e: -_gradient(s, t, e),
            "It is divided by the number of nodes: the mean in (4) is over the pairs of E⁺.": lambda s, t, e: (
                _gradient(s, t, e) * e.shape[1] / len(s)
            ),
            "The division by the number of pairs in E⁺ is missing.": lambda s, t, e: _gradient(s, t, e) * e.shape[1],
            "Every node counts alike here: in (6) a node counts in proportion to its pairs.": _each_node_alike,
            "The factor d + 1 is missing: a node occurs in as many pairs as it has neighbours, and once more.": (
                _same_weight_per_pair
            ),
            "The target is the teacher's answer at the node itself: it should be the mean over node and neighbours.": (
                _own_answer
            ),
            "This is the gradient of GLNN's loss: the neighbours do not occur in it.": _node_by_node,
            "The loops are left out: each node is compared with its own teacher row as well.": _without_loops,
            "The mean is taken of the teacher's logits: it should be taken of its probabilities.": _mean_of_logits,
            "The softmax runs over the nodes (dimension 0), it should run over the classes.": _over_the_nodes,
        },
    ),
}
"""The checks, by name."""
