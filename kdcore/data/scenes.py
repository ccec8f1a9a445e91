"""Scenes of one to four real digits on a textured canvas, for segmentation and detection."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kdcore.checks import check_choice, check_positive
from kdcore.data.arrays import Arrays
from kdcore.data.digits import all_digits
from kdcore.data.domains import smooth_texture

__all__ = ["SCENE_DOMAINS", "scenes"]

SCENE_DOMAINS = ("clean", "foggy", "inverted", "coloured")
_MOST_DIGITS = 4
_INK = 0.3  # a pasted pixel brighter than this carries the digit's class


def scenes(
    count: int,
    *,
    domain: str = "clean",
    classes: tuple[int, ...] = tuple(range(10)),
    frequencies: tuple[float, ...] | None = None,
    size: int = 32,
    fewest: int = 1,
    most: int = _MOST_DIGITS,
    half: int | None = None,
    strength: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Arrays:
    """Canvases with real digits at random scale and place, and what is to be found in them.

    Args:
        count: number of scenes.
        domain: "clean" (faint texture), "foggy" (contrast 0.6, noise, a brightness ramp from left to right),
            "inverted", or "coloured" (random digit colours on a strong texture).
        classes: which digits occur; class k of the mask is ``classes[k - 1]``, 0 is background.
        frequencies: relative frequency of each of `classes`; equal if left out.
        size: side of the canvas, for instance 32 or 48.
        fewest, most: digits per scene, drawn uniformly, at most 4.
        half: 0 or 1 to draw digits from one of two disjoint halves.
        strength: of the domain's effect, from 0 (as clean) to 1.
        seed: of everything random.
        device: where the tensors lie.

    Returns:
        Arrays with `inputs` (N, 3, size, size) in [0, 1]; `labels` (N, size, size) the class of each pixel;
        `instances` (N, size, size) the number of the digit (from 1, 0 is background); `boxes` (N, 4, 4) as
        x1, y1, x2, y2 in pixels, zero where there is no digit; `box_labels` (N, 4), −1 where there is none.

    Raises:
        ValueError: unknown domain, wrong frequencies, or counts out of range.

    Example:
        >>> data = scenes(3, classes=(1, 7), seed=1)
        >>> data.inputs.shape, data.labels.max().item()
        (torch.Size([3, 3, 32, 32]), 2)
    """
    check_choice("domain", domain, SCENE_DOMAINS)
    check_positive(count=count, size=size)
    if not 1 <= fewest <= most <= _MOST_DIGITS:
        raise ValueError(f"fewest and most must satisfy 1 <= fewest <= most <= {_MOST_DIGITS}, got {fewest}, {most}.")
    weights = torch.tensor(frequencies or [1.0] * len(classes), dtype=torch.float32)
    if len(weights) != len(classes) or bool((weights <= 0).any()):
        raise ValueError(f"frequencies must be {len(classes)} positive numbers, got {frequencies}.")
    generator = torch.Generator().manual_seed(seed)
    canvas = torch.zeros(count, 1, size, size)
    labels = torch.zeros(count, size, size, dtype=torch.long)
    instances = torch.zeros_like(labels)
    boxes, box_labels = [], []
    present = torch.randint(fewest, most + 1, (count,), generator=generator)
    pool = all_digits(half=half)
    members = [(pool.labels == digit).nonzero().flatten() for digit in classes]
    for number in range(most):
        kind = torch.multinomial(weights, count, replacement=True, generator=generator)
        chosen = _draw_members(members, kind, generator)
        pasted = _paste(pool.inputs[chosen], size, generator) * (number < present).view(-1, 1, 1, 1)
        ink = pasted[:, 0] > _INK
        canvas = torch.where(ink.unsqueeze(1), pasted, torch.maximum(canvas, pasted))
        labels = torch.where(ink, kind.view(-1, 1, 1) + 1, labels)
        instances = torch.where(ink, number + 1, instances)
    for number in range(1, _MOST_DIGITS + 1):
        mask = instances == number
        boxes.append(_bounding_boxes(mask))
        box_labels.append(torch.where(mask.flatten(1).any(1), torch.where(mask, labels, 0).flatten(1).amax(1) - 1, -1))
    return Arrays(
        inputs=_dress(canvas, domain, strength, generator),
        labels=labels,
        instances=instances,
        boxes=torch.stack(boxes, dim=1),
        box_labels=torch.stack(box_labels, dim=1),
    ).to(device)


def _draw_members(members: list[Tensor], kind: Tensor, generator: Generator) -> Tensor:
    """For each class number in `kind`, the row of a random digit of that class."""
    position = torch.rand(len(kind), generator=generator)
    table = torch.nn.utils.rnn.pad_sequence(members, batch_first=True)
    lengths = torch.tensor([len(rows) for rows in members])
    return table[kind, (position * lengths[kind]).long()]


def _paste(images: Tensor, size: int, generator: Generator) -> Tensor:
    """Each 8×8 digit at random scale (10 to 18 of 32 pixels) and place on an empty canvas."""
    side = (10 + 8 * torch.rand(len(images), generator=generator)) / 32
    centre = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - side).unsqueeze(1)
    scale = torch.diag_embed((1 / side).unsqueeze(1).expand(-1, 2))
    theta = torch.cat([scale, -(centre / side.unsqueeze(1)).unsqueeze(2)], dim=2)
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _bounding_boxes(mask: Tensor) -> Tensor:
    """Boxes x1, y1, x2, y2 (N, 4) of masks (N, H, W); zeros for an empty mask."""
    columns, rows = mask.any(dim=1), mask.any(dim=2)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.float().argmax(1), line.shape[1] - line.flip(1).float().argmax(1)

    (x1, x2), (y1, y2) = ends(columns), ends(rows)
    boxes = torch.stack([x1, y1, x2, y2], dim=1).float()
    return boxes * mask.flatten(1).any(1, keepdim=True)


def _dress(canvas: Tensor, domain: str, strength: float, generator: Generator) -> Tensor:
    """The grey canvas (N, 1, S, S) in the domain's look, (N, 3, S, S) in [0, 1]."""
    count, size = len(canvas), canvas.shape[-1]
    texture = smooth_texture(count, size, generator, cells=6)
    clean = 0.15 * texture * (1 - canvas) + canvas
    if domain == "clean":
        return clean.clamp(0, 1)
    if domain == "foggy":
        ramp = torch.linspace(0, 0.4, size).view(1, 1, 1, -1)
        noise = 0.1 * torch.randn(count, 3, size, size, generator=generator)
        changed = 0.6 * clean + ramp + noise
    elif domain == "inverted":
        changed = 1 - clean
    else:
        colour = 0.4 + 0.6 * torch.rand(count, 3, 1, 1, generator=generator)
        changed = 0.6 * texture * (1 - canvas) + colour * canvas
    return ((1 - strength) * clean + strength * changed).clamp(0, 1)
