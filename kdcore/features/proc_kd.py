r"""ProC-KD: prototypes of a teacher's tokens help a student whose classes the teacher does not know.

Deng Li, Aming Wu, Yahong Han, Qi Tian: *Prototype-guided Cross-task Knowledge Distillation for Large-scale Models*,
2022, arXiv 2212.13180; journal version by Deng Li, Peng Li, Aming Wu, Yahong Han, Frontiers of Information Technology
and Electronic Engineering 26(6), 2025.

**Idea.** Logits can be compared only where teacher and student have the same classes, but local parts (a leg, a loop, a
stroke) occur in many tasks. So a set of vectors without labels, the prototypes, is learned from the frozen teacher's
tokens on the student's images. Tokens of the teacher and of the student attend to them, and the student's augmented
tokens have to agree with the teacher's.

**Equations.** Layers $T_1,\dots,T_L\in\mathbb R^{B\times n\times d}$ of the teacher, the student's tokens
$S\in\mathbb R^{B\times n\times d}$, prototypes $P\in\mathbb R^{K\times d}$, $[\cdot;\cdot]$ stacks the features of each
token, $\phi$ and $\psi$ are linear–ReLU–linear–ReLU without bias from $2d$ to $d$ features:

$$F=\mathrm{ReLU}\big(W_f[T_1;\dots;T_L]+b_f\big) \tag{1}$$

$$a_{ik}=\mathrm{softmax}_k\big(w_k^\top\bar F_i\big),\qquad\bar F_i=F_i/\lVert F_i\rVert \tag{2}$$

$$v_k=\sum_ia_{ik}\big(\bar F_i-P_k\big)=\sum_ia_{ik}\bar F_i-P_k\sum_ia_{ik} \tag{3}$$

$$g=W_vv+b_v,\qquad v=\frac1{\sqrt K}\Big[\frac{v_1}{\lVert v_1\rVert};\dots;\frac{v_K}{\lVert v_K\rVert}\Big] \tag{4}$$

$$U_i=\phi\big([F_i;g]\big) \tag{5}$$

$$\begin{aligned}
Q&=XE^\top,\qquad M=PE^\top,\\
A_{ik}&=\mathrm{softmax}_k\big(Q_i^\top M_k\big),\qquad\tilde Q_i=\sum_kA_{ik}M_k
\end{aligned} \tag{6}$$

$$\mathrm{Aug}(X)=\mathrm{ReLU}\big(\psi([Q;\tilde Q])+X\big) \tag{7}$$

The head $h$ that turns the student's mean token into logits is shared: $z=h(\tfrac1n\sum_iS_i)$ and
$\hat z=h(\tfrac1n\sum_i\mathrm{Aug}(U)_i)$. With $\mathrm{sg}$ for what gets no gradient,

$$\begin{aligned}
L={}&\mathrm{CE}(z,y)+\mathrm{CE}(\hat z,y)\\
&+\tfrac{\lambda_F}{Bnd}\lVert\mathrm{Aug}(S)-\mathrm{sg}\,\mathrm{Aug}(U)\rVert^2
+\lambda_{KL}\,\mathrm{KL}\big(\mathrm{sg}\,\hat p\,\|\,p\big)
\end{aligned} \tag{8}$$

where $p,\hat p$ are the softmax of $z,\hat z$. The bank of (1) to (7) is trained first, with $\mathrm{CE}(\hat z,y)$
alone, then frozen; or both are trained at once (`joint`). Logits for use are $z$, which the prototypes do not enter, or
$h$ of the mean of $\mathrm{Aug}(S)$. Neither needs the teacher.

**Conventions.** Both softmaxes run over prototypes, not over tokens. (2) and (3) take normalised tokens, (5) raw ones,
and (6) has no $1/\sqrt d$; a factor on its scores is an option, 1 as published. Tokens are those of a map, pixel by
pixel, or of a transformer; a layer of the teacher with another number of positions or another width passes a trained
`Projector` first.

**Paper and code.** The authors published their model (MindSpore), and (1) to (7) follow it to the digit. Its training
script runs cross-entropy alone, with a placeholder in the teacher's place: (8) is not in it.

**Source status.** Reconstructed: (8), its weights and the two phases. Read from the authors' code: (1) to (7), $K=72$,
the initial prototypes, which of $S$ and $U$ is augmented when. Mean tokens in place of a class token, projectors on
the teacher's side, $\mathrm{Aug}(S)$ as a second source of $\hat z$, prototypes on a sphere, a sharper attention and
tokens that are normalised before they are augmented are choices made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import (
    check_choice,
    check_finite,
    check_labels,
    check_not_negative,
    check_positive,
    check_same_shape,
)
from kdcore.data.arrays import Arrays
from kdcore.foundations.kd import distillation_loss
from kdcore.models.inspect import features
from kdcore.models.projector import Projector, to_tokens
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner
from kdcore.training.teachers import carried_layers, layers_of, predict_layers

__all__ = [
    "PrototypeBank",
    "PrototypeDistillation",
    "PrototypeLearning",
    "TokenMimicry",
    "descriptor_cosine_bound",
    "feature_loss",
    "layer_shapes",
    "prototype_assignment",
    "prototype_attention",
    "prototype_residuals",
    "stacked_residuals",
    "variance_explained",
    "with_augmented",
    "zero_share",
]

Parts = Literal["both", "descriptor", "augmentation", "none"]
Start = Literal["uniform", "sphere"]
Route = Literal["teacher", "student"]


def prototype_assignment(tokens: Tensor, weight: Tensor) -> Tensor:
    """Shares of each normalised token that go to the prototypes, equation (2).

    Args:
        tokens: F, shape (B, n, d).
        weight: rows w_k, shape (K, d).

    Returns:
        Shape (B, n, K), float32 at least; each row sums to 1, and a token of zeros goes to all alike.

    Raises:
        ValueError: `tokens` is no finite floating-point (B, n, d) tensor, or `weight` has another width.

    Example:
        >>> tokens = torch.tensor([[[30.0, 40.0]]])
        >>> prototype_assignment(tokens, torch.tensor([[5.0, 0.0], [0.0, 5.0]]))  # 5 · 0.6 against 5 · 0.8
        tensor([[[0.2689, 0.7311]]])
    """
    _check_tokens(tokens=tokens)
    _check_rows("weight", weight, tokens)
    directions = _normalised(tokens)
    return F.linear(directions, weight.to(directions.dtype)).softmax(dim=2)


def prototype_residuals(tokens: Tensor, assignment: Tensor, prototypes: Tensor) -> Tensor:
    """What the tokens of each prototype have beyond it, summed over tokens, equation (3).

    Args:
        tokens: F, shape (B, n, d); they are normalised here.
        assignment: a, shape (B, n, K).
        prototypes: P, shape (K, d).

    Returns:
        v, shape (B, K, d), computed without the (B, n, K, d) differences.

    Raises:
        ValueError: `tokens` is no finite floating-point (B, n, d) tensor, or the shapes do not fit.

    Example:
        >>> tokens, shares = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]]), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
        >>> prototype_residuals(tokens, shares, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        tensor([[[-0.5000, -1.0000],
                 [ 0.0000,  0.5000]]])
    """
    _check_tokens(tokens=tokens)
    _check_rows("prototypes", prototypes, tokens)
    if assignment.shape != (*tokens.shape[:2], len(prototypes)):
        raise ValueError(
            f"assignment must have shape {(*tokens.shape[:2], len(prototypes))}, got {tuple(assignment.shape)}."
        )
    return assignment.transpose(1, 2) @ _normalised(tokens) - assignment.sum(dim=1).unsqueeze(2) * prototypes


def stacked_residuals(residuals: Tensor) -> Tensor:
    """Residuals of unit length, one below the other, as a vector of unit length: v of equation (4).

    Args:
        residuals: shape (B, K, d).

    Returns:
        Shape (B, K·d); a residual of zeros stays zero.

    Raises:
        ValueError: `residuals` is no finite floating-point tensor of three axes.

    Example:
        >>> stacked_residuals(torch.tensor([[[3.0, 4.0], [0.0, -7.0]]]))
        tensor([[ 0.4243,  0.5657,  0.0000, -0.7071]])
    """
    _check_tokens(residuals=residuals)
    return F.normalize(F.normalize(residuals, dim=2).flatten(1), dim=1)


def descriptor_cosine_bound(prototypes: Tensor) -> Tensor:
    r"""The least cosine that the descriptors (4) of any two images can have, by the lengths of the prototypes alone.

    A residual points from its prototype to a mean of unit vectors, so it is at most $\arcsin(1/\lVert P_k\rVert)$ away
    from $-P_k$, whatever the image: the cosine is at least the mean over prototypes of $1-2/\lVert P_k\rVert^2$.

    Args:
        prototypes: P, shape (K, d).

    Returns:
        Scalar in [-1, 1); a prototype of length at most 1 counts as -1.

    Raises:
        ValueError: `prototypes` is no matrix.

    Example:
        >>> descriptor_cosine_bound(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        tensor(0.6875)
    """
    if prototypes.ndim != 2:
        raise ValueError(f"prototypes must have shape (K, d), got {tuple(prototypes.shape)}.")
    return (1 - 2 / prototypes.square().sum(dim=1).clamp(min=1)).mean()


def prototype_attention(tokens: Tensor, prototypes: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """What each token attends to among the prototypes, and what it gets, equation (6); both are encoded already.

    Args:
        tokens: Q, shape (B, n, d).
        prototypes: M, shape (K, d).
        sharpness: factor on the scores, positive; 1 as published.

    Returns:
        A (B, n, K), whose rows sum to 1, and the attended prototypes (B, n, d).

    Raises:
        ValueError: `tokens` is no finite floating-point (B, n, d) tensor, `prototypes` has another width, or
            `sharpness` is not positive.

    Example:
        >>> shares, attended = prototype_attention(torch.zeros(1, 1, 2), torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        >>> shares, attended
        (tensor([[[0.5000, 0.5000]]]), tensor([[[1., 2.]]]))
    """
    _check_tokens(tokens=tokens)
    _check_rows("prototypes", prototypes, tokens)
    check_positive(sharpness=sharpness)
    shares = (sharpness * at_least_float32(F.linear(tokens, prototypes))).softmax(dim=2).to(prototypes.dtype)
    return shares, shares @ prototypes


def feature_loss(student_tokens: Tensor, teacher_tokens: Tensor) -> Tensor:
    """Mean squared difference of augmented tokens, the third term of equation (8) without its weight.

    Args:
        student_tokens: Aug(S), shape (B, n, d).
        teacher_tokens: Aug(U), the same shape; no gradient flows into it.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: a tensor is no finite floating-point (B, n, d) tensor, or the shapes differ.

    Example:
        >>> feature_loss(torch.full((2, 3, 4), 3.0), torch.ones(2, 3, 4))
        tensor(4.)
    """
    _check_tokens(student_tokens=student_tokens, teacher_tokens=teacher_tokens)
    check_same_shape(student_tokens=student_tokens, teacher_tokens=teacher_tokens)
    return F.mse_loss(student_tokens, teacher_tokens.detach())


def zero_share(tokens: Tensor) -> float:
    """Share of entries that are exactly zero, in percent: how much a chain of ReLUs has lost.

    Example:
        >>> zero_share(torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))
        75.0
    """
    return 100 * float((tokens == 0).double().mean())


def variance_explained(values: Tensor, groups: Tensor) -> float:
    """Share of the values' variance that lies between groups, in percent (eta squared).

    Args:
        values: shape (N, p), such as image patches.
        groups: shape (N,), integers: for instance the prototype that each patch attends to most.

    Returns:
        From 0 (all groups have the same mean) to 100 (within each group all rows are alike).

    Raises:
        ValueError: the lengths differ, there are no two rows that differ, or `groups` are no integers.

    Example:
        >>> variance_explained(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([7, 7, 3, 3]))
        96.15...
    """
    if values.ndim != 2:
        raise ValueError(f"values must have shape (N, p), got {tuple(values.shape)}.")
    check_labels(groups, len(values), int(groups.max()) + 1 if len(groups) else 1, name="groups")
    centred = values.double() - values.double().mean(dim=0)
    total = float(centred.square().sum())
    if total == 0:
        raise ValueError("values must differ somewhere, got equal rows.")
    _, members = groups.unique(return_inverse=True)
    sums = torch.zeros(int(members.max()) + 1, values.shape[1], dtype=torch.float64, device=values.device)
    sums.index_add_(0, members, centred)
    between = sums.square().sum(dim=1) / members.bincount()
    return 100 * float(between.sum()) / total


class PrototypeBank(nn.Module):
    """Everything between the teacher's layers and augmented tokens, equations (1) to (7).

    Args:
        shapes: of one image's features at each layer of the teacher, (C, H, W) or (n, d); see `layer_shapes`. One
            that does not already have the student's positions and width passes a linear `Projector`.
        tokens: n of the student.
        width: d of the student.
        prototypes: K.
        parts: "both" as published; "descriptor": tokens are not augmented, Aug(X) = X; "augmentation": U = F;
            "none": neither, which leaves the fused tokens.
        learned: train the prototypes, or leave them as they are drawn.
        start: "uniform": entries drawn from [0, 1) as in the published code; "sphere": directions of length 1.
        sharpness: factor on the scores of the attention (6), positive; 1 as published.
        normalised: bring tokens X to mean 0 and variance 1 before (6) and (7), so that attention and Aug take the
            teacher's and the student's tokens at one size.

    Raises:
        ValueError: no shape, a size is not positive, a shape does not fit a projector, or a choice is unknown.

    Example:
        >>> bank = PrototypeBank([(4, 8, 8), (16, 6)], tokens=16, width=6, prototypes=3)
        >>> bank([torch.rand(2, 4, 8, 8), torch.rand(2, 16, 6)]).shape
        torch.Size([2, 16, 6])
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        tokens: int,
        width: int,
        prototypes: int = 72,
        parts: Parts = "both",
        learned: bool = True,
        start: Start = "uniform",
        sharpness: float = 1.0,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        check_positive(tokens=tokens, width=width, prototypes=prototypes, sharpness=sharpness)
        check_choice("parts", parts, ("both", "descriptor", "augmentation", "none"))
        check_choice("start", start, ("uniform", "sphere"))
        if not shapes:
            raise ValueError("shapes must name at least one layer, got none.")
        self.tokens, self.width = tokens, width
        self.sharpness, self.normalised = sharpness, normalised
        self.has_descriptor = parts in ("both", "descriptor")
        self.has_augmentation = parts in ("both", "augmentation")
        self.projectors = nn.ModuleList(_to_shape(shape, (tokens, width)) for shape in shapes)
        self.fusion = nn.Linear(len(shapes) * width, width)
        drawn = torch.rand(prototypes, width) if start == "uniform" else F.normalize(torch.randn(prototypes, width))
        self.prototypes = nn.Parameter(drawn, requires_grad=learned)
        self.assignment = nn.Linear(width, prototypes, bias=False)
        self.aggregation = nn.Linear(prototypes * width, width)
        self.mixing = _mixing(width)
        self.encoder = nn.Linear(width, width, bias=False)
        self.augmentation = _mixing(width)

    def fuse(self, layers: Sequence[Tensor]) -> Tensor:
        """F (B, n, d) of the teacher's layers as they come, equation (1).

        Raises:
            ValueError: there are more or fewer layers than shapes, or a layer has another shape.
        """
        if len(layers) != len(self.projectors):
            raise ValueError(f"layers must be as many as the bank's shapes, {len(self.projectors)}, got {len(layers)}.")
        projected = [
            projector(layer) if isinstance(projector, Projector) else to_tokens(layer)
            for projector, layer in zip(self.projectors, layers, strict=True)
        ]
        for number, tokens in enumerate(projected):
            self._check_own(f"layers[{number}]", tokens)
        return self.fusion(torch.cat(projected, dim=2)).relu()

    def stacked(self, fused: Tensor) -> Tensor:
        """The vector v (B, K·d) of fused tokens (B, n, d), equations (2) to (4)."""
        shares = prototype_assignment(fused, self.assignment.weight)
        return stacked_residuals(prototype_residuals(fused, shares, self.prototypes))

    def enrich(self, fused: Tensor) -> Tensor:
        """U (B, n, d): each fused token mixed with the image's descriptor g, equations (4) and (5)."""
        if not self.has_descriptor:
            return fused
        descriptor = self.aggregation(self.stacked(fused).to(self.aggregation.weight.dtype))
        return self.mixing(torch.cat([fused, descriptor.unsqueeze(1).expand_as(fused)], dim=2))

    def attention(self, tokens: Tensor) -> Tensor:
        """A (B, n, K): the shares of each token's attention that go to the prototypes, equation (6)."""
        return self._attend(self.encoder(self._sized(tokens)))[0]

    def augment(self, tokens: Tensor) -> Tensor:
        """Aug of any tokens (B, n, d), equation (7).

        Raises:
            ValueError: `tokens` is no finite floating-point tensor of the bank's (B, n, d).
        """
        self._check_own("tokens", tokens)
        if not self.has_augmentation:
            return tokens
        tokens = self._sized(tokens)
        queries = self.encoder(tokens)
        _, attended = self._attend(queries)
        return (self.augmentation(torch.cat([queries, attended], dim=2)) + tokens).relu()

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        """Aug(U) (B, n, d) of the teacher's layers."""
        return self.augment(self.enrich(self.fuse(layers)))

    def _sized(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[2:]) if self.normalised else tokens

    def _attend(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        return prototype_attention(queries, self.encoder(self.prototypes), self.sharpness)

    def _check_own(self, name: str, tokens: Tensor) -> None:
        _check_tokens(**{name: tokens})
        if tokens.shape[1:] != (self.tokens, self.width):
            raise ValueError(f"{name} must have shape (B, {self.tokens}, {self.width}), got {tuple(tokens.shape)}.")


class PrototypeLearning(Learner):
    """First phase: the bank and the head learn the student's task from the teacher's layers, CE(ẑ, y) of equation (8).

    Args:
        bank: trained, the attribute `model`.
        head: from a mean token (B, d) to logits; trained, and shared with the student of the second phase.
        teacher: frozen by this learner; not run where the batch carries its layers (see `kdcore.training.with_layers`).
        layers: names of the teacher's modules whose outputs the bank takes, in its order.

    Example:
        >>> from kdcore.models import ConvNet
        >>> teacher, bank = ConvNet(width=4), PrototypeBank([(8, 4, 4), (16, 2, 2)], tokens=4, width=6, prototypes=3)
        >>> learner = PrototypeLearning(bank, nn.Linear(6, 10), teacher, ["stages.1", "stages.2"])
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))))
        ['augmented_cross_entropy']
    """

    frozen = ("teacher",)

    def __init__(self, bank: PrototypeBank, head: nn.Module, teacher: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model = bank
        self.head = head
        self.teacher = teacher.requires_grad_(False).eval()
        self.layers = list(layers)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy of the teacher's augmented tokens under the head."""
        augmented = self.model(layers_of(batch, self.layers, self.teacher))
        return {"augmented_cross_entropy": _cross_entropy(self.head(augmented.mean(dim=1)), batch.labels)}


class PrototypeDistillation(Learner):
    """Second phase, or both at once: labels, augmented tokens and the augmented logits teach the student, equation (8).

    Args:
        student: trained; the attribute `model`. Its logits are its head's of the mean token.
        bank: frozen by this learner unless `joint`.
        teacher: frozen by this learner; not run where the batch carries its layers (see `kdcore.training.with_layers`)
            or, unless `joint`, the augmented tokens (see `with_augmented`).
        layers: names of the teacher's modules whose outputs the bank takes.
        student_layer: name of the student's module whose output is S: its last map or tokens.
        head: name of the student's module that turns the mean token into logits.
        feature_weight: λ_F ≥ 0.
        logit_weight: λ_KL ≥ 0.
        route: whose augmented tokens give ẑ: the "teacher"'s, as in the published forward pass, or the "student"'s.
        joint: train the bank along with the student.
        augmented_weight: of CE(ẑ, y), at least 0; 1 in equation (8).

    Raises:
        ValueError: a weight is negative or not finite, `route` is unknown, or the student has no such head; on a
            call, if tokens do not have the bank's shape.

    Example:
        >>> from kdcore.models import ConvNet
        >>> student, teacher = ConvNet(width=4, num_classes=5), ConvNet(width=8)
        >>> bank = PrototypeBank([(32, 2, 2)], tokens=4, width=16, prototypes=3)
        >>> learner = PrototypeDistillation(student, bank, teacher, ["stages.2"], student_layer="stages.2")
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 4]))))
        ['cross_entropy', 'augmented_cross_entropy', 'feature', 'divergence']
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: nn.Module,
        bank: PrototypeBank,
        teacher: nn.Module,
        layers: Sequence[str],
        student_layer: str,
        head: str = "classifier",
        feature_weight: float = 1.0,
        logit_weight: float = 1.0,
        route: Route = "teacher",
        joint: bool = False,
        augmented_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_not_negative(feature_weight=feature_weight, logit_weight=logit_weight, augmented_weight=augmented_weight)
        check_choice("route", route, ("teacher", "student"))
        check_choice("head", head, [name for name, _ in student.named_modules() if name])
        self.model = student
        self.bank = bank if joint else bank.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False).eval()
        self.layers = list(layers)
        self.student_layer = student_layer
        self.head = head
        self.feature_weight = feature_weight
        self.logit_weight = logit_weight
        self.route = route
        self.joint = joint
        self.augmented_weight = augmented_weight

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of equation (8); those of weight 0 are left out."""
        tokens, logits = self.student_tokens(batch.inputs)
        augmented, target = self.bank.augment(tokens), self.augmented_teacher(batch)
        augmented_logits = self._head(target if self.route == "teacher" else augmented)
        terms = {"cross_entropy": _cross_entropy(logits, batch.labels)}
        if self.augmented_weight:
            augmented_cross_entropy = F.cross_entropy(augmented_logits, batch.labels)
            terms["augmented_cross_entropy"] = self.augmented_weight * augmented_cross_entropy
        if self.feature_weight:
            terms["feature"] = self.feature_weight * feature_loss(augmented, target)
        if self.logit_weight:
            terms["divergence"] = self.logit_weight * distillation_loss(logits, augmented_logits, temperature=1.0)
        return terms

    def student_tokens(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """S (B, n, d) and the student's logits z (B, C)."""
        found, logits = features(self.model, inputs, [self.student_layer])
        return to_tokens(found[self.student_layer]), logits

    def augmented_teacher(self, batch: Any) -> Tensor:
        """Aug(U) (B, n, d), from the batch where it carries it, else from the teacher."""
        if self.joint:
            return self.bank(layers_of(batch, self.layers, self.teacher))
        if "augmented" in batch:
            return batch.augmented
        with torch.no_grad():
            return self.bank(layers_of(batch, self.layers, self.teacher))

    def augmented_logits(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) of the student's own augmented tokens; the teacher has no part in them."""
        return self._head(self.bank.augment(self.student_tokens(inputs)[0]))

    def _head(self, tokens: Tensor) -> Tensor:
        return self.model.get_submodule(self.head)(tokens.mean(dim=1))


class TokenMimicry(Learner):
    """The plain rival: cross-entropy, and the squared distance of the student's projected tokens from the teacher's.

    Args:
        student: trained; the attribute `model`.
        teacher: frozen by this learner; not run where the batch carries the layer (see `kdcore.training.with_layers`).
        student_layer: name of the student's module whose output is projected.
        teacher_layer: name of the teacher's module that is copied.
        projector: from the student's features to the teacher's, trained along and then dropped.
        weight: of the mean squared distance, at least 0.

    Raises:
        ValueError: `weight` is negative or not finite.

    Example:
        >>> from kdcore.models import ConvNet
        >>> projector = Projector((16, 2, 2), (32, 2, 2))
        >>> learner = TokenMimicry(ConvNet(width=4), ConvNet(width=8), "stages.2", "stages.2", projector)
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))))
        ['cross_entropy', 'tokens']
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        student_layer: str,
        teacher_layer: str,
        projector: nn.Module,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_not_negative(weight=weight)
        self.model = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.projector = projector
        self.weight = weight

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy and the weighted distance of tokens."""
        found, logits = features(self.model, batch.inputs, [self.student_layer])
        projected = to_tokens(self.projector(found[self.student_layer]))
        (wanted,) = layers_of(batch, [self.teacher_layer], self.teacher)
        return {
            "cross_entropy": _cross_entropy(logits, batch.labels),
            "tokens": self.weight * feature_loss(projected, to_tokens(wanted)),
        }


def layer_shapes(model: nn.Module, layers: Sequence[str], inputs: Tensor) -> list[tuple[int, ...]]:
    """Shape of one image's features at each of the named layers.

    Args:
        model: any module; its mode is restored afterwards.
        layers: names as `kdcore.models.features` takes them.
        inputs: a batch of what the model takes.

    Raises:
        ValueError: as `kdcore.models.features`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> layer_shapes(ConvNet(width=4), ["stages.0", "stages.2"], torch.zeros(1, 1, 8, 8))
        [(4, 8, 8), (16, 2, 2)]
    """
    found, _ = predict_layers(model, inputs, layers)
    return [tuple(found[name].shape[1:]) for name in layers]


@torch.no_grad()
def with_augmented(data: Arrays, bank: PrototypeBank, layers: Sequence[str], batch_size: int = 1024) -> Arrays:
    """`data` with Aug(U) of a finished bank as `augmented`, from the teacher's layers that it carries.

    Args:
        data: as `kdcore.training.with_layers` returns.
        bank: trained; later changes of it do not reach the cached tokens.
        layers: names of the teacher's layers, in the bank's order.
        batch_size: rows at a time.

    Raises:
        ValueError: `data` lacks one of the layers.

    Example:
        >>> from kdcore.models import ConvNet
        >>> from kdcore.training import with_layers
        >>> data = with_layers(Arrays(inputs=torch.zeros(5, 1, 8, 8)), ConvNet(width=4), ["stages.1"])
        >>> with_augmented(data, PrototypeBank([(8, 4, 4)], tokens=4, width=6), ["stages.1"]).augmented.shape
        torch.Size([5, 4, 6])
    """
    carried = carried_layers(data, layers)
    if carried is None:
        raise ValueError(f"data must carry the teacher's layers {list(layers)}, got {list(data)}; see with_layers.")
    parts = zip(*(layer.split(batch_size) for layer in carried), strict=True)
    return data.with_(augmented=torch.cat([bank(part) for part in parts]))


def _to_shape(shape: Sequence[int], target: tuple[int, int]) -> nn.Module:
    """The identity where the features already are tokens of the wanted shape, or a map that becomes such tokens."""
    as_tokens = (shape[1] * shape[2], shape[0]) if len(shape) == 3 else tuple(shape)
    return nn.Identity() if as_tokens == target else Projector(shape, target)


def _mixing(width: int) -> nn.Sequential:
    """φ or ψ."""
    return nn.Sequential(
        nn.Linear(2 * width, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU()
    )


def _normalised(tokens: Tensor) -> Tensor:
    return F.normalize(at_least_float32(tokens), dim=2)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    check_labels(labels, *logits.shape)
    return F.cross_entropy(logits, labels)


def _check_tokens(**tokens: Tensor) -> None:
    for name, tensor in tokens.items():
        if tensor.ndim != 3 or tensor.numel() == 0:
            raise ValueError(f"{name} must have shape (B, n, d) with at least one token, got {tuple(tensor.shape)}.")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}.")
    check_finite(**tokens)


def _check_rows(name: str, rows: Tensor, tokens: Tensor) -> None:
    if rows.ndim != 2 or len(rows) < 1 or rows.shape[1] != tokens.shape[2]:
        raise ValueError(
            f"{name} must have shape (K, {tokens.shape[2]}) with at least one row, got {tuple(rows.shape)}."
        )
