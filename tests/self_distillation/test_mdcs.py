"""MDCS: offsets and what they do, both losses, the selection, the ramp, experts, views, published figures, learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from scipy.special import log_softmax
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits, shift
from kdcore.models import ConvNet
from kdcore.self_distillation.mdcs import (
    STRENGTHS,
    CosineClassifier,
    DiverseExperts,
    Experts,
    MDCSLoss,
    confident,
    consistency_loss,
    diversity_loss,
    logit_offsets,
    ramp_up,
    spread_strengths,
    strong_view,
    two_views,
)
from kdcore.training import Budget, fit, predict, seeded

COUNTS = torch.tensor([90, 40, 20, 8, 3])
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])
ROWS = len(LABELS)


def expert_logits(seed=0, experts=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(experts, 2 * ROWS, len(COUNTS), generator=generator, dtype=torch.float64)).to(dtype)


def gradient(loss, logits, *arguments):
    logits = logits.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(logits, *arguments), logits, allow_unused=True)
    return torch.zeros_like(logits) if result is None else result


@pytest.mark.parametrize("case", reference_cases("mdcs"))
def test_matches_published_figures(case):
    inputs, given_ = case["inputs"], case["hyperparameters"]
    logits = torch.tensor(inputs["expert_logits"], dtype=torch.float64)
    labels = torch.tensor(inputs["targets_per_view"])
    assert given_["temperature"] == 1.0
    ramp = ramp_up(given_["epoch"], given_["warmup_epochs"])
    loss = MDCSLoss(inputs["class_counts"], given_["lambdas"], given_["kd_weight"])
    adjusted = loss.adjust(logits)
    weak, strong = adjusted.chunk(2, dim=1)
    ours = {
        "total_loss": loss(logits, labels, ramp),
        "diversity_loss_only": diversity_loss(adjusted, labels.repeat(2)),
        "self_distillation_sum_full_weight": consistency_loss(weak, strong, confident(weak, labels)),
        "cis_mask": confident(weak, labels).double(),
        "grad_expert_logits": gradient(loss, logits, labels, ramp),
    }
    assert_published(ours, case, decimals=10)


# Offsets, equation (2), and the diversity loss, equation (3)


def test_equal_counts_leave_plain_cross_entropy():
    logits, labels = expert_logits(), LABELS
    loss = MDCSLoss([7] * 5, weight=0.0)
    wanted = sum(F.cross_entropy(one, labels.repeat(2)) for one in logits)
    torch.testing.assert_close(loss(logits, labels), wanted)
    assert torch.equal(loss.offsets, loss.offsets[:, :1].expand(3, 5))


def test_strength_one_is_the_balanced_softmax():
    logits = expert_logits(experts=1)
    labels = LABELS.repeat(2)
    weights = COUNTS * logits[0].exp()
    wanted = -(weights[range(2 * ROWS), labels] / weights.sum(dim=1)).log().mean()
    loss = MDCSLoss(COUNTS, strengths=(1.0,), weight=0.0)
    torch.testing.assert_close(loss(logits, LABELS), wanted, rtol=1e-9, atol=0)


@given(st.integers(2, 9), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_common_factor_of_the_counts_cancels(factor, seed):
    logits = expert_logits(seed)
    first, second = (MDCSLoss(counts)(logits, LABELS) for counts in (COUNTS, factor * COUNTS))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)  # the 1e-9 is not scaled along


def test_raw_logits_absorb_what_the_offset_leaves():
    """Equation (4): without an input, the best adjusted logits are the log frequencies, whatever the strength."""
    labels = torch.repeat_interleave(torch.arange(5), COUNTS)
    loss = MDCSLoss(COUNTS, STRENGTHS, weight=0.0)
    bias = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(bias.unsqueeze(1).expand(3, 2 * len(labels), 5), labels)
        value.backward()
        return value

    optimiser.step(closure)
    prior = COUNTS.double() ** (1 - torch.tensor(STRENGTHS, dtype=torch.float64)).unsqueeze(1)
    torch.testing.assert_close(
        bias.detach().softmax(dim=1), prior / prior.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        bias.detach().mean(dim=0).softmax(dim=0), torch.full((5,), 0.2).double(), rtol=1e-3, atol=0
    )


def test_offsets_by_hand():
    offsets = logit_offsets(COUNTS)
    np.testing.assert_allclose(offsets, np.log(COUNTS.numpy() ** np.array(STRENGTHS)[:, None]), atol=2e-8)
    assert offsets.dtype == torch.float64


def test_strengths_spread_around_one():
    assert spread_strengths(3) == STRENGTHS
    for experts in range(1, 7):
        strengths = spread_strengths(experts, 0.75)
        assert len(strengths) == experts
        assert np.mean(strengths) == pytest.approx(1.0)
    assert spread_strengths(4, 0.0) == (1.0,) * 4


# Self-distillation, equations (6) to (8)


def test_loss_agrees_with_a_loop():
    """Expert by expert and image by image with NumPy, written from the equations."""
    logits, total = expert_logits(), 0.0
    for one, strength in zip(logits.numpy(), STRENGTHS, strict=True):
        logs = log_softmax(one + np.log(COUNTS.numpy() ** strength + 1e-9), axis=1)
        total -= np.mean([logs[row, LABELS[row % ROWS]] for row in range(2 * ROWS)])
        kept = [row for row in range(ROWS) if logs[row].argmax() == LABELS[row]]
        divergences = [(np.exp(logs[row]) * (logs[row] - logs[row + ROWS])).sum() for row in kept]
        total += 0.6 * 0.25 * np.mean(divergences) if kept else 0.0
    assert MDCSLoss(COUNTS)(logits, LABELS, ramp=0.25).item() == pytest.approx(total, rel=1e-9)


def test_raw_logits_are_compared_where_that_is_asked():
    """The ablation of the offset in (7): both views' raw logits, on the images that adjusted ones select."""
    logits, total = expert_logits(), 0.0
    for one, strength in zip(logits.numpy(), STRENGTHS, strict=True):
        adjusted, raw = one + np.log(COUNTS.numpy() ** strength + 1e-9), log_softmax(one, axis=1)
        kept = [row for row in range(ROWS) if adjusted[row].argmax() == LABELS[row]]
        divergences = [(np.exp(raw[row]) * (raw[row] - raw[row + ROWS])).sum() for row in kept]
        total += 0.6 * np.mean(divergences) if kept else 0.0
    terms = MDCSLoss(COUNTS, compared="raw").terms(logits, LABELS)
    assert terms["consistency"].item() == pytest.approx(total, rel=1e-9)
    assert not torch.equal(
        confident(logits[:, :ROWS], LABELS), confident(MDCSLoss(COUNTS).adjust(logits)[:, :ROWS], LABELS)
    )
    assert terms["consistency"].item() != pytest.approx(MDCSLoss(COUNTS).terms(logits, LABELS)["consistency"].item())
    assert torch.equal(terms["diversity"], MDCSLoss(COUNTS).terms(logits, LABELS)["diversity"])


@pytest.mark.parametrize("instances", ["confident", "all"])
def test_identical_views_agree(instances):
    logits = expert_logits()[:, :ROWS].repeat(1, 2, 1)
    assert MDCSLoss(COUNTS, instances=instances).terms(logits, LABELS)["consistency"].item() == 0.0


def test_no_correct_prediction_adds_nothing():
    logits = 30 * F.one_hot((LABELS + 1) % 5, 5).double().repeat(2, 1).expand(3, -1, -1)
    logits = logits + expert_logits()
    loss = MDCSLoss(COUNTS)
    assert not confident(loss.adjust(logits)[:, :ROWS], LABELS).any()
    assert loss.terms(logits, LABELS)["consistency"].item() == 0.0
    assert bool(torch.isfinite(gradient(loss, logits, LABELS)).all())
    assert MDCSLoss(COUNTS, instances="all").terms(logits, LABELS)["consistency"].item() > 0


def test_teacher_is_the_weak_view():
    loss, logits = MDCSLoss(COUNTS), expert_logits()
    slope = gradient(lambda z: loss.terms(z, LABELS)["consistency"], logits)
    assert not slope[:, :ROWS].any()
    selected = confident(loss.adjust(logits)[:, :ROWS], LABELS)
    assert torch.equal(slope[:, ROWS:].abs().sum(dim=2) > 0, selected)
    torch.testing.assert_close(slope.sum(dim=2), torch.zeros(3, 2 * ROWS).double(), rtol=0, atol=1e-12)


def test_mean_runs_over_the_selected_images():
    weak, strong = expert_logits().chunk(2, dim=1)
    all_of_them = torch.ones(3, ROWS, dtype=torch.bool)
    one = all_of_them.clone()
    one[:, 1:] = False
    torch.testing.assert_close(
        consistency_loss(weak, strong, one), consistency_loss(weak[:, :1], strong[:, :1], one[:, :1])
    )
    wanted = sum(
        F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean") for p, q in zip(weak, strong, strict=True)
    )
    torch.testing.assert_close(consistency_loss(weak, strong, all_of_them), wanted)


def test_selection_looks_at_adjusted_logits():
    raw = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])
    loss = MDCSLoss([100, 5], strengths=(0.0, 1.0))
    assert confident(loss.adjust(raw), torch.tensor([1])).tolist() == [[True], [False]]


@pytest.mark.parametrize(("epoch", "wanted"), [(0, 0.0), (5, 0.15), (20, 0.6), (400, 0.6)])
def test_ramp(epoch, wanted):
    logits = expert_logits()
    loss = MDCSLoss(COUNTS)
    full = loss.terms(logits, LABELS)["consistency"] / 0.6
    term = loss.terms(logits, LABELS, ramp_up(epoch, 20))["consistency"]
    assert term.item() == pytest.approx(wanted * full.item())


# Numerics


def test_gradcheck():
    """The divergence's target is a constant, which finite differences do not know: the strong view alone."""
    weak, strong = expert_logits().chunk(2, dim=1)
    selected = confident(weak, LABELS)
    assert torch.autograd.gradcheck(lambda z: consistency_loss(weak, z, selected), strong.clone().requires_grad_())
    labels = LABELS.repeat(2)
    assert torch.autograd.gradcheck(lambda z: diversity_loss(z, labels), expert_logits().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype):
    logits = expert_logits(dtype=dtype)
    result, wanted = MDCSLoss(COUNTS)(logits, LABELS), MDCSLoss(COUNTS)(logits.double(), LABELS)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(wanted.item(), rel=1e-5)


# Experts, classifier, views, learner


def test_average_predicts_without_offsets():
    model = Experts([ConvNet(width=4, depth=3) for _ in range(3)], shared_stages=2).eval()
    images = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(model(images), sum(model.expert_logits(images)) / 3)
    assert not [name for name, _ in model.named_buffers() if "offset" in name]


def test_only_the_trunk_is_shared():
    networks = [ConvNet(width=4, depth=3) for _ in range(2)]
    model = Experts(networks, shared_stages=1)
    assert model.trunk[1] is networks[0].stages[0]
    images = torch.rand(6, 1, 8, 8)
    model.expert_logits(images)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.branches[0].parameters())
    assert all(parameter.grad is not None for parameter in model.trunk.parameters())
    assert not any(parameter.grad.any() for parameter in model.branches[1].parameters())


def test_cosine_classifier_forgets_lengths():
    classifier = CosineClassifier(6, 4, scale=7.0)
    features = torch.randn(5, 6)
    torch.testing.assert_close(classifier(features), classifier(9 * features))
    own = classifier(classifier.weight).diagonal()
    torch.testing.assert_close(own, torch.full((4,), 7.0))
    assert bool(torch.isfinite(classifier(torch.zeros(2, 6))).all())


def test_views_are_weak_then_strong():
    images = torch.rand(40, 1, 8, 8)
    views = two_views(lambda x, _: x, strong_view(noise=0.1, cutout=3))(images, torch.Generator().manual_seed(0))
    assert torch.equal(views[:, 0], images)
    assert not torch.equal(views[:, 1], images)
    assert views.min() >= 0
    assert views.max() <= 1


@given(st.integers(1, 8), st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_one_square_is_cut_out(side, seed):
    cut = strong_view(noise=0.0, cutout=side)(torch.ones(9, 2, 8, 6), torch.Generator().manual_seed(seed))
    for image in cut:
        assert torch.equal(image[0], image[1])
        hole = (image[0] == 0).nonzero()
        height, width = hole.max(dim=0).values - hole.min(dim=0).values + 1
        assert height * width == len(hole)
        assert max(height, width) <= side


def test_views_reach_the_loss_in_order():
    model = Experts([ConvNet(width=4, depth=2) for _ in range(3)]).eval()
    learner = DiverseExperts(model, MDCSLoss([5] * 10)).eval()
    inputs, labels = torch.rand(4, 2, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    learner.on_step(1.0)
    logits = torch.cat([model.expert_logits(inputs[:, 0]), model.expert_logits(inputs[:, 1])], dim=1)
    torch.testing.assert_close(
        sum(learner.losses(Arrays(inputs=inputs, labels=labels)).values()), learner.loss(logits, labels)
    )


def test_ramp_follows_training():
    learner = DiverseExperts(
        Experts([ConvNet(width=4, depth=2)]), MDCSLoss([5] * 10, (1.0,), instances="all"), ramp=0.2
    )
    batch = Arrays(inputs=torch.rand(4, 2, 1, 8, 8), labels=torch.arange(4))
    terms = []
    for progress in (0.0, 0.1, 0.2, 0.9):
        learner.on_step(progress)
        terms.append(learner.losses(batch)["consistency"].item())
    assert terms[0] == 0.0
    assert terms[1] == pytest.approx(terms[2] / 2)
    assert terms[3] == pytest.approx(terms[2])


def test_without_weight_there_is_no_second_term():
    assert list(MDCSLoss(COUNTS, weight=0.0).terms(expert_logits(), LABELS)) == ["diversity"]


# Learning


def trained(train, strengths):
    with seeded(0):
        model = Experts([ConvNet(width=8, depth=2) for _ in strengths], scale=10.0)
    learner = DiverseExperts(model, MDCSLoss(train.labels.bincount(), strengths))
    views = two_views(shift(1), strong_view(shift(1), noise=0.1, cutout=2))
    fit(learner, train, Budget(steps=150, batch_size=64, lr=0.1), seed=0, augment=views)
    return model


def test_experts_lean_apart_and_the_average_finds_the_tail():
    images = digits(1000)
    train, test = images.train.long_tailed(90, 20), images.test
    rare = test[test.labels >= 7]

    def few(logits):
        return (logits.argmax(dim=1) == rare.labels).double().mean().item()

    model = trained(train, STRENGTHS)
    with torch.no_grad():
        head, _, tail = map(few, model.expert_logits(rare.inputs))
    assert tail > head + 0.2
    plain = few(predict(trained(train, (0.0,)), rare.inputs))
    assert few(predict(model, rare.inputs)) > plain + 0.1


# Bad input

GOOD = torch.randn(3, 4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: logit_offsets([5, 0]),
            r"class_counts must be at least 1 each, got \[5.0, 0.0\]: no class may be empty",
        ),
        (lambda: logit_offsets([5]), r"class_counts must have shape \(C,\) with C >= 2, got \(1,\)"),
        (lambda: logit_offsets([[5, 4]]), r"class_counts must have shape"),
        (lambda: logit_offsets([5.0, math.nan]), "class_counts must be at least 1 each"),
        (lambda: logit_offsets([5, 4], ()), "strengths must be at least one finite number, got ()"),
        (lambda: logit_offsets([5, 4], (math.inf,)), "strengths must be at least one finite number"),
        (lambda: spread_strengths(0), "experts must be a positive number, got 0"),
        (lambda: spread_strengths(3, -1.0), "spread must be a number of at least 0, got -1.0"),
        (lambda: ramp_up(-1, 20), "elapsed must be a number of at least 0, got -1"),
        (lambda: ramp_up(1, -20), "length must be a number of at least 0, got -20"),
        (lambda: diversity_loss(GOOD[0], torch.arange(4)), r"adjusted_logits must have shape \(E, B, C\)"),
        (lambda: diversity_loss(GOOD, torch.arange(3)), r"labels must have shape \(4,\), got \(3,\)"),
        (lambda: diversity_loss(GOOD.long(), torch.arange(4)), "adjusted_logits must be floating point"),
        (lambda: diversity_loss(GOOD / 0, torch.arange(4)), "adjusted_logits must be finite"),
        (lambda: confident(GOOD, torch.arange(4) + 2), r"labels must lie in \[0, 5\), got values from 2 to 5"),
        (
            lambda: consistency_loss(GOOD, GOOD[:, :2], torch.ones(3, 4, dtype=torch.bool)),
            "strong_logits must have the shape of weak_logits",
        ),
        (lambda: consistency_loss(GOOD, GOOD, torch.ones(3, 4)), "selected must be boolean of shape"),
        (lambda: MDCSLoss(COUNTS, weight=-0.6), "weight must be a number of at least 0, got -0.6"),
        (lambda: MDCSLoss(COUNTS, instances="confidant"), "instances must be one of .* Did you mean 'confident'"),
        (lambda: MDCSLoss(COUNTS, compared="row"), "compared must be one of .* Did you mean 'raw'"),
        (lambda: MDCSLoss(COUNTS)(GOOD[:2], LABELS[:2]), "expert_logits must have 3 experts and 5 classes, got shape"),
        (lambda: MDCSLoss(COUNTS)(GOOD, LABELS[:4]), "expert_logits must have two rows per label, got 4 for 4"),
        (lambda: MDCSLoss(COUNTS)(GOOD, torch.tensor([0, 5])), r"labels must lie in \[0, 5\)"),
        (lambda: MDCSLoss(COUNTS)(GOOD, LABELS[:2], 1.5), r"ramp must lie in \[0, 1\], got 1.5"),
        (lambda: CosineClassifier(4, 3, 0.0), "scale must be a positive number, got 0.0"),
        (lambda: Experts([]), "networks must hold at least one network, got none"),
        (lambda: Experts([ConvNet(depth=2)], 2), r"shared_stages must lie in \[0, 2\), got 2"),
        (lambda: strong_view(noise=-0.1), "noise must be a number of at least 0, got -0.1"),
        (lambda: strong_view(cutout=-1), "cutout must be a number of at least 0, got -1"),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rejects_a_network_without_linear_classifier():
    network = ConvNet(width=4, depth=2)
    network.classifier = nn.Identity()
    with pytest.raises(ValueError, match="a network must end in a linear classifier, got Identity"):
        Experts([network])


def test_learner_rejects_what_does_not_fit():
    model = Experts([ConvNet(width=4, depth=2) for _ in range(2)])
    with pytest.raises(ValueError, match="loss must have a strength for each of the 2 experts, got 3"):
        DiverseExperts(model, MDCSLoss([5] * 10))
    with pytest.raises(ValueError, match=r"ramp must lie in \[0, 1\], got 2"):
        DiverseExperts(model, MDCSLoss([5] * 10, (1.0, 1.0)), ramp=2)
    learner = DiverseExperts(model, MDCSLoss([5] * 10, (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"inputs must hold two views of each image.*got \(4, 1, 8, 8\)"):
        learner.losses(Arrays(inputs=torch.rand(4, 1, 8, 8), labels=torch.arange(4)))
