r"""Token-level relationship graph: patches, not images, are the nodes whose neighbourhoods a student copies.

Shuoxi Zhang, Hanpeng Liu, Kun He: *Knowledge Distillation via Token-level Relationship Graph*, 2023, arXiv 2306.12442.

**Idea.** Methods on relations make one node of a whole image and lose what happens inside it; on long-tailed data the
relations of images are mostly those of frequent classes. Here the nodes are tokens: the cells of a feature map, or a
transformer's patches. Similar parts of different images and classes become neighbours, and the student is asked for
the teacher's nearest neighbours, for the teacher's layout of all nodes, and for the relations of the tokens within
each image.

**Equations.** Tokens $F^s\in\mathbb R^{B\times n\times D_s}$, $F^t\in\mathbb R^{B\times n\times D_t}$ at the same $n$
places; $m$ of them drawn per image, the same for both networks, are the $M=Bm$ nodes $T_1,\dots,T_M$ of each. With the
$k$ nearest neighbours $\mathcal N(i)$ of node $i$ and bandwidth $\sigma$, each network has a graph in its own space,

$$A_{ij}=\begin{cases}\exp\bigl(-\lVert T_i-T_j\rVert^2/2\sigma\bigr)&j\in\mathcal N(i)\\
0&\text{else}\end{cases} \tag{1}$$

and the student's is to be like the teacher's, row by row:

$$L_{local}=\frac1M\sum_i\mathrm{KL}\bigl(\mathrm{softmax}_j(A^s_{ij})\,\|\,\mathrm{softmax}_j(A^t_{ij})\bigr) \tag{2}$$

A row that is not an edge counts $e^0=1$. Two rows of $k$ edges of weight 1 that share no neighbour are therefore only

$$\mathrm{KL}=\frac{k(e-1)}{M+k(e-1)} \tag{3}$$

apart. With a linear map $g$, the cosine, and a temperature $\tau_g$, each node must find itself among the teacher's,

$$L_{global}=-\frac1M\sum_i\log\frac{\exp(\cos(gT^s_i,T^t_i)/\tau_g)}{\sum_j\exp(\cos(gT^s_i,T^t_j)/\tau_g)} \tag{4}$$

which it cannot do beyond the log of the number $d_i$ of nodes that have its direction in the teacher:

$$L_{global}\ge\frac1M\sum_i\log d_i\qquad(\tau_g\to0) \tag{5}$$

Within an image, with each network's own width $D$,

$$\begin{aligned}
S&=\mathrm{softmax}\bigl(FF^\top/\sqrt D\bigr)\in\mathbb R^{n\times n},\\
L_{inner}&=\frac1{Bn^2}\sum_{b}\lVert S^s_b-S^t_b\rVert_F^2\le\frac2n
\end{aligned} \tag{6}$$

The temperature falls while the fraction $u$ of training done grows,

$$\tau_g(u)=\tau_{end}+\tfrac12(\tau_{start}-\tau_{end})(1+\cos\pi u) \tag{7}$$

and with the logits $z^s,z^t$ and labels $y$

$$L=\mathrm{CE}(z^s,y)+\tau^2\,\mathrm{KL}(p^t\,\|\,p^s)+\alpha L_{inner}+\beta L_{local}+\gamma L_{global} \tag{8}$$

**Choices made here.** The paper was not read, and no code of its authors is known. Not stated where we could look, and
chosen here: all weights, $k$, $\sigma$, $m$, the shape and the ends of (7), the first two terms of (8). In (1) the
relation is not symmetric; row $i$ holds the neighbours of $i$, and no node is its own. $\sigma$ stands where $\sigma^2$
is usual. (2) has the student first, and runs over all nodes, as it was described; ``direction="forward"`` and
``edges_only=True`` change that. (2) and (4) are means where the paper sums, so that weights do not depend on $M$.
In (4) only the student is projected. $\sigma$ is the median squared distance of the teacher's tokens
(`median_bandwidth`): with a bandwidth far below it, (1) underflows and nothing is learned.

**Source status.** Reconstructed from a detailed third-party summary, which gives (1), (2), (4), (6), that the
temperature falls, and the sum (8); (3) and (5) are worked out here.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_finite, check_fraction, check_labels, check_not_negative, check_positive
from kdcore.data.arrays import Arrays
from kdcore.foundations.kd import distillation_loss
from kdcore.models import features, to_map, to_tokens
from kdcore.precision import at_least_float32, full_precision
from kdcore.training.learners import Learner
from kdcore.training.teachers import predict_layers

__all__ = [
    "TokenGraphDistillation",
    "cache_teacher",
    "context",
    "contextual_loss",
    "global_loss",
    "grid_tokens",
    "kept_neighbours",
    "local_loss",
    "median_bandwidth",
    "nearest",
    "sample_nodes",
    "temperature_at",
    "token_graph",
]

Direction = Literal["reverse", "forward"]
Schedule = Literal["cosine", "linear", "constant"]


def grid_tokens(layer_output: Tensor, side: int) -> Tensor:
    """A map, or a square of tokens, as tokens of a grid with `side` rows and columns, averaged where it is finer.

    Networks of different resolution get tokens at the same places; ``side=1`` makes one token of an image.

    Args:
        layer_output: a map (B, C, H, W), or tokens (B, n, D) with n a square number, without a class token.
        side: of the grid, positive and at most H and W.

    Returns:
        Tokens (B, side², D), row by row, at least float32.

    Raises:
        ValueError: `layer_output` has another shape, or fewer rows or columns than `side`.

    Example:
        >>> grid_tokens(torch.zeros(2, 8, 7, 7), side=4).shape
        torch.Size([2, 16, 8])
    """
    if side < 1:
        raise ValueError(f"side must be at least 1, got {side!r}.")
    maps = to_map(layer_output)
    if min(maps.shape[2:]) < side:
        raise ValueError(f"side must be at most the rows and columns of the map, {tuple(maps.shape[2:])}, got {side}.")
    maps = at_least_float32(maps)
    return to_tokens(maps if maps.shape[2:] == (side, side) else F.adaptive_avg_pool2d(maps, side))


def sample_nodes(
    student_tokens: Tensor, teacher_tokens: Tensor, per_image: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The same random places of each image, drawn without replacement, as nodes of both networks.

    Args:
        student_tokens: shape (B, n, D_s).
        teacher_tokens: shape (B, n, D_t).
        per_image: m, from 1 to n.
        generator: of the draw, on the tokens' device; the global one if left out.

    Returns:
        Nodes (B·m, D_s) and (B·m, D_t), image by image.

    Raises:
        ValueError: the tokens differ in B or n, or `per_image` lies outside [1, n].

    Example:
        >>> places = torch.arange(4.0).reshape(1, 4, 1)
        >>> student, teacher = sample_nodes(places, 10 * places, per_image=3)
        >>> torch.equal(10 * student, teacher)
        True
    """
    _check_pair(student_tokens=student_tokens, teacher_tokens=teacher_tokens)
    images, places, _ = student_tokens.shape
    if not 1 <= per_image <= places:
        raise ValueError(f"per_image must lie in [1, {places}], got {per_image!r}.")
    order = torch.rand(images, places, device=student_tokens.device, generator=generator).argsort(dim=1)
    chosen = (order[:, :per_image] + places * torch.arange(images, device=order.device).unsqueeze(1)).flatten()
    return student_tokens.flatten(0, 1)[chosen], teacher_tokens.flatten(0, 1)[chosen]


def nearest(nodes: Tensor, neighbours: int) -> Tensor:
    """The k nearest other nodes of each node, nearest first: 𝒩(i) of equation (1).

    Args:
        nodes: shape (M, D).
        neighbours: k, from 1 to M − 1.

    Returns:
        Numbers of nodes, shape (M, k); no row holds its own number, even where another node lies at the same place.

    Raises:
        ValueError: `nodes` is not a finite (M, D) matrix, or `neighbours` lies outside [1, M − 1].

    Example:
        >>> nearest(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1).flatten()
        tensor([1, 0, 1])
    """
    _check_nodes(nodes, neighbours)
    return _nearest(_squared_distances(nodes.detach()), neighbours)


def token_graph(nodes: Tensor, neighbours: int, bandwidth: float) -> Tensor:
    """Edge weights between nodes and their nearest neighbours, equation (1).

    Which nodes are neighbours has no gradient; the weights of the edges have.

    Args:
        nodes: shape (M, D).
        neighbours: k, from 1 to M − 1.
        bandwidth: σ > 0, in units of a squared distance.

    Returns:
        A of shape (M, M): k entries of each row in (0, 1], all others 0, among them the diagonal. An edge that is
        longer than about 13 √σ underflows to 0 in float32.

    Raises:
        ValueError: `nodes` is not a finite (M, D) matrix, `neighbours` lies outside [1, M − 1], or `bandwidth` is not
            positive.

    Example:
        >>> token_graph(torch.tensor([[0.0], [1.0], [3.0]]), neighbours=1, bandwidth=0.5)
        tensor([[0.0000, 0.3679, 0.0000],
                [0.3679, 0.0000, 0.0000],
                [0.0000, 0.0183, 0.0000]])
    """
    _check_nodes(nodes, neighbours)
    check_positive(bandwidth=bandwidth)
    squared = _squared_distances(nodes)
    index = _nearest(squared.detach(), neighbours)
    weights = (-squared.gather(1, index) / (2 * bandwidth)).exp()
    return torch.zeros_like(squared).scatter(1, index, weights)


def local_loss(
    student_graph: Tensor, teacher_graph: Tensor, direction: Direction = "reverse", edges_only: bool = False
) -> Tensor:
    """Divergence between the rows of two graphs after a softmax over all nodes, equation (2), averaged over rows.

    Args:
        student_graph: shape (M, M), as `token_graph` gives it.
        teacher_graph: shape (M, M); no gradient flows into it.
        direction: "reverse" has the student first, as in (2); "forward" has the teacher first.
        edges_only: run the softmax of a row over the node itself and the nodes that are its neighbours in either
            graph, in place of all M.

    Returns:
        Scalar, at least 0; 0 if the graphs agree.

    Raises:
        ValueError: a graph is not a finite (M, M) matrix, sizes differ, or `direction` is unknown.

    Example:
        >>> one = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 1, 0]])
        >>> other = torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 0, 0]])
        >>> round(local_loss(one, other).item(), 4), round((math.e - 1) / (3 + math.e - 1), 4)  # equation (3)
        (0.3642, 0.3642)
    """
    check_choice("direction", direction, ("reverse", "forward"))
    for name, graph in {"student_graph": student_graph, "teacher_graph": teacher_graph}.items():
        if graph.ndim != 2 or graph.shape != student_graph.T.shape:
            raise ValueError(f"{name} must be a square matrix, as large as the other, got {tuple(graph.shape)}.")
    check_finite(student_graph=student_graph, teacher_graph=teacher_graph)
    student, teacher = student_graph, teacher_graph.detach()
    if edges_only:
        # The node itself, at 0 in both graphs, keeps the row from being empty where all edges have underflowed.
        outside = (
            (student.detach() == 0) & (teacher == 0) & ~torch.eye(len(student), dtype=torch.bool).to(student.device)
        )
        student, teacher = (graph.masked_fill(outside, -1e4) for graph in (student, teacher))
    student, teacher = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    first, second = (student, teacher) if direction == "reverse" else (teacher, student)
    return F.kl_div(second, first, reduction="batchmean", log_target=True)


@full_precision
def global_loss(projected_nodes: Tensor, teacher_nodes: Tensor, temperature: float) -> Tensor:
    """Each projected node of the student must find its own among the teacher's nodes, equation (4).

    Args:
        projected_nodes: g T^s, shape (M, D_t).
        teacher_nodes: shape (M, D_t); no gradient flows into them.
        temperature: τ_g > 0.

    Returns:
        Scalar, at least 0; log M if all cosines are equal.

    Raises:
        ValueError: shapes differ, are not (M, D), a value is not finite, or `temperature` is not positive.

    Example:
        >>> nodes = torch.eye(3)
        >>> round(global_loss(nodes, nodes, temperature=1.0).item(), 4), round(math.log(1 + 2 / math.e), 4)
        (0.5514, 0.5514)
    """
    check_positive(temperature=temperature)
    if projected_nodes.ndim != 2 or projected_nodes.shape != teacher_nodes.shape:
        raise ValueError(
            f"projected_nodes and teacher_nodes must have one shape (M, D), got {tuple(projected_nodes.shape)} "
            f"and {tuple(teacher_nodes.shape)}."
        )
    check_finite(projected_nodes=projected_nodes, teacher_nodes=teacher_nodes)
    # A cell without any activation has no direction; the floor keeps its gradient from exploding.
    student = F.normalize(projected_nodes, dim=1, eps=1e-4)
    teacher = F.normalize(teacher_nodes.detach(), dim=1)
    return F.cross_entropy(student @ teacher.T / temperature, torch.arange(len(student), device=student.device))


@full_precision
def context(tokens: Tensor) -> Tensor:
    """How much the tokens of an image attend to each other, S of equation (6).

    Args:
        tokens: shape (B, n, D).

    Returns:
        Shape (B, n, n); rows sum to 1.

    Raises:
        ValueError: `tokens` is not a finite (B, n, D) tensor.

    Example:
        >>> context(torch.zeros(1, 2, 3))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    if tokens.ndim != 3 or tokens.numel() == 0:
        raise ValueError(f"tokens must have shape (B, n, D), got {tuple(tokens.shape)}.")
    check_finite(tokens=tokens)
    return (tokens @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[2])).softmax(dim=2)


def contextual_loss(student_tokens: Tensor, teacher_tokens: Tensor) -> Tensor:
    """Mean squared difference of the two networks' contexts, equation (6).

    Args:
        student_tokens: shape (B, n, D_s).
        teacher_tokens: shape (B, n, D_t); no gradient flows into them.

    Returns:
        Scalar in [0, 2/n].

    Raises:
        ValueError: a tensor is not a finite (B, n, D) tensor, or they differ in B or n.

    Example:
        >>> contextual_loss(torch.zeros(1, 2, 3), 100 * torch.eye(2).unsqueeze(0))
        tensor(0.2500)
    """
    _check_pair(student_tokens=student_tokens, teacher_tokens=teacher_tokens)
    return F.mse_loss(context(student_tokens), context(teacher_tokens.detach()))


def temperature_at(progress: float, start: float = 1.0, end: float = 0.1, schedule: Schedule = "cosine") -> float:
    """The temperature τ_g after a fraction of training, equation (7).

    Args:
        progress: u in [0, 1].
        start: at u = 0, positive.
        end: at u = 1, positive.
        schedule: "cosine" as (7), "linear", or "constant", which stays at `end`.

    Raises:
        ValueError: `progress` lies outside [0, 1], a temperature is not positive, or `schedule` is unknown.

    Example:
        >>> [round(temperature_at(u), 3) for u in (0.0, 0.5, 1.0)]
        [1.0, 0.55, 0.1]
    """
    check_fraction(progress=progress)
    check_positive(start=start, end=end)
    check_choice("schedule", schedule, ("cosine", "linear", "constant"))
    remaining = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 0.0}
    return end + (start - end) * remaining[schedule]


def median_bandwidth(tokens: Tensor, rows: int = 1000) -> float:
    """The median squared distance of tokens, a bandwidth with which (1) neither underflows nor is 1 everywhere.

    Call it once, on the teacher's tokens of the training set; it reads a value from the device.

    Args:
        tokens: shape (N, n, D) or (M, D).
        rows: how many of them, evenly spaced, are compared.

    Returns:
        Positive.

    Raises:
        ValueError: `tokens` has another shape, is not finite, or more than half of all distances are zero.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))
        4.0
    """
    if tokens.ndim not in (2, 3) or tokens.numel() == 0:
        raise ValueError(f"tokens must have shape (N, n, D) or (M, D), got {tuple(tokens.shape)}.")
    check_positive(rows=rows)
    nodes = tokens.detach().reshape(-1, tokens.shape[-1])
    check_finite(tokens=nodes)
    nodes = nodes[:: max(1, -(-len(nodes) // rows))]
    squared = _squared_distances(nodes)
    median = squared[~torch.eye(len(nodes), dtype=torch.bool, device=nodes.device)].median().item()
    if not median > 0:
        raise ValueError("tokens must differ: more than half of their distances are zero.")
    return median


@torch.no_grad()
def kept_neighbours(student_nodes: Tensor, teacher_nodes: Tensor, neighbours: int) -> float:
    """Share of the teacher's k nearest neighbours that are also the student's, in percent.

    Args:
        student_nodes: shape (M, D_s).
        teacher_nodes: shape (M, D_t), in the same order.
        neighbours: k, from 1 to M − 1.

    Returns:
        In [0, 100]; 100 · k / (M − 1) on average for nodes that have nothing to do with each other.

    Raises:
        ValueError: numbers of nodes differ, or as in `nearest`.

    Example:
        >>> line = torch.arange(5.0).square().unsqueeze(1)
        >>> kept_neighbours(line.flip(1), 7 * line, neighbours=2)
        100.0
    """
    if len(student_nodes) != len(teacher_nodes):
        raise ValueError(f"both must have as many nodes, got {len(student_nodes)} and {len(teacher_nodes)}.")
    ours, theirs = (nearest(nodes, neighbours) for nodes in (student_nodes, teacher_nodes))
    return 100 * (ours.unsqueeze(2) == theirs.unsqueeze(1)).any(dim=1).double().mean().item()


def cache_teacher(data: Arrays, teacher: nn.Module, layer: str, side: int, batch_size: int = 1024) -> Arrays:
    """`data` with `teacher_logits` and `teacher_tokens`, computed once; exact where inputs are not augmented.

    Args:
        data: with `inputs`.
        teacher: run in evaluation mode; its mode is restored.
        layer: name of the module whose output is cut into tokens.
        side: of the grid.
        batch_size: rows at a time.

    Raises:
        ValueError: the teacher has no such layer, or its output does not fit; see `grid_tokens`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> cache_teacher(Arrays(inputs=torch.rand(3, 1, 8, 8)), ConvNet(8, 2), "stages.1", side=4).teacher_tokens.shape
        torch.Size([3, 16, 16])
    """
    maps, logits = predict_layers(teacher, data.inputs, [layer], batch_size)
    return data.with_(teacher_logits=logits, teacher_tokens=grid_tokens(maps[layer], side))


class TokenGraphDistillation(Learner):
    """The method, equation (8); terms are returned weighted, and a weight of 0 takes its term out.

    Where a batch carries `teacher_logits` and `teacher_tokens` (see `cache_teacher`) they are used; else the teacher
    runs. With ``side=1`` nodes are whole images: the contextual term is then 0.

    Args:
        student: trained; the attribute `model`. Any module that maps inputs to logits.
        widths: D_s and D_t, channels of the student's and of the teacher's layer.
        bandwidth: σ > 0 of both graphs; see `median_bandwidth`.
        layers: names of the student's and the teacher's module whose outputs are cut into tokens.
        teacher: frozen by this learner; may be left out if the data carry what it says.
        side: of the grid of tokens, n = side².
        per_image: m, from 1 to n.
        neighbours: k, below B·m.
        inner_weight: α ≥ 0.
        local_weight: β ≥ 0.
        global_weight: γ ≥ 0.
        node_temperatures: τ_g at the start and at the end of training.
        schedule: of τ_g; "constant" stays at the end's.
        direction: see `local_loss`.
        edges_only: see `local_loss`.
        temperature: τ > 0 of the logits.

    Raises:
        ValueError: a weight is negative, `per_image` exceeds side², or another number is not positive.

    Example:
        >>> from kdcore.models import ConvNet
        >>> student, teacher = ConvNet(4, depth=2), ConvNet(8, depth=2)
        >>> learner = TokenGraphDistillation(student, (8, 16), bandwidth=1.0, teacher=teacher)
        >>> list(learner.losses(Arrays(inputs=torch.rand(5, 1, 8, 8), labels=torch.arange(5))))
        ['cross_entropy', 'distillation', 'inner', 'local', 'global']
    """

    def __init__(
        self,
        student: nn.Module,
        widths: tuple[int, int],
        bandwidth: float,
        layers: tuple[str, str] = ("stages.1", "stages.1"),
        teacher: nn.Module | None = None,
        side: int = 4,
        per_image: int = 8,
        neighbours: int = 8,
        inner_weight: float = 1.0,
        local_weight: float = 1.0,
        global_weight: float = 0.1,
        node_temperatures: tuple[float, float] = (1.0, 0.1),
        schedule: Schedule = "cosine",
        direction: Direction = "reverse",
        edges_only: bool = False,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        check_positive(bandwidth=bandwidth, side=side, per_image=per_image, neighbours=neighbours)
        check_positive(student_width=widths[0], teacher_width=widths[1], temperature=temperature)
        check_not_negative(inner_weight=inner_weight, local_weight=local_weight, global_weight=global_weight)
        check_choice("direction", direction, ("reverse", "forward"))
        if per_image > side**2:
            raise ValueError(f"per_image must be at most side² = {side**2}, got {per_image}.")
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.frozen = ("teacher",) if teacher is not None else ()
        self.projection = nn.Linear(*widths, bias=False)
        self.bandwidth, self.layers = bandwidth, layers
        self.side, self.per_image, self.neighbours = side, per_image, neighbours
        self.inner_weight, self.local_weight, self.global_weight = inner_weight, local_weight, global_weight
        self.node_temperatures, self.schedule = node_temperatures, schedule
        self.direction, self.edges_only, self.temperature = direction, edges_only, temperature
        self.on_step(0.0)

    def on_step(self, progress: float) -> None:
        """Set τ_g, equation (7)."""
        self.node_temperature = temperature_at(progress, *self.node_temperatures, self.schedule)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of equation (8), weighted, of `batch.inputs` and `batch.labels`."""
        student_tokens, logits = self.student_tokens(batch.inputs)
        check_labels(batch.labels, *logits.shape)
        teacher_tokens, teacher_logits = self.teacher_tokens(batch)
        terms = {
            "cross_entropy": F.cross_entropy(logits, batch.labels),
            "distillation": distillation_loss(logits, teacher_logits, self.temperature),
        }
        if self.inner_weight:
            terms["inner"] = self.inner_weight * contextual_loss(student_tokens, teacher_tokens)
        if self.local_weight or self.global_weight:
            nodes, teacher_nodes = sample_nodes(student_tokens, teacher_tokens, self.per_image)
        if self.local_weight:
            graph, wanted = (token_graph(part, self.neighbours, self.bandwidth) for part in (nodes, teacher_nodes))
            terms["local"] = self.local_weight * local_loss(graph, wanted, self.direction, self.edges_only)
        if self.global_weight:
            found = global_loss(self.projection(nodes), teacher_nodes, self.node_temperature)
            terms["global"] = self.global_weight * found
        return terms

    def student_tokens(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The student's tokens (B, n, D_s) and logits (B, C)."""
        taken, logits = features(self.model, inputs, [self.layers[0]])
        return grid_tokens(taken[self.layers[0]], self.side), logits

    def teacher_tokens(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The teacher's tokens (B, n, D_t) and logits (B, C), from the batch where it carries them.

        Cached tokens of a finer grid are averaged.

        Raises:
            ValueError: the batch lacks them, and there is no teacher.
        """
        if "teacher_tokens" in batch and "teacher_logits" in batch:
            return grid_tokens(batch.teacher_tokens, self.side), batch.teacher_logits
        if self.teacher is None:
            raise ValueError("TokenGraphDistillation needs a teacher, or data with its outputs (see cache_teacher).")
        with torch.no_grad():
            taken, logits = features(self.teacher, batch.inputs, [self.layers[1]])
        return grid_tokens(taken[self.layers[1]], self.side), logits


@full_precision
def _squared_distances(nodes: Tensor) -> Tensor:
    """Squared distances (M, M); their gradient is finite where the distance is 0, which that of cdist is not."""
    squares = nodes.square().sum(dim=1)
    return (squares.unsqueeze(1) + squares - 2 * nodes @ nodes.T).clamp(min=0)


def _nearest(squared: Tensor, neighbours: int) -> Tensor:
    # The diagonal is taken out by hand: of nodes at one place, any may come first.
    return squared.clone().fill_diagonal_(math.inf).topk(neighbours, dim=1, largest=False).indices


def _check_nodes(nodes: Tensor, neighbours: int) -> None:
    if nodes.ndim != 2 or len(nodes) < 2:
        raise ValueError(f"nodes must have shape (M, D) with at least two rows, got {tuple(nodes.shape)}.")
    check_finite(nodes=nodes)
    if not 1 <= neighbours < len(nodes):
        raise ValueError(f"neighbours must lie in [1, {len(nodes) - 1}] for {len(nodes)} nodes, got {neighbours!r}.")


def _check_pair(**tokens: Tensor) -> None:
    for name, part in tokens.items():
        if part.ndim != 3 or part.numel() == 0:
            raise ValueError(f"{name} must have shape (B, n, D), got {tuple(part.shape)}.")
    (first, one), (second, other) = tokens.items()
    if one.shape[:2] != other.shape[:2]:
        raise ValueError(
            f"{second} must have the images and places of {first}, {tuple(one.shape[:2])}, "
            f"got {tuple(other.shape[:2])}."
        )
