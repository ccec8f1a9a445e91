r"""LSSKD: classifiers at every stage tell class and rotation, teach each other, and are dropped.

Tarique Dahri, Zulfiqar Ali Memon, Zhenyu Yu, Mohd. Yamani Idna Idris, Sheheryar Khan, Sadiq Ahmad, Maged Shoman,
Saddam Aziz, Rizwan Qureshi: *A Layered Self-Supervised Knowledge Distillation Framework for Efficient
Multimodal Learning on the Edge*, 2025, arXiv 2506.07055.

**Idea.** A small network is trained on every image in four rotations. At each of its stages hangs an auxiliary
classifier that must tell class and rotation as one label, so that even the first stage is asked for more than the
class. The deepest of them is the teacher of the others, there is no second network, and after training all of them are
removed: what is left is the plain network.

**Equations.** Images $x_i$ with labels $y_i$, $B$ in a batch, $C$ classes, $M=4$ rotations $j$; stages
$\ell=1,\dots,L$. Main logits $z\in\mathbb R^{MB\times C}$, embeddings $h_\ell\in\mathbb R^{MB\times d}$ and logits
$u_\ell\in\mathbb R^{MB\times MC}$ of the auxiliary classifiers; row $Mi+j$ is image $i$ after $j$ quarter turns.
$\mathrm{sg}$ stops the gradient.

$$k_{ij}=M\,y_i+j\in\{0,\dots,MC-1\} \tag{1}$$

$$L_{task}=\frac1B\sum_i\mathrm{CE}(z_{Mi},y_i) \tag{2}$$

$$L_{SAD}=\sum_{\ell=1}^L\frac1{MB}\sum_{ij}\mathrm{CE}(u_{\ell,Mi+j},k_{ij}) \tag{3}$$

$$L_{KL}=\sum_{\ell<L}\frac{\tau^2}{MB}\sum_r\mathrm{KL}\bigl(\mathrm{sg}\,q_{L,r}\,\|\,q_{\ell,r}\bigr),\qquad
q_\ell=\mathrm{softmax}(u_\ell/\tau) \tag{4}$$

$$L_{feat}=\sum_{\ell<L}\frac1{MBd}\lVert h_\ell-\mathrm{sg}\,h_L\rVert_2^2 \tag{5}$$

$$L=L_{task}+L_{SAD}+\lambda_{KL}L_{KL}+\lambda_fL_{feat} \tag{6}$$

A branch can be read as a classifier of classes in two ways: by its marginal, or as HSAKD's code measures it, by a sum
of logits over rotations, which is a product of probabilities and no marginal.

$$\log p_\ell(c)=\log\sum_j\mathrm{softmax}(u_\ell)_{cj},\qquad s_\ell(c)=\sum_ju_{\ell,cj} \tag{7}$$

Two heads, one for the class and one for the rotation, are the special case of additive logits. With the marginals as
its two factors such a branch reaches no less than the sum of their entropies, so what it cannot express is the
dependence of the two given the image, their mutual information:

$$u_{cj}=a_c+b_j \tag{8}$$

$$-\sum_{c,j}q(c,j)\bigl(\log\hat a_c+\log\hat b_j\bigr)\ge H(q_C)+H(q_J) \tag{9}$$

$$I(C;J\mid x)=H(q_C)+H(q_J)-H(q)=\sum_{c,j}q(c,j)\log\frac{q(c,j)}{q(c)\,q(j)} \tag{10}$$

At a shallow branch labels and deepest branch pull with

$$MB\,\frac{\partial L}{\partial u_\ell}=\bigl(q_\ell^{(1)}-k\bigr)+\lambda_{KL}\,\tau\,(q_\ell-q_L) \tag{11}$$

The parent, HSAKD, has a teacher or a peer $T$ with branches of its own:

$$L_{HSA}=\tau^2\,\mathrm{KL}(p^T\|p)+\tau^2\sum_{\ell=1}^L\mathrm{KL}(q^T_\ell\|q_\ell) \tag{12}$$

over all $MB$ rows, $p=\mathrm{softmax}(z/\tau)$. Its teacher is trained by $L_{task}+L_{SAD}$, its student by
$L_{task}+L_{HSA}$ without $L_{SAD}$, and two peers by $L_{task}+L_{SAD}+L_{HSA}$ each.

**What is ours.** LSSKD's method section was not read and its authors published no code known to us. From the abstract:
auxiliary classifiers at the stages, self-supervised augmented distributions, one-to-one transfer between stages, no
pretrained teacher, nothing left at inference. From a second-hand account: a KL term and an L2 term between stages.
From the code of HSAKD: (1) to (3), the architecture of the branches, $\tau=3$. Choices made here: that the deepest
branch teaches all others in (4) and (5), both gradients stopped there, ``pairing="next"`` being the other reading;
$\lambda_{KL}=1$; $\lambda_f=0.03$, after *Be Your Own Teacher*; that the branch of the last stage is one convolution;
and `link_weight`, off by default, by which the deepest branch teaches the main classifier its marginal (7).

**Source status.** Reconstructed; the parent was read from its authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_labels, check_logits, check_not_negative, check_positive, check_same_shape
from kdcore.data.augment import rotations
from kdcore.foundations.kd import distillation_loss
from kdcore.models.staged import StagedNetwork
from kdcore.precision import at_least_float32
from kdcore.training.learners import Learner

__all__ = [
    "TURNS",
    "AuxiliaryClassifier",
    "LayeredDistillation",
    "LayeredNetwork",
    "Layers",
    "PeerDistillation",
    "branch_cross_entropy",
    "class_log_probabilities",
    "cross_layer_loss",
    "feature_loss",
    "hierarchical_loss",
    "joint_information",
    "joint_labels",
    "joint_logits",
    "summed_logits",
    "task_loss",
]

TURNS = 4
"""M, the quarter turns of an image: 0°, 90°, 180°, 270°."""

Pairing = Literal["deepest", "next"]
Targets = Literal["joint", "separate", "class"]


def joint_labels(labels: Tensor) -> Tensor:
    """One label for class and rotation of each row of `data.rotations`, equation (1).

    Args:
        labels: class numbers of the images, shape (B,).

    Returns:
        Shape (4B,): image by image, 4y + j for j = 0..3.

    Raises:
        ValueError: `labels` is no vector of integers.

    Example:
        >>> joint_labels(torch.tensor([2, 0]))
        tensor([ 8,  9, 10, 11,  0,  1,  2,  3])
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers of shape (B,), got {labels.dtype} of shape {tuple(labels.shape)}.")
    return (TURNS * labels.unsqueeze(1) + torch.arange(TURNS, device=labels.device)).flatten()


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the main classifier on the rows that are not turned, equation (2).

    Args:
        logits: of all rotated rows, shape (4B, C).
        labels: shape (B,).

    Returns:
        Scalar; rows 1, 2, 3, 5, … get no gradient.

    Raises:
        ValueError: the rows are not four per label, C < 2, a value is not finite, or a label is out of range.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0], [9.0, 0.0], [9.0, 0.0]])
        >>> task_loss(logits, torch.tensor([1]))
        tensor(0.6931)
    """
    check_logits(logits=logits)
    _check_rows(logits, len(labels), "logits")
    check_labels(labels, len(labels), logits.shape[1])
    return F.cross_entropy(logits[::TURNS], labels)


def branch_cross_entropy(branch_logits: Sequence[Tensor], branch_labels: Tensor) -> Tensor:
    """Cross-entropy of every branch with its labels, summed over branches, equation (3).

    Args:
        branch_logits: one tensor (R, K) per stage; R = 4B and K = 4C for joint labels.
        branch_labels: shape (R,), integers in [0, K); see `joint_labels`.

    Returns:
        Scalar; L·log K for uniform logits.

    Raises:
        ValueError: no branch, shapes differ, a value is not finite, or a label is out of range.

    Example:
        >>> branch_cross_entropy([torch.zeros(4, 8), torch.zeros(4, 8)], joint_labels(torch.tensor([1])))
        tensor(4.1589)
    """
    _check_branches(branch_logits)
    rows, columns = branch_logits[0].shape
    check_labels(branch_labels, rows, columns, name="branch_labels")
    return torch.stack([F.cross_entropy(logits, branch_labels) for logits in branch_logits]).sum()


def cross_layer_loss(branch_logits: Sequence[Tensor], temperature: float = 3.0, pairing: Pairing = "deepest") -> Tensor:
    """What deeper branches teach shallower ones, equation (4).

    Args:
        branch_logits: one tensor (R, K) per stage, the deepest last.
        temperature: τ > 0.
        pairing: "deepest": the last branch teaches all others; "next": each teaches the one before it.

    Returns:
        Scalar, at least 0; exactly 0 with one branch. No gradient flows into a branch as a teacher.

    Raises:
        ValueError: no branch, shapes differ, a value is not finite, `temperature` is not positive, or the pairing is
            unknown.

    Example:
        >>> sharp, flat = torch.tensor([[6.0, 0.0]]), torch.zeros(1, 2)
        >>> cross_layer_loss([flat, sharp], temperature=3.0)
        tensor(2.9503)
        >>> cross_layer_loss([flat, flat, sharp], pairing="next")
        tensor(2.9503)
    """
    check_choice("pairing", pairing, ("deepest", "next"))
    check_positive(temperature=temperature)
    _check_branches(branch_logits)
    pupils = branch_logits[:-1]
    teachers = branch_logits[1:] if pairing == "next" else [branch_logits[-1]] * len(pupils)
    terms = [distillation_loss(pupil, teacher, temperature) for pupil, teacher in zip(pupils, teachers, strict=True)]
    return torch.stack(terms).sum() if terms else branch_logits[0].new_zeros(())


def feature_loss(embeddings: Sequence[Tensor], pairing: Pairing = "deepest") -> Tensor:
    """Mean squared distance of shallower embeddings from deeper ones, summed over branches, equation (5).

    Args:
        embeddings: one tensor (R, d) per stage, the deepest last.
        pairing: as in `cross_layer_loss`.

    Returns:
        Scalar, at least 0; exactly 0 with one branch. No gradient flows into a branch as a teacher.

    Raises:
        ValueError: no branch, shapes differ, or the pairing is unknown.

    Example:
        >>> feature_loss([torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 2.0)])
        tensor(5.)
    """
    check_choice("pairing", pairing, ("deepest", "next"))
    if not embeddings:
        raise ValueError("embeddings must hold at least one branch, got none.")
    check_same_shape(**{f"embeddings[{number}]": one for number, one in enumerate(embeddings)})
    pupils = embeddings[:-1]
    teachers = embeddings[1:] if pairing == "next" else [embeddings[-1]] * len(pupils)
    terms = [F.mse_loss(pupil, teacher.detach()) for pupil, teacher in zip(pupils, teachers, strict=True)]
    return torch.stack(terms).sum() if terms else embeddings[0].new_zeros(())


def class_log_probabilities(branch_logits: Tensor) -> Tensor:
    """Log-probability of each class, whatever the rotation: the marginal of equation (7).

    Args:
        branch_logits: of one branch, shape (R, 4C), class by class as in equation (1).

    Returns:
        Shape (R, C); the exponentials of each row sum to 1.

    Raises:
        ValueError: `branch_logits` is no finite matrix whose columns are a multiple of 4, at least 8.

    Example:
        >>> class_log_probabilities(torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0]])).exp()
        tensor([[9.9951e-01, 4.9321e-04]])
    """
    grid = _grid(branch_logits)
    return grid.flatten(1).log_softmax(dim=1).view_as(grid).logsumexp(dim=2)


def summed_logits(branch_logits: Tensor) -> Tensor:
    """Logits of a branch, summed over rotations, as HSAKD's code measures a branch, right side of equation (7).

    Args:
        branch_logits: of one branch, shape (R, 4C).

    Returns:
        Shape (R, C): no log-probabilities, and not the marginal's order of the classes either.

    Raises:
        ValueError: as `class_log_probabilities`.

    Example:
        >>> sure_of_one_turn = torch.tensor([[9.0, 0, 0, 0, 3, 3, 3, 3]])
        >>> summed_logits(sure_of_one_turn)
        tensor([[ 9., 12.]])
        >>> class_log_probabilities(sure_of_one_turn).argmax(dim=1)
        tensor([0])
    """
    return _grid(branch_logits).sum(dim=2)


def joint_logits(class_logits: Tensor, turn_logits: Tensor) -> Tensor:
    """Two heads written as one joint classifier, equation (8).

    Args:
        class_logits: a, shape (R, C).
        turn_logits: b, shape (R, 4).

    Returns:
        Shape (R, 4C); its cross-entropy with `joint_labels` is the sum of the two heads' own.

    Raises:
        ValueError: the rows differ, or `turn_logits` has not four columns.

    Example:
        >>> joint_logits(torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
        tensor([[5., 6., 7., 8., 0., 1., 2., 3.]])
    """
    if class_logits.ndim != 2 or turn_logits.shape != (len(class_logits), TURNS):
        raise ValueError(
            f"class_logits and turn_logits must have shapes (R, C) and (R, {TURNS}), "
            f"got {tuple(class_logits.shape)} and {tuple(turn_logits.shape)}."
        )
    return (class_logits.unsqueeze(2) + turn_logits.unsqueeze(1)).flatten(1)


def joint_information(branch_logits: Tensor) -> Tensor:
    """Mutual information of class and rotation in each row's joint distribution, equation (10).

    Args:
        branch_logits: of one branch, shape (R, 4C).

    Returns:
        Shape (R,), in nats, between 0 and log 4; 0 for logits of the form (8).

    Raises:
        ValueError: as `class_log_probabilities`.

    Example:
        >>> six_or_turned_nine = torch.full((1, 8), -50.0)
        >>> six_or_turned_nine[0, [0, 6]] = 0.0
        >>> joint_information(six_or_turned_nine)
        tensor([0.6931])
    """
    grid = _grid(branch_logits)
    joint = grid.flatten(1).log_softmax(dim=1).view_as(grid)
    product = joint.logsumexp(dim=2, keepdim=True) + joint.logsumexp(dim=1, keepdim=True)
    return (joint.exp() * (joint - product)).sum(dim=(1, 2))


def hierarchical_loss(
    logits: Tensor,
    branch_logits: Sequence[Tensor],
    teacher_logits: Tensor,
    teacher_branch_logits: Sequence[Tensor],
    temperature: float = 3.0,
) -> Tensor:
    """The parent's distillation from another network, stage by stage, equation (12).

    Args:
        logits: main logits of the student, shape (4B, C).
        branch_logits: of the student, one tensor (4B, 4C) per stage.
        teacher_logits: as `logits`; no gradient flows into them.
        teacher_branch_logits: as `branch_logits`; no gradient flows into them.
        temperature: τ > 0.

    Returns:
        Scalar, at least 0.

    Raises:
        ValueError: the networks differ in their number of branches, shapes differ, a value is not finite, or
            `temperature` is not positive.

    Example:
        >>> same, branches = torch.rand(4, 2), [torch.rand(4, 8)]
        >>> hierarchical_loss(same, branches, same, branches).abs() < 1e-6
        tensor(True)
    """
    if len(branch_logits) != len(teacher_branch_logits):
        raise ValueError(
            f"teacher_branch_logits must be as many as branch_logits, {len(branch_logits)}, "
            f"got {len(teacher_branch_logits)}."
        )
    pairs = [(logits, teacher_logits), *zip(branch_logits, teacher_branch_logits, strict=True)]
    return torch.stack([distillation_loss(own, other, temperature) for own, other in pairs]).sum()


class AuxiliaryClassifier(nn.Module):
    """The branch of one stage: the stages that its map has not been through, afresh, then pool and linear layer.

    All branches end in embeddings of one width. The branch of the last stage gets one 3×3 convolution of stride 1.

    Args:
        model: whose later stages and pool are copied; the copies are initialised anew.
        stage: where the branch starts, from 0 or negative from the end.
        num_classes: C.
        targets: "joint": 4C logits; "separate": a head for C classes and one for 4 rotations, which give 4C additive
            logits (8); "class": C logits.

    Raises:
        ValueError: the network has no such stage, `targets` is unknown, or `num_classes` is below 2.

    Example:
        >>> from kdcore.models import ConvNet
        >>> branch = AuxiliaryClassifier(ConvNet(width=4, depth=3), stage=1, num_classes=10)
        >>> [tuple(output.shape) for output in branch(torch.zeros(8, 8, 4, 4))]
        [(8, 16), (8, 40)]
    """

    def __init__(self, model: StagedNetwork, stage: int, num_classes: int, targets: Targets = "joint") -> None:
        super().__init__()
        check_choice("targets", targets, ("joint", "separate", "class"))
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes!r}.")
        width = model.widths[-1]
        missing = copy.deepcopy(model.stages[model.stage_number(stage) + 1 :])
        for layer in missing.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
        last = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.Sequential(*(missing if len(missing) else [last]), copy.deepcopy(model.pool))
        outputs = {"joint": TURNS * num_classes, "separate": num_classes + TURNS, "class": num_classes}[targets]
        self.classifier = nn.Linear(width, outputs)
        self.num_classes = num_classes
        self.targets = targets

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (R, d) and logits (R, K) of the stage's map."""
        embedding = self.layers(features)
        logits = self.classifier(embedding)
        if self.targets == "separate":
            logits = joint_logits(logits[:, : self.num_classes], logits[:, self.num_classes :])
        return embedding, logits


class Layers(NamedTuple):
    """What a network with branches says of R rows: main logits (R, C), and by branch embeddings (R, d), logits (R, K).

    Example:
        >>> Layers(torch.zeros(4, 10), [torch.zeros(4, 16)], [torch.zeros(4, 40)]).logits.shape
        torch.Size([4, 10])
    """

    logits: Tensor
    embeddings: list[Tensor]
    branch_logits: list[Tensor]


class LayeredNetwork(nn.Module):
    """A plain network and its branches; the plain network stays as it is and can be taken out at any time.

    Args:
        model: the network to be deployed.
        stages: where branches hang, from 0 in rising order; None for all stages.
        targets: of the branches, see `AuxiliaryClassifier`.

    Raises:
        ValueError: `stages` is empty, not rising, or names a stage that is not there; `targets` is unknown.

    Example:
        >>> from kdcore.models import ConvNet, parameter_count
        >>> model = ConvNet(width=4, depth=3)
        >>> layered = LayeredNetwork(model)
        >>> layers = layered(torch.zeros(4, 1, 8, 8))
        >>> len(layers.branch_logits), parameter_count(layered) > 2 * parameter_count(layered.model)
        (3, True)
    """

    def __init__(self, model: StagedNetwork, stages: Sequence[int] | None = None, targets: Targets = "joint") -> None:
        super().__init__()
        chosen = [model.stage_number(stage) for stage in (range(len(model.stages)) if stages is None else stages)]
        if not chosen or chosen != sorted(set(chosen)):
            raise ValueError(f"stages must name at least one stage, in rising order, got {chosen}.")
        self.model = model
        classes = cast(nn.Linear, model.classifier).out_features
        self.branches = nn.ModuleList(AuxiliaryClassifier(model, stage, classes, targets) for stage in chosen)
        self.stages = chosen

    def forward(self, inputs: Tensor) -> Layers:
        """Everything that the network says of inputs (R, channels, H, W)."""
        maps, logits = self.model.maps(inputs)
        outputs = [branch(maps[stage]) for branch, stage in zip(self.branches, self.stages, strict=True)]
        return Layers(logits, [embedding for embedding, _ in outputs], [logits for _, logits in outputs])


class LayeredDistillation(Learner):
    """The reconstructed method, equation (6); `model` is the plain network that is kept.

    Args:
        model: the network to be deployed; its stages and classifier are trained along with the branches.
        stages: where branches hang; None for all stages.
        targets: "joint" is the method; "separate" and "class" are what it is compared with.
        temperature: τ > 0 of the terms between branches.
        kl_weight: λ_KL ≥ 0 of equation (4).
        feature_weight: λ_f ≥ 0 of equation (5).
        pairing: which branch teaches which, see `cross_layer_loss`.
        link_weight: weight ≥ 0 by which the deepest branch's class probabilities, at τ, teach the main classifier on
            the rows that are not turned. Off by default; needs joint logits.

    Raises:
        ValueError: a weight is negative or not finite, `temperature` is not positive, a choice is unknown, `stages`
            does not fit the network, or a link is asked of branches that tell the class alone.

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> learner = LayeredDistillation(ConvNet(width=4, depth=2))
        >>> batch = Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))
        >>> list(learner.losses(batch))
        ['task', 'branches', 'cross_layer', 'features']
    """

    def __init__(
        self,
        model: StagedNetwork,
        stages: Sequence[int] | None = None,
        targets: Targets = "joint",
        temperature: float = 3.0,
        kl_weight: float = 1.0,
        feature_weight: float = 0.03,
        pairing: Pairing = "deepest",
        link_weight: float = 0.0,
    ) -> None:
        super().__init__()
        check_not_negative(kl_weight=kl_weight, feature_weight=feature_weight, link_weight=link_weight)
        check_positive(temperature=temperature)
        check_choice("pairing", pairing, ("deepest", "next"))
        if link_weight and targets == "class":
            raise ValueError(f"link_weight needs branches with joint logits, got targets={targets!r}.")
        self.network = LayeredNetwork(model, stages, targets)
        self.targets = targets
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.feature_weight = feature_weight
        self.pairing: Pairing = pairing
        self.link_weight = link_weight

    @property
    def model(self) -> StagedNetwork:
        """The plain network, without branches."""
        return self.network.model

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The terms of equation (6), weighted, of `batch.inputs` (B, channels, H, H) and `batch.labels`."""
        layers, labels = self.network(rotations(batch.inputs)), batch.labels
        told = labels.repeat_interleave(TURNS) if self.targets == "class" else joint_labels(labels)
        terms = {"task": task_loss(layers.logits, labels), "branches": branch_cross_entropy(layers.branch_logits, told)}
        if self.kl_weight:
            between = cross_layer_loss(layers.branch_logits, self.temperature, self.pairing)
            terms["cross_layer"] = self.kl_weight * between
        if self.feature_weight:
            terms["features"] = self.feature_weight * feature_loss(layers.embeddings, self.pairing)
        if self.link_weight:
            # A marginal of probabilities at τ, brought back to the scale on which the loss divides by τ.
            marginal = self.temperature * class_log_probabilities(layers.branch_logits[-1][::TURNS] / self.temperature)
            linked = distillation_loss(layers.logits[::TURNS], marginal, self.temperature)
            terms["link"] = self.link_weight * linked
        return terms


class PeerDistillation(Learner):
    """HSSAKD, the nearest relative without a teacher: two networks with branches teach each other by equation (12).

    Args:
        model: the network to be deployed.
        peer: its partner, with as many stages and classes.
        temperature: τ > 0.

    Raises:
        ValueError: `temperature` is not positive, or the networks differ in their number of stages.

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.models import ConvNet
        >>> learner = PeerDistillation(ConvNet(width=4, depth=2), ConvNet(width=4, depth=2))
        >>> batch = Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([3, 5]))
        >>> list(learner.losses(batch))
        ['labels', 'peers']
    """

    def __init__(self, model: StagedNetwork, peer: StagedNetwork, temperature: float = 3.0) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        if len(model.stages) != len(peer.stages):
            raise ValueError(f"peer must have as many stages as model, {len(model.stages)}, got {len(peer.stages)}.")
        self.network = LayeredNetwork(model)
        self.peer = LayeredNetwork(peer)
        self.temperature = temperature

    @property
    def model(self) -> StagedNetwork:
        """The first network, without branches."""
        return self.network.model

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Labels of both networks, (2) and (3), and what they learn from each other, (12)."""
        rows, told = rotations(batch.inputs), joint_labels(batch.labels)
        both = [self.network(rows), self.peer(rows)]
        labels = [task_loss(one.logits, batch.labels) + branch_cross_entropy(one.branch_logits, told) for one in both]
        peers = [
            hierarchical_loss(own.logits, own.branch_logits, other.logits, other.branch_logits, self.temperature)
            for own, other in (both, both[::-1])
        ]
        return {"labels": torch.stack(labels).sum(), "peers": torch.stack(peers).sum()}


def _check_rows(logits: Tensor, images: int, name: str) -> None:
    if len(logits) != TURNS * images:
        raise ValueError(f"{name} must have {TURNS} rows for each of {images} images, got {len(logits)}.")


def _check_branches(branch_logits: Sequence[Tensor]) -> None:
    if not branch_logits:
        raise ValueError("branch_logits must hold at least one branch, got none.")
    check_logits(**{f"branch_logits[{number}]": logits for number, logits in enumerate(branch_logits)})


def _grid(branch_logits: Tensor) -> Tensor:
    """Joint logits as (R, C, 4), at least float32."""
    check_logits(branch_logits=branch_logits)
    if branch_logits.shape[1] % TURNS or branch_logits.shape[1] < 2 * TURNS:
        raise ValueError(
            f"branch_logits must have {TURNS} columns for each of at least two classes, got {branch_logits.shape[1]}."
        )
    return at_least_float32(branch_logits).unflatten(1, (-1, TURNS))
