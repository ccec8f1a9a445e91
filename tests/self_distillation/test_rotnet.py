"""RotNet: the turns, their batch, the loss and its floor, features that stay as they are, neighbours, networks."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digit_domain
from kdcore.metrics import accuracy, linear_probe
from kdcore.models import ConvNet
from kdcore.self_distillation.rotnet import (
    QUARTER_TURNS,
    FrozenReadout,
    RotationPretext,
    block_features,
    loss_floor,
    nearest_neighbours,
    network_in_network,
    nonlinear_classifier,
    pool_to_grid,
    rotate,
    rotated_batch,
    rotation_loss,
    with_features,
)
from kdcore.training import Budget, fit, predict, seeded

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6))


def random_images(batch: int = 3, channels: int = 3, side: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, side, side, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("case", reference_cases("rotnet"))
def test_matches_published_figures(case):
    angles = tuple(case["hyperparameters"]["order"])
    assert len(angles) == case["hyperparameters"]["num_rotations"]
    images = torch.tensor(case["inputs"]["images_nhwc"], dtype=torch.float64).permute(0, 3, 1, 2)
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64, requires_grad=True)
    turned, labels = rotated_batch(images, angles)
    loss = rotation_loss(logits, labels)
    loss.backward()
    computed = {
        "rotated_nhwc_batch": turned.permute(0, 2, 3, 1),
        "labels": labels.double(),
        "loss": loss.detach(),
        "grad_logits": logits.grad,
        "accuracy": torch.tensor(accuracy(logits, labels) / 100, dtype=torch.float64),
    }
    assert_published(computed, case, decimals=10)


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_quarter_turns_form_a_group(size, seed):
    images = random_images(*size, seed=seed)
    once, twice, thrice = (rotate(images, degrees) for degrees in (90, 180, 270))
    assert torch.equal(twice, rotate(once, 90))
    assert torch.equal(rotate(thrice, 90), images)
    assert torch.equal(rotate(images, 360), images)
    assert torch.equal(rotate(images, -90), thrice)
    assert torch.equal(once, images.transpose(2, 3).flip(2))
    assert torch.equal(once, torch.rot90(images, 1, (2, 3)))


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_batch_is_image_by_image(size, seed):
    images = random_images(*size, seed=seed)
    turned, labels = rotated_batch(images)
    assert turned.shape == (4 * len(images), *images.shape[1:])
    for i in range(len(images)):
        for r, degrees in enumerate(QUARTER_TURNS):
            assert torch.equal(turned[4 * i + r], rotate(images[i : i + 1], degrees)[0])
            assert labels[4 * i + r] == r


def test_any_list_of_angles_makes_the_same_layout():
    images = random_images()
    for angles in ((0, 180), (90, 270), tuple(range(0, 360, 45))):
        turned, labels = rotated_batch(images, angles)
        expected = [rotate(image[None], angle)[0] for image in images for angle in angles]
        torch.testing.assert_close(turned, torch.stack(expected))
        assert labels.tolist() == list(range(len(angles))) * len(images)


def test_interpolated_turn_has_the_direction_of_the_exact_one():
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 8] = 1.0  # on the right; a quarter turn counter-clockwise brings it to the top
    assert rotate(images, 90)[0, 0, 0, 4] == 1
    shown = rotate(images, 45)[0, 0]
    rows, columns = shown.nonzero(as_tuple=True)
    assert len(rows)
    assert bool((rows < 4).all() and (columns > 4).all())
    assert rotate(torch.ones(1, 1, 9, 9), 45)[0, 0, 0, 0] == 0  # black corners: what gives such a turn away


def test_uniform_logits_have_loss_log_four_and_the_gradient_of_a_softmax():
    logits = torch.zeros(12, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(4).repeat(3)
    loss = rotation_loss(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4), abs=1e-12)
    torch.testing.assert_close(logits.grad, (0.25 - F.one_hot(labels, 4).double()) / 12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 5))
def test_network_that_sees_no_turn_cannot_go_below_log_four(seed, scale):
    images = random_images(seed=seed)
    turned, labels = rotated_batch(images)
    invariant = turned.mean(dim=(2, 3))  # of each channel: the same for all turns of an image
    readout = scale * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert rotation_loss(invariant @ readout, labels).item() >= math.log(4) - 1e-12


def test_loss_is_the_mean_over_images_and_turns():
    logits = torch.randn(8, 4, dtype=torch.float64)
    labels = torch.arange(4).repeat(2)
    each = [-F.log_softmax(logits[row], dim=0)[row % 4].item() for row in range(8)]
    assert rotation_loss(logits, labels).item() == pytest.approx(sum(each) / 8)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.0),
        ([0.5, 0.0, 0.5, 0.0], math.log(2)),
        ([0.25, 0.25, 0.25, 0.25], math.log(4)),
        ([0.75, 0.0, 0.25, 0.0], 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),
    ],
)
def test_floor_is_the_entropy_of_the_pose(shares, expected):
    assert loss_floor(torch.tensor([shares], dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


def test_free_logits_reach_the_floor_and_go_no_lower():
    """A table of logits, one row per distinct picture: two objects, one of them seen upright and half-turned."""
    shares = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.7, 0.0, 0.3, 0.0]], dtype=torch.float64)
    table = torch.zeros(2, 4, 4, dtype=torch.float64, requires_grad=True)  # object, pose that is seen, logits
    optimizer = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe")

    def expected_loss():
        total = torch.zeros((), dtype=torch.float64)
        for thing in range(2):
            for pose in range(4):
                for turn in range(4):
                    seen = table[thing, (pose + turn) % 4].log_softmax(dim=0)
                    total = total - shares[thing, pose] / 4 * seen[turn] / 2
        return total

    def closure():
        optimizer.zero_grad()
        loss = expected_loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    floor = loss_floor(shares).item()
    assert floor - 1e-9 <= expected_loss().item() <= floor + 1e-3
    # equation (3): the second object, seen in pose 0, was turned by 0° from pose 0 or by 180° from pose 2
    torch.testing.assert_close(
        table[1, 0].softmax(dim=0), torch.tensor([0.7, 0.0, 0.3, 0.0], dtype=torch.float64), atol=1e-2, rtol=0
    )


def test_one_copy_per_image_keeps_rows_and_labels_together():
    class Corner(nn.Module):
        """Knows the turn from where the bright corner is."""

        def forward(self, images):
            corners = images[:, 0, [0, -1, -1, 0], [0, 0, -1, -1]]  # counter-clockwise from the upper left
            return 50 * corners

    images = torch.zeros(64, 1, 5, 5)
    images[:, 0, 0, 0] = 1
    for copies in ("all", "one"):
        terms = RotationPretext(Corner(), copies=copies).losses(Arrays(inputs=images))
        assert terms["rotation"].item() < 1e-6


def test_order_of_images_does_not_matter():
    model = ConvNet(width=4, num_classes=4).double().eval()
    learner, images = RotationPretext(model), random_images(5, 1, 8)
    first = learner.losses(Arrays(inputs=images))["rotation"]
    second = learner.losses(Arrays(inputs=images.flip(0)))["rotation"]
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("cached", [False, True])
def test_readout_changes_neither_weight_nor_statistic_of_the_backbone(cached):
    backbone = ConvNet(width=4, num_classes=4)
    before = copy.deepcopy(backbone.state_dict())
    rows = Arrays(inputs=torch.rand(40, 1, 8, 8), labels=torch.arange(40) % 10)
    learner = FrozenReadout(backbone, 1, ConvNet(width=4).tail(1))
    start = copy.deepcopy(learner.head.state_dict())
    fit(learner, with_features(rows, backbone, 1) if cached else rows, Budget(steps=5, batch_size=20))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert any(not torch.equal(value, start[name]) for name, value in learner.head.state_dict().items())


def test_cached_features_are_those_of_evaluation_mode_and_leave_the_mode_alone():
    network, rows = ConvNet(width=4), Arrays(inputs=torch.rand(6, 1, 8, 8))
    network.train()
    cached = with_features(rows, network, 1).features
    assert all(module.training for module in network.modules())
    network.eval()
    torch.testing.assert_close(cached, block_features(network, 1, rows.inputs))
    torch.testing.assert_close(cached, network.maps(rows.inputs)[0][1])
    with_features(rows, network, 1)
    assert not any(module.training for module in network.modules())


def test_pooling_gives_each_block_about_as_many_values():
    maps, _ = ConvNet(width=12, in_channels=3).maps(torch.rand(2, 3, 8, 8))
    assert [pool_to_grid(one, 200)[0].numel() for one in maps] == [192, 216, 192]
    assert pool_to_grid(torch.rand(1, 400, 4, 4), 200).shape == (1, 400, 1, 1)
    assert pool_to_grid(torch.rand(1, 1, 4, 3), 200).shape == (1, 1, 3, 3)


def test_neighbours_agree_with_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    gallery, queries = random_images(30, 2, 3), random_images(4, 2, 3, seed=1)
    found = nearest_neighbours(gallery, queries, 5)
    mean = gallery.flatten(1).mean(dim=0)
    oracle = NearestNeighbors(n_neighbors=5, metric="cosine").fit((gallery.flatten(1) - mean).numpy())
    expected = oracle.kneighbors((queries.flatten(1) - mean).numpy(), return_distance=False)
    assert found.tolist() == expected.tolist()


def test_nonlinear_classifier_has_the_published_shape():
    classifier = nonlinear_classifier((192, 8, 8))
    kinds = [nn.Flatten, *2 * [nn.Linear, nn.BatchNorm1d, nn.ReLU], nn.Linear]
    assert [type(layer) for layer in classifier] == kinds
    linear = [layer for layer in classifier if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(12288, 200), (200, 200), (200, 10)]
    assert nonlinear_classifier((1, 2, 2), num_classes=100)[1].out_features == 2000
    assert nonlinear_classifier((1, 2, 2), num_classes=1000)[1].out_features == 2048
    with pytest.raises(ValueError, match=r"features\[1\] must be a positive number, got 0"):
        nonlinear_classifier((3, 0, 2))


def test_network_in_network_has_the_published_shape():
    network = network_in_network()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [192, 160, 96] + [192] * 9
    assert [one.kernel_size[0] for one in convolutions] == [5, 1, 1, 5, 1, 1, 3, 1, 1, 3, 1, 1]
    assert all(one.bias is None for one in convolutions)
    weights = convolutions[3].weight
    assert weights.std().item() == pytest.approx(math.sqrt(2 / (25 * 192)), rel=0.02)
    maps, logits = network_in_network(width=12, num_blocks=3, num_classes=10).maps(torch.rand(2, 3, 32, 32))
    assert [tuple(one.shape[1:]) for one in maps] == [(6, 16, 16), (12, 8, 8), (12, 8, 8)]
    assert logits.shape == (2, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rotate(torch.rand(1, 1, 4, 5), 90), "images must be square"),
        (lambda: rotate(torch.rand(1, 4, 4), 90), "images must be square"),
        (lambda: rotated_batch(torch.rand(1, 1, 4, 5)), "images must be square"),
        (lambda: rotated_batch(torch.rand(1, 1, 4, 4), (0,)), "angles must be at least two"),
        (lambda: rotated_batch(torch.rand(1, 1, 4, 4), (0, 90, 360)), "angles must be at least two"),
        (lambda: rotation_loss(torch.zeros(4, 4), torch.tensor([0, 1, 2, 4])), "labels must lie in"),
        (lambda: rotation_loss(torch.zeros(4, 4), torch.zeros(3, dtype=torch.long)), "labels must have shape"),
        (lambda: rotation_loss(torch.full((4, 4), math.nan), torch.arange(4)), "logits must be finite"),
        (lambda: loss_floor(torch.tensor([[0.5, 0.6]])), "pose_shares must hold a distribution"),
        (lambda: loss_floor(torch.tensor([[1.5, -0.5]])), "pose_shares must hold a distribution"),
        (lambda: RotationPretext(ConvNet(4), copies="two"), "copies must be one of"),
        (lambda: RotationPretext(ConvNet(4), angles=(90, 450)), "angles must be at least two"),
        (lambda: block_features(ConvNet(4), 3, torch.rand(1, 1, 8, 8)), "stage must lie in"),
        (lambda: with_features(Arrays(inputs=torch.rand(1, 1, 8, 8)), ConvNet(4), -4), "stage must lie in"),
        (lambda: FrozenReadout(ConvNet(4), 3, nn.Identity()), "stage must lie in"),
        (lambda: pool_to_grid(torch.rand(2, 3), 10), "features must have shape"),
        (lambda: pool_to_grid(torch.rand(2, 3, 4, 4), 0), "values must be a positive number"),
        (lambda: nearest_neighbours(torch.rand(3, 2), torch.rand(1, 3), 1), "queries must have rows"),
        (lambda: nearest_neighbours(torch.rand(3, 2), torch.rand(1, 2), 4), "count must lie in"),
        (lambda: network_in_network(num_blocks=2), "num_blocks must be at least 3"),
        (lambda: network_in_network(width=20), "width must be a multiple of 6"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_pretext_learns_turns_and_better_features_than_chance():
    images = digit_domain("coloured", size=8, strength=1.3)

    def middle(network):
        parts = [with_features(part, network, 1) for part in (images.train, images.test)]
        train, test = (pool_to_grid(part.features, 200) for part in parts)
        return linear_probe(train, images.train.labels, test, images.test.labels, penalty=100.0)

    with seeded(0):
        network = ConvNet(width=8, in_channels=3, num_classes=4)
    untrained = middle(network)
    fit(RotationPretext(network), images.train, Budget(steps=150, batch_size=32, lr=0.2))
    turned, labels = rotated_batch(images.test.inputs)
    assert accuracy(predict(network, turned), labels) > 60
    assert middle(network) > untrained
