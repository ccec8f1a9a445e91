"""Maximum squares loss: closed forms, gradients, published figures, the learner."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import reference_cases
from scipy.stats import chisquare, entropy
from sklearn.datasets import load_digits
from sklearn.metrics import jaccard_score
from torch import nn
from torch.nn import functional as F

from kdcore.adaptation.maxsquare import (
    SegmentationAdaptation,
    binary_gradients,
    confident_gradient_share,
    entropy_loss,
    guided_pseudo_labels,
    image_weighted_entropy,
    image_weighted_loss,
    image_weights,
    maximum_squares_loss,
    pixel_cross_entropy,
    pseudo_labels,
)
from kdcore.data.arrays import Arrays
from kdcore.models import UNet
from kdcore.training.budget import Budget
from kdcore.training.fit import fit

DOUBLE = torch.float64


def random_logits(*shape, scale=2.0, dtype=DOUBLE):
    return scale * torch.randn(*shape, dtype=dtype)


def one_hot_maps(labels, classes):
    return F.one_hot(labels, classes).movedim(-1, 1).to(DOUBLE)


def squares_of_logits(logits):
    return maximum_squares_loss(logits.softmax(dim=1))


shapes = st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))


# --- published figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference_cases("maxsquare"))
def test_matches_published_figures(case):
    logits = torch.tensor(case["inputs"]["logits"], dtype=DOUBLE, requires_grad=True)
    alpha = case["hyperparameters"].get("alpha")
    assert logits.shape[1] == case["hyperparameters"]["num_class"]

    def gradient(loss):
        return torch.autograd.grad(loss, logits)[0]

    def probabilities():
        return logits.softmax(dim=1)

    figures = {
        "maxsquare": lambda: maximum_squares_loss(probabilities()),
        "grad_maxsquare": lambda: gradient(maximum_squares_loss(probabilities())),
        "entropy": lambda: entropy_loss(logits),
        "grad_entropy_both_paths": lambda: gradient(entropy_loss(logits)),
        "iw_maxsquare": lambda: image_weighted_loss(probabilities(), alpha),
        "grad_iw_maxsquare": lambda: gradient(image_weighted_loss(probabilities(), alpha)),
        "iw_entropy": lambda: image_weighted_entropy(logits, alpha),
        # At α = 1 the weights are the reciprocal counts; a class that does not occur counts as 1 there.
        "histogram": lambda: 1 / image_weights(probabilities(), alpha=1.0)[0],
    }
    for name, expected in case["outputs"].items():
        wanted = torch.tensor(expected, dtype=DOUBLE)
        if name == "histogram":
            wanted = wanted.clamp(min=1)
        # The figures' gradients are rounded to 12 decimals (hence the absolute part), and the image weights behind
        # them were computed in float32, which alone moves the weighted figures by up to about 2e-7.
        torch.testing.assert_close(figures[name]().detach(), wanted, rtol=1e-6, atol=1e-11, msg=lambda m, n=name: n + m)


# --- maximum squares and entropy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 19])
def test_closed_forms_at_vertices_and_centre(classes):
    labels = torch.randint(classes, (2, 3, 4))
    uniform = torch.full((2, classes, 3, 4), 1 / classes, dtype=DOUBLE)
    assert maximum_squares_loss(one_hot_maps(labels, classes)).item() == pytest.approx(-1 / (2 * classes), rel=1e-12)
    assert maximum_squares_loss(uniform).item() == pytest.approx(-1 / (2 * classes**2), rel=1e-12)
    assert entropy_loss(uniform.log()).item() == pytest.approx(math.log(classes) / classes, rel=1e-12)
    assert entropy_loss(1000 * one_hot_maps(labels, classes)).item() == 0


@settings(max_examples=25, deadline=None)
@given(shapes, st.floats(0.01, 20), st.integers(0, 10_000))
def test_values_lie_between_vertex_and_centre(shape, scale, seed):
    torch.manual_seed(seed)
    logits = random_logits(*shape, scale=scale)
    classes = shape[1]
    assert -1 / (2 * classes) - 1e-12 <= squares_of_logits(logits).item() <= -1 / (2 * classes**2) + 1e-12
    assert -1e-12 <= entropy_loss(logits).item() <= math.log(classes) / classes + 1e-12


def test_pearson_divergence_identity():
    probabilities = random_logits(2, 5, 3, 2).softmax(dim=1)
    table = probabilities.movedim(1, 0).reshape(5, -1).numpy()
    divergence = chisquare(table, f_exp=1 / 5, axis=0).statistic.mean()
    assert -2 * 25 * maximum_squares_loss(probabilities).item() - 1 == pytest.approx(divergence, rel=1e-10)


def test_entropy_agrees_with_scipy():
    logits = random_logits(2, 5, 3, 2)
    assert entropy_loss(logits).item() == pytest.approx(entropy(logits.softmax(1), axis=1).mean() / 5, rel=1e-12)


def test_gradient_in_the_probabilities_is_linear():
    probabilities = random_logits(2, 3, 4, 5).softmax(dim=1).requires_grad_()
    maximum_squares_loss(probabilities).backward()
    torch.testing.assert_close(probabilities.grad, -probabilities.detach() / (2 * 3 * 20))


@settings(max_examples=15, deadline=None)
@given(shapes, st.integers(0, 10_000))
def test_gradient_in_the_logits_sums_to_zero_over_classes(shape, seed):
    torch.manual_seed(seed)
    logits = random_logits(*shape).requires_grad_()
    for loss in (squares_of_logits, entropy_loss, lambda z: image_weighted_loss(z.softmax(1)), image_weighted_entropy):
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        assert float(gradient.sum(dim=1).abs().max()) < 1e-12


def test_uniform_and_one_hot_predictions_are_stationary():
    vertices = 1000 * one_hot_maps(torch.randint(4, (1, 3, 3)), 4)
    for logits in (torch.zeros(1, 4, 3, 3, dtype=DOUBLE), vertices):
        for loss in (squares_of_logits, entropy_loss):
            leaf = logits.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf), leaf)
            assert float(gradient.abs().max()) < 1e-15


def test_gradients_by_finite_differences():
    logits = random_logits(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(squares_of_logits, logits)
    assert torch.autograd.gradcheck(entropy_loss, logits)
    # The weights are constants: away from a change of argmax the numerical gradient agrees.
    assert torch.autograd.gradcheck(lambda z: image_weighted_loss(z.softmax(1), 0.5), logits)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 10_000))
def test_permuting_classes_or_pixels_changes_nothing(shape, seed):
    torch.manual_seed(seed)
    probabilities = random_logits(*shape).softmax(dim=1)
    batch, classes, height, width = shape
    by_class = probabilities[:, torch.randperm(classes)]
    by_pixel = probabilities.flatten(2)[:, :, torch.randperm(height * width)].view(batch, classes, width, height)
    for loss in (maximum_squares_loss, image_weighted_loss, lambda p: image_weighted_loss(p, 0.7, "class")):
        for permuted in (by_class, by_pixel):
            torch.testing.assert_close(loss(permuted), loss(probabilities))


def test_entropy_survives_underflowing_probabilities():
    logits = torch.tensor([0.0, 500.0]).view(1, 2, 1, 1).requires_grad_()
    loss = entropy_loss(logits)
    loss.backward()
    assert loss.item() == 0
    assert bool(torch.isfinite(logits.grad).all())


# --- two classes --------------------------------------------------------------------------------------------------


def test_binary_gradients_match_autograd():
    x = torch.linspace(-6, 6, 25, dtype=DOUBLE, requires_grad=True)
    p = x.sigmoid()
    (by_entropy,) = torch.autograd.grad((-p * p.log() - (1 - p) * (1 - p).log()).sum(), x, retain_graph=True)
    (by_squares,) = torch.autograd.grad((-0.5 * (p**2 + (1 - p) ** 2)).sum(), x)
    entropy_gradient, squares_gradient = binary_gradients(p.detach())
    torch.testing.assert_close(entropy_gradient, by_entropy)
    torch.testing.assert_close(squares_gradient, by_squares)


def test_binary_gradients_match_the_losses_on_two_channel_maps():
    x = torch.linspace(-4, 4, 9, dtype=DOUBLE)
    logits = torch.stack([x, torch.zeros_like(x)]).view(1, 2, 1, 9).requires_grad_()
    for loss, analytic in zip((entropy_loss, squares_of_logits), binary_gradients(x.sigmoid()), strict=True):
        (gradient,) = torch.autograd.grad(loss(logits), logits)
        torch.testing.assert_close(gradient[0, 0, 0] * 2 * 9, analytic)  # the losses average over C·M


def test_gradient_ratio_is_two_at_a_half_and_grows_without_bound():
    p = torch.tensor([0.5 + 1e-6, 0.99, 1 - 1e-6, 1 - 1e-12], dtype=DOUBLE)
    entropy_gradient, squares_gradient = binary_gradients(p)
    ratio = entropy_gradient / squares_gradient
    assert ratio[0].item() == pytest.approx(2, rel=1e-6)
    assert ratio[1].item() == pytest.approx(4.69, abs=0.005)
    assert bool((ratio.diff() > 0).all())
    assert ratio[3].item() > 25


def test_confident_pixels_take_a_smaller_share_of_the_squares_gradient():
    logits = random_logits(2, 4, 16, 16, scale=3.0)
    by_squares = confident_gradient_share(squares_of_logits, logits)
    by_entropy = confident_gradient_share(entropy_loss, logits)
    assert 0 < by_squares.item() < by_entropy.item() < 1


def test_confident_gradient_share_by_hand_and_at_its_ends():
    p = torch.tensor([0.99, 0.7], dtype=DOUBLE)
    logits = torch.stack([p.logit(), torch.zeros_like(p)]).view(1, 2, 1, 2)
    size = binary_gradients(p)[0].abs()
    with torch.no_grad():
        share = confident_gradient_share(entropy_loss, logits)
    torch.testing.assert_close(share, size[0] / size.sum())
    assert confident_gradient_share(entropy_loss, logits, threshold=1.0).item() == 0
    torch.testing.assert_close(confident_gradient_share(entropy_loss, logits, 0.0), torch.ones((), dtype=DOUBLE))
    assert confident_gradient_share(entropy_loss, torch.zeros(1, 2, 2, 2), threshold=0.0).item() == 0


# --- image-wise weights -------------------------------------------------------------------------------------------


def loop_image_weighted(probabilities, alpha, weight_by):
    """Equation (6), one pixel at a time."""
    table = probabilities.tolist()
    batch, classes, height, width = probabilities.shape
    total = 0.0
    for image in table:
        pixels = [[image[c][i][j] for c in range(classes)] for i in range(height) for j in range(width)]
        counts = [sum(pixel.index(max(pixel)) == c for pixel in pixels) for c in range(classes)]
        for pixel in pixels:
            for c, value in enumerate(pixel):
                count = counts[pixel.index(max(pixel)) if weight_by == "pixel" else c]
                total -= value**2 / max(max(count, 1) ** alpha * len(pixels) ** (1 - alpha), 1)
    return total / (batch * classes)


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from(["pixel", "class"]), st.integers(0, 10_000))
def test_image_weighted_loss_equals_a_slow_loop(shape, alpha, weight_by, seed):
    torch.manual_seed(seed)
    probabilities = random_logits(*shape).softmax(dim=1)
    fast = image_weighted_loss(probabilities, alpha, weight_by).item()
    assert fast == pytest.approx(loop_image_weighted(probabilities, alpha, weight_by), rel=1e-12)


def test_image_weights_by_hand():
    # Image one: 5 pixels of class 0, 1 of class 1, none of class 2; image two: 2 of each.
    labels = torch.tensor([[[0, 0, 0], [0, 0, 1]], [[0, 1, 2], [2, 1, 0]]])
    weights = image_weights(one_hot_maps(labels, 3), alpha=0.2)
    of_count = {n: 1 / (n**0.2 * 6**0.8) for n in (1, 2, 5)}
    expected = [[of_count[5], of_count[1], 1.0], [of_count[2]] * 3]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=DOUBLE))


@pytest.mark.parametrize("weight_by", ["pixel", "class"])
def test_alpha_zero_is_twice_maximum_squares(weight_by):
    probabilities = random_logits(3, 4, 5, 6).softmax(dim=1)
    torch.testing.assert_close(
        image_weighted_loss(probabilities, 0.0, weight_by), 2 * maximum_squares_loss(probabilities)
    )
    logits = random_logits(3, 4, 5, 6)
    torch.testing.assert_close(image_weighted_entropy(logits, 0.0), entropy_loss(logits))


def test_alpha_one_gives_each_predicted_class_the_same_total():
    labels = torch.tensor([[[0, 0, 0], [3, 3, 1]]])
    weights = image_weights(one_hot_maps(labels, 5), alpha=1.0)[0]
    assert weights[labels].sum().item() == pytest.approx(3, rel=1e-12)
    # One-hot predictions: the sum of squares is 1 everywhere, so the loss counts the classes too.
    assert image_weighted_loss(one_hot_maps(labels, 5), alpha=1.0).item() == pytest.approx(-3 / 5, rel=1e-12)


def test_weights_come_from_each_image_alone():
    probabilities = random_logits(4, 4, 3, 5).softmax(dim=1)  # B = C, where a missing class axis would go unnoticed
    single = torch.stack([image_weighted_loss(image[None], 0.5) for image in probabilities])
    torch.testing.assert_close(image_weighted_loss(probabilities, 0.5), single.mean())


def test_weights_carry_no_gradient():
    probabilities = random_logits(1, 3, 4, 4).softmax(dim=1).requires_grad_()
    weights = image_weights(probabilities, 0.2)
    assert not weights.requires_grad
    image_weighted_loss(probabilities, 0.2).backward()
    per_pixel = weights[0][probabilities.argmax(dim=1)][:, None]
    torch.testing.assert_close(probabilities.grad, -2 * per_pixel * probabilities.detach() / 3)


def test_weighting_by_pixel_or_class_nearly_agrees_on_random_predictions():
    probabilities = random_logits(1, 4, 32, 32, scale=1.0).softmax(dim=1)
    by_pixel = image_weighted_loss(probabilities, 0.2, "pixel").item()
    by_class = image_weighted_loss(probabilities, 0.2, "class").item()
    assert by_pixel != by_class
    assert by_class == pytest.approx(by_pixel, rel=5e-3)


def test_absent_class_does_not_take_over_when_weighting_by_class():
    # Class 2 is never predicted; with the bare weight 1 of equation (6) it alone would exceed the whole loss.
    probabilities = torch.tensor([0.6, 0.3, 0.1], dtype=DOUBLE).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    weights = image_weights(probabilities, 0.2)[0]
    assert weights[2].item() == 1
    loss = image_weighted_loss(probabilities, 0.2, "class").item()
    expected = -(0.36 + (0.09 + 0.01) * 1024**0.2) / 3
    assert loss == pytest.approx(expected, rel=1e-12)


# --- dtypes and transforms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    logits = random_logits(2, 3, 4, 4, dtype=dtype)
    labels = pseudo_labels(logits.softmax(1), 0.5)
    values = [squares_of_logits(logits), entropy_loss(logits), image_weighted_loss(logits.softmax(1))]
    values += [image_weighted_entropy(logits), pixel_cross_entropy(logits, labels)]
    assert {value.dtype for value in values} == {dtype}
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_large_maps_survive_half_precision(dtype):
    logits = random_logits(1, 2, 300, 300, scale=1.0, dtype=torch.float32)  # 90,000 pixels; float16 ends at 65,504
    full = logits.softmax(dim=1)
    half = full.to(dtype)
    weights = image_weights(half)
    assert weights.dtype == torch.float32
    assert bool(((weights > 0) & (weights < 1)).all())
    torch.testing.assert_close(image_weighted_loss(half), image_weighted_loss(full), rtol=1e-2, atol=0)


def test_losses_run_side_by_side_under_vmap():
    logits = random_logits(5, 2, 3, 4, 4)
    losses = {
        "squares": squares_of_logits,
        "entropy": entropy_loss,
        "weighted": lambda z: image_weighted_loss(z.softmax(1)),
        "guided": lambda z: pixel_cross_entropy(z, pseudo_labels(z.softmax(1), 0.5)),
    }
    for loss in losses.values():
        torch.testing.assert_close(torch.func.vmap(loss)(logits), torch.stack([loss(z) for z in logits]))


# --- pseudo-labels ------------------------------------------------------------------------------------------------


def test_guidance_by_hand():
    # Pixels: final confident; low confident and outvoting the final; neither; exactly at the threshold.
    final = torch.tensor([[0.96, 0.60, 0.60, 0.75], [0.04, 0.40, 0.40, 0.25]]).view(1, 2, 1, 4)
    low = torch.tensor([[0.10, 0.04, 0.60, 0.75], [0.90, 0.96, 0.40, 0.25]]).view(1, 2, 1, 4)
    assert guided_pseudo_labels(final, low, 0.95).tolist() == [[[0, 1, -100, -100]]]
    assert guided_pseudo_labels(final, low, 0.75, ignore_index=-1).tolist() == [[[0, 1, -1, -1]]]
    assert guided_pseudo_labels(final, low, 0.0).tolist() == [[[0, 1, 0, 0]]]


@settings(max_examples=20, deadline=None)
@given(shapes, st.floats(0, 1), st.integers(0, 10_000))
def test_pseudo_labels_are_the_confident_argmax(shape, threshold, seed):
    torch.manual_seed(seed)
    probabilities = random_logits(*shape).softmax(dim=1)
    labels = pseudo_labels(probabilities, threshold)
    largest, predicted = probabilities.max(dim=1)
    assert bool((labels[largest > threshold] == predicted[largest > threshold]).all())
    assert bool((labels[largest <= threshold] == -100).all())
    torch.testing.assert_close(labels, guided_pseudo_labels(probabilities, probabilities, threshold))


def test_guidance_is_symmetric_in_the_heads():
    first, second = random_logits(2, 3, 4, 4).softmax(dim=1), random_logits(2, 3, 4, 4).softmax(dim=1)
    torch.testing.assert_close(guided_pseudo_labels(first, second, 0.8), guided_pseudo_labels(second, first, 0.8))


def test_pixel_cross_entropy_equals_torch_and_is_zero_without_labels():
    logits = random_logits(2, 3, 4, 4).requires_grad_()
    labels = torch.randint(3, (2, 4, 4))
    labels[0, :2] = 255
    torch.testing.assert_close(
        pixel_cross_entropy(logits, labels, 255), F.cross_entropy(logits, labels, ignore_index=255)
    )
    nothing = pixel_cross_entropy(logits, torch.full((2, 4, 4), 255), 255)
    nothing.backward()
    assert nothing.item() == 0
    assert float(logits.grad.abs().max()) == 0


# --- the learner --------------------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """One 1×1 convolution per head."""

    def __init__(self):
        super().__init__()
        self.final, self.low = nn.Conv2d(1, 3, 1).double(), nn.Conv2d(1, 3, 1).double()

    def forward(self, inputs):
        return self.final(inputs)

    def heads(self, inputs):
        return self.final(inputs), self.low(inputs)


def small_batch():
    labels = torch.randint(3, (2, 4, 4))
    labels[0, 0] = -1
    source = Arrays(inputs=torch.rand(2, 1, 4, 4, dtype=DOUBLE), labels=labels)
    return SimpleNamespace(source=source, target=Arrays(inputs=5 * torch.rand(2, 1, 4, 4, dtype=DOUBLE)))


def test_learner_terms_are_those_of_the_objective():
    model, batch = TwoHeads(), small_batch()
    learner = SegmentationAdaptation(
        model, "image_weighted", 0.09, alpha=0.3, threshold=0.6, multi_level=True, auxiliary_weight=0.2, ignore_index=-1
    )
    terms = learner.losses(batch)
    (source_final, source_low), (final, low) = model.heads(batch.source.inputs), model.heads(batch.target.inputs)
    guide = guided_pseudo_labels(final.softmax(1), low.softmax(1), 0.6)
    assert 0 < (guide >= 0).sum() < guide.numel()
    expected = {
        "cross_entropy": F.cross_entropy(source_final, batch.source.labels, ignore_index=-1),
        "cross_entropy_low": 0.2 * F.cross_entropy(source_low, batch.source.labels, ignore_index=-1),
        "image_weighted": 0.09 * image_weighted_loss(final.softmax(1), 0.3),
        "guidance_low": 0.09 * 0.2 * F.cross_entropy(low, guide),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


def test_guidance_trains_the_low_head_only():
    model, batch = TwoHeads(), small_batch()
    learner = SegmentationAdaptation(model, threshold=0.4, multi_level=True, ignore_index=-1)
    learner.losses(batch)["guidance_low"].backward()
    assert model.final.weight.grad is None
    assert float(model.low.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    ("target_loss", "of_logits"),
    [
        ("entropy", entropy_loss),
        ("maxsquare", squares_of_logits),
        ("image_weighted", lambda z: image_weighted_loss(z.softmax(1), 0.5, "class")),
        ("pseudo_labels", lambda z: F.cross_entropy(z, pseudo_labels(z.softmax(1), 0.5))),
    ],
)
def test_each_target_loss_is_its_function_times_the_weight(target_loss, of_logits):
    model, batch = TwoHeads(), small_batch()
    learner = SegmentationAdaptation(
        model, target_loss, target_weight=0.7, alpha=0.5, weight_by="class", threshold=0.5, ignore_index=-1
    )
    terms = learner.losses(batch)
    assert list(terms) == ["cross_entropy", target_loss]
    torch.testing.assert_close(terms[target_loss], 0.7 * of_logits(model(batch.target.inputs)))


def test_source_only_does_not_read_the_target():
    model, batch = TwoHeads(), small_batch()
    alone = SimpleNamespace(source=batch.source)
    assert list(SegmentationAdaptation(model, "none", ignore_index=-1).losses(alone)) == ["cross_entropy"]
    learner = SegmentationAdaptation(model, "none", multi_level=True, ignore_index=-1)
    assert list(learner.losses(alone)) == ["cross_entropy", "cross_entropy_low"]


def test_weight_zero_leaves_only_the_batch_norm_statistics():
    batch = SimpleNamespace(
        source=Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.randint(2, (2, 8, 8))),
        target=Arrays(inputs=torch.rand(2, 1, 8, 8) + 3),
    )
    models = [UNet(width=2, depth=2, in_channels=1, num_classes=2)]
    models.append(copy.deepcopy(models[0]))
    for model, target_loss in zip(models, ("none", "maxsquare"), strict=True):
        terms = SegmentationAdaptation(model, target_loss, target_weight=0.0).losses(batch)
        sum(terms.values()).backward()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    first = [model.encoder[0][0][1].running_mean for model in models]
    assert not torch.allclose(*first)


def scenes(count, shifted, seed):
    """Images 16×16 with two real digits of three classes; shifted ones have less contrast, a ramp and noise."""
    generator = torch.Generator().manual_seed(seed)
    digits = load_digits(n_class=3)
    images, classes = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)
    images, classes = images[int(shifted) :: 2], classes[int(shifted) :: 2]
    inputs, labels = torch.zeros(count, 1, 16, 16), torch.zeros(count, 16, 16, dtype=torch.long)
    for scene in range(count):
        for left in (0, 8):
            pick = int(torch.randint(len(images), (), generator=generator))
            top = int(torch.randint(9, (), generator=generator))
            place = (scene, slice(top, top + 8), slice(left, left + 8))
            inputs[:, 0][place] = images[pick]
            labels[place] = torch.where(images[pick] > 0.3, classes[pick] + 1, 0)
    if shifted:
        noise = 0.1 * torch.randn(inputs.shape, generator=generator)
        inputs = 0.6 * inputs + torch.linspace(0, 0.4, 16) + noise
    return Arrays(inputs=inputs, labels=labels)


BUDGET = {"batch_size": 16, "optimizer": "adam", "weight_decay": 0.0}


def mean_iou(logits, data):
    return jaccard_score(data.labels.flatten(), logits.argmax(dim=1).flatten(), average="macro")


def test_adaptation_beats_source_only_and_the_batch_norm_control():
    source, target, test = scenes(240, False, 0), scenes(240, True, 1), scenes(150, True, 2)
    torch.manual_seed(0)
    pretrained = UNet(width=8, in_channels=1, num_classes=4)
    fit(SegmentationAdaptation(pretrained, "none"), {"source": source}, Budget(epochs=6, lr=3e-3, **BUDGET))

    def score(target_loss, target_weight):
        model = copy.deepcopy(pretrained)
        learner = SegmentationAdaptation(model, target_loss, target_weight)
        fit(learner, {"source": source, "target": target}, Budget(epochs=4, lr=1e-3, **BUDGET))
        return mean_iou(model(test.inputs), test)

    source_only, control, weighted = score("none", 1.0), score("maxsquare", 0.0), score("image_weighted", 1.0)
    assert weighted > source_only + 0.05
    assert weighted > control + 0.02


def test_both_heads_learn_in_multi_level_training():
    source, target = scenes(160, False, 0), scenes(160, True, 1)
    torch.manual_seed(0)
    model = UNet(width=8, in_channels=1, num_classes=4, auxiliary=True)
    learner = SegmentationAdaptation(model, "image_weighted", multi_level=True, auxiliary_weight=1.0)
    fit(learner, {"source": source, "target": target}, Budget(epochs=10, lr=5e-3, **BUDGET))
    background = mean_iou(torch.eye(4)[0].view(1, 4, 1, 1).expand(160, 4, 16, 16), target)
    for logits in model.heads(target.inputs):
        assert mean_iou(logits, target) > background + 0.1


# --- rejections ---------------------------------------------------------------------------------------------------

GOOD = torch.full((2, 3, 4, 4), 1 / 3)
OF_PROBABILITIES = [maximum_squares_loss, image_weights, image_weighted_loss, pseudo_labels]
OF_LOGITS = [entropy_loss, image_weighted_entropy, lambda z: confident_gradient_share(entropy_loss, z)]


@pytest.mark.parametrize("function", OF_PROBABILITIES + OF_LOGITS)
@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (GOOD[0], r"must have shape \(B, C, H, W\) with at least one pixel"),
        (torch.ones(2, 1, 4, 4), r"with C >= 2, got \(2, 1, 4, 4\)"),
        (torch.ones(2, 3, 0, 4), "at least one pixel"),
        (torch.ones(0, 3, 4, 4), "at least one pixel"),
        (torch.ones(2, 3, 4, 4, dtype=torch.long), "must be floating point, got torch.int64"),
        (torch.full((2, 3, 4, 4), math.nan), "must be finite"),
    ],
)
def test_rejects_bad_maps(function, maps, message):
    with pytest.raises(ValueError, match=message):
        function(maps)


@pytest.mark.parametrize("function", OF_PROBABILITIES)
def test_rejects_maps_that_are_no_probabilities(function):
    with pytest.raises(ValueError, match="probabilities must be at least 0 and sum to 1 over classes"):
        function(2 * GOOD)
    negative = GOOD.clone()
    negative[:, 0] -= 1
    negative[:, 1] += 1
    with pytest.raises(ValueError, match="must be at least 0"):
        function(negative)
    with pytest.raises(ValueError, match="sums off by up to"):
        function(GOOD.movedim(1, -1).contiguous())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_weights(GOOD, alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: image_weighted_loss(GOOD, alpha=-0.1), r"alpha must lie in \[0, 1\]"),
        (lambda: image_weighted_loss(GOOD, weight_by="pixels"), "weight_by must be one of .* Did you mean 'pixel'"),
        (lambda: image_weighted_entropy(GOOD, alpha=2), r"alpha must lie in \[0, 1\]"),
        (lambda: pseudo_labels(GOOD, 1.1), r"threshold must lie in \[0, 1\]"),
        (lambda: confident_gradient_share(entropy_loss, GOOD, -1), r"threshold must lie in \[0, 1\]"),
        (lambda: guided_pseudo_labels(GOOD, GOOD[:1]), "low_probabilities must have the shape of final_probabilities"),
        (lambda: guided_pseudo_labels(GOOD, 2 * GOOD), "low_probabilities must be at least 0 and sum to 1"),
        (lambda: guided_pseudo_labels(GOOD, GOOD, 2.0), r"threshold must lie in \[0, 1\]"),
        (lambda: binary_gradients(torch.tensor([0.5, 1.0])), r"probability must lie in \(0, 1\)"),
        (lambda: binary_gradients(torch.tensor([math.nan])), r"probability must lie in \(0, 1\)"),
        (lambda: pixel_cross_entropy(GOOD[0], torch.zeros(4, 4)), r"logits must have shape \(B, C, H, W\)"),
        (lambda: pixel_cross_entropy(GOOD, torch.zeros(2, 4)), r"labels must have shape \(2, 4, 4\), got \(2, 4\)"),
        (lambda: pixel_cross_entropy(GOOD, torch.zeros(2, 4, 4)), "labels must be integer"),
        (lambda: pixel_cross_entropy(GOOD, torch.full((2, 4, 4), 3)), r"labels must lie in \[0, 3\)"),
        (lambda: SegmentationAdaptation(TwoHeads(), "maxsquares"), "target_loss must be one of .* Did you mean"),
        (lambda: SegmentationAdaptation(TwoHeads(), weight_by="image"), "weight_by must be one of"),
        (lambda: SegmentationAdaptation(TwoHeads(), target_weight=-1), "target_weight must be a number of at least 0"),
        (lambda: SegmentationAdaptation(TwoHeads(), auxiliary_weight=math.nan), "auxiliary_weight must be a number"),
        (lambda: SegmentationAdaptation(TwoHeads(), alpha=2), r"alpha must lie in \[0, 1\]"),
        (lambda: SegmentationAdaptation(TwoHeads(), threshold=-1), r"threshold must lie in \[0, 1\]"),
        (lambda: SegmentationAdaptation(nn.Conv2d(1, 3, 1), multi_level=True), "model must offer heads.*got Conv2d"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
