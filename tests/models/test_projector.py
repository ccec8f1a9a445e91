"""Features of one network in the shape of another's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdcore import models


def tapped(model: torch.nn.Module, inputs: torch.Tensor, layer: str) -> torch.Tensor:
    return models.features(model.eval(), inputs, [layer])[0][layer].detach()


def test_every_backbone_reaches_every_other():
    from torchvision.models import resnet18

    small, large = torch.rand(2, 1, 16, 16), torch.rand(2, 3, 64, 64)
    taken = [
        tapped(models.ConvNet(4, 3), small, "stages.1"),  # (8, 8, 8)
        tapped(models.ResNet(8, in_channels=1), small, "stages.1"),
        tapped(models.VisionTransformer(16, 4, 16, 1, 2), small, "encoder"),  # (16, 16) tokens
        tapped(resnet18(num_classes=3), large, "layer3"),  # (256, 4, 4)
    ]
    for source in taken:
        for target in taken:
            fewest = min(models.to_tokens(source).shape[1], models.to_tokens(target).shape[1])
            if fewest < models.to_tokens(target).shape[1]:
                with pytest.raises(ValueError, match="target must have at most the source's"):
                    models.Projector(source.shape[1:], target.shape[1:])
                continue
            for kind in ("linear", "mlp"):
                projected = models.Projector(source.shape[1:], target.shape[1:], kind)(source)
                assert projected.shape == target.shape
                projected.sum().backward()
        vector = models.Projector(source.shape[1:], (5,))
        expected = vector.layers(models.to_tokens(source).mean(dim=1))
        torch.testing.assert_close(vector(source), expected)


def test_on_a_map_it_is_a_convolution_with_kernel_one():
    features = torch.randn(2, 3, 4, 4)
    projector = models.Projector((3, 4, 4), (5, 4, 4))
    (layer,) = projector.layers
    expected = F.conv2d(features, layer.weight[:, :, None, None], layer.bias)
    torch.testing.assert_close(projector(features), expected)
    to_tokens = models.Projector((3, 4, 4), (16, 5))
    to_tokens.load_state_dict(projector.state_dict())
    torch.testing.assert_close(models.to_map(to_tokens(features)), expected)


def test_positions_are_averaged_to_a_smaller_grid():
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    projector = models.Projector((16, 1), (4, 1))
    with torch.no_grad():
        projector.layers[0].weight.fill_(1)
        projector.layers[0].bias.zero_()
    assert projector(tokens).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_maps_and_tokens_are_each_other_s_inverse():
    features = torch.randn(2, 3, 4, 4)
    assert torch.equal(models.to_map(models.to_tokens(features)), features)
    assert torch.equal(models.to_map(features), features)
    vector = torch.randn(2, 3)
    assert torch.equal(models.to_tokens(vector), vector)


def test_refusals_name_what_is_wrong():
    for source, target, kind, message in [
        ((3, 4), (), "linear", "target must be the shape of"),
        ((3, 0), (3, 1), "linear", "source must be the shape of"),
        ((3, 4), (3, 4), "deep", "kind must be"),
        ((12, 4), (4, 4), "linear", "tokens must form a square"),
        ((3, 4, 4), (3, 2, 8), "linear", "target must have at most"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.Projector(source, target, kind)
    with pytest.raises(ValueError, match=r"features must have shape \(B, 3, 4\), got \(2, 4, 3\)"):
        models.Projector((3, 4), (3, 2))(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match="n a square number"):
        models.to_map(torch.zeros(2, 12, 3))
    with pytest.raises(ValueError, match="features must have shape"):
        models.to_tokens(torch.zeros(2))
