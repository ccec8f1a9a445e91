"""Shapes, parameter counts, the staged chain, feature taps that never leak."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from kdcore import models


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (models.ConvNet(4, 3), (1, 8, 8), 10),
        (models.ConvNet(4, 2, in_channels=3, num_classes=7, convolutions=2), (3, 16, 16), 7),
        (models.ResNet(8, num_classes=5), (3, 32, 32), 5),
        (models.ResNet(14, widen=2, in_channels=1), (1, 16, 16), 10),
        (models.MLP(64, (16, 16)), (1, 8, 8), 10),
        (models.VisionTransformer(8, 2, width=16, depth=2, heads=2), (1, 8, 8), 10),
    ],
)
def test_shapes_and_gradients(model, shape, classes):
    outputs = model(torch.randn(3, *shape))
    assert outputs.shape == (3, classes)
    assert model.embed(torch.randn(3, *shape)).shape[0] == 3
    outputs.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("model", [models.ConvNet(4, 3), models.ResNet(8, in_channels=1)])
def test_staged_networks_are_chains(model):
    model.eval()
    inputs = torch.randn(2, 1, 16, 16)
    maps, logits = model.maps(inputs)
    assert [one.shape[1] for one in maps] == model.widths
    torch.testing.assert_close(logits, model(inputs))
    for number, one in enumerate(maps):
        torch.testing.assert_close(model.tail(number)(one), logits)
    torch.testing.assert_close(model.tail(-1)(maps[-1]), logits)


def test_resnet_has_the_published_number_of_parameters():
    # He et al. 2016, table 6: 0.27 M for ResNet-20, 0.46 M for ResNet-32; option B adds two small projections.
    assert models.parameter_count(models.ResNet(20)) == pytest.approx(0.27e6, rel=0.02)
    assert models.parameter_count(models.ResNet(32)) == pytest.approx(0.46e6, rel=0.02)


@pytest.mark.parametrize(
    ("model", "layer", "inputs"),
    [
        (models.ConvNet(4, 2), "stages.1", torch.randn(2, 1, 8, 8)),
        (models.ResNet(8), "stages.2.0.conv1", torch.randn(2, 3, 16, 16)),
        (models.VisionTransformer(8, 2, width=16, heads=2), "encoder.layers.1", torch.randn(2, 1, 8, 8)),
    ],
)
def test_features_by_name_without_leaking_hooks(model, layer, inputs):
    model.eval()
    taken, output = models.features(model, inputs, [layer])
    torch.testing.assert_close(output, model(inputs))
    expected = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, __, out: expected.append(out))
    model(inputs)
    hook.remove()
    torch.testing.assert_close(taken[layer], expected[0])
    with pytest.raises(RuntimeError):
        models.features(model, torch.randn(2, 7, 3, 3), [layer])
    assert not any(module._forward_hooks for module in model.modules())


def test_features_of_a_torchvision_model():
    from torchvision.models import resnet18

    taken, _ = models.features(resnet18(num_classes=3).eval(), torch.randn(1, 3, 64, 64), ["layer2", "layer4"])
    assert taken["layer2"].shape == (1, 128, 8, 8)
    assert taken["layer4"].shape == (1, 512, 2, 2)


def test_features_refuse_unknown_and_unused_layers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match=r"got \['2'\]; there are 0, 1"):
        models.features(model, torch.zeros(1, 2), ["2"])
    model.spare = nn.Linear(1, 1)
    model.forward = lambda inputs: model[0](inputs)
    with pytest.raises(ValueError, match="did not run"):
        models.features(model, torch.zeros(1, 2), ["spare"])


def test_features_of_a_compiled_model_and_within_a_compiled_function():
    model = models.ConvNet(4, 2).eval()
    inputs, name = torch.randn(2, 1, 8, 8), "stages.0"
    expected, logits = models.features(model, inputs, [name])
    compiled = torch.compile(model, backend="eager")
    compiled(inputs)  # compiled without hooks, which it would not notice now
    taken, output = models.features(compiled, inputs, [name])
    torch.testing.assert_close(taken[name], expected[name])
    torch.testing.assert_close(output, logits)
    inside = torch.compile(lambda rows: models.features(model, rows, [name])[0][name].sum(), backend="eager")
    torch.testing.assert_close(inside(inputs), expected[name].sum())
    assert not any(module._forward_hooks for module in model.modules())


def test_features_under_mixed_precision_keep_their_gradient():
    model = models.ConvNet(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        taken, _ = models.features(model, torch.randn(2, 1, 8, 8), ["classifier"])
    assert taken["classifier"].dtype == torch.bfloat16
    taken["classifier"].sum().backward()
    assert next(model.stages.parameters()).grad.abs().sum() > 0


def test_features_refuse_what_is_not_one_tensor():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), shared, nn.Linear(2, 2), shared)
    with pytest.raises(ValueError, match="'1' ran 2 times"):
        models.features(model, torch.zeros(1, 2), ["1"])
    attention = nn.MultiheadAttention(4, 2)
    model = nn.Module()
    model.attention = attention
    model.forward = lambda rows: attention(rows, rows, rows)[0]
    with pytest.raises(ValueError, match="'attention' must give a tensor, got tuple"):
        models.features(model, torch.zeros(3, 1, 4), ["attention"])


def test_cost_of_a_linear_layer_by_hand():
    model = nn.Linear(10, 4)
    assert models.parameter_count(model) == 44
    assert models.flops(model, torch.zeros(3, 10)) == 2 * 3 * 10 * 4
    assert models.latency(model, torch.zeros(3, 10), repeats=3) > 0


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_graph_networks_pass_messages_along_edges_only(kind):
    model = models.GraphNetwork(kind, in_features=3, hidden=8, num_classes=2).eval()
    features, edges = torch.randn(4, 3), torch.tensor([[0, 1], [1, 0]])
    changed = features.clone()
    changed[0] += 1
    moved = (model(features, edges) - model(changed, edges)).abs().sum(dim=1)
    assert bool((moved[:2] > 0).all())
    assert bool((moved[2:] == 0).all())


def test_graph_convolutions_weigh_edges_as_the_library_s_own_layers_do():
    from torch_geometric.nn import GCNConv

    model = models.GraphNetwork("gcn", in_features=3, hidden=8, num_classes=2).eval()
    layers = [GCNConv(3, 8), GCNConv(8, 2)]
    for layer, convolution in zip(layers, model.convolutions, strict=True):
        layer.load_state_dict(convolution.state_dict())
    features, edges = torch.randn(4, 3), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    expected = layers[1](layers[0](features, edges).relu(), edges)
    torch.testing.assert_close(model(features, edges), expected)


def test_graph_networks_follow_a_change_of_edges_and_can_be_copied():
    model = models.GraphNetwork("gcn", in_features=3, hidden=8, num_classes=2).eval()
    features, edges = torch.randn(4, 3), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    before = model(features, edges)
    torch.testing.assert_close(copy.deepcopy(model)(features, edges), before)
    assert pickle.loads(pickle.dumps(model))(features, edges).equal(before)
    edges[1, 0] = 3
    after = model(features, edges)
    assert not after.equal(before)
    assert model(features, edges.clone()).equal(after)
    assert model(torch.randn(6, 3), edges).shape == (6, 2)
    torch.testing.assert_close(model.double()(features.double(), edges).float(), after)
    with pytest.raises(RuntimeError, match="index 9 is out of bounds"):
        model(features, torch.tensor([[0, 9], [9, 0]]))


def test_gcn_layer_is_its_formula():
    model = models.GraphNetwork("gcn", in_features=3, num_classes=2, layers=1)
    features, edges = torch.randn(3, 3), torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    adjacency = torch.eye(3)
    adjacency[edges[0], edges[1]] = 1
    scale = adjacency.sum(1).rsqrt()
    propagated = scale[:, None] * adjacency * scale[None] @ features
    layer = model.convolutions[0]
    torch.testing.assert_close(model(features, edges), propagated @ layer.lin.weight.T + layer.bias)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.ResNet(10), "6n"),
        (lambda: models.ConvNet(0), "width"),
        (lambda: models.VisionTransformer(10, 4), "must divide"),
        (lambda: models.GraphNetwork("gcnn"), "Did you mean 'gcn'"),
        (lambda: models.MLP(0), "in_features"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("depth", [0, 2])
def test_text_encoder_does_not_see_padding(depth):
    network = models.TextEncoder(30, num_classes=3, width=8, depth=depth, heads=2, length=7).eval()
    sentences = torch.randint(1, 30, (4, 5))
    longer = torch.nn.functional.pad(sentences, (0, 2))
    assert network(sentences).shape == (4, 3)
    torch.testing.assert_close(network(longer), network(sentences))
    assert network(torch.zeros(2, 5, dtype=torch.long)).isfinite().all()


def test_a_bag_of_words_is_blind_to_order_and_a_transformer_is_not():
    sentence = torch.tensor([[4, 9, 2, 7]])
    bag, encoder = (models.TextEncoder(10, width=8, depth=depth, heads=2).eval() for depth in (0, 1))
    torch.testing.assert_close(bag(sentence), bag(sentence.flip(1)))
    assert not torch.allclose(encoder(sentence), encoder(sentence.flip(1)), atol=1e-4)


def test_text_encoder_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="heads must divide width 10, got 4"):
        models.TextEncoder(10, width=10)
    with pytest.raises(ValueError, match="depth"):
        models.TextEncoder(10, depth=-1)
