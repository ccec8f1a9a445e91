r"""RotNet: a network that predicts how an image was rotated has to learn what the image shows.

Spyros Gidaris, Praveer Singh, Nikos Komodakis: *Unsupervised Representation Learning by Predicting Image Rotations*,
ICLR 2018, arXiv 1803.07728.

**Idea.** Turn each image by 0°, 90°, 180° and 270°, and train a network to say which turn it sees. No label is
needed, the turn is the label; and to recognise the turn, the network must find the object and know its usual pose.
The features of its middle blocks are then frozen, and a classifier that needs labels is trained on them.

**Equations.** A square image $x$ is turned counter-clockwise by one of $K$ angles, $g_y(x)$ with $y=0,\dots,K-1$ and
$K=4$ quarter turns in the paper. The model gives logits $o\in\mathbb R^K$.

$$g_0(x)=x,\quad g_1(x)=\text{reverse rows}\,(x^\top),\quad g_2=g_1\circ g_1,\quad g_3=g_1^{-1} \tag{1}$$

All turns of all $B$ images make one batch, image by image: row $Ki+y$ is $g_y(x_i)$ and has the label $y$.

$$L=-\frac1{KB}\sum_{i=0}^{B-1}\sum_{y=0}^{K-1}\log\mathrm{softmax}\big(o(g_y(x_i))\big)_y \tag{2}$$

**What the loss can reach.** Let $p(x)$ be the density of upright images. All turns are equally frequent, so the best
answer to a turned image $x'$ compares how likely its four back-turned versions are, and the best loss is the mean
entropy of the pose $q$ that an object has in the data, over the orbits of images under turning:

$$P(y\mid x')=\frac{p(g_y^{-1}x')}{\sum_jp(g_j^{-1}x')} \tag{3}$$

$$L^*=\mathbb E_{\text{orbits}}\Big[-\sum_yq_y\log q_y\Big] \tag{5}$$

**Reading features out.** With the map $F_\ell$ after block $\ell$ of the frozen network: a linear probe sees $F_\ell$
pooled to a grid of about the same number of values for each block; a classifier $h$, a fresh block with pooling and a
linear layer or two hidden layers on the flattened map, is trained by cross-entropy on $h(F_\ell)$. During all, batch
norm of the backbone uses its stored statistics.

**Where paper and code disagree.** The published configuration trains the pretext task for 200 epochs on CIFAR-10 with
drops of the rate after 60, 120 and 160, the paper for 100 with drops after 30, 60 and 80 (as remembered). The code
turns images before it normalises their colours; images here have values in [0, 1] and are not normalised. Eight turns
are in the paper only (as remembered): multiples of 45° need interpolation, and here the corners that come in are black.

**Source status.** Read from the authors' code: rotation, batch layout, loss, networks, classifiers, schedules. Of the
paper's text the abstract was read; its tables are from memory. Equations (3) and (5) are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_choice, check_labels, check_logits, check_maps, check_positive
from kdcore.data.arrays import Arrays
from kdcore.data.augment import rotations
from kdcore.models.staged import StagedNetwork
from kdcore.training.learners import Learner
from kdcore.training.teachers import predict

__all__ = [
    "QUARTER_TURNS",
    "FrozenReadout",
    "RotationPretext",
    "block_features",
    "loss_floor",
    "nearest_neighbours",
    "network_in_network",
    "nonlinear_classifier",
    "pool_to_grid",
    "rotate",
    "rotated_batch",
    "rotation_loss",
    "with_features",
]

QUARTER_TURNS = (0, 90, 180, 270)
"""The paper's angles, in the order of their labels."""

Copies = Literal["all", "one"]


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Images turned counter-clockwise, equation (1): exactly for quarter turns, else bilinearly with black corners.

    Args:
        images: shape (B, c, H, H).
        degrees: any angle.

    Returns:
        Shape (B, c, H, H).

    Raises:
        ValueError: the images are not square or have no four axes.

    Example:
        >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), 90)
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    _check_square(images)
    if degrees % 90 == 0:
        return images.rot90(int(degrees // 90), (2, 3))
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    return transforms.rotate(images, float(degrees), interpolation=InterpolationMode.BILINEAR)


def rotated_batch(images: Tensor, angles: Sequence[float] = QUARTER_TURNS) -> tuple[Tensor, Tensor]:
    """Every image in all K turns and the number of each turn, image by image: the batch of equation (2).

    Args:
        images: shape (B, c, H, H).
        angles: K ≥ 2 different angles in degrees; the label of a turn is its place here.

    Returns:
        Images (KB, c, H, H) and labels (KB,); rows Ki to Ki + K − 1 belong to image i.

    Raises:
        ValueError: the images are not square, or there are fewer than two angles or one occurs twice.

    Example:
        >>> turned, labels = rotated_batch(torch.rand(2, 1, 4, 4))
        >>> turned.shape, labels.tolist()
        (torch.Size([8, 1, 4, 4]), [0, 1, 2, 3, 0, 1, 2, 3])
    """
    angles = _check_angles(angles)
    if angles == QUARTER_TURNS:
        turned = rotations(images)
    else:
        turned = torch.stack([rotate(images, angle) for angle in angles], dim=1).flatten(0, 1)
    return turned, torch.arange(len(angles), device=images.device).repeat(len(images))


def rotation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the predicted turn, averaged over all turned images, equation (2).

    Args:
        logits: shape (KB, K), of the images that `rotated_batch` returns.
        labels: shape (KB,), the turns.

    Returns:
        Scalar, at least 0; log K for a network that sees no difference.

    Raises:
        ValueError: `logits` is not a finite matrix, or `labels` are not one number in [0, K) for each row.

    Example:
        >>> round(rotation_loss(torch.zeros(8, 4), torch.arange(4).repeat(2)).item(), 6)  # log 4
        1.386294
    """
    check_logits(logits=logits)
    check_labels(labels, *logits.shape)
    return F.cross_entropy(logits, labels)


def loss_floor(pose_shares: Tensor) -> Tensor:
    """The least rotation loss that any network can reach, equation (5).

    Args:
        pose_shares: shape (N, K): for each of N equally frequent objects, how often the data show it in each pose.

    Returns:
        Scalar: the mean entropy of the rows, in nats; from 0 (each object has one pose) to log K (all poses alike).

    Raises:
        ValueError: not a matrix with K ≥ 2 columns, or a row is no distribution.

    Example:
        >>> always_upright, like_a_zero = [1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]
        >>> round(loss_floor(torch.tensor([always_upright, like_a_zero])).item(), 4)  # half of log 2
        0.3466
    """
    check_logits(pose_shares=pose_shares)
    sums = pose_shares.sum(dim=1)
    if bool((pose_shares < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-5):
        raise ValueError("pose_shares must hold a distribution in each row: at least 0, and 1 in sum.")
    return torch.special.entr(pose_shares).sum(dim=1).mean()


class RotationPretext(Learner):
    """Trains a network to recognise turns, equation (2).

    Augmentation belongs into `fit(augment=…)`: it is drawn once per image, before the turns, so that all copies share
    it and it gives none of them away.

    Args:
        model: maps images (B, c, H, H) to logits (B, K).
        angles: in degrees, see `rotated_batch`.
        copies: "all" turns of each image in the same batch, as in the paper, or "one", drawn at random.

    Raises:
        ValueError: fewer than two angles, one twice, or another word for `copies`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> learner = RotationPretext(ConvNet(width=4, num_classes=4))
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8))))
        ['rotation']
    """

    def __init__(self, model: nn.Module, angles: Sequence[float] = QUARTER_TURNS, copies: Copies = "all") -> None:
        super().__init__()
        self.model = model
        self.angles = _check_angles(angles)
        self.copies = check_choice("copies", copies, ("all", "one"))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The rotation loss of `batch.inputs`; labels of the images are not read."""
        turned, labels = rotated_batch(batch.inputs, self.angles)
        if self.copies == "one":
            count = len(self.angles)
            chosen = torch.randint(count, (len(batch.inputs),)).to(labels.device)
            rows = count * torch.arange(len(batch.inputs), device=labels.device) + chosen
            turned, labels = turned[rows], labels[rows]
        return {"rotation": rotation_loss(self.model(turned), labels)}


def block_features(network: StagedNetwork, stage: int, inputs: Tensor) -> Tensor:
    """The map after block number `stage`; the blocks behind it do not run.

    Args:
        network: in evaluation mode, if its batch norm is not to learn from `inputs`.
        stage: from 0, or negative from the end.
        inputs: shape (B, c, H, W).

    Returns:
        Shape (B, C_l, H_l, W_l).

    Raises:
        ValueError: the network has no such block.

    Example:
        >>> from kdcore.models import ConvNet
        >>> block_features(ConvNet(width=4), 1, torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """
    features = network.stem(inputs)
    for block in network.stages[: network.stage_number(stage) + 1]:
        features = block(features)
    return features


def pool_to_grid(features: Tensor, values: int) -> Tensor:
    """Maps max-pooled to a square grid such that about `values` numbers per image remain.

    A linear probe then has as many weights at each depth, and a wide block no advantage by its size.

    Args:
        features: shape (B, C, H, W).
        values: numbers per image that are wanted.

    Returns:
        Shape (B, C, G, G) with G the nearest integer to √(values / C), from 1 to the smaller of H and W.

    Raises:
        ValueError: not a finite map, or `values` is not positive.

    Example:
        >>> pool_to_grid(torch.rand(2, 12, 8, 8), values=200).shape
        torch.Size([2, 12, 4, 4])
    """
    check_maps(features=features)
    check_positive(values=values)
    side = round((values / features.shape[1]) ** 0.5)
    return F.adaptive_max_pool2d(features, min(max(side, 1), *features.shape[2:]))


def with_features(data: Arrays, network: StagedNetwork, stage: int) -> Arrays:
    """`data` with the network's maps after block `stage` as `features`: computed once, in evaluation mode.

    Example:
        >>> from kdcore.models import ConvNet
        >>> with_features(Arrays(inputs=torch.rand(3, 1, 8, 8)), ConvNet(width=4), 1).features.shape
        torch.Size([3, 8, 4, 4])
    """
    blocks = nn.Sequential(network.stem, *network.stages[: network.stage_number(stage) + 1])
    return data.with_(features=predict(blocks, data.inputs))


class FrozenReadout(Learner):
    """A classifier trained on the features of a frozen network; the paper's "conv classifier" with a fresh block.

    Where the batch carries `features` (see `with_features`) they are used; else the blocks run, without gradient and
    in evaluation mode, so that neither weights nor batch-norm statistics change.

    Args:
        backbone: frozen by this learner.
        stage: block whose map is read, from 0 or negative from the end.
        head: maps that block's map to logits (B, C), for instance the `tail(stage)` of a fresh network.

    Raises:
        ValueError: the backbone has no such block.

    Example:
        >>> from kdcore.models import ConvNet
        >>> learner = FrozenReadout(ConvNet(width=4, num_classes=4), 1, ConvNet(width=4).tail(1))
        >>> learner(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    frozen = ("backbone",)

    def __init__(self, backbone: StagedNetwork, stage: int, head: nn.Module) -> None:
        super().__init__()
        self.stage = backbone.stage_number(stage)
        self.backbone = backbone.requires_grad_(False).eval()
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, c, H, W)."""
        return self.head(self._features(inputs))

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Cross-entropy of `batch.labels`."""
        logits = self.head(batch.features if "features" in batch else self._features(batch.inputs))
        check_labels(batch.labels, *logits.shape)
        return {"cross_entropy": F.cross_entropy(logits, batch.labels)}

    def _features(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return block_features(self.backbone, self.stage, inputs)


def nearest_neighbours(features: Tensor, queries: Tensor, count: int) -> Tensor:
    """Rows of `features` most similar to each query: by cosine, after the mean of `features` is taken off both.

    Args:
        features: shape (N, …), each row flattened.
        queries: shape (M, …).
        count: neighbours per query, at most N.

    Returns:
        Row numbers (M, count), the most similar first.

    Raises:
        ValueError: rows of the two differ in shape, or `count` lies outside [1, N].

    Example:
        >>> nearest_neighbours(torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0]]), torch.tensor([[3.0, 0.1]]), 2)
        tensor([[1, 0]])
    """
    if features.shape[1:] != queries.shape[1:]:
        raise ValueError(
            f"queries must have rows of the shape {tuple(features.shape[1:])}, got {tuple(queries.shape[1:])}."
        )
    if not 1 <= count <= len(features):
        raise ValueError(f"count must lie in [1, {len(features)}], got {count}.")
    mean = features.flatten(1).mean(dim=0)
    gallery, asked = (F.normalize(rows.flatten(1) - mean, dim=1) for rows in (features, queries))
    return (asked @ gallery.T).topk(count, dim=1).indices


def nonlinear_classifier(features: Sequence[int], num_classes: int = 10) -> nn.Sequential:
    """The paper's non-linear classifier: two hidden layers with batch norm and ReLU on a flattened map.

    Args:
        features: shape (C, H, W) of the map of one image.
        num_classes: outputs; the hidden layers have 20 times as many units, at most 2048.

    Raises:
        ValueError: `num_classes` or a size is not positive.

    Example:
        >>> nonlinear_classifier((8, 4, 4), num_classes=3)(torch.rand(5, 8, 4, 4)).shape
        torch.Size([5, 3])
    """
    check_positive(num_classes=num_classes, **{f"features[{axis}]": size for axis, size in enumerate(features)})
    width, inputs = min(20 * num_classes, 2048), math.prod(features)
    layers: list[nn.Module] = [nn.Flatten()]
    for size in (inputs, width):
        layers += [nn.Linear(size, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def network_in_network(
    num_blocks: int = 4, num_classes: int = 4, in_channels: int = 3, width: int = 192
) -> StagedNetwork:
    """The paper's network for CIFAR-10: blocks of one spatial and two 1×1 convolutions.

    Blocks 1 and 2 start with 5×5 and end with pooling to half the size, the others start with 3×3 and keep it.
    Convolutions are without bias, each followed by batch norm and ReLU, and start He-normal (fan-out).

    Args:
        num_blocks: 3 for the supervised network of the paper, 4 (or 3, 5) for the pretext.
        num_classes: outputs; 4 for quarter turns.
        in_channels: of the images.
        width: channels, a multiple of 6, 192 in the paper; block 1 ends with half of them.

    Raises:
        ValueError: a number is not positive, there are fewer than 3 blocks, or `width` is no multiple of 6.

    Example:
        >>> [tuple(one.shape[1:]) for one in network_in_network(width=12).maps(torch.zeros(1, 3, 32, 32))[0]]
        [(6, 16, 16), (12, 8, 8), (12, 8, 8), (12, 8, 8)]
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width)
    if num_blocks < 3:
        raise ValueError(f"num_blocks must be at least 3, got {num_blocks}.")
    if width % 6:
        raise ValueError(f"width must be a multiple of 6, got {width}.")
    narrow, half = width * 5 // 6, width // 2
    blocks: list[nn.Module] = [
        nn.Sequential(*_units(in_channels, (width, narrow, half), kernel=5), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(*_units(half, (width, width, width), kernel=5), nn.AvgPool2d(3, 2, 1)),
    ]
    blocks += [nn.Sequential(*_units(width, (width, width, width), kernel=3)) for _ in range(num_blocks - 2)]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    widths = [half, *[width] * (num_blocks - 1)]
    return StagedNetwork(nn.Identity(), blocks, pool, nn.Linear(width, num_classes), widths)


def _units(in_channels: int, channels: tuple[int, ...], kernel: int) -> list[nn.Module]:
    """Convolution, batch norm, ReLU: the first of size `kernel`, the others 1×1."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip((in_channels, *channels[:-1]), channels, strict=True)):
        size = kernel if number == 0 else 1
        convolution = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return layers


def _check_square(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square, of shape (B, c, H, H), got {tuple(images.shape)}.")


def _check_angles(angles: Sequence[float]) -> tuple[float, ...]:
    if len(angles) < 2 or len({angle % 360 for angle in angles}) < len(angles):
        raise ValueError(f"angles must be at least two different turns in degrees, got {tuple(angles)}.")
    return tuple(angles)
