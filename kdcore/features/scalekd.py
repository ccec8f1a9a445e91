r"""ScaleKD: a frozen vision transformer teaches a network of any family, through its last stage.

Jiawei Fan, Chao Li, Xiaolong Liu, Anbang Yao: *ScaleKD: Strong Vision Transformers Could Be Excellent Teachers*,
NeurIPS 2024, arXiv 2411.06786.

**Idea.** A convolutional map and a transformer's tokens are computed in different ways, so that no 1×1 convolution
leads from one to the other; attention can, if a query for each teacher token may look at the whole student map.
The teacher's map is dominated by what is the same at all positions, so it is matched twice: as it is, and without that
constant part. And what the teacher knows sits in its parameters as much as in its outputs, so the student's earlier map
is also sent through the teacher's own last stage, and what comes out asks the questions of the attention.

**Equations.** Student maps $F_3^s,F_4^s$ (last but one, last stage), teacher's last map
$F^t\in\mathbb R^{B\times C_t\times H\times W}$, a constant; $F_{bhw}$ is the vector of channels at one position. The
projector $P(F,Q)$ of a map with queries $Q\in\mathbb R^{B\times C_t\times H\times W}$ (learned where none are given),
learned positions $E$, $h$ heads of $d=C_t/h$ channels:

$$X=\mathrm{ReLU}(\mathrm{BN}(W_{3\times3}*F))+E,\qquad\tilde Q=\mathrm{ReLU}(W_{1\times1}*Q) \tag{1}$$

$$A=\mathrm{softmax}\big(\gamma\,d^{-1/2}\,(\tilde QW_q)(XW_k)^\top\big),\qquad O=W_o\,[A\,(XW_v)] \tag{2}$$

$$P(F,Q)=\mathrm{FFN}(\mathrm{LN}(O)),\qquad\mathrm{FFN}(u)=u+W_2\,\mathrm{ReLU}(W_1u) \tag{3}$$

$$\begin{aligned}
D(Y,F)&=\frac1B\sum_{bhw}\Big\lVert\frac{Y_{bhw}}{\lVert Y_{bhw}\rVert}
-\frac{F_{bhw}}{\lVert F_{bhw}\rVert}\Big\rVert^2\\
&=\frac1B\sum_{bhw}2-2\cos(Y_{bhw},F_{bhw})
\end{aligned} \tag{4}$$

$$\begin{aligned}
\Psi(F)&=\mathrm{DCT}^{-1}\big(\mathrm{DCT}(F)\text{ with coefficient }(0,0)\text{ set to }0\big)\\
&=F-\frac1{HW}\sum_{hw}F_{\cdot hw}
\end{aligned} \tag{5}$$

$$V(Y_1,Y_2)=\alpha_1D(Y_1,F^t)+\alpha_2D\big(\Psi(Y_2),\Psi(F^t)\big) \tag{6}$$

With the teacher's frozen last stage $\mathcal T_4$ and four projectors of their own weights, for the two views $j$:

$$Z_j=\mathcal T_4\big(P_{3,j}(F_3^s)\big),\qquad Y_j=P_{4,j}(F_4^s,Z_j) \tag{7}$$

$$L_{soft}=-\frac{\tau^2}B\sum_{bk}p^t_{bk}(\tau)\log p^s_{bk}(\tau) \tag{8}$$

$$L=(1-\lambda)\,\mathrm{CE}(z^s,y)+\lambda L_{soft}+V(Z_1,Z_2)+V(Y_1,Y_2) \tag{9}$$

**Conventions.** (4) is summed over channels and positions: its size grows with $HW$, and a weight is good for one size
of map only. The published $\alpha_1=0.08$, $\alpha_2=0.06$ belong to 7×7 positions; the paper speaks of one balance
$\beta$, here $\alpha_1/(\alpha_1+\alpha_2)$. (5) needs no transform: the cosine transform's other basis functions are
orthogonal to the constant, and what is left is the map without its mean. (8) is a cross-entropy, not a divergence. The
gradient passes through $\mathcal T_4$ and through the queries $Z_j$; the teacher's parameters get none.

**Paper and code.** In the code the queries of (7) are used wherever they are passed, even where the configuration asks
for learned ones; this is followed. Its teacher is set to evaluation mode once, and a later ``train()`` switches its
random depth on again, in $\mathcal T_4$ and in the targets; here the teacher stays in evaluation mode. Some
configurations drop (8), or the second view at stage 4 alone, and have other numbers of heads at the two stages; weights
of 0 do that here, and weights and heads may be pairs. The gradient of (4) with respect to $Y$ has the factor
$1/\lVert Y\rVert$, in the second view $1/\lVert\Psi(Y)\rVert$: where $Y$ is constant up to rounding the published code
divides by $10^{-12}$, and here there is no gradient. Teacher and student may be any `StagedNetwork`, so that (7) can be
tried with a convolutional teacher too.

**Source status.** Losses, projector, forward pass and configurations read from the authors' code, the paper only
through its abstract and README; the names of symbols are from memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_fraction,
    check_labels,
    check_logits,
    check_maps,
    check_not_negative,
    check_positive,
    check_same_shape,
)
from kdcore.data.arrays import Arrays
from kdcore.foundations.kd import soft_cross_entropy, soften
from kdcore.models.inspect import inference
from kdcore.models.projector import Projector, to_map, to_tokens
from kdcore.models.staged import StagedNetwork
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner
from kdcore.training.teachers import predict_layers

__all__ = [
    "CrossAttentionProjector",
    "ScaleDistillation",
    "TokenNetwork",
    "alternative_view",
    "constant_share",
    "cosine_transform",
    "inverse_cosine_transform",
    "unit_channels",
    "view_distance",
    "with_teacher_maps",
]


_VIEWS = ("original", "alternative")


def unit_channels(features: Tensor) -> Tensor:
    """Each position's vector of channels at length 1, as equation (4) compares them.

    Args:
        features: shape (B, C, H, W).

    Returns:
        Shape (B, C, H, W), at least float32; a vector of zeros stays zero and gets no gradient.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, or is empty.

    Example:
        >>> import torch
        >>> unit_channels(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    check_maps(features=features)
    features = at_least_float32(features)
    present = features.detach().norm(dim=1, keepdim=True) > 1e-12
    return torch.where(present, F.normalize(features, dim=1, eps=1e-12), 0.0)


def view_distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Squared distance of two maps' directions, summed over positions, mean over the batch: D of equation (4).

    Args:
        student_map: shape (B, C, H, W).
        teacher_map: shape (B, C, H, W); no gradient flows into it.

    Returns:
        Scalar in [0, 4·H·W].

    Raises:
        ValueError: a map is not a finite floating-point (B, C, H, W) tensor, or shapes differ.

    Example:
        >>> import torch
        >>> teacher_map = torch.ones(1, 2, 3, 3)
        >>> view_distance(5 * teacher_map, teacher_map), view_distance(-teacher_map, teacher_map)
        (tensor(0.), tensor(36.0000))
    """
    check_same_shape(student_map=student_map, teacher_map=teacher_map)
    return (unit_channels(student_map) - unit_channels(teacher_map.detach())).square().sum() / len(student_map)


def alternative_view(features: Tensor) -> Tensor:
    """The map without its constant part, Ψ of equation (5).

    Args:
        features: shape (B, C, H, W) with more than one position.

    Returns:
        Shape (B, C, H, W), at least float32; each channel of each sample has mean 0. A position at which the map
        equals its mean up to rounding has zeros, so that `view_distance` takes no direction from rounding errors.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, is empty, or has a single position,
            of which nothing would be left.

    Example:
        >>> import torch
        >>> alternative_view(torch.tensor([[[[7.0, 9.0]]]]))
        tensor([[[[-1.,  1.]]]])
    """
    check_maps(features=features)
    if features.shape[2:].numel() < 2:
        raise ValueError(f"features must have more than one position, got shape {tuple(features.shape)}.")
    features = at_least_float32(features)
    rest = features - features.mean(dim=(2, 3), keepdim=True)
    length, whole = (one.detach().square().sum(dim=1, keepdim=True).sqrt() for one in (rest, features))
    rounding = 4 * torch.finfo(features.dtype).eps * whole.amax(dim=(2, 3), keepdim=True)
    return torch.where(length > rounding, rest, 0.0)


def constant_share(features: Tensor) -> Tensor:
    """Share of a map's squared length that its constant part holds, the coefficient (0, 0) of the cosine transform.

    Args:
        features: shape (B, C, H, W).

    Returns:
        Shape (B,), in [0, 1]; 1 for a map that is the same at all positions.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, or is empty.

    Example:
        >>> import torch
        >>> constant_share(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([0.8000])
    """
    check_maps(features=features)
    constant = features.mean(dim=(2, 3)).square().sum(dim=1) * features.shape[2:].numel()
    return constant / features.square().sum(dim=(1, 2, 3))


def cosine_transform(features: Tensor) -> Tensor:
    """Two-dimensional cosine transform (DCT-II, not normalised) of each channel, the DCT of equation (5).

    Args:
        features: shape (B, C, H, W).

    Returns:
        Shape (B, C, H, W); coefficient (0, 0) is four times the sum over positions.

    Raises:
        ValueError: `features` is not a finite floating-point (B, C, H, W) tensor, or is empty.

    Example:
        >>> import torch
        >>> cosine_transform(torch.ones(1, 1, 2, 2)).round().flatten().abs()
        tensor([16.,  0.,  0.,  0.])
    """
    check_maps(features=features)
    return _cosines(features.shape[2], features) @ features @ _cosines(features.shape[3], features).T


def inverse_cosine_transform(coefficients: Tensor) -> Tensor:
    """What `cosine_transform` was made from.

    Args:
        coefficients: shape (B, C, H, W).

    Returns:
        Shape (B, C, H, W).

    Raises:
        ValueError: `coefficients` is not a finite floating-point (B, C, H, W) tensor, or is empty.

    Example:
        >>> import torch
        >>> features = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> torch.allclose(inverse_cosine_transform(cosine_transform(features)), features, atol=1e-6)
        True
    """
    check_maps(coefficients=coefficients)
    return (
        _inverse_cosines(coefficients.shape[2], coefficients)
        @ coefficients
        @ _inverse_cosines(coefficients.shape[3], coefficients).T
    )


def _cosines(size: int, like: Tensor) -> Tensor:
    """Rows are the basis functions 2 cos(π k (2n + 1) / 2N)."""
    order = torch.arange(size, dtype=like.dtype, device=like.device)
    return 2 * torch.cos(math.pi / (2 * size) * order[:, None] * (2 * order + 1))


def _inverse_cosines(size: int, like: Tensor) -> Tensor:
    basis = _cosines(size, like)  # its rows are orthogonal, so that the inverse is the transpose over squared lengths
    return basis.T / basis.square().sum(dim=1)


class CrossAttentionProjector(nn.Module):
    """A student map in the shape of the teacher's: each teacher position asks the whole map, equations (1) to (3).

    Args:
        source: (C, H', W') of the student's map.
        target: (C_t, H, W) of the teacher's map.
        heads: h, divides C_t.
        sharpness: γ > 0 of the softmax; towards 0 every position gets the mean of the values.
        learned_queries: have a learned query for each target position; without, `forward` must be given queries.

    Raises:
        ValueError: a shape is no (C, H, W) of positive numbers, `heads` does not divide C_t, or `sharpness` is not
            positive; on a call: a map has the wrong shape, or there are no queries.

    Shape: (B, C, H', W'), and queries (B, C_t, H, W), to (B, C_t, H, W).

    Example:
        >>> import torch
        >>> projector = CrossAttentionProjector((8, 6, 6), (16, 3, 3), heads=2)
        >>> projector(torch.rand(4, 8, 6, 6)).shape
        torch.Size([4, 16, 3, 3])
    """

    def __init__(
        self,
        source: Sequence[int],
        target: Sequence[int],
        heads: int = 4,
        sharpness: float = 5.0,
        learned_queries: bool = True,
    ) -> None:
        super().__init__()
        for name, shape in {"source": source, "target": target}.items():
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(f"{name} must be the shape (C, H, W) of a map, got {tuple(shape)}.")
        check_positive(heads=heads, sharpness=sharpness)
        channels, width = source[0], target[0]
        if width % heads:
            raise ValueError(f"heads must divide the teacher's {width} channels, got {heads}.")
        self.source, self.target = tuple(source), tuple(target)
        self.heads, self.sharpness = heads, sharpness
        self.convolution = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *source), std=0.02))
        self.queries = nn.Parameter(torch.randn(1, *target)) if learned_queries else None
        self.query_layer = nn.Sequential(nn.Linear(width, width), nn.ReLU())  # a 1×1 convolution, of tokens
        self.query, self.key, self.value = (nn.Linear(size, width) for size in (width, channels, channels))
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, features: Tensor, queries: Tensor | None = None) -> Tensor:
        """The projected map (B, C_t, H, W) of `features` (B, C, H', W'); `queries` replace the learned ones."""
        asked, keys, values = self._heads(features, queries)
        attended = F.scaled_dot_product_attention(asked, keys, values, scale=self._scale())
        normed = self.norm(self.output(attended.transpose(1, 2).flatten(2)))
        tokens = normed + self.feed_forward(normed)
        return tokens.transpose(1, 2).reshape(-1, *self.target)

    def attention(self, features: Tensor, queries: Tensor | None = None) -> Tensor:
        """The weights A of equation (2), (B, h, H·W, H'·W'): which positions of the student each query reads."""
        asked, keys, _ = self._heads(features, queries)
        return (self._scale() * asked @ keys.transpose(2, 3)).softmax(dim=-1)

    def _scale(self) -> float:
        return self.sharpness / math.sqrt(self.target[0] // self.heads)

    def _heads(self, features: Tensor, queries: Tensor | None) -> list[Tensor]:
        """Queries, keys and values, each (B, h, positions, d)."""
        self._check("features", features, self.source)
        queries = self.queries if queries is None else queries
        if queries is None:
            raise ValueError("queries must be given to a projector that has no learned ones.")
        self._check("queries", queries, self.target)
        read = to_tokens(self.convolution(features) + self.positions)
        # A learned query is the same for all images: one row, expanded, costs one row.
        asked = self.query(self.query_layer(to_tokens(queries))).expand(len(features), -1, -1)
        return [
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (asked, self.key(read), self.value(read))
        ]

    @staticmethod
    def _check(name: str, features: Tensor, shape: tuple[int, ...]) -> None:
        check_maps(**{name: features})
        if tuple(features.shape[1:]) != shape:
            raise ValueError(f"{name} must have shape (B, {', '.join(map(str, shape))}), got {tuple(features.shape)}.")


class ScaleDistillation(Learner):
    """Labels, the teacher's probabilities, and its last map in two views at two stages, equation (9).

    Args:
        student: trained; the attribute `model`. Its last two maps are used.
        teacher: frozen by this learner; its last stage is 𝒯₄.
        inputs: images (N, channels, H, W), of which one is run through both networks to learn the shapes of maps.
        original_weight: α₁ ≥ 0 of the plain view; a pair gives V(Z₁, Z₂) and V(Y₁, Y₂) weights of their own.
        alternative_weight: α₂ ≥ 0 of the view without constant part, or a pair. A view whose weight for Y is 0 has no
            projector of the last map.
        soft_weight: λ in [0, 1].
        temperature: τ > 0 of the soft term.
        projector: "attention", or "convolution": one 1×1 convolution after average pooling, which takes no queries
            and so goes without `perception`.
        perception: send the earlier map through the teacher's last stage, equation (7). Without, the term
            V(Z₁, Z₂) is missing and the queries are learned.
        linked: with `perception`, ask the last map with Z; else with learned queries.
        heads: of the projectors, or a pair for the earlier and the last map; divides the channels of the teacher's.
        sharpness: γ > 0 of the attention.
        projector_rate: learning rate of the projectors in units of the student's, positive.

    Raises:
        ValueError: a weight is out of range, all views have weight 0, `projector` is unknown or "convolution" with
            `perception`, a network has fewer than two stages, `heads` does not divide the channels, or the
            teacher's last map has a single position while the view without constant part has a weight.

    Example:
        >>> import torch
        >>> from kdcore.models import ConvNet
        >>> inputs = torch.rand(2, 1, 8, 8)
        >>> teacher = TokenNetwork(image_size=8, patch_size=2, widths=(8, 16), depths=(1, 1), heads=2)
        >>> learner = ScaleDistillation(ConvNet(width=4), teacher, inputs, heads=2)
        >>> list(learner.losses(Arrays(inputs=inputs, labels=torch.tensor([3, 5]))))
        ['cross_entropy', 'soft', 'perceived original', 'perceived alternative', 'original', 'alternative']
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork,
        inputs: Tensor,
        *,
        original_weight: float | tuple[float, float] = 0.08,
        alternative_weight: float | tuple[float, float] = 0.06,
        soft_weight: float = 0.5,
        temperature: float = 1.0,
        projector: Literal["attention", "convolution"] = "attention",
        perception: bool = True,
        linked: bool = True,
        heads: int | tuple[int, int] = 4,
        sharpness: float = 5.0,
        projector_rate: float = 1.0,
    ) -> None:
        super().__init__()
        check_fraction(soft_weight=soft_weight)
        check_positive(temperature=temperature, projector_rate=projector_rate)
        check_choice("projector", projector, ("attention", "convolution"))
        if perception and projector == "convolution":
            raise ValueError("perception needs projector='attention', as its outcome is the attention's query.")
        self.early_weights, self.weights = _weights_of_views(original_weight, alternative_weight, perception)
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.soft_weight, self.temperature = soft_weight, temperature
        self.perception, self.linked = perception, perception and linked
        self.projector_rate = projector_rate
        early, late = _last_shapes("student", student, inputs)
        teacher_early, teacher_late = _last_shapes("teacher", teacher, inputs)
        if math.prod(teacher_late[1:]) < 2 and any("alternative" in one for one in (self.early_weights, self.weights)):
            raise ValueError(f"alternative_weight must be 0 for a teacher's map {teacher_late} of a single position.")
        early_heads, late_heads = _pair(heads)
        learned = not self.linked
        self.late = nn.ModuleDict(
            {
                view: Projector(late, teacher_late)
                if projector == "convolution"
                else CrossAttentionProjector(late, teacher_late, late_heads, sharpness, learned)
                for view in self.weights
            }
        )
        # A view without a loss of its own at the earlier stage may still ask the questions of the last one.
        asking = [view for view in _VIEWS if view in self.early_weights or (self.linked and view in self.weights)]
        self.early = nn.ModuleDict(
            {view: CrossAttentionProjector(early, teacher_early, early_heads, sharpness) for view in asking}
        )

    def parameter_groups(self) -> list[dict]:
        """The student's parameters, and the projectors' at their own rate."""
        projectors = [*self.early.parameters(), *self.late.parameters()]
        return [{"params": list(self.model.parameters())}, {"params": projectors, "lr_factor": self.projector_rate}]

    def perceive(self, early_map: Tensor) -> dict[str, Tensor]:
        """Z of equation (7) for each view, (B, C_t, H, W): the teacher's last stage on the student's earlier map.

        Args:
            early_map: the student's last map but one, shape (B, C, H', W').

        Returns:
            The maps by name of the view, "original" and "alternative"; empty without `perception`.
        """
        if not self.early:
            return {}
        projected = torch.cat([projector(early_map) for projector in self.early.values()])
        # Its normalisation is per token, so that both views may pass the frozen stage in one batch.
        perceived = self.teacher.stages[-1](projected).chunk(len(self.early))
        return dict(zip(self.early, perceived, strict=True))

    def project(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Both sides of equation (7): Z, and Y, by name of the view.

        Args:
            maps: the student's maps, of which the last two are used.

        Returns:
            Two dictionaries of maps (B, C_t, H, W).
        """
        perceived = self.perceive(maps[-2])
        queries = {view: (perceived[view],) if self.linked else () for view in self.late}
        return perceived, {view: projector(maps[-1], *queries[view]) for view, projector in self.late.items()}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of equation (9), weighted, of `batch.inputs` and `batch.labels`.

        A batch that carries `teacher_logits` and `teacher_map` (see `with_teacher_maps`) spares the teacher's pass.
        """
        maps, logits = self.model.maps(batch.inputs)
        check_labels(batch.labels, *logits.shape)
        teacher_map, teacher_logits = self._taught(batch)
        terms = {"cross_entropy": (1 - self.soft_weight) * F.cross_entropy(logits, batch.labels)}
        if self.soft_weight:
            check_logits(student_logits=logits, teacher_logits=teacher_logits)
            targets = soften(at_least_float32(teacher_logits), self.temperature)
            soft = soft_cross_entropy(logits, targets, self.temperature)
            terms["soft"] = self.soft_weight * self.temperature**2 * soft
        perceived, projected = self.project(maps)
        for prefix, weights, found in (("perceived ", self.early_weights, perceived), ("", self.weights, projected)):
            for view, weight in weights.items():
                terms[prefix + view] = weight * _distance_in_view(view, found[view], teacher_map)
        return terms

    def _taught(self, batch: Any) -> tuple[Tensor, Tensor]:
        if "teacher_map" in batch and "teacher_logits" in batch:
            return batch.teacher_map, batch.teacher_logits
        with torch.no_grad():
            maps, logits = self.teacher.maps(batch.inputs)
        return maps[-1], logits


def with_teacher_maps(rows: Arrays, teacher: StagedNetwork, batch_size: int = 1024) -> Arrays:
    """`rows` with the teacher's last map and logits, computed once; exact where inputs are not augmented.

    Args:
        rows: with `inputs` (N, channels, H, W).
        teacher: run in evaluation mode; its mode is restored.
        batch_size: rows at a time.

    Returns:
        The rows with `teacher_map` (N, C_t, H, W) and `teacher_logits` (N, C).

    Raises:
        ValueError: `batch_size` is not positive.

    Example:
        >>> import torch
        >>> from kdcore.models import ConvNet
        >>> with_teacher_maps(Arrays(inputs=torch.rand(3, 1, 8, 8)), ConvNet(width=4)).teacher_map.shape
        torch.Size([3, 16, 2, 2])
    """
    last = f"stages.{len(teacher.stages) - 1}"
    maps, logits = predict_layers(teacher, rows.inputs, [last], batch_size)
    return rows.with_(teacher_map=maps[last], teacher_logits=logits)


class TokenNetwork(StagedNetwork):
    """A vision transformer or an MLP-Mixer in stages: patches, blocks on tokens, 2×2 patches merged between stages.

    With attention and merging this is the skeleton of a Swin transformer (Liu et al. 2021) without its windows, which
    grids this small do not need; without merging a plain vision transformer (Dosovitskiy et al. 2021) or, with
    ``mixing="mlp"``, an MLP-Mixer (Tolstikhin et al. 2021), cut into stages. The last stage ends in the layer norm.

    Args:
        image_size: side of the square images.
        patch_size: side of a patch; divides `image_size`.
        widths: channels of each stage.
        depths: blocks of each stage.
        heads: of the attention; divides every width.
        mixing: how tokens exchange information: "attention", or "mlp" over positions.
        merge: join 2×2 tokens between stages; without, all widths must agree.
        in_channels: of the input.
        num_classes: C.

    Raises:
        ValueError: a size is not positive or does not divide as it must, `widths` and `depths` differ in length, or
            `mixing` is unknown.

    Shape: inputs (B, in_channels, image_size, image_size); logits (B, C).

    Example:
        >>> import torch
        >>> network = TokenNetwork(image_size=12, patch_size=2, widths=(8, 16), depths=(1, 1), heads=2)
        >>> maps, logits = network.maps(torch.zeros(2, 1, 12, 12))
        >>> [tuple(one.shape) for one in maps]
        [(2, 8, 6, 6), (2, 16, 3, 3)]
    """

    def __init__(
        self,
        image_size: int = 16,
        patch_size: int = 2,
        widths: Sequence[int] = (32, 64),
        depths: Sequence[int] = (2, 2),
        heads: int = 4,
        mixing: Literal["attention", "mlp"] = "attention",
        merge: bool = True,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        check_positive(image_size=image_size, patch_size=patch_size, heads=heads)
        check_choice("mixing", mixing, ("attention", "mlp"))
        if not widths or len(widths) != len(depths) or min(*widths, *depths) < 1:
            raise ValueError(f"widths and depths must name as many stages, got {tuple(widths)} and {tuple(depths)}.")
        if not merge and len(set(widths)) > 1:
            raise ValueError(f"widths must agree where tokens are not merged, got {tuple(widths)}.")
        if any(width % heads for width in widths):
            raise ValueError(f"heads must divide all widths {tuple(widths)}, got {heads}.")
        halvings = len(widths) - 1 if merge else 0
        if image_size % (patch_size * 2**halvings):
            raise ValueError(f"image_size must be divisible by {patch_size * 2**halvings}, got {image_size}.")
        side = image_size // patch_size
        stages: list[nn.Module] = []
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            merging = [_Merging(widths[number - 1], width)] if merge and number else []
            tokens = (side // 2**number if merge else side) ** 2
            blocks = [
                _block(width, heads) if mixing == "attention" else _MixerBlock(width, tokens) for _ in range(depth)
            ]
            last = [nn.LayerNorm(width)] if number == len(widths) - 1 else []
            stages.append(nn.Sequential(*merging, _OnTokens(*blocks, *last)))
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        stem = _Patches(in_channels, widths[0], patch_size, side)
        super().__init__(stem, stages, pool, nn.Linear(widths[-1], num_classes), list(widths))


class _Patches(nn.Module):
    """Patches as a map, with learned positions."""

    def __init__(self, in_channels: int, width: int, patch_size: int, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, side, side), std=0.02))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.patches(inputs) + self.positions


class _OnTokens(nn.Sequential):
    """A chain that works on tokens, from map to map."""

    def forward(self, features: Tensor) -> Tensor:
        return to_map(super().forward(to_tokens(features)))


class _Merging(nn.Module):
    """Each 2×2 positions become one: their channels joined, normalised, and mapped to the next width."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, wider, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return to_map(self.reduction(self.norm(to_tokens(F.pixel_unshuffle(features, 2)))))


def _block(width: int, heads: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


class _MixerBlock(nn.Module):
    """An MLP over the positions of each channel, then one over the channels of each position."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.over_positions = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.over_channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.over_positions(self.norms[0](tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.over_channels(self.norms[1](tokens))


def _last_shapes(name: str, network: StagedNetwork, inputs: Tensor) -> list[tuple[int, ...]]:
    """Shapes (C, H, W) of a network's last two maps."""
    with inference(network):  # batch norm shall not take the probe for training data
        maps, _ = network.maps(inputs[:1])
    if len(maps) < 2:
        raise ValueError(f"the {name} must have at least two stages, got {len(maps)}.")
    return [tuple(features.shape[1:]) for features in maps[-2:]]


def _pair(value: Any) -> tuple[Any, Any]:
    """What belongs to the earlier and to the last stage, from one value for both or a pair."""
    return value if isinstance(value, tuple) else (value, value)


def _weights_of_views(original: Any, alternative: Any, perception: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Positive weights by view of V(Z₁, Z₂), none without `perception`, and of V(Y₁, Y₂)."""
    pairs = dict(zip(_VIEWS, (_pair(original), _pair(alternative)), strict=True))
    for view, pair in pairs.items():
        for weight in pair:
            check_not_negative(**{f"{view}_weight": weight})
    early, late = ({view: float(pair[stage]) for view, pair in pairs.items() if pair[stage]} for stage in (0, 1))
    early = early if perception else {}
    if not early and not late:
        raise ValueError(f"original_weight or alternative_weight must be positive, got {original} and {alternative}.")
    return early, late


def _distance_in_view(view: str, features: Tensor, teacher_map: Tensor) -> Tensor:
    if view == "alternative":
        return view_distance(alternative_view(features), alternative_view(teacher_map))
    return view_distance(features, teacher_map)
