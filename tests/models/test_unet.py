"""The small U-Net: shapes, what each head sees, rejections, and that it learns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kdcore.models import UNet


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(1, 3))
def test_logits_have_the_inputs_size(width, depth, rows, columns, classes, channels):
    factor = 2 ** (depth - 1)
    inputs = torch.rand(2, channels, rows * factor, columns * factor)
    model = UNet(width, depth, channels, classes).eval()
    assert model(inputs).shape == (2, classes, rows * factor, columns * factor)


def test_default_is_three_levels_of_16_32_64_channels():
    model = UNet()
    assert model.widths == [16, 32, 64]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 6, 32, 32)


def test_parameter_count_by_hand():
    # Convolutions without bias, two numbers per channel of batch norm, classifier with bias.
    def convolution(a, b):
        return 9 * a * b + 2 * b

    expected = convolution(3, 4) + convolution(4, 4) + convolution(4, 8) + convolution(8, 8)
    expected += convolution(8 + 4, 4) + (4 * 5 + 5)
    model = UNet(width=4, depth=2, num_classes=5)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_heads_agree_with_forward_and_share_one_size():
    model = UNet(width=4, auxiliary=True).eval()
    inputs = torch.rand(2, 3, 16, 8)
    final, low = model.heads(inputs)
    torch.testing.assert_close(final, model(inputs))
    assert low.shape == final.shape == (2, 6, 16, 8)
    assert not torch.allclose(low, final)


def test_low_head_is_an_upsampled_map_of_half_resolution():
    # It reads the decoder before its last block, so that block gets no gradient from it.
    model = UNet(width=4, depth=2, auxiliary=True)
    model.heads(torch.rand(2, 3, 8, 8))[1].sum().backward()
    assert model.decoder[-1][0].weight.grad is None
    assert model.classifier.weight.grad is None
    assert float(model.encoder[-1][0][0].weight.grad.abs().sum()) > 0
    # Depth 2: the map is the bottleneck, and the head commutes with the upsampling because it is linear per pixel.
    model.eval()
    inputs = torch.rand(2, 3, 8, 8)
    coarse = model.encoder[1](F.max_pool2d(model.encoder[0](inputs), 2))
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(model.heads(inputs)[1], model.auxiliary(enlarged))


def test_skip_connections_carry_single_pixels():
    model = UNet(width=4, depth=3, in_channels=1, num_classes=2).eval()
    inputs = torch.rand(1, 1, 16, 16, requires_grad=True)

    def reach():
        (gradient,) = torch.autograd.grad(model(inputs)[0, 0, 8, 8], inputs)
        return gradient[0, 0].abs()

    assert float(reach()[:4].sum()) > 0  # through the bottleneck
    with torch.no_grad():
        for block in model.encoder[1:]:
            for parameter in block.parameters():
                parameter.zero_()
    # Only the finest skip is left: three 3×3 convolutions between input and output see 3 pixels to each side.
    beyond = reach()
    assert float(beyond[8, 8]) > 0
    beyond[5:12, 5:12] = 0
    assert float(beyond.max()) == 0


def test_evaluation_treats_images_one_by_one_in_either_precision():
    model = UNet(width=4).double().eval()
    inputs = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    together = model(inputs)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together[1:2], model(inputs[1:2]))


def test_learns_to_segment_a_threshold():
    inputs = torch.rand(16, 1, 8, 8)
    labels = (F.avg_pool2d(inputs, 3, 1, 1)[:, 0] > 0.45).long()
    model = UNet(width=4, depth=2, in_channels=1, num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    accuracy = (model.eval()(inputs).argmax(dim=1) == labels).double().mean()
    majority = max(labels.double().mean(), 1 - labels.double().mean())
    assert accuracy > 0.9 > majority


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be a positive"),
        ({"depth": 0}, "depth must be a positive"),
        ({"in_channels": -1}, "in_channels must be a positive"),
        ({"num_classes": 0}, "num_classes must be a positive"),
        ({"depth": 1, "auxiliary": True}, "depth must be at least 2 with auxiliary=True, got 1"),
    ],
)
def test_rejects_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 30, 32), "divisible by 4, got 30 × 32"),
        ((2, 3, 32, 6), "divisible by 4, got 32 × 6"),
        ((2, 3, 0, 32), "divisible by 4"),
        ((2, 1, 32, 32), r"inputs must have shape \(B, 3, H, W\), got \(2, 1, 32, 32\)"),
        ((3, 32, 32), r"inputs must have shape \(B, 3, H, W\)"),
    ],
)
def test_rejects_bad_inputs(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet()(torch.zeros(shape))


def test_heads_need_the_auxiliary_head():
    with pytest.raises(ValueError, match="heads needs UNet\\(auxiliary=True\\)"):
        UNet().heads(torch.zeros(1, 3, 8, 8))
