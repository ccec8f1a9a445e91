"""Visually different renderings of the same real digits, for domain adaptation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kdcore.checks import check_choice
from kdcore.data.arrays import Arrays
from kdcore.data.dataset import Dataset
from kdcore.data.digits import DIGIT_CLASSES, all_digits

__all__ = ["DOMAINS", "digit_domain", "smooth_texture"]


def smooth_texture(count: int, size: int, generator: Generator, channels: int = 3, cells: int = 4) -> Tensor:
    """Random smooth backgrounds in [0, 1], shape (count, channels, size, size): bilinear noise on a coarse grid.

    Example:
        >>> smooth_texture(2, 32, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """
    coarse = torch.rand(count, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)


def _plain(images: Tensor, strength: float, generator: Generator) -> Tensor:
    return images.expand(-1, 3, -1, -1)


def _inverted(images: Tensor, strength: float, generator: Generator) -> Tensor:
    return (images * (1 - strength) + (1 - images) * strength).expand(-1, 3, -1, -1)


def _coloured(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """The digit in a random light colour on a darker texture."""
    texture = smooth_texture(len(images), images.shape[-1], generator) * 0.6 * strength
    colour = 0.5 + 0.5 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return texture * (1 - images) + (1 - strength + strength * colour) * images


def _noisy(images: Tensor, strength: float, generator: Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    blurred = gaussian_blur(images, [5, 5], [max(strength, 1e-3)])
    return (blurred + 0.25 * strength * torch.randn(images.shape, generator=generator)).expand(-1, 3, -1, -1)


def _rotated(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Rotated by 25° times `strength` and slightly sheared, each image a little differently."""
    angle = math.radians(25) * strength * (1 + 0.1 * torch.randn(len(images), generator=generator))
    shear = 0.15 * strength * torch.randn(len(images), generator=generator)
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([angle.cos(), angle.sin() + shear, zero], dim=1),
        torch.stack([-angle.sin(), angle.cos(), zero], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).expand(-1, 3, -1, -1)


def _thick(images: Tensor, strength: float, generator: Generator) -> Tensor:
    thick = F.max_pool2d(images, 3, stride=1, padding=1)
    return (images * (1 - strength) + thick * strength).expand(-1, 3, -1, -1)


_RENDERINGS: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "plain": _plain,
    "inverted": _inverted,
    "coloured": _coloured,
    "noisy": _noisy,
    "rotated": _rotated,
    "thick": _thick,
}
DOMAINS = (*_RENDERINGS, "fonts")


def digit_domain(
    domain: str,
    *,
    half: int | None = None,
    strength: float = 1.0,
    size: int = 16,
    test_fraction: float = 0.3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Dataset:
    """Real digits in one visual style; or, for "fonts", digits drawn with the typefaces that matplotlib ships.

    Args:
        domain: "plain", "inverted", "coloured" (random colour on a texture), "noisy" (blurred, noise added),
            "rotated" (25° and sheared), "thick" (strokes thickened) or "fonts".
        half: 0 or 1 for disjoint halves of the digits, so that source and target share no digit.
        strength: 0 leaves the digits as they are, 1 is the full effect; a rotation may go beyond 1.
        size: side of the images.
        test_fraction: share of the test split.
        seed: of the rendering and the split.
        device: where the tensors lie.

    Returns:
        Data set of `inputs` (N, 3, size, size) in [0, 1].

    Raises:
        ValueError: unknown domain, or negative strength.

    Example:
        >>> digit_domain("inverted", half=1).train.inputs.shape
        torch.Size([629, 3, 16, 16])
    """
    check_choice("domain", domain, DOMAINS)
    if strength < 0:
        raise ValueError(f"strength must be at least 0, got {strength!r}.")
    generator = torch.Generator().manual_seed(seed * 7919 + DOMAINS.index(domain))
    if domain == "fonts":
        count = 1796 if half is None else 898
        data = _drawn_digits(count, size, generator)
        provenance = "Digits drawn with the DejaVu and STIX typefaces that matplotlib ships"
    else:
        data = all_digits(size, half)
        images = _RENDERINGS[domain](data.inputs, strength, generator).clamp(0, 1).contiguous()
        data = data.with_(inputs=images)
        provenance = f"Optical recognition of handwritten digits (scikit-learn), rendered in style {domain!r}"
    test_size = round(len(data) * test_fraction)
    train, test = data.split(len(data) - test_size, test_size, seed=seed)
    return Dataset(f"digits-{domain}", DIGIT_CLASSES, train, test, provenance).to(device)


def _drawn_digits(count: int, size: int, generator: Generator) -> Arrays:
    """White digits on black in random typeface, size and place."""
    import matplotlib
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(path for path in folder.glob("*.ttf") if path.name.startswith(("DejaVuSans", "DejaVuSerif")))
    files += [folder / "STIXGeneral.ttf", folder / "STIXGeneralBol.ttf", folder / "STIXGeneralItalic.ttf"]
    files = [path for path in files if "Display" not in path.name]
    labels = torch.randint(10, (count,), generator=generator)
    faces = torch.randint(len(files), (count,), generator=generator).tolist()
    scales = (size * (0.8 + 0.4 * torch.rand(count, generator=generator))).tolist()
    shifts = (size * 0.08 * torch.randn(count, 2, generator=generator)).tolist()
    images = np.zeros((count, size, size), dtype=np.uint8)
    for k, (label, face, scale, (dx, dy)) in enumerate(zip(labels.tolist(), faces, scales, shifts, strict=True)):
        canvas = Image.new("L", (size, size))
        font = ImageFont.truetype(str(files[face]), scale)
        ImageDraw.Draw(canvas).text((size / 2 + dx, size / 2 + dy), str(label), fill=255, font=font, anchor="mm")
        images[k] = np.asarray(canvas)
    pixels = torch.from_numpy(images).float().div(255).unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    return Arrays(inputs=pixels, labels=labels)
