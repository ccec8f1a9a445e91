r"""CORSD: small networks learn relations between pairs of feature maps; the deepest stage's teach the shallow ones.

Muzhou Yu, Sia Huat Tan, Kailu Wu, Runpei Dong, Linfeng Zhang, Kaisheng Ma: *CORSD: Class-Oriented Relational Self
Distillation*, ICASSP 2023, arXiv 2305.00918.

**Idea.** How alike two images look to a stage is a relation, and instead of a handcrafted distance a small network
reads it from the pair of feature maps. Triplets of images teach these networks which pairs belong to one class, and
an auxiliary classifier on each pair makes them tell which class. The relations of the deepest stage teach those of the
shallow stages of the same network; after training everything but the network itself is dropped.

**Equations.** A batch holds $B$ triplets, $3B$ rows in the order anchors $a$, positives $p$, negatives $n$; labels
$y_a=y_p\ne y_n$, $C$ classes. $F_\ell$ are the maps of the stages $\ell=1,\dots,L$, $L$ the deepest, $z$ the logits.
Maps of a pair are joined along channels, the anchor's first. With $x\in\{p,n\}$,

$$(r_\ell^x,u_\ell^x)=R_\ell\bigl([F_\ell^a,F_\ell^x]\bigr),\qquad r_\ell^x\in(0,1)^B,\ u_\ell^x\in\mathbb R^{B\times C}
\tag{1}$$

$$L_{tri}=\sum_\ell\frac1B\sum_b\max(r_{\ell b}^p-r_{\ell b}^n+m,\,0),\qquad m=1 \tag{2}$$

so $r$ is a distance, small for a pair of one class. In $(0,1)$ the hinge never closes. With the distributions $P$ and
$N$ of positive and negative pairs the loss of a stage tends to a difference of means, whose least value over all
$r\in[0,1]$ is given by their total variation:

$$L_{tri,\ell}\to m+\mathrm E_P[r]-\mathrm E_N[r] \tag{3}$$

$$\min_rL_{tri,\ell}=m-\mathrm{TV}(P,N),\qquad\mathrm{TV}=\tfrac12\int|dN-dP| \tag{4}$$

The pair's classes are asked of the auxiliary logits $u$:

$$\begin{aligned}
q_b&=\tfrac12(\mathbf 1_{y_p}+\mathbf 1_{y_n}),\\
H_\tau(q,u)&=-\frac1B\sum_b\sum_kq_{bk}\log\mathrm{softmax}(u_b/\tau)_k
\end{aligned} \tag{5}$$

$$L_{aux}=\sum_\ell w_p\,\mathrm{CE}(u_\ell^p,y_p)+w_n\,H_\tau(q,u_\ell^n) \tag{6}$$

The published code takes, in place of $q$, its softmax with $\tau$: with $Z=2e^{1/2\tau}+C-2$,

$$\tilde q_k=e^{1/2\tau}/Z\ \text{ for the two classes},\qquad\tilde q_k=1/Z\ \text{ for the others} \tag{7}$$

The deepest stage teaches the others its distances, $\mathrm{sg}$ stops the gradient; without it all stages would, left
to this term, settle at the mean of all:

$$L_{rel}=\sum_{\ell<L}\sum_x\frac1B\sum_b\bigl(r_{\ell b}^x-\mathrm{sg}\,r_{Lb}^x\bigr)^2 \tag{8}$$

$$r_1=\dots=r_L=\frac1L\sum_\ell r_\ell^{\,start} \tag{9}$$

It also teaches what its classifier says, with $s_\ell^x=\mathrm{softmax}(u_\ell^x)$:

$$L_{kl}=\sum_{\ell<L}\sum_xv_x\,\frac1B\sum_b\mathrm{KL}\bigl(\mathrm{sg}\,s_{Lb}^x\,\|\,s_{\ell b}^x\bigr)
\tag{10}$$

One more relation network, on probabilities $\hat p_j=\mathrm{softmax}(z_j)$ of all $3B$ rows and running means $e_k$
of the probabilities of each class, wants $\hat p_j$ near its own class and far from another's, $y'_j\ne y_j$:

$$L_{lg}=\frac1{3B}\sum_jR_{lg}([\hat p_j,e_{y_j}])-R_{lg}([\hat p_j,e_{y'_j}]) \tag{11}$$

If the $e_k$ were sums over $t$ steps, as coded, they would grow with $t$, and batch norm divides by their spread:

$$\lVert\partial L_{lg}/\partial\hat p_j\rVert\propto1/t \tag{12}$$

$$L=\mathrm{CE}(z,y)+\lambda_{tri}L_{tri}+L_{aux}+\lambda_{rel}L_{rel}+L_{kl}+\lambda_{lg}L_{lg} \tag{13}$$

with $\lambda_{tri}=\lambda_{rel}=\lambda_{lg}=0.01$, $w=(0.04,0.01)$ and $v=(0.16,0.04)$ for positive and negative
pairs. The handcrafted rival of $r$ is half the distance of directions, in $[0,1]$ as $r$ is,

$$d(g,h)=\tfrac12\,\bigl\lVert g/\lVert g\rVert-h/\lVert h\rVert\bigr\rVert_2 \tag{14}$$

of pooled maps, and in (11) of $\hat p_j$ and $e_k$.

**Where the published code stops.** It cannot run: its indentation is broken, a comma is missing among the arguments
of the logits' relation network, which moreover meets one sample at a time, where batch norm in training refuses; and
its divergence takes raw logits for probabilities, which gives NaN as soon as one is negative. Taken from it are
structure, weights, and what can be computed without these places. Our reading of them: (10) with a softmax on both
sides at temperature 1, over rows the mean, and without the deepest stage's divergence from itself; (11) in one call
for all rows and both classes, averaged where the code sums, with $y'$ the class of the triplet's other image, and with
a moving average $e$ (0.9) where the code sums up without end. Changed although it runs: $q$ passes another softmax
with $\tau$ in the code, which makes it nearly uniform (``as_coded=True`` keeps that), and the code stops no gradient
in (8) and (10) (``detach=False``). Positive and negative pairs pass $R_\ell$ in one call here, so that batch norm
does not remove the difference of their means; ``one_call=False`` is the other reading.

**Source status.** Structure, weights and the figures of the tests from the authors' code; of the paper only the
abstract was read, so that every repair above is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_labels,
    check_logits,
    check_not_negative,
    check_positive,
    check_same_shape,
    readable,
)
from kdcore.data.arrays import Arrays
from kdcore.foundations.kd import soft_cross_entropy
from kdcore.models.staged import StagedNetwork
from kdcore.precision import at_least_float32, full_precision
from kdcore.training.learners import Learner

__all__ = [
    "LogitRelation",
    "PairRelations",
    "RelationNetwork",
    "RelationalSelfDistillation",
    "Triplets",
    "divergence_loss",
    "logit_relation_loss",
    "pair_distance",
    "pair_maps",
    "pair_targets",
    "relation_loss",
    "triplet_loss",
    "update_class_vectors",
]

Relation = Literal["learned", "distance"]


class Triplets(Arrays):
    """A data set whose batches are triplets: indexing with B rows gives 3B, these as anchors, positives, negatives.

    A positive is another row of the anchor's class, a negative a row of any other class, each drawn evenly from all
    there are, with torch's generator of the CPU. So `fit` draws new ones at each step, that depend on its seed alone,
    and augments all 3B images apart. A test set stays as it is.

    Args:
        data: rows with `labels` (N,); not changed.

    Raises:
        ValueError: there are no integer labels, a class has a single row, or there is a single class.

    Example:
        >>> rows = Triplets(Arrays(inputs=torch.arange(6.0), labels=torch.tensor([0, 1, 0, 1, 0, 1])))
        >>> batch = rows[torch.tensor([0, 3])]
        >>> batch.labels
        tensor([0, 1, 0, 1, 1, 0])
        >>> bool((batch.inputs[:2] != batch.inputs[2:4]).all())  # no image is its own positive
        True
    """

    __slots__ = ("_order", "_rank", "_sizes", "_starts")
    _order: Tensor
    _rank: Tensor
    _sizes: Tensor
    _starts: Tensor

    def __init__(self, data: Arrays) -> None:
        if "labels" not in data or data.labels.ndim != 1 or data.labels.is_floating_point():
            raise ValueError("data must have integer labels of shape (N,) to draw triplets by.")
        labels = data.labels
        classes, sizes = labels.unique(return_counts=True)
        if len(classes) < 2:
            raise ValueError(f"data must have at least two classes for a negative, got class {classes.tolist()} alone.")
        single = classes[sizes == 1]
        if len(single):
            raise ValueError(
                f"data must have at least two rows of each class for a positive, got one of {single.tolist()}."
            )
        super().__init__(**{name: getattr(data, name) for name in data})
        # Rows class by class: a class is a block, a positive lies in the anchor's block, a negative outside.
        order = labels.argsort(stable=True)
        counts = labels.bincount()
        starts = counts.cumsum(0) - counts
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=labels.device) - starts[labels[order]]
        for name, index in {"_order": order, "_rank": rank, "_sizes": counts, "_starts": starts}.items():
            object.__setattr__(self, name, index)

    def __getitem__(self, rows: Tensor | slice) -> Arrays:
        anchors = torch.arange(len(self), device=self.device)[rows if isinstance(rows, slice) else rows.to(self.device)]
        return super().__getitem__(torch.cat([anchors, *self.partners(anchors)]))

    def batches(self, rows: Tensor, size: int) -> Iterator[Arrays]:
        """Batches of `size` triplets with the given rows as anchors, each drawn when it is asked for."""
        return (self[anchors] for anchors in rows.split(size))

    def __reduce__(self) -> tuple:
        return Triplets, (Arrays(**self._tensors),)

    def partners(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B,) of a positive and of a negative for each anchor's row (B,)."""
        labels = self.labels[anchors]
        size, start = self._sizes[labels], self._starts[labels]
        # One half-open draw in [0, 1) for each partner, on the CPU, so that a GPU draws the same.
        near, far = torch.rand(2, len(anchors), dtype=torch.float64).to(self.device)
        step = (near * (size - 1)).long() + 1
        positive = self._order[start + (self._rank[anchors] + step) % size]
        place = (far * (len(self) - size)).long()
        negative = self._order[torch.where(place < start, place, place + size)]
        return positive, negative


def triplet_loss(positive_score: Tensor, negative_score: Tensor, margin: float = 1.0) -> Tensor:
    """Hinge of the two distances of a triplet, equation (2) at one stage.

    Args:
        positive_score: distance of anchor and positive, any shape; in [0, 1] where a relation network gives it.
        negative_score: distance of anchor and negative, same shape.
        margin: m > 0. From 1 on, and with scores in [0, 1], the hinge never closes.

    Returns:
        Scalar mean over triplets, at least 0.

    Raises:
        ValueError: shapes differ, a value is not finite, or `margin` is not positive.

    Example:
        >>> triplet_loss(torch.tensor([0.25, 0.5]), torch.tensor([0.75, 0.5]))
        tensor(0.7500)
    """
    check_positive(margin=margin)
    check_same_shape(positive_score=positive_score, negative_score=negative_score)
    check_finite(positive_score=positive_score, negative_score=negative_score)
    return (positive_score - negative_score + margin).clamp(min=0).mean()


def pair_targets(
    labels: Tensor, other_labels: Tensor, num_classes: int, as_coded: bool = False, temperature: float = 3.0
) -> Tensor:
    """What the auxiliary classifier should say of a pair of two classes: half one, half the other, equation (5).

    Args:
        labels: of the anchors, shape (B,).
        other_labels: of the negatives, shape (B,), another class in each row.
        num_classes: C ≥ 2.
        as_coded: pass the halves through softmax(·/τ) as the published code does, which all but levels them.
        temperature: τ > 0 of that softmax; not used otherwise.

    Returns:
        Shape (B, C), rows sum to 1.

    Raises:
        ValueError: shapes or types do not fit, a label is out of range, a pair has one class, `num_classes` is below
            2, or `temperature` is not positive.

    Example:
        >>> pair_targets(torch.tensor([0]), torch.tensor([2]), 3)
        tensor([[0.5000, 0.0000, 0.5000]])
        >>> pair_targets(torch.tensor([0]), torch.tensor([2]), 3, as_coded=True)
        tensor([[0.3513, 0.2974, 0.3513]])
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
    check_positive(temperature=temperature)
    check_labels(labels, len(labels), num_classes)
    check_labels(other_labels, len(labels), num_classes, name="other_labels")
    if readable(labels) and bool((labels == other_labels).any()):
        raise ValueError("other_labels must differ from labels in every row, got a pair of one class.")
    halves = (F.one_hot(labels, num_classes) + F.one_hot(other_labels, num_classes)).to(torch.get_default_dtype()) / 2
    return (halves / temperature).softmax(dim=1) if as_coded else halves


def relation_loss(shallow_score: Tensor, deepest_score: Tensor, detach: bool = True) -> Tensor:
    """Mean squared difference of a shallow stage's distances from the deepest one's, a summand of equation (8).

    Args:
        shallow_score: any shape.
        deepest_score: same shape.
        detach: no gradient flows into `deepest_score`; False as the published code has it.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: shapes differ, or a value is not finite.

    Example:
        >>> relation_loss(torch.tensor([0.5, 0.0]), torch.tensor([0.0, 0.0]))
        tensor(0.1250)
    """
    check_same_shape(shallow_score=shallow_score, deepest_score=deepest_score)
    check_finite(shallow_score=shallow_score, deepest_score=deepest_score)
    return F.mse_loss(shallow_score, deepest_score.detach() if detach else deepest_score)


def divergence_loss(shallow_logits: Tensor, deepest_logits: Tensor, detach: bool = True) -> Tensor:
    """Divergence of what a shallow stage's classifier says of pairs from the deepest one's, a summand of (10).

    Args:
        shallow_logits: auxiliary logits u of B pairs, shape (B, C).
        deepest_logits: same shape.
        detach: no gradient flows into `deepest_logits`; False as the published code has it.

    Returns:
        Scalar, at least 0: summed over classes, averaged over pairs, at temperature 1.

    Raises:
        ValueError: shapes differ, C < 2, or a value is not finite.

    Example:
        >>> divergence_loss(torch.zeros(1, 2), torch.tensor([[-9.0, 9.0]]))  # log 2 - a little
        tensor(0.6931)
    """
    check_logits(shallow_logits=shallow_logits, deepest_logits=deepest_logits)
    shallow, deepest = (at_least_float32(logits).log_softmax(dim=1) for logits in (shallow_logits, deepest_logits))
    return F.kl_div(shallow, deepest.detach() if detach else deepest, reduction="batchmean", log_target=True)


def logit_relation_loss(own_score: Tensor, other_score: Tensor) -> Tensor:
    """Mean distance from the own class less that from another one, equation (11).

    Args:
        own_score: any shape.
        other_score: same shape.

    Returns:
        Scalar; in [-1, 1] for scores in [0, 1].

    Raises:
        ValueError: shapes differ, or a value is not finite.

    Example:
        >>> logit_relation_loss(torch.tensor([0.25, 0.0]), torch.tensor([0.75, 1.0]))
        tensor(-0.7500)
    """
    check_same_shape(own_score=own_score, other_score=other_score)
    check_finite(own_score=own_score, other_score=other_score)
    return (own_score - other_score).mean()


def pair_distance(first: Tensor, second: Tensor) -> Tensor:
    """Half the distance of two directions, the handcrafted relation (14).

    Args:
        first: shape (B, d).
        second: shape (B, d).

    Returns:
        Shape (B,), in [0, 1]: 0 for one direction, √½ for orthogonal ones, 1 for opposite ones. After a ReLU no
        angle is above 90 degrees.

    Raises:
        ValueError: these are no matrices of one shape, or a value is not finite.

    Example:
        >>> pair_distance(torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[5.0, 0.0], [-3.0, 0.0]]))
        tensor([0., 1.])
    """
    if first.ndim != 2:
        raise ValueError(f"first must have shape (B, d), got {tuple(first.shape)}.")
    check_same_shape(first=first, second=second)
    check_finite(first=first, second=second)
    return (F.normalize(at_least_float32(first), dim=1) - F.normalize(at_least_float32(second), dim=1)).norm(dim=1) / 2


def pair_maps(maps: Tensor) -> Tensor:
    """Pairs of maps, joined along channels with the anchor first: what a relation network is shown, equation (1).

    Args:
        maps: of the rows of a batch of triplets, shape (3B, C_l, H, W).

    Returns:
        Shape (2B, 2C_l, H, W): B pairs of anchor and positive, then B pairs of anchor and negative.

    Raises:
        ValueError: the rows are no multiple of 3, or there are fewer than two triplets.

    Example:
        >>> pair_maps(torch.arange(6.0).reshape(6, 1, 1, 1)).flatten(1)
        tensor([[0., 2.],
                [1., 3.],
                [0., 4.],
                [1., 5.]])
    """
    anchors, positives, negatives = _thirds(maps, "maps")
    return torch.cat([torch.cat([anchors, positives], dim=1), torch.cat([anchors, negatives], dim=1)])


@full_precision
def update_class_vectors(class_vectors: Tensor, probabilities: Tensor, labels: Tensor, momentum: float = 0.9) -> Tensor:
    """Moving average of the probabilities of each class, e of equation (11).

    Args:
        class_vectors: e before, shape (C, C).
        probabilities: of R rows, shape (R, C); no gradient flows into them.
        labels: shape (R,).
        momentum: in [0, 1), the share of the old vector that stays.

    Returns:
        New vectors (C, C); that of a class which is not in the batch is as it was.

    Raises:
        ValueError: shapes do not fit, a label is out of range, or `momentum` lies outside [0, 1).

    Example:
        >>> update_class_vectors(torch.eye(2), torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([0, 0]))
        tensor([[0.9300, 0.0700],
                [0.0000, 1.0000]])
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
    check_logits(probabilities=probabilities)
    rows, classes = probabilities.shape
    check_labels(labels, rows, classes)
    if class_vectors.shape != (classes, classes):
        raise ValueError(f"class_vectors must have shape ({classes}, {classes}), got {tuple(class_vectors.shape)}.")
    members = F.one_hot(labels, classes).to(class_vectors.dtype).T
    counts = members.sum(dim=1, keepdim=True)
    means = members @ probabilities.detach().to(class_vectors.dtype) / counts.clamp(min=1)
    return torch.where(counts > 0, momentum * class_vectors + (1 - momentum) * means, class_vectors)


class RelationNetwork(nn.Module):
    """From a pair of feature maps to a distance in (0, 1) and to logits of classes, equation (1).

    As many blocks of stride 2 as stages follow bring the pair to the depth of the last stage, each of two separable
    convolutions; then the mean over pixels, and on it a head for the distance and a linear auxiliary classifier.

    Args:
        widths: channels of the stage's map and of those of all stages after it, as ``model.widths[stage:]``.
        num_classes: C.

    Raises:
        ValueError: there is no width, one is below 4, or `num_classes` is below 2.

    Example:
        >>> score, logits = RelationNetwork([8, 16, 32], num_classes=10)(torch.zeros(5, 16, 8, 8))
        >>> score.shape, logits.shape
        (torch.Size([5]), torch.Size([5, 10]))
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if not widths or min(widths) < 4:
            raise ValueError(f"widths must hold at least one number, none below 4, got {list(widths)}.")
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
        pairs = [2 * width for width in widths]
        self.blocks = nn.Sequential(*(_separable_block(a, b) for a, b in pairwise(pairs)))
        # The head of the deepest stage, which has no blocks, is twice as wide.
        hidden = pairs[-1] // (8 if len(pairs) > 1 else 4)
        self.head = nn.Sequential(
            nn.Linear(pairs[-1], hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()
        )
        self.classifier = nn.Linear(pairs[-1], num_classes)

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) and logits (B, C) of pairs (B, 2C_l, H, W)."""
        pooled = self.blocks(pairs).mean(dim=(2, 3))
        return self.head(pooled).squeeze(1), self.classifier(pooled)


class LogitRelation(nn.Module):
    """The relation network on probabilities and running class vectors, of equation (11).

    Args:
        num_classes: C.
        relation: "learned", or "distance" for the handcrafted (14), which has no parameters.
        momentum: in [0, 1), of the class vectors; they start as the unit vectors.

    Raises:
        ValueError: `num_classes` is below 2, the relation is unknown, or `momentum` lies outside [0, 1).

    Example:
        >>> logits, labels, others = torch.randn(6, 3), torch.arange(6) % 3, (torch.arange(6) + 1) % 3
        >>> own, other = LogitRelation(3)(logits, labels, others)
        >>> own.shape, other.shape
        (torch.Size([6]), torch.Size([6]))
    """

    class_vectors: Tensor

    def __init__(self, num_classes: int, relation: Relation = "learned", momentum: float = 0.9) -> None:
        super().__init__()
        check_choice("relation", relation, ("learned", "distance"))
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
        layers = [nn.Linear(2 * num_classes, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 1), nn.Sigmoid()]
        self.head = nn.Sequential(*layers) if relation == "learned" else None
        self.momentum = momentum
        self.register_buffer("class_vectors", torch.eye(num_classes))

    def forward(self, logits: Tensor, labels: Tensor, other_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (R,) of logits (R, C) from their own class and from another; in training the vectors move on."""
        probabilities = at_least_float32(logits).softmax(dim=1)
        own, other = self.class_vectors[labels], self.class_vectors[other_labels]
        if self.training:
            self.class_vectors = update_class_vectors(self.class_vectors, probabilities, labels, self.momentum)
        if self.head is None:
            return pair_distance(probabilities, own), pair_distance(probabilities, other)
        # One call: batch norm of either kind alone would take away what distinguishes them.
        pairs = torch.cat([torch.cat([probabilities, own], dim=1), torch.cat([probabilities, other], dim=1)])
        first, second = self.head(pairs).squeeze(1).chunk(2)
        return first, second


class PairRelations(NamedTuple):
    """What one stage says of B triplets: distances (B,) and auxiliary logits (B, C) of both kinds of pairs.

    Example:
        >>> PairRelations(torch.zeros(2), torch.ones(2), torch.zeros(2, 10), torch.zeros(2, 10)).negative_score
        tensor([1., 1.])
    """

    positive_score: Tensor
    negative_score: Tensor
    positive_logits: Tensor
    negative_logits: Tensor


class RelationalSelfDistillation(Learner):
    """The method, equation (13), on batches of `Triplets`; `model` is the plain network that is kept.

    A weight of 0 takes its term out; terms are returned weighted.

    Args:
        model: the network to be deployed, with at least two stages, each of which halves the map.
        triplet_weight: λ_tri ≥ 0 of equation (2).
        label_weights: w ≥ 0 of equation (6), for positive and for negative pairs.
        relation_weight: λ_rel ≥ 0 of equation (8).
        divergence_weights: v ≥ 0 of equation (10), for positive and for negative pairs.
        logit_weight: λ_lg ≥ 0 of equation (11).
        relation: "learned" is the method; "distance" puts the handcrafted (14) in the place of every r.
        margin: m > 0 of the triplets.
        temperature: τ > 0 of equation (5).
        detach: stop the gradient into the deepest stage in (8) and (10); False as the published code has it.
        as_coded: flatten the halves of (5) as the published code does.
        one_call: pass positive and negative pairs through a relation network together, so that they share the
            statistics of batch norm; False makes it two calls.

    Raises:
        ValueError: a weight is negative or not finite, `margin` or `temperature` is not positive, the relation is
            unknown, or the network has a single stage.

    Example:
        >>> from kdcore.models import ConvNet
        >>> rows = Triplets(Arrays(inputs=torch.rand(20, 1, 8, 8), labels=torch.arange(20) % 10))
        >>> list(RelationalSelfDistillation(ConvNet(width=4, depth=3)).losses(rows[torch.arange(4)]))
        ['cross_entropy', 'triplet', 'auxiliary', 'relations', 'divergence', 'logits']
    """

    def __init__(
        self,
        model: StagedNetwork,
        triplet_weight: float = 0.01,
        label_weights: tuple[float, float] = (0.04, 0.01),
        relation_weight: float = 0.01,
        divergence_weights: tuple[float, float] = (0.16, 0.04),
        logit_weight: float = 0.01,
        relation: Relation = "learned",
        margin: float = 1.0,
        temperature: float = 3.0,
        detach: bool = True,
        as_coded: bool = False,
        one_call: bool = True,
    ) -> None:
        super().__init__()
        check_choice("relation", relation, ("learned", "distance"))
        check_positive(margin=margin, temperature=temperature)
        check_not_negative(triplet_weight=triplet_weight, relation_weight=relation_weight, logit_weight=logit_weight)
        for name, pair in {"label_weights": label_weights, "divergence_weights": divergence_weights}.items():
            if len(pair) != 2:
                raise ValueError(f"{name} must be two numbers, for positive and negative pairs, got {tuple(pair)}.")
            check_not_negative(**{f"{name}[{number}]": weight for number, weight in enumerate(pair)})
        if len(model.stages) < 2:
            raise ValueError(f"model must have at least two stages, got {len(model.stages)}.")
        classes = cast(nn.Linear, model.classifier).out_features
        self.model = model
        self.relations = nn.ModuleList(
            RelationNetwork(model.widths[stage:], classes) for stage in range(len(model.stages))
        )
        self.logit_relation = LogitRelation(classes, relation)
        self.triplet_weight, self.relation_weight, self.logit_weight = triplet_weight, relation_weight, logit_weight
        self.label_weights, self.divergence_weights = label_weights, divergence_weights
        self.relation: Relation = relation
        self.margin, self.temperature = margin, temperature
        self.detach, self.as_coded, self.one_call = detach, as_coded, one_call

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of equation (13), weighted, of `batch.inputs` (3B, …) and `batch.labels` (3B,)."""
        maps, logits = self.model.maps(batch.inputs)
        check_labels(batch.labels, *logits.shape)
        own, _, other = _check_triplets(batch.labels)
        stages = [self.relate(stage, one) for stage, one in enumerate(maps)]
        terms = {"cross_entropy": F.cross_entropy(logits, batch.labels)}
        if self.triplet_weight:
            hinges = [triplet_loss(one.positive_score, one.negative_score, self.margin) for one in stages]
            terms["triplet"] = self.triplet_weight * torch.stack(hinges).sum()
        if any(self.label_weights):
            terms["auxiliary"] = self._label_terms(stages, own, other)
        if self.relation_weight:
            terms["relations"] = self.relation_weight * self._relation_terms(stages)
        if any(self.divergence_weights):
            terms["divergence"] = self._divergence_terms(stages)
        if self.logit_weight:
            # Another class for every row, as evenly drawn as the triplets are: that of the triplet's other label.
            scores = self.logit_relation(logits, batch.labels, torch.cat([other, other, own]))
            terms["logits"] = self.logit_weight * logit_relation_loss(*scores)
        return terms

    def relate(self, stage: int, maps: Tensor) -> PairRelations:
        """What a stage's relation network makes of its maps (3B, C_l, H, W), equation (1)."""
        network, pairs = self.relations[stage], pair_maps(maps)
        parts = [network(pairs)] if self.one_call else [network(half) for half in pairs.chunk(2)]
        scores, logits = (torch.cat(values) for values in zip(*parts, strict=True))
        if self.relation == "distance":
            anchors, positives, negatives = maps.mean(dim=(2, 3)).chunk(3)
            scores = torch.cat([pair_distance(anchors, positives), pair_distance(anchors, negatives)])
        return PairRelations(*at_least_float32(scores).chunk(2), *logits.chunk(2))

    def _label_terms(self, stages: Sequence[PairRelations], labels: Tensor, other_labels: Tensor) -> Tensor:
        """Equation (6), weighted."""
        near, far = self.label_weights
        classes = stages[0].positive_logits.shape[1]
        targets = pair_targets(labels, other_labels, classes, self.as_coded, self.temperature)
        return torch.stack([
            near * F.cross_entropy(one.positive_logits, labels)
            + far * soft_cross_entropy(one.negative_logits, targets, self.temperature)
            for one in stages
        ]).sum()  # fmt: skip

    def _relation_terms(self, stages: Sequence[PairRelations]) -> Tensor:
        """Equation (8)."""
        *shallow, deepest = stages
        return torch.stack([
            relation_loss(one.positive_score, deepest.positive_score, self.detach)
            + relation_loss(one.negative_score, deepest.negative_score, self.detach)
            for one in shallow
        ]).sum()  # fmt: skip

    def _divergence_terms(self, stages: Sequence[PairRelations]) -> Tensor:
        """Equation (10), weighted."""
        *shallow, deepest = stages
        near, far = self.divergence_weights
        return torch.stack([
            near * divergence_loss(one.positive_logits, deepest.positive_logits, self.detach)
            + far * divergence_loss(one.negative_logits, deepest.negative_logits, self.detach)
            for one in shallow
        ]).sum()  # fmt: skip


def _separable_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two separable convolutions with batch norm and ReLU; the first halves the map, the second widens it."""
    layers: list[nn.Module] = []
    for stride, width in ((2, in_channels), (1, out_channels)):
        layers += [
            nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _thirds(rows: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, positives and negatives of a batch of at least two triplets."""
    if len(rows) % 3 or len(rows) < 6:
        raise ValueError(f"{name} must have 3B rows, of at least two triplets for batch norm, got {len(rows)} rows.")
    anchors, positives, negatives = rows.chunk(3)
    return anchors, positives, negatives


def _check_triplets(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of anchors, positives and negatives, which must agree and differ as those of `Triplets` do."""
    anchors, positives, negatives = _thirds(labels, "labels")
    if readable(labels) and bool((anchors != positives).any() | (anchors == negatives).any()):
        raise ValueError("labels must be those of anchors, positives and negatives in this order; see Triplets.")
    return anchors, positives, negatives
