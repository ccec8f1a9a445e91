"""CORSD: triplets, relation networks, each term's closed form and gradient, where gradients stop, published figures."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from scipy.stats import entropy
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits, shift
from kdcore.foundations.kd import soft_cross_entropy
from kdcore.models import ConvNet, ResNet, flops, parameter_count
from kdcore.self_distillation.corsd import (
    LogitRelation,
    RelationalSelfDistillation,
    RelationNetwork,
    Triplets,
    divergence_loss,
    logit_relation_loss,
    pair_distance,
    pair_maps,
    pair_targets,
    relation_loss,
    triplet_loss,
    update_class_vectors,
)
from kdcore.training import Budget, Supervised, fit, predict, seeded

NAMES = ["cross_entropy", "triplet", "auxiliary", "relations", "divergence", "logits"]
NO_CLASSIFIERS = {"label_weights": (0.0, 0.0), "divergence_weights": (0.0, 0.0)}
NO_TRANSFER = {"relation_weight": 0.0, "divergence_weights": (0.0, 0.0)}
EXTRAS_OFF = {
    "triplet_weight": 0.0, "label_weights": (0.0, 0.0), "relation_weight": 0.0, "divergence_weights": (0.0, 0.0),
    "logit_weight": 0.0,
}  # fmt: skip


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(*shape, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def rows(size=30, classes=3, side=8):
    generator = torch.Generator().manual_seed(1)
    return Arrays(inputs=torch.rand(size, 1, side, side, generator=generator), labels=torch.arange(size) % classes)


def batch(triplets=4):
    return Triplets(rows())[torch.arange(triplets)]


def learner(model=None, seed=0, **settings_):
    with seeded(seed):
        return RelationalSelfDistillation(model or ConvNet(4, 3, num_classes=3), **settings_)


# Published figures


def triplet_figures(given_, known):
    positive, negative = (torch.tensor(given_[f"{kind}_score"]).requires_grad_() for kind in ("positive", "negative"))
    loss = triplet_loss(positive, negative, known["margin"])
    gradients = torch.autograd.grad(loss, [positive, negative])
    return {"loss": loss, "grad_positive": gradients[0], "grad_negative": gradients[1]}


def soft_label_figures(given_, known):
    logits = torch.tensor(given_["aux_logits"]).requires_grad_()
    labels, others = (torch.tensor(given_[f"{kind}_label"]) for kind in ("positive", "negative"))
    targets = pair_targets(labels, others, logits.shape[1], as_coded=True, temperature=known["temperature"])
    loss = soft_cross_entropy(logits, targets, known["temperature"])
    return {"loss": loss, "grad_aux_logits": torch.autograd.grad(loss, logits)[0]}


def relation_figures(given_, known):
    scores = (torch.tensor(given_[f"{kind}_score"]) for kind in ("shallow", "deepest"))
    return {"loss": known["feature_loss_coefficient"] * relation_loss(*scores)}


def network_figures(given_, known):
    """Weights by position: blocks, head and classifier come in one order whatever their names."""
    pairs, widest = torch.tensor(given_["pair_map"]), 8 * known["C"]
    width, widths = pairs.shape[1] // 2, []
    while width <= widest:
        widths.append(width)
        width *= 2
    network = RelationNetwork(widths, known["num_classes"]).double()
    own = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    published = {name: torch.tensor(value) for name, value in given_["weights"].items()}
    assert [value.shape for value in own.values()] == [value.shape for value in published.values()]
    network.load_state_dict(dict(zip(own, published.values(), strict=True)), strict=False)
    score, logits = network.eval()(pairs)
    return {"score": score.unsqueeze(1), "aux_logits": logits}


FIGURES = {
    "positive_score": triplet_figures,
    "aux_logits": soft_label_figures,
    "shallow_score": relation_figures,
    "pair_map": network_figures,
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", reference_cases("corsd"))
def test_matches_published_figures(case):
    (kind,) = FIGURES.keys() & case["inputs"].keys()
    ours = FIGURES[kind](case["inputs"], case["hyperparameters"])
    assert_published(ours, case, decimals=10)


# Triplets


@given(st.lists(st.integers(2, 6), min_size=2, max_size=5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_triplets_keep_their_promise(sizes, seed):
    labels = torch.repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    triplets, anchors = Triplets(Arrays(labels=labels, row=torch.arange(len(labels)))), torch.arange(len(labels))
    with seeded(seed):
        drawn_ = triplets[anchors]
    (ya, yp, yn), (a, p, _) = drawn_.labels.chunk(3), drawn_.row.chunk(3)
    assert torch.equal(a, anchors)
    assert torch.equal(ya, yp)
    assert bool((yp != yn).all())
    assert bool((a != p).all())
    assert torch.equal(drawn_.labels, labels[drawn_.row])


def test_all_partners_are_drawn_evenly():
    labels = torch.tensor([0, 1, 0, 2, 0, 1, 0, 2])
    with seeded(0):
        positive, negative = Triplets(Arrays(labels=labels)).partners(torch.full((6000,), 2))
    assert positive.bincount(minlength=8).gt(0).tolist() == [True, False, False, False, True, False, True, False]
    np.testing.assert_allclose(positive.bincount(minlength=8)[[0, 4, 6]] / 6000, 1 / 3, atol=0.03)
    np.testing.assert_allclose(negative.bincount(minlength=8)[[1, 3, 5, 7]] / 6000, 1 / 4, atol=0.03)
    assert int(negative.bincount(minlength=8)[[0, 2, 4, 6]].sum()) == 0


def test_triplets_depend_on_the_seed_alone():
    def drawn_with(seed):
        with seeded(seed):
            return Triplets(rows())[torch.arange(30)].inputs

    assert torch.equal(drawn_with(3), drawn_with(3))
    assert not torch.equal(drawn_with(3), drawn_with(4))


def test_triplets_survive_slices_and_pickling():
    triplets = Triplets(rows())
    assert len(triplets) == 30
    assert len(triplets[:4]) == 12
    again = pickle.loads(pickle.dumps(triplets))
    assert len(again[torch.arange(4)]) == 12


def test_fit_augments_every_image_of_a_triplet_apart():
    seen = []

    class Watch(Supervised):
        def losses(self, batch):
            seen.append(batch)
            return super().losses(batch)

    bright = rows().with_(inputs=torch.ones(30, 1, 8, 8))
    budget = Budget(steps=1, batch_size=5, lr=0.1)
    fit(Watch(ConvNet(4, 2, num_classes=3)), Triplets(bright), budget, augment=shift(2))
    assert len(seen[0]) == 15
    assert len(seen[0].inputs.flatten(1).unique(dim=0)) > 5


def test_plain_training_and_the_method_see_the_same_images():
    seen = {}
    for name, module in (("plain", Supervised(ConvNet(4, 2, num_classes=3))), ("ours", learner())):
        losses, found = module.losses, seen.setdefault(name, [])
        module.losses = lambda batch, losses=losses, found=found: (found.append(batch.inputs), losses(batch))[1]
        fit(module, Triplets(rows()), Budget(steps=7, batch_size=6, lr=0.01), seed=5)
    assert len(seen["plain"]) == 7
    assert all(map(torch.equal, seen["plain"], seen["ours"]))


# Equation (2)


def test_triplet_by_hand():
    zero, one = torch.zeros(4), torch.ones(4)
    assert triplet_loss(zero, one).item() == 0
    for margin in (0.3, 1.0, 2.0):
        assert triplet_loss(one / 3, one / 3, margin).item() == pytest.approx(margin)
    assert triplet_loss(zero, one, margin=0.4).item() == 0  # closed
    assert triplet_loss(one, zero, margin=1.0).item() == 2


@given(st.integers(1, 12), st.floats(1.0, 3.0), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_hinge_never_closes_from_margin_one_on(size, margin, seed):
    """Scores in (0, 1): the loss is the difference of two means, with gradients ±1/B, and forgets who is whose pair."""
    generator = torch.Generator().manual_seed(seed)
    positive, negative = torch.rand(2, size, generator=generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    positive.requires_grad_()
    negative.requires_grad_()
    loss = triplet_loss(positive, negative, margin)
    loss.backward()
    assert positive.grad.tolist() == [1 / size] * size
    assert negative.grad.tolist() == [-1 / size] * size
    assert loss.item() == pytest.approx((positive.mean() - negative.mean()).item() + margin)
    assert loss.item() == pytest.approx(triplet_loss(positive, negative.flip(0), margin).item())


def test_best_relation_reaches_the_total_variation():
    """Among all r in [0, 1] on finitely many pairs the least loss is m - TV, at r = 1 where negatives are likelier."""
    near, far = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.1, 0.1, 0.3, 0.5])
    variation = (near - far).abs().sum() / 2
    least = min(
        ((near - far) * torch.tensor([(code >> bit) & 1 for bit in range(4)])).sum().item() + 1 for code in range(16)
    )
    assert least == pytest.approx(1 - variation.item())
    assert ((near - far) * (far > near)).sum().item() + 1 == pytest.approx(least)


# Equations (5) and (6)


def test_targets_are_two_halves():
    targets = pair_targets(torch.tensor([4, 0, 2]), torch.tensor([1, 3, 0]), 5)
    assert targets.sum(dim=1).tolist() == [1, 1, 1]
    assert (targets == 0.5).sum(dim=1).tolist() == [2, 2, 2]
    assert targets[0].nonzero().flatten().tolist() == [1, 4]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("classes", [3, 10, 100])
def test_targets_as_coded_are_all_but_level(classes):
    targets = pair_targets(torch.tensor([0]), torch.tensor([2]), classes, as_coded=True)
    assert targets.sum().item() == pytest.approx(1)
    assert (targets[0, 0] / targets[0, 1]).item() == pytest.approx(math.exp(1 / 6))
    assert entropy(targets[0]) > 0.99 * math.log(classes)


def test_soft_cross_entropy_by_scipy():
    (logits,) = drawn(6, 5)
    targets = pair_targets(torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 3, 4, 0, 2]), 5).double()
    softened = (logits / 3).softmax(dim=1)
    wanted = entropy(targets, axis=1) + entropy(targets, softened, axis=1)
    assert soft_cross_entropy(logits, targets, 3.0).item() == pytest.approx(wanted.mean())
    leaf = logits.clone().requires_grad_()
    soft_cross_entropy(leaf, targets, 3.0).backward()
    torch.testing.assert_close(leaf.grad, (softened - targets) / (3 * 6))


# Equations (8) and (10)


@pytest.mark.parametrize("term", [relation_loss, divergence_loss])
def test_equal_stages_have_nothing_to_teach(term):
    (one,) = drawn(6, 5)
    assert abs(term(one, one.clone()).item()) < 1e-12


@pytest.mark.parametrize("term", [relation_loss, divergence_loss])
@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_deepest_stage(term, detach):
    shallow, deepest = (one.requires_grad_() for one in drawn(6, 5, count=2))
    term(shallow, deepest, detach).backward()
    assert shallow.grad.abs().max() > 0
    assert (deepest.grad is None) == detach
    if not detach and term is relation_loss:
        torch.testing.assert_close(deepest.grad, -shallow.grad)  # both are drawn to the middle


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_divergence_is_scipys_and_never_nan(seed):
    """The published call gives NaN for a negative logit of the deepest stage; here logits go through a softmax."""
    shallow, deepest = drawn(4, 6, count=2, seed=seed)
    deepest = deepest - 5
    ours = divergence_loss(shallow, deepest).item()
    wanted = entropy(deepest.softmax(dim=1), shallow.softmax(dim=1), axis=1).mean()
    assert ours == pytest.approx(wanted, rel=1e-9)
    assert ours >= 0
    assert math.isnan(F.kl_div(shallow, deepest, reduction="sum").item())


def test_gradcheck():
    shallow, deepest = drawn(4, 3, count=2)
    targets = pair_targets(torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2]), 3)
    assert torch.autograd.gradcheck(
        lambda u: divergence_loss(u, deepest) + relation_loss(u, deepest) + soft_cross_entropy(u, targets, 3.0),
        shallow.requires_grad_(),
    )


# Equation (11)


def test_class_vectors_by_hand():
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]])
    after = update_class_vectors(torch.eye(3), probabilities, torch.tensor([0, 0, 2]), momentum=0.5)
    torch.testing.assert_close(after, torch.tensor([[0.85, 0.1, 0.05], [0.0, 1.0, 0.0], [0.05, 0.05, 0.9]]))
    torch.testing.assert_close(after.sum(dim=1), torch.ones(3))


def test_class_vectors_move_in_training_alone_and_get_no_gradient():
    relation = LogitRelation(3)
    logits, labels, others = drawn(6, 3)[0].float().requires_grad_(), torch.arange(6) % 3, (torch.arange(6) + 1) % 3
    relation.eval()(logits, labels, others)
    assert torch.equal(relation.class_vectors, torch.eye(3))
    logit_relation_loss(*relation.train()(logits, labels, others)).backward()
    assert not torch.equal(relation.class_vectors, torch.eye(3))
    assert not relation.class_vectors.requires_grad
    assert logits.grad.abs().max() > 0


def test_own_and_other_class_share_one_batch_norm():
    """In two calls each kind would have mean zero after batch norm, and the difference of means would be gone."""
    relation = LogitRelation(3)
    seen = []
    relation.head[1].register_forward_hook(lambda _, __, output: seen.append(output))
    relation(10 * torch.eye(3).repeat(2, 1), torch.arange(6) % 3, (torch.arange(6) + 1) % 3)
    assert [len(one) for one in seen] == [12]


def test_summed_class_vectors_would_drown_the_probabilities():
    """Why a moving average: as coded the vectors grow with every step, and batch norm divides by their spread."""
    relation = LogitRelation(3).train()
    logits, labels, others = torch.randn(6, 3), torch.arange(6) % 3, (torch.arange(6) + 1) % 3
    pulls = []
    for scale in (1.0, 100.0):
        relation.class_vectors = scale * torch.eye(3)
        leaf = logits.clone().requires_grad_()
        logit_relation_loss(*relation(leaf, labels, others)).backward()
        pulls.append(leaf.grad.norm().item())
    assert pulls[1] < 0.1 * pulls[0]


# Equation (14)


def test_pair_distance_by_hand():
    first = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    second = torch.tensor([[1.0, 0.0], [0.0, 7.0], [-2.0, 0.0], [1.0, 1.0]])
    wanted = [math.sin(angle / 2) for angle in (0, math.pi / 2, math.pi, math.pi / 4)]
    np.testing.assert_allclose(pair_distance(first, second), wanted, atol=1e-6)
    same = first.clone().requires_grad_()
    pair_distance(same, first).sum().backward()
    assert bool(torch.isfinite(same.grad).all())


# Networks


@pytest.mark.parametrize("model", [ConvNet(4, 3), ConvNet(4, 2, convolutions=2), ResNet(8, in_channels=1)])
def test_relation_networks_of_all_stages(model):
    maps, _ = model.maps(torch.rand(6, 1, 16, 16))
    for stage, one in enumerate(maps):
        network = RelationNetwork(model.widths[stage:], 10)
        score, logits = network(pair_maps(one))
        assert len(network.blocks) == len(maps) - 1 - stage
        assert (score.shape, logits.shape) == ((4,), (4, 10))
        assert bool(((score > 0) & (score < 1)).all())
        assert network.blocks(pair_maps(one)).shape[1:] == (2 * model.widths[-1], *maps[-1].shape[2:])


def test_pairs_have_the_anchor_first_and_an_order():
    maps = torch.rand(6, 4, 2, 2)
    pairs = pair_maps(maps)
    assert torch.equal(pairs[:, :4], maps[[0, 1, 0, 1]])
    assert torch.equal(pairs[:, 4:], maps[[2, 3, 4, 5]])
    network = RelationNetwork([4], 3).eval()
    swapped = torch.cat([pairs[:, 4:], pairs[:, :4]], dim=1)
    assert not torch.allclose(network(pairs)[1], network(swapped)[1])


def test_two_calls_lose_the_difference_of_means():
    """Positive and negative pairs of different mean: in two calls batch norm makes their hidden units agree."""
    method = learner(one_call=False).train()
    network = method.relations[-1]
    seen = []
    network.head[1].register_forward_hook(lambda _, __, output: seen.append(output.mean(dim=0)))
    maps = torch.cat([torch.zeros(8, 16, 2, 2), torch.zeros(8, 16, 2, 2), torch.ones(8, 16, 2, 2)])
    maps = maps + 0.1 * torch.randn_like(maps)
    method.relate(2, maps)
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)
    method.one_call = True
    method.relate(2, maps)
    hidden = nn.functional.batch_norm(
        network.head[0](pair_maps(maps).mean(dim=(2, 3))), None, None, training=True
    )  # fmt: skip
    assert (hidden[:8].mean(dim=0) - hidden[8:].mean(dim=0)).abs().max() > 0.5


# The method


@pytest.mark.parametrize(
    ("settings_", "names"),
    [
        ({}, NAMES),
        (NO_CLASSIFIERS, ["cross_entropy", "triplet", "relations", "logits"]),
        (NO_TRANSFER, ["cross_entropy", "triplet", "auxiliary", "logits"]),
        ({"relation": "distance", "as_coded": True, "one_call": False}, NAMES),
        (EXTRAS_OFF, ["cross_entropy"]),
    ],
)  # fmt: skip
def test_terms(settings_, names):
    terms = learner(**settings_).losses(batch())
    assert list(terms) == names
    assert all(math.isfinite(value.item()) for value in terms.values())


def test_every_parameter_is_trained():
    method = learner()
    sum(method.losses(batch()).values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_terms_add_up_from_the_stages():
    """The weighted terms from the functions, with the defaults of the published code."""
    method, images = learner().eval(), batch()
    terms = method.losses(images)
    maps, logits = method.model.maps(images.inputs)
    says = [method.relate(stage, one) for stage, one in enumerate(maps)]
    own, _, other = images.labels.chunk(3)
    halves = pair_targets(own, other, 3)
    by_hand = {
        "cross_entropy": F.cross_entropy(logits, images.labels),
        "triplet": 0.01 * sum((one.positive_score - one.negative_score + 1).mean() for one in says),
        "auxiliary": sum(
            0.04 * F.cross_entropy(one.positive_logits, own) + 0.01 * F.cross_entropy(one.negative_logits / 3, halves)
            for one in says
        ),
        "relations": 0.01 * sum(
            ((shallow - deepest) ** 2).mean()
            for one in says[:2]
            for shallow, deepest in zip(one[:2], says[2][:2], strict=True)
        ),
        "divergence": sum(
            weight * (deepest.softmax(1) * (deepest.log_softmax(1) - shallow.log_softmax(1))).sum(1).mean()
            for one in says[:2]
            for weight, shallow, deepest in zip((0.16, 0.04), one[2:], says[2][2:], strict=True)
        ),
    }  # fmt: skip
    for name, wanted in by_hand.items():
        torch.testing.assert_close(terms[name], wanted, msg=lambda m, n=name: f"{n}: {m}")


def test_logits_are_far_from_the_class_of_the_triplets_other_image():
    """Anchors and positives are told from the negative's class, negatives from the anchor's, as no other order is."""
    method, images = learner(logit_weight=0.5).eval(), batch()
    own, _, other = images.labels.chunk(3)
    logits = method.model(images.inputs)
    # A head without batch norm, so that each row can be computed by itself, and class vectors that all differ.
    method.logit_relation.head = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Sigmoid())
    method.logit_relation.class_vectors = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.4, 0.6]])
    with torch.no_grad():
        method.logit_relation.head[0].weight.copy_(torch.tensor([[0.3, -0.2, 0.5, 1.0, -2.0, 0.7]]))

    def term(partners):
        rows = torch.cat([logits.softmax(dim=1), method.logit_relation.class_vectors[partners]], dim=1)
        return method.logit_relation.head(rows).squeeze(1)

    wanted = 0.5 * (term(images.labels) - term(torch.cat([other, other, own]))).mean()
    found = method.losses(images)["logits"]
    torch.testing.assert_close(found, wanted)
    wrong = 0.5 * (term(images.labels) - term(torch.cat([other, other, other]))).mean()
    assert abs(found.item() - wrong.item()) > 1e-3


@pytest.mark.parametrize("relation", ["learned", "distance"])
def test_logit_relation_gives_the_own_class_first(relation):
    module = LogitRelation(3, relation).eval()
    if relation == "learned":  # the distance grows with the first entry of the class vector
        module.head = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Sigmoid())
        with torch.no_grad():
            module.head[0].weight.copy_(torch.tensor([[0.0, 0, 0, 1.0, 0, 0]]))
    logits, labels, others = 5 * torch.eye(3)[[1, 2]], torch.tensor([1, 2]), torch.tensor([0, 0])
    own, other = module(logits, labels, others)
    assert bool((own < other).all())


@pytest.mark.parametrize("detach", [True, False])
def test_transfer_reaches_the_deepest_stage_only_as_coded(detach):
    method = learner(detach=detach)
    terms = method.losses(batch())
    (terms["relations"] + terms["divergence"]).backward()
    deepest = [p.grad for p in [*method.model.stages[-1].parameters(), *method.relations[-1].parameters()]]
    assert all(one is None for one in deepest) == detach
    assert all(p.grad.abs().max() > 0 for p in method.model.stages[0].parameters())


def test_distances_leave_the_relation_heads_alone():
    method = learner(relation="distance")
    sum(method.losses(batch()).values()).backward()
    assert all(p.grad is None for network in method.relations for p in network.head.parameters())
    assert method.logit_relation.head is None


@pytest.mark.parametrize("trained", [False, True])
def test_at_inference_nothing_is_left(trained):
    """Logits bit for bit, parameters and operations of the network that never had relations."""
    method = learner()
    if trained:
        fit(method, Triplets(rows()), Budget(steps=3, batch_size=6, lr=0.1), seed=0)
    plain = ConvNet(4, 3, num_classes=3)
    plain.load_state_dict(method.model.state_dict())
    plain.to(memory_format=torch.channels_last if trained else torch.contiguous_format)  # as `fit` leaves its networks
    inputs = rows().inputs
    with torch.no_grad():
        _, along = method.eval().model.maps(inputs)
        assert torch.equal(along, plain.eval()(inputs))
        assert torch.equal(method.model(inputs), plain(inputs))
    assert parameter_count(method.model) == parameter_count(plain) < parameter_count(method)
    assert flops(method.model, inputs) == flops(plain, inputs)


def test_without_extras_it_is_plain_training():
    method, plain = learner(**EXTRAS_OFF), Supervised(learner().model)
    for module in (method, plain):
        fit(module, Triplets(rows()), Budget(steps=5, batch_size=6, lr=0.1), seed=2)
    for ours, theirs in zip(method.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_half_precision():
    method, images = learner(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.losses(images)
        assert method.relate(0, method.model.maps(images.inputs)[0][0]).positive_score.dtype == torch.float32
    assert all(math.isfinite(value.item()) for value in terms.values())


def test_learns_relations_and_classes():
    """On digits, with weights at which few steps suffice: held-out pairs of one class are near, of two classes far."""
    data = digits(train_size=400)
    train, budget = data.train.split(200, seed=0)[0], Budget(steps=120, batch_size=20, lr=0.05)
    with seeded(0):
        first = Supervised(ConvNet(8, 3))
    method = learner(ConvNet(8, 3), triplet_weight=1.0, label_weights=(0.4, 0.1))
    method.model.load_state_dict(first.model.state_dict())
    scores = []
    for module in (first, method):
        fit(module, Triplets(train), budget, seed=0)
        found = predict(module.model, data.test.inputs).argmax(dim=1)
        scores.append(100 * (found == data.test.labels).double().mean().item())
    with torch.no_grad():
        held_out = Triplets(data.test)[:200]
        says = [method.relate(stage, one) for stage, one in enumerate(method.model.maps(held_out.inputs)[0])]
    apart = [(one.negative_score.mean() - one.positive_score.mean()).item() for one in says]
    assert apart[-1] > 0.5
    assert min(apart) > 0.1
    told = says[-1].positive_logits.argmax(dim=1) == held_out.labels.chunk(3)[0]
    assert told.double().mean() > 0.8
    assert min(scores) > 80


# Bad input

GOOD = torch.rand(6, 4)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
OTHERS = torch.tensor([1, 2, 3, 0, 2, 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Triplets(Arrays(inputs=GOOD)), r"data must have integer labels of shape \(N,\)"),
        (lambda: Triplets(Arrays(labels=torch.zeros(4))), "data must have integer labels"),
        (lambda: Triplets(Arrays(labels=torch.tensor([1, 1, 1]))), r"at least two classes .* got class \[1\] alone"),
        (lambda: Triplets(Arrays(labels=torch.tensor([0, 0, 5]))), r"two rows of each class .* got one of \[5\]"),
        (lambda: triplet_loss(GOOD, GOOD[:3]), "negative_score must have the shape of positive_score"),
        (lambda: triplet_loss(GOOD / 0, GOOD), "positive_score must be finite"),
        (lambda: triplet_loss(GOOD, GOOD, 0.0), "margin must be a positive number, got 0.0"),
        (lambda: pair_targets(LABELS, LABELS, 4), "other_labels must differ from labels in every row"),
        (lambda: pair_targets(LABELS, OTHERS[:3], 4), r"other_labels must have shape \(6,\), got \(3,\)"),
        (lambda: pair_targets(LABELS, OTHERS, 3), r"labels must lie in \[0, 3\)"),
        (lambda: pair_targets(LABELS, OTHERS, 1), "num_classes must be at least 2, got 1"),
        (lambda: pair_targets(LABELS, OTHERS, 4, True, 0.0), "temperature must be a positive number, got 0.0"),
        (lambda: soft_cross_entropy(GOOD, GOOD[:, :3]), "targets must have the shape of logits"),
        (lambda: soft_cross_entropy(GOOD, GOOD, -1.0), "temperature must be a positive number, got -1.0"),
        (lambda: relation_loss(GOOD, GOOD[:3]), "deepest_score must have the shape of shallow_score"),
        (lambda: relation_loss(GOOD, GOOD / 0), "deepest_score must be finite"),
        (lambda: divergence_loss(GOOD, GOOD[:, :2]), "deepest_logits must have the shape of shallow_logits"),
        (lambda: divergence_loss(GOOD[:, :1], GOOD[:, :1]), "shallow_logits must have shape"),
        (lambda: logit_relation_loss(GOOD, GOOD[:3]), "other_score must have the shape of own_score"),
        (lambda: pair_distance(GOOD[0], GOOD[0]), r"first must have shape \(B, d\), got \(4,\)"),
        (lambda: pair_distance(GOOD, GOOD[:3]), "second must have the shape of first"),
        (lambda: pair_maps(torch.rand(7, 2, 4, 4)), "maps must have 3B rows, .* got 7 rows"),
        (lambda: pair_maps(torch.rand(3, 2, 4, 4)), "maps must have 3B rows, of at least two triplets .* got 3 rows"),
        (lambda: update_class_vectors(torch.eye(3), GOOD, LABELS), r"class_vectors must have shape \(4, 4\), got"),
        (lambda: update_class_vectors(torch.eye(4), GOOD, LABELS, 1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: RelationNetwork([], 3), r"widths must hold at least one number, none below 4, got \[\]"),
        (lambda: RelationNetwork([2, 4], 3), r"none below 4, got \[2, 4\]"),
        (lambda: RelationNetwork([8], 1), "num_classes must be at least 2, got 1"),
        (lambda: LogitRelation(1), "num_classes must be at least 2, got 1"),
        (lambda: LogitRelation(3, "angle"), "relation must be one of 'learned', 'distance', got 'angle'"),
        (lambda: LogitRelation(3, momentum=-0.1), r"momentum must lie in \[0, 1\), got -0.1"),
        (lambda: learner(triplet_weight=-1.0), "triplet_weight must be a number of at least 0, got -1.0"),
        (lambda: learner(logit_weight=math.nan), "logit_weight must be a number of at least 0"),
        (lambda: learner(label_weights=(0.1,)), "label_weights must be two numbers"),
        (lambda: learner(divergence_weights=(0.1, -0.2)), r"divergence_weights\[1\] must be a number of at least 0"),
        (lambda: learner(margin=0.0), "margin must be a positive number"),
        (lambda: learner(temperature=0.0), "temperature must be a positive number"),
        (lambda: learner(relation="angle"), "relation must be one of"),
        (lambda: learner(ConvNet(4, 1)), "model must have at least two stages, got 1"),
        (lambda: learner().losses(rows()[:7]), "maps must have 3B rows|labels must have 3B rows"),
        (lambda: learner().losses(Triplets(rows())[:1]), "of at least two triplets"),
        (lambda: learner().losses(rows()[:6]), "labels must be those of anchors, positives and negatives"),
    ],
)  # fmt: skip
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
