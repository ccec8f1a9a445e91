"""Layered self-supervised distillation: labels, terms, where gradients stop, what is removed, the parent's figures."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import reference_cases
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy
from torch.nn import functional as F

from kdcore.data import Arrays, digits, rotations
from kdcore.foundations.kd import distillation_loss
from kdcore.models import ConvNet, ResNet, flops, parameter_count
from kdcore.self_distillation.lsskd import (
    TURNS,
    AuxiliaryClassifier,
    LayeredDistillation,
    LayeredNetwork,
    PeerDistillation,
    branch_cross_entropy,
    class_log_probabilities,
    cross_layer_loss,
    feature_loss,
    hierarchical_loss,
    joint_information,
    joint_labels,
    joint_logits,
    summed_logits,
    task_loss,
)
from kdcore.training import Budget, Supervised, fit, predict, seeded

PAIRINGS = ("deepest", "next")
LABELS = torch.tensor([2, 0, 1])


def drawn(*shape, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def batch(size=6, side=8, channels=1):
    generator = torch.Generator().manual_seed(1)
    return Arrays(inputs=torch.rand(size, channels, side, side, generator=generator), labels=torch.arange(size) % 3)


# The parent's published figures


@pytest.mark.parametrize("case", reference_cases("lsskd"))
def test_matches_published_figures(case):
    given_, wanted, known = case["inputs"], case["outputs"], case["hyperparameters"]
    labels, tau = torch.tensor(given_["targets"]), known["kd_T"]
    own, other = (torch.tensor(given_[f"{who}_logits"], dtype=torch.float64) for who in ("student", "teacher"))
    own_branches, other_branches = (
        list(torch.tensor(given_[f"{who}_joint_logits"], dtype=torch.float64)) for who in ("student", "teacher")
    )
    assert known["M"] == TURNS
    assert len(own_branches) == known["stages"]
    assert joint_labels(labels).tolist() == wanted["joint_labels"]
    close = {"rel": 1e-6}

    own.requires_grad_()
    own_branches[0].requires_grad_()
    each = [distillation_loss(*pair, tau).item() for pair in zip(own_branches, other_branches, strict=True)]
    assert each == pytest.approx(wanted["student_kl_q_per_stage"], **close)
    assert distillation_loss(own, other, tau).item() == pytest.approx(wanted["student_kl_p"], **close)
    assert task_loss(own, labels).item() == pytest.approx(wanted["student_task_ce"], **close)
    total = task_loss(own, labels) + hierarchical_loss(own, own_branches, other, other_branches, tau)
    assert total.item() == pytest.approx(wanted["student_total"], **close)
    total.backward()
    for leaf, name in ((own, "grad_student_logits"), (own_branches[0], "grad_student_ss_first")):
        # The figures are rounded to ten decimals.
        np.testing.assert_allclose(leaf.grad.numpy(), np.array(wanted[name]), rtol=1e-6, atol=6e-11)

    apart = [branch_cross_entropy([logits], joint_labels(labels)).item() for logits in other_branches]
    assert apart == pytest.approx(wanted["teacher_ce_sad_per_stage"], **close)
    assert task_loss(other, labels).item() == pytest.approx(wanted["teacher_ce_task"], **close)
    both = [task_loss(z, labels) + branch_cross_entropy(u, joint_labels(labels))
            for z, u in ((other, other_branches), (own, own_branches))]  # fmt: skip
    assert both[0].item() == pytest.approx(wanted["teacher_total"], **close)
    peers = hierarchical_loss(own, own_branches, other, other_branches, tau)
    peers = peers + hierarchical_loss(other, other_branches, own, own_branches, tau)
    assert sum(both).item() == pytest.approx(wanted["online_ce_sum"], **close)
    assert peers.item() == pytest.approx(wanted["online_kl_sum"], **close)
    assert (sum(both) + peers).item() == pytest.approx(wanted["online_total"], **close)
    read = np.array(wanted["class_logits_from_joint_first_stage"])
    np.testing.assert_allclose(summed_logits(own_branches[0]).detach().numpy(), read, rtol=1e-6, atol=1e-8)


# Labels and rows


def test_labels_by_hand():
    assert joint_labels(torch.tensor([2, 0])).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]


def test_labels_fit_the_rows_of_rotated_images():
    """Row 4i + j is image i after j quarter turns, and its label says so."""
    images = torch.rand(3, 2, 5, 5)
    rows, labels = rotations(images), joint_labels(LABELS)
    for row, (image, turns) in enumerate(product(range(3), range(4))):
        assert torch.equal(rows[row], images[image].rot90(turns, (1, 2)))
        assert divmod(labels[row].item(), TURNS) == (LABELS[image].item(), turns)


def test_only_rows_that_are_not_turned_have_a_task():
    (logits,) = drawn(12, 5)
    logits.requires_grad_()
    loss = task_loss(logits, LABELS)
    loss.backward()
    turned = torch.arange(12) % TURNS > 0
    assert bool((logits.grad[turned] == 0).all())
    assert bool((logits.grad[~turned] != 0).all())
    by_hand = -log_softmax(logits.detach().numpy()[::4], axis=1)[range(3), LABELS]
    assert loss.item() == pytest.approx(by_hand.mean())


# Terms of equation (6)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_uniform_joint_logits(stages):
    uniform = [torch.full((12, 20), 0.3, dtype=torch.float64)] * stages
    assert branch_cross_entropy(uniform, joint_labels(LABELS)).item() == pytest.approx(stages * math.log(20))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_equal_branches_have_nothing_to_teach(pairing):
    logits, embeddings = drawn(12, 20), drawn(12, 7)
    assert abs(cross_layer_loss(logits * 3, 3.0, pairing).item()) < 1e-12
    assert feature_loss(embeddings * 3, pairing).item() == 0


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_one_branch_has_nobody_to_teach(pairing):
    assert cross_layer_loss(drawn(12, 20), 3.0, pairing).item() == 0
    assert feature_loss(drawn(12, 7), pairing).item() == 0


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("term", [cross_layer_loss, feature_loss])
def test_no_gradient_reaches_a_teacher(pairing, term):
    branches = [one.requires_grad_() for one in drawn(12, 20, count=3)]
    term(branches, pairing=pairing).backward()
    assert branches[-1].grad is None or not branches[-1].grad.any()
    assert all(one.grad.abs().max() > 0 for one in branches[:-1])
    if pairing == "next":  # the middle one is pulled to the last, not to the first
        middle, last = branches[1].detach().requires_grad_(), branches[2].detach()
        term([middle, last]).backward()
        torch.testing.assert_close(branches[1].grad, middle.grad)


def test_divergence_by_scipy():
    first, second, last = drawn(12, 20, count=3)
    soft = [torch.softmax(logits / 2.5, dim=1).numpy() for logits in (first, second, last)]
    deepest = sum(entropy(soft[2], q, axis=1).mean() for q in soft[:2]) * 2.5**2
    assert cross_layer_loss([first, second, last], 2.5).item() == pytest.approx(deepest, rel=1e-10)
    following = (entropy(soft[1], soft[0], axis=1) + entropy(soft[2], soft[1], axis=1)).mean() * 2.5**2
    assert cross_layer_loss([first, second, last], 2.5, "next").item() == pytest.approx(following, rel=1e-10)


def test_features_by_hand():
    first, second, last = drawn(12, 7, count=3)
    by_hand = ((first - last) ** 2).mean() + ((second - last) ** 2).mean()
    torch.testing.assert_close(feature_loss([first, second, last]), by_hand)


def test_gradient_at_a_shallow_branch():
    """Labels pull by q − k at temperature 1, the deepest branch by τ (q − q_L) at τ."""
    shallow, deep = drawn(12, 20, count=2)
    shallow.requires_grad_()
    (branch_cross_entropy([shallow], joint_labels(LABELS)) + cross_layer_loss([shallow, deep], 3.0)).backward()
    one_hot = F.one_hot(joint_labels(LABELS), 20)
    labels = shallow.detach().softmax(dim=1) - one_hot
    teacher = 3.0 * ((shallow.detach() / 3).softmax(dim=1) - (deep / 3).softmax(dim=1))
    torch.testing.assert_close(shallow.grad, (labels + teacher) / 12)


def test_gradcheck():
    first, last = drawn(4, 8, count=2)
    told = joint_labels(torch.tensor([1]))
    assert torch.autograd.gradcheck(
        lambda u: branch_cross_entropy([u, last], told) + cross_layer_loss([u, last]) + feature_loss([u, last]),
        first.requires_grad_(),
    )


# Reading a branch


def test_marginal_by_scipy():
    (logits,) = drawn(5, 12)
    joint = log_softmax(logits.numpy(), axis=1).reshape(5, 3, 4)
    np.testing.assert_allclose(class_log_probabilities(logits).numpy(), logsumexp(joint, axis=2), rtol=1e-10)
    np.testing.assert_allclose(summed_logits(logits).numpy(), logits.numpy().reshape(5, 3, 4).sum(axis=2))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_information_is_that_of_scipy_and_bounded(seed):
    (logits,) = drawn(4, 12, seed=seed)
    found = joint_information(logits).numpy()
    for row, value in zip(logits.softmax(dim=1).reshape(4, 3, 4).numpy(), found, strict=True):
        apart = np.outer(row.sum(axis=1), row.sum(axis=0))
        assert value == pytest.approx(entropy(row.ravel(), apart.ravel()), abs=1e-9)
    assert found.max() <= math.log(3) + 1e-9


def test_two_heads_are_additive_joint_logits():
    """Equation (8): the joint cross-entropy is the sum of both heads' own, and the two are independent."""
    classes, turns = drawn(12, 5)[0], drawn(12, 4, seed=1)[0]
    joint = joint_logits(classes, turns)
    apart = F.cross_entropy(classes, LABELS.repeat_interleave(4)) + F.cross_entropy(turns, torch.arange(12) % 4)
    torch.testing.assert_close(branch_cross_entropy([joint], joint_labels(LABELS)), apart)
    assert joint_information(joint).abs().max().item() < 1e-9
    torch.testing.assert_close(class_log_probabilities(joint), classes.log_softmax(dim=1))


def test_what_two_heads_lose_is_the_information():
    """The best independent heads for a known joint distribution miss its entropy by equation (10)."""
    (logits,) = drawn(1, 12)
    joint = logits.softmax(dim=1)
    grid = joint.reshape(3, 4)
    heads = joint_logits(grid.sum(1).log()[None], grid.sum(0).log()[None])
    loss = -(joint * heads.log_softmax(dim=1)).sum()
    torch.testing.assert_close(loss - torch.tensor(entropy(joint[0])), joint_information(logits)[0])


def test_lower_precision_is_read_in_float32():
    (logits,) = drawn(5, 12)
    for read in (class_log_probabilities, joint_information, summed_logits):
        assert read(logits.to(torch.bfloat16)).dtype == torch.float32


# Networks


@pytest.mark.parametrize("model", [ConvNet(4, 3), ConvNet(4, 2, convolutions=2), ResNet(8, in_channels=1)])
@pytest.mark.parametrize(("targets", "columns"), [("joint", 40), ("separate", 40), ("class", 10)])
def test_all_branches_end_in_one_shape(model, targets, columns):
    layers = LayeredNetwork(model, targets=targets)(torch.rand(4, 1, 16, 16))
    assert layers.logits.shape == (4, 10)
    assert [tuple(one.shape) for one in layers.embeddings] == [(4, model.widths[-1])] * len(model.stages)
    assert [tuple(one.shape) for one in layers.branch_logits] == [(4, columns)] * len(model.stages)


@pytest.mark.parametrize(("stages", "read"), [((0, 2), [0, 2]), ((-1,), [2]), ((-2, 2), [1, 2])])
def test_branches_read_the_maps_of_their_stages(stages, read):
    network = LayeredNetwork(ConvNet(4, 3), stages).eval()
    inputs = torch.rand(4, 1, 16, 16)
    with torch.no_grad():
        maps, _ = network.model.maps(inputs)
        layers = network(inputs)
        assert network.stages == read
        assert len(layers.branch_logits) == len(read)
        for branch, stage, embedding, logits in zip(
            network.branches, read, layers.embeddings, layers.branch_logits, strict=True
        ):
            wanted = branch(maps[stage])
            assert torch.equal(embedding, wanted[0])
            assert torch.equal(logits, wanted[1])


def test_branches_start_afresh():
    model = ConvNet(4, 3)
    branch = AuxiliaryClassifier(model, 0, 10)
    copied = dict(branch.layers.named_parameters())
    assert not torch.equal(copied["0.0.weight"], model.stages[1][0].weight)
    assert copied["0.0.weight"].shape == model.stages[1][0].weight.shape


@pytest.mark.parametrize("trained", [False, True])
def test_removed_branches_leave_no_trace(trained):
    """Same logits to the last bit, same parameters and operations as the network that never had branches."""
    with seeded(0):
        model = ConvNet(4, 3, num_classes=3)
    learner = LayeredDistillation(model)
    if trained:
        fit(learner, batch(), Budget(steps=3, batch_size=6, lr=0.1), seed=0)
    learner.eval()
    plain = ConvNet(4, 3, num_classes=3)
    plain.load_state_dict(learner.model.state_dict())
    inputs = batch().inputs
    with torch.no_grad():
        assert torch.equal(learner.network(inputs).logits, plain.eval()(inputs))
    assert parameter_count(learner.model) == parameter_count(plain) < parameter_count(learner)
    assert flops(learner.model, inputs) == flops(plain, inputs) < flops(learner.network, inputs)


@pytest.mark.parametrize(
    ("settings_", "names"),
    [
        ({}, ["task", "branches", "cross_layer", "features"]),
        ({"kl_weight": 0.0, "feature_weight": 0.0}, ["task", "branches"]),
        ({"link_weight": 1.0, "targets": "separate"}, ["task", "branches", "cross_layer", "features", "link"]),
        ({"targets": "class", "pairing": "next"}, ["task", "branches", "cross_layer", "features"]),
    ],
)
def test_terms_and_their_gradients(settings_, names):
    learner = LayeredDistillation(ConvNet(4, 3, num_classes=3), **settings_)
    terms = learner.losses(batch())
    assert list(terms) == names
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in learner.parameters())


def test_branches_train_the_backbone():
    learner = LayeredDistillation(ConvNet(4, 3, num_classes=3))
    learner.losses(batch())["branches"].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learner.model.stages.parameters())
    assert learner.model.classifier.weight.grad is None


def test_link_compares_marginals_at_the_temperature():
    learner = LayeredDistillation(ConvNet(4, 3, num_classes=3), link_weight=2.0, temperature=3.0).eval()
    layers, link = learner.network(rotations(batch().inputs)), learner.losses(batch())["link"]
    marginal = (layers.branch_logits[-1][::4] / 3).softmax(dim=1).unflatten(1, (3, 4)).sum(dim=2).detach().numpy()
    own = (layers.logits[::4] / 3).softmax(dim=1).detach().numpy()
    assert link.item() == pytest.approx(2 * 9 * entropy(marginal, own, axis=1).mean(), rel=1e-4)
    link.backward()
    assert all(parameter.grad is None for parameter in learner.network.branches.parameters())


def test_peers_are_symmetric():
    with seeded(0):
        learner = PeerDistillation(ConvNet(4, 2, num_classes=3), ConvNet(4, 2, num_classes=3)).eval()
    before = learner.losses(batch())
    learner.network, learner.peer = learner.peer, learner.network
    after = learner.losses(batch())
    for name in ("labels", "peers"):
        torch.testing.assert_close(before[name], after[name])
    twins = PeerDistillation(learner.model, learner.model).eval()
    twins.peer.load_state_dict(twins.network.state_dict())
    assert abs(twins.losses(batch())["peers"].item()) < 1e-6


# Learning


def accuracy_of(learner, train, test, seed, batch_size):
    fit(learner, train, Budget(steps=70, batch_size=batch_size, lr=0.1), seed=seed)
    return 100 * (predict(learner.model, test.inputs).argmax(dim=1) == test.labels).double().mean().item()


def test_learns_more_than_from_turned_images_with_class_labels():
    """The same rows, the same network, as many steps: what differs is what is said of a turned image."""
    data, layered, turned = digits(train_size=400), [], []
    for seed in range(3):
        train = data.train.split(100, seed=seed)[0]
        rows = Arrays(inputs=rotations(train.inputs), labels=train.labels.repeat_interleave(TURNS))
        models = []
        for _ in range(2):
            with seeded(seed):
                models.append(ConvNet(8, 3))
        layered.append(accuracy_of(LayeredDistillation(models[0]), train, data.test, seed, 16))
        turned.append(accuracy_of(Supervised(models[1]), rows, data.test, seed, 16 * TURNS))
    assert min(np.subtract(layered, turned)) > 2
    assert min(layered) > 80


# Bad input

GOOD = torch.randn(12, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: joint_labels(torch.zeros(3)), r"labels must be integers of shape \(B,\), got torch.float32"),
        (lambda: joint_labels(torch.zeros(3, 1, dtype=torch.long)), r"labels must be integers .* shape \(3, 1\)"),
        (lambda: task_loss(GOOD, LABELS[:2]), "logits must have 4 rows for each of 2 images, got 12"),
        (lambda: task_loss(GOOD[:, :2], LABELS), r"labels must lie in \[0, 2\)"),
        (lambda: task_loss(GOOD / 0, LABELS), "logits must be finite"),
        (lambda: branch_cross_entropy([], LABELS), "branch_logits must hold at least one branch"),
        (lambda: branch_cross_entropy([GOOD], LABELS), r"branch_labels must have shape \(12,\), got \(3,\)"),
        (lambda: branch_cross_entropy([GOOD, GOOD[:, 1:]], joint_labels(LABELS)), r"branch_logits\[1\] must have the"),
        (lambda: cross_layer_loss([]), "branch_logits must hold at least one branch"),
        (lambda: cross_layer_loss([GOOD, GOOD], 0.0), "temperature must be a positive number, got 0.0"),
        (lambda: cross_layer_loss([GOOD, GOOD], pairing="last"), "pairing must be one of 'deepest', 'next'"),
        (lambda: feature_loss([]), "embeddings must hold at least one branch"),
        (lambda: feature_loss([GOOD, GOOD[:4]]), r"embeddings\[1\] must have the shape of embeddings\[0\]"),
        (lambda: feature_loss([GOOD], pairing="all"), "pairing must be one of"),
        (lambda: class_log_probabilities(GOOD[:, :10]), "branch_logits must have 4 columns .* got 10"),
        (lambda: summed_logits(GOOD[:, :4]), "branch_logits must have 4 columns .* two classes, got 4"),
        (lambda: joint_information(GOOD[0]), r"branch_logits must have shape \(B, C\)"),
        (lambda: joint_logits(GOOD, GOOD[:, :3]), r"must have shapes \(R, C\) and \(R, 4\)"),
        (lambda: hierarchical_loss(GOOD, [GOOD], GOOD, []), "teacher_branch_logits must be as many .* 1, got 0"),
        (lambda: hierarchical_loss(GOOD, [GOOD], GOOD[:, 1:], [GOOD]), "teacher_logits must have the shape"),
        (lambda: AuxiliaryClassifier(ConvNet(4), 3, 10), r"stage must lie in \[-3, 3\), got 3"),
        (lambda: AuxiliaryClassifier(ConvNet(4), 0, 1), "num_classes must be at least 2, got 1"),
        (lambda: AuxiliaryClassifier(ConvNet(4), 0, 10, "both"), "targets must be one of"),
        (lambda: LayeredNetwork(ConvNet(4), []), "stages must name at least one stage"),
        (lambda: LayeredNetwork(ConvNet(4), [2, 0]), r"in rising order, got \[2, 0\]"),
        (lambda: LayeredDistillation(ConvNet(4), temperature=-1.0), "temperature must be a positive number, got -1.0"),
        (lambda: LayeredDistillation(ConvNet(4), kl_weight=-1.0), "kl_weight must be a number of at least 0"),
        (lambda: LayeredDistillation(ConvNet(4), feature_weight=math.nan), "feature_weight must be a number"),
        (lambda: LayeredDistillation(ConvNet(4), pairing="first"), "pairing must be one of"),
        (lambda: LayeredDistillation(ConvNet(4), targets="class", link_weight=1.0), "link_weight needs branches with"),
        (lambda: PeerDistillation(ConvNet(4), ConvNet(4, 2)), "peer must have as many stages as model, 3, got 2"),
        (lambda: PeerDistillation(ConvNet(4), ConvNet(4), 0.0), "temperature must be a positive number, got 0.0"),
        (
            lambda: LayeredDistillation(ConvNet(4)).losses(Arrays(inputs=torch.rand(2, 1, 8, 9), labels=LABELS[:2])),
            r"images must be square, .* got \(2, 1, 8, 9\)",
        ),
    ],
)
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
