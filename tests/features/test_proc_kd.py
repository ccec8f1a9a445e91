"""ProC-KD: assignment, residuals, attention, the bank, both phases, the plain rival."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.features.proc_kd import (
    PrototypeBank,
    PrototypeDistillation,
    PrototypeLearning,
    TokenMimicry,
    descriptor_cosine_bound,
    feature_loss,
    layer_shapes,
    prototype_assignment,
    prototype_attention,
    prototype_residuals,
    stacked_residuals,
    variance_explained,
    with_augmented,
    zero_share,
)
from kdcore.foundations.kd import distillation_loss
from kdcore.metrics import accuracy
from kdcore.models import ConvNet, Projector, ResNet, VisionTransformer
from kdcore.training import Budget, Supervised, fit, predict, seeded, with_layers

LAYERS = ["stages.0", "stages.1", "stages.2"]
sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5))


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bank_of(tokens: int = 5, width: int = 6, prototypes: int = 4, layers: int = 3, **choices) -> PrototypeBank:
    with seeded(0):
        return PrototypeBank([(tokens, width)] * layers, tokens, width, prototypes, **choices).double()


def random_layers(batch: int = 2, tokens: int = 5, width: int = 6) -> list[torch.Tensor]:
    return [random_tokens(batch, tokens, width, seed=seed) for seed in range(3)]


def random_batch(size: int = 6, dtype: torch.dtype = torch.float32) -> Arrays:
    return Arrays(inputs=torch.rand(size, 1, 8, 8, dtype=dtype), labels=torch.arange(size) % 5)


def distillation(**choices) -> PrototypeDistillation:
    with seeded(0):
        student, teacher = ConvNet(width=4, num_classes=5), ConvNet(width=8)
        bank = PrototypeBank(layer_shapes(teacher, LAYERS, torch.rand(1, 1, 8, 8)), 4, 16, prototypes=3)
    return PrototypeDistillation(student, bank, teacher, LAYERS, student_layer="stages.2", **choices)


@pytest.mark.parametrize("case", reference_cases("proc-kd"))
def test_matches_published_figures(case):
    given_, weights = case["inputs"], case["inputs"]["weights"]
    layers = [torch.tensor(given_[f"teacher_layer_{k}"], dtype=torch.float64) for k in (1, 2, 3)]
    student_tokens = torch.tensor(given_["student_tokens"], dtype=torch.float64)
    _, tokens, width = student_tokens.shape
    prototypes = case["hyperparameters"]["num_prototypes"]
    assert width == case["hyperparameters"]["embed_dim"]
    assert not case["hyperparameters"]["conv_bias"]
    bank = PrototypeBank([(tokens, width)] * 3, tokens, width, prototypes).double()
    names = {
        "prototypes": "centroids3",
        "assignment.weight": "netvlad3.0.weight",
        "fusion.weight": "cat_transform3.0.weight",
        "fusion.bias": "cat_transform3.0.bias",
        "mixing.0.weight": "transform3.0.weight",
        "mixing.2.weight": "transform3.2.weight",
        "aggregation.weight": "vladfc3.weight",
        "aggregation.bias": "vladfc3.bias",
        "encoder.weight": "encode3.weight",
        "augmentation.0.weight": "aug_transform3.0.weight",
        "augmentation.2.weight": "aug_transform3.2.weight",
    }
    shapes = {name: parameter.shape for name, parameter in bank.named_parameters()}
    state = {own: torch.tensor(weights[theirs], dtype=torch.float64) for own, theirs in names.items()}
    bank.load_state_dict({own: tensor.reshape(shapes[own]) for own, tensor in state.items()})
    fused = bank.fuse(layers)
    computed = {
        "fused_teacher_tokens": fused,
        "vlad_tokens": bank.enrich(fused),
        "augmented_from_teacher": bank(layers),
        "augmented_from_student": bank.augment(student_tokens),
    }
    assert_published(computed, case, decimals=10)


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_assignment_and_residuals_agree_with_obvious_loops(shape, seed):
    batch, count, width, prototypes = shape
    tokens, centres = random_tokens(batch, count, width, seed=seed), random_tokens(prototypes, width, seed=seed + 1)
    weight = random_tokens(prototypes, width, seed=seed + 2)
    shares = prototype_assignment(tokens, weight)
    torch.testing.assert_close(shares.sum(dim=2), torch.ones(batch, count, dtype=torch.float64))
    residuals = prototype_residuals(tokens, shares, centres)
    for b in range(batch):
        expected = torch.zeros(prototypes, width, dtype=torch.float64)
        for i in range(count):
            direction = tokens[b, i] / tokens[b, i].norm()
            scores = [math.exp(float(weight[k] @ direction)) for k in range(prototypes)]
            for k in range(prototypes):
                assert shares[b, i, k].item() == pytest.approx(scores[k] / sum(scores), rel=1e-9)
                expected[k] += shares[b, i, k] * (direction - centres[k])
        torch.testing.assert_close(residuals[b], expected)


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(0, 1000))
def test_stacked_residuals_have_unit_length_in_equal_parts(shape, seed):
    batch, _, width, prototypes = shape
    stacked = stacked_residuals(random_tokens(batch, prototypes, width, seed=seed))
    parts = stacked.view(batch, prototypes, width).norm(dim=2)
    torch.testing.assert_close(parts, torch.full_like(parts, prototypes**-0.5))


def test_residual_of_zero_stays_finite():
    tokens = torch.ones(1, 2, 3, dtype=torch.float64, requires_grad=True)
    shares = torch.ones(1, 2, 1, dtype=torch.float64)
    residuals = prototype_residuals(tokens, shares, tokens.detach()[0, :1] / math.sqrt(3))
    torch.testing.assert_close(residuals, torch.zeros_like(residuals), atol=1e-12, rtol=0)
    stacked_residuals(torch.zeros(1, 1, 3, requires_grad=True)).sum().backward()
    stacked_residuals(residuals).sum().backward()
    assert torch.isfinite(tokens.grad).all()


def test_token_of_zeros_belongs_to_all_prototypes_alike():
    shares = prototype_assignment(torch.zeros(1, 1, 3), torch.randn(4, 3))
    torch.testing.assert_close(shares, torch.full((1, 1, 4), 0.25))


@settings(max_examples=20, deadline=None)
@given(st.floats(1.01, 20), st.integers(0, 1000))
def test_descriptors_of_two_images_are_never_further_apart_than_the_bound(length, seed):
    centres = length * F.normalize(random_tokens(4, 6, seed=seed))
    tokens = 3 * random_tokens(2, 5, 6, seed=seed + 1)
    shares = prototype_assignment(tokens, 5 * random_tokens(4, 6, seed=seed + 2))
    first, second = stacked_residuals(prototype_residuals(tokens, shares, centres))
    bound = float(descriptor_cosine_bound(centres))
    assert bound == pytest.approx(1 - 2 / length**2)
    assert float(first @ second) >= bound - 1e-9


def test_bound_is_reached():
    # Two images of one token each, on either side of the line to the prototype, where it is tangent to the circle.
    angle = math.asin(1 / 2)
    tangent = [[math.sin(angle), sign * math.cos(angle)] for sign in (1, -1)]
    tokens, centres = torch.tensor(tangent).view(2, 1, 2), torch.tensor([[2.0, 0.0]])
    first, second = stacked_residuals(prototype_residuals(tokens, torch.ones(2, 1, 1), centres))
    assert float(first @ second) == pytest.approx(float(descriptor_cosine_bound(centres)), abs=1e-6)
    assert float(descriptor_cosine_bound(torch.tensor([[0.3, 0.0]]))) == -1


def test_order_of_prototypes_does_not_matter():
    bank, layers, order = bank_of(), random_layers(), torch.tensor([2, 0, 3, 1])
    enriched, augmented = bank.enrich(bank.fuse(layers)), bank(layers)
    changed = copy.deepcopy(bank)
    with torch.no_grad():
        changed.prototypes.copy_(bank.prototypes[order])
        torch.testing.assert_close(changed.augment(enriched), augmented)  # attention needs nothing else
        assert not torch.allclose(changed.enrich(bank.fuse(layers)), enriched)
        changed.assignment.weight.copy_(bank.assignment.weight[order])
        changed.aggregation.weight.copy_(bank.aggregation.weight.view(6, 4, 6)[:, order].flatten(1))
    torch.testing.assert_close(changed.enrich(bank.fuse(layers)), enriched)
    torch.testing.assert_close(changed(layers), augmented)


def test_order_of_tokens_passes_through():
    bank, layers, order = bank_of(), random_layers(), torch.tensor([4, 2, 0, 1, 3])
    moved = [layer[:, order] for layer in layers]
    torch.testing.assert_close(bank.stacked(bank.fuse(moved)), bank.stacked(bank.fuse(layers)))
    torch.testing.assert_close(bank.enrich(bank.fuse(moved)), bank.enrich(bank.fuse(layers))[:, order])
    torch.testing.assert_close(bank(moved), bank(layers)[:, order])


def test_images_do_not_interact():
    bank, layers = bank_of(), random_layers(batch=3)
    alone = [bank([layer[k : k + 1] for layer in layers]) for k in range(3)]
    torch.testing.assert_close(torch.cat(alone), bank(layers))


def test_length_of_fused_tokens_does_not_reach_the_descriptor():
    bank = bank_of()
    fused = bank.fuse(random_layers())
    torch.testing.assert_close(bank.stacked(7 * fused), bank.stacked(fused))
    assert not torch.allclose(bank.enrich(7 * fused), bank.enrich(fused))  # raw tokens are mixed


def test_one_prototype_leaves_nothing_to_choose():
    tokens = random_tokens(2, 5, 6)
    shares, attended = prototype_attention(tokens, random_tokens(1, 6, seed=1))
    assert torch.equal(shares, torch.ones_like(shares))
    torch.testing.assert_close(attended, random_tokens(1, 6, seed=1).expand(2, 5, 6))
    equal = random_tokens(1, 6, seed=1).expand(4, 6)
    shares, attended = prototype_attention(tokens, equal)
    torch.testing.assert_close(shares, torch.full_like(shares, 0.25))
    torch.testing.assert_close(attended, equal[:1].expand(2, 5, 6))


def test_attention_ignores_what_all_prototypes_share():
    tokens, prototypes, common = random_tokens(2, 5, 6), random_tokens(4, 6, seed=1), random_tokens(6, seed=2)
    shares, attended = prototype_attention(tokens, prototypes)
    moved_shares, moved = prototype_attention(tokens, prototypes + 3 * common)
    assert not torch.allclose(moved_shares[0, 0], shares[0, 1])
    torch.testing.assert_close(moved_shares, shares)
    torch.testing.assert_close(moved, attended + 3 * common)


def test_fresh_attention_hardly_chooses():
    width, tokens = 256, random_tokens(1, 8, 256).abs().float()
    with seeded(0):
        bank = PrototypeBank([(8, width)], 8, width, prototypes=2000)
    with torch.no_grad():
        scores = bank.encoder(tokens) @ bank.encoder(bank.prototypes).T
    ratio = scores.std(dim=2) / tokens.norm(dim=2)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / (3 * math.sqrt(6))), rtol=0.15, atol=0)


def test_sharpness_is_a_factor_on_the_scores():
    tokens, prototypes = random_tokens(2, 5, 6), random_tokens(4, 6, seed=1)
    shares, attended = prototype_attention(tokens, prototypes, sharpness=3.0)
    torch.testing.assert_close(shares, prototype_attention(3 * tokens, prototypes)[0])
    torch.testing.assert_close(attended, shares @ prototypes)
    hard, _ = prototype_attention(tokens, prototypes, sharpness=1e6)
    best = F.one_hot((tokens @ prototypes.T).argmax(dim=2), 4).double()
    torch.testing.assert_close(hard, best)
    bank, sharp = bank_of(), bank_of(sharpness=3.0)  # the same weights
    torch.testing.assert_close(
        sharp.attention(tokens), prototype_attention(3 * bank.encoder(tokens), bank.encoder(bank.prototypes))[0]
    )
    assert not torch.allclose(sharp.augment(tokens), bank.augment(tokens))
    with torch.no_grad():  # augmentation attends as `attention` says
        queries = bank.encoder(tokens)
        mixed = bank.augmentation(torch.cat([queries, sharp.attention(tokens) @ bank.encoder(bank.prototypes)], dim=2))
    torch.testing.assert_close(sharp.augment(tokens), (mixed + tokens).relu())


def test_augmentation_without_mixing_is_relu():
    bank, tokens = bank_of(), random_tokens(2, 5, 6)
    with torch.no_grad():
        bank.augmentation[2].weight.zero_()
    torch.testing.assert_close(bank.augment(tokens), tokens.relu())


def test_tokens_that_are_not_negative_only_gain():
    bank, tokens = bank_of(), random_tokens(2, 5, 6).abs()
    queries = bank.encoder(tokens)
    _, attended = prototype_attention(queries, bank.encoder(bank.prototypes))
    added = bank.augmentation(torch.cat([queries, attended], dim=2))
    torch.testing.assert_close(bank.augment(tokens), tokens + added)
    assert (added >= 0).all()


def test_prototypes_are_biases_that_tokens_choose():
    bank, tokens = bank_of(), random_tokens(2, 5, 6)
    own, attended = bank.augmentation[0].weight.split(6, dim=1)
    biases = bank.encoder(bank.prototypes) @ attended.T
    hidden = (bank.encoder(tokens) @ own.T + bank.attention(tokens) @ biases).relu()
    expected = ((hidden @ bank.augmentation[2].weight.T).relu() + tokens).relu()
    torch.testing.assert_close(bank.augment(tokens), expected)


@pytest.mark.parametrize("parts", ["both", "descriptor", "augmentation", "none"])
def test_parts_of_the_bank(parts):
    bank, layers = bank_of(parts=parts), random_layers()
    fused = bank.fuse(layers)
    if parts in ("augmentation", "none"):
        assert torch.equal(bank.enrich(fused), fused)
    if parts in ("descriptor", "none"):
        assert torch.equal(bank(layers), bank.enrich(fused))
    bank(layers).square().sum().backward()
    assert (bank.prototypes.grad is None) == (parts == "none")


def test_start_of_the_prototypes():
    with seeded(0):
        uniform, sphere = (PrototypeBank([(16, 300)], 16, 300, 9, start=start) for start in ("uniform", "sphere"))
    assert uniform.prototypes.min() >= 0
    assert uniform.prototypes.max() < 1
    assert uniform.prototypes.square().sum(dim=1).mean().item() == pytest.approx(100, rel=0.05)  # d/3
    torch.testing.assert_close(sphere.prototypes.norm(dim=1), torch.ones(9))
    assert not bank_of(learned=False).prototypes.requires_grad


def test_layers_of_the_right_shape_need_no_projector():
    bank = PrototypeBank([(4, 8, 8), (6, 4, 4), (16, 6)], tokens=16, width=6)
    assert [type(projector) for projector in bank.projectors] == [Projector, nn.Identity, nn.Identity]
    features_map = torch.rand(2, 6, 4, 4)
    layers = [torch.rand(2, 4, 8, 8), features_map, features_map.flatten(2).transpose(1, 2)]
    weight = torch.eye(6).repeat(1, 3)
    with torch.no_grad():
        bank.fusion.weight.copy_(torch.cat([0 * weight[:, :6], weight[:, :6], -weight[:, :6]], dim=1))
        bank.fusion.bias.zero_()
    torch.testing.assert_close(bank.fuse(layers), torch.zeros(2, 16, 6))


def test_gradients_are_those_of_finite_differences():
    tokens, weight = random_tokens(1, 3, 2).requires_grad_(), random_tokens(2, 2, seed=1).requires_grad_()
    centres = random_tokens(2, 2, seed=2).requires_grad_()

    def stacked(*arguments):
        return stacked_residuals(prototype_residuals(arguments[0], prototype_assignment(*arguments[:2]), arguments[2]))

    assert torch.autograd.gradcheck(stacked, (tokens, weight, centres))
    assert torch.autograd.gradcheck(lambda a, b: prototype_attention(a, b)[1], (tokens, centres))


def test_teacher_tokens_are_a_constant():
    student, teacher = random_tokens(2, 3, 4).requires_grad_(), random_tokens(2, 3, 4, seed=1).requires_grad_()
    loss = feature_loss(student, teacher)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / 24)
    torch.testing.assert_close(loss, (student - teacher).square().sum() / 24)


def test_normalised_tokens_have_no_size():
    bank, tokens = bank_of(normalised=True), random_tokens(2, 5, 6)
    torch.testing.assert_close(bank.augment(100 * tokens + 7), bank.augment(tokens), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(bank.attention(100 * tokens + 7), bank.attention(tokens), rtol=1e-3, atol=1e-4)
    plain = bank_of()  # the same weights
    torch.testing.assert_close(bank.augment(tokens), plain.augment(F.layer_norm(tokens, (6,))))
    torch.testing.assert_close(bank.attention(tokens), plain.attention(F.layer_norm(tokens, (6,))))


def test_shares_of_zeros_and_of_variance():
    assert zero_share(torch.tensor([[[0.0, 1.0, 0.0, -2.0]]])) == 50
    values = random_tokens(30, 4)
    assert variance_explained(values, torch.arange(30)) == pytest.approx(100)
    assert variance_explained(values, torch.zeros(30, dtype=torch.long)) == pytest.approx(0, abs=1e-9)
    groups = torch.arange(30) % 3
    within = sum((values[groups == k] - values[groups == k].mean(0)).square().sum() for k in range(3))
    total = (values - values.mean(0)).square().sum()
    assert variance_explained(values, 10 * groups) == pytest.approx(100 * float(1 - within / total))


@pytest.mark.parametrize("route", ["teacher", "student"])
@pytest.mark.parametrize("joint", [False, True])
def test_terms_are_those_of_the_equation(route, joint):
    learner = distillation(route=route, joint=joint, feature_weight=2.0, logit_weight=3.0).double().eval()
    batch = random_batch(dtype=torch.float64)
    terms = learner.losses(batch)
    maps, logits = learner.model.maps(batch.inputs)
    tokens = maps[2].flatten(2).transpose(1, 2)
    own, target = learner.bank.augment(tokens), learner.bank(learner.teacher.maps(batch.inputs)[0])
    second = learner.model.classifier((target if route == "teacher" else own).mean(dim=1))
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, batch.labels))
    torch.testing.assert_close(terms["augmented_cross_entropy"], F.cross_entropy(second, batch.labels))
    torch.testing.assert_close(terms["feature"], 2 * (own - target).square().mean())
    torch.testing.assert_close(terms["divergence"], 3 * distillation_loss(logits, second, 1.0))
    torch.testing.assert_close(learner.augmented_logits(batch.inputs), learner.model.classifier(own.mean(dim=1)))


@pytest.mark.parametrize("joint", [False, True])
def test_gradients_go_where_they_should(joint):
    learner, batch = distillation(joint=joint), random_batch()
    terms = learner.losses(batch)
    terms["feature"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())
    assert learner.model.stages[0][0].weight.grad.abs().max() > 0
    assert learner.model.classifier.weight.grad is None
    assert (learner.bank.prototypes.grad is not None) == joint
    assert learner.bank.fusion.weight.grad is None  # the target is a constant in the feature term
    learner.zero_grad()
    terms["augmented_cross_entropy"].backward(retain_graph=True)
    assert learner.model.stages[0][0].weight.grad is None  # the teacher's route trains the head, and a joint bank
    assert learner.model.classifier.weight.grad.abs().max() > 0
    assert (learner.bank.fusion.weight.grad is not None) == joint
    learner.zero_grad()
    terms["divergence"].backward()
    assert learner.bank.fusion.weight.grad is None
    assert learner.model.stages[0][0].weight.grad.abs().max() > 0


def test_the_students_route_trains_the_student():
    learner = distillation(route="student")
    learner.losses(random_batch())["augmented_cross_entropy"].backward()
    assert learner.model.stages[0][0].weight.grad.abs().max() > 0


def test_weight_zero_leaves_a_term_out():
    assert list(distillation(feature_weight=0.0).losses(random_batch())) == [
        "cross_entropy",
        "augmented_cross_entropy",
        "divergence",
    ]
    assert "divergence" not in distillation(logit_weight=0.0).losses(random_batch())
    off = {"feature_weight": 0.0, "logit_weight": 0.0, "augmented_weight": 0.0}
    learner, batch = distillation(**off), random_batch()
    terms = learner.losses(batch)
    assert list(terms) == ["cross_entropy"]  # labels alone
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(learner.model(batch.inputs), batch.labels))
    whole, half = (distillation(augmented_weight=weight).losses(batch) for weight in (1.0, 0.5))
    torch.testing.assert_close(half["augmented_cross_entropy"], whole["augmented_cross_entropy"] / 2)


def test_inference_needs_no_teacher(monkeypatch):
    learner = distillation()
    monkeypatch.setattr(learner.teacher, "forward", lambda *_: pytest.fail("the teacher must not run"))
    inputs = random_batch().inputs
    assert learner.augmented_logits(inputs).shape == learner.model(inputs).shape == (6, 5)
    first = learner.model.eval()(inputs)
    with torch.no_grad():
        learner.bank.prototypes.add_(1)
    assert torch.equal(learner.model(inputs), first)  # the prototypes do not enter the plain logits


def test_cached_layers_and_tokens_change_nothing(monkeypatch):
    learner, batch = distillation(), random_batch()
    learner.model.eval()
    live = learner.losses(batch)
    carried = with_layers(batch, learner.teacher, LAYERS, batch_size=4)
    finished = with_augmented(carried, learner.bank, LAYERS, batch_size=4)
    assert list(carried) == ["inputs", "labels", *[f"teacher:{name}" for name in LAYERS]]
    monkeypatch.setattr(learner.teacher, "forward", lambda *_: pytest.fail("the teacher must not run"))
    for cached in (carried, finished):
        for name, value in learner.losses(cached).items():
            torch.testing.assert_close(value, live[name])
    monkeypatch.setattr(learner.bank, "fuse", lambda *_: pytest.fail("the bank must not run on the teacher's layers"))
    learner.losses(finished)


def test_joint_training_does_not_use_finished_tokens():
    learner, batch = distillation(joint=True), random_batch()
    stale = with_layers(batch, learner.teacher, LAYERS).with_(augmented=torch.full((6, 4, 16), 9.0))
    torch.testing.assert_close(learner.augmented_teacher(stale), learner.augmented_teacher(batch))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_phases_change_what_they_should(precision):
    learner = distillation()
    first = PrototypeLearning(learner.bank.requires_grad_(True), learner.model.classifier, learner.teacher, LAYERS)
    teacher, trunk = copy.deepcopy(learner.teacher.state_dict()), copy.deepcopy(learner.model.stages.state_dict())
    start = copy.deepcopy(learner.bank.state_dict())
    budget = Budget(epochs=2, batch_size=3, precision=precision)
    fit(first, random_batch(), budget)
    assert all(not torch.equal(value, start[name]) for name, value in learner.bank.state_dict().items())
    assert all(torch.equal(value, trunk[name]) for name, value in learner.model.stages.state_dict().items())
    learner.bank.requires_grad_(False)
    finished = copy.deepcopy(learner.bank.state_dict())
    fit(learner, random_batch(), budget)
    assert all(torch.equal(value, finished[name]) for name, value in learner.bank.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in learner.teacher.state_dict().items())
    assert not torch.equal(learner.model.stages[0][0].weight, trunk["0.0.weight"])


def test_random_prototypes_stay():
    bank = PrototypeBank([(16, 2, 2)], tokens=4, width=6, prototypes=3, learned=False)
    before = bank.prototypes.clone()
    learner = PrototypeLearning(bank, nn.Linear(6, 5), ConvNet(width=4), ["stages.2"])
    fit(learner, random_batch(), Budget(epochs=2, batch_size=3))
    assert torch.equal(bank.prototypes, before)


@pytest.mark.parametrize(
    ("teacher", "layers"),
    [
        (VisionTransformer(8, 2, width=12, depth=3, heads=2), ["encoder.layers.0", "encoder.layers.1", "encoder"]),
        (ResNet(8, in_channels=1), ["stages.1", "stages.2"]),
    ],
    ids=["ViT", "ResNet"],
)
@pytest.mark.parametrize("student", ["ConvNet", "ViT"])
def test_any_pair_of_networks(teacher, layers, student):
    networks = {
        "ConvNet": (ConvNet(width=4, depth=3, num_classes=5), "stages.2"),
        "ViT": (VisionTransformer(8, 4, width=10, depth=1, heads=2, num_classes=5), "encoder"),
    }
    network, student_layer = networks[student]
    batch = random_batch()
    (own,) = layer_shapes(network, [student_layer], batch.inputs)
    tokens, width = (own[1] * own[2], own[0]) if len(own) == 3 else own
    bank = PrototypeBank(layer_shapes(teacher, layers, batch.inputs), tokens, width, prototypes=3)
    fit(PrototypeLearning(bank, network.classifier, teacher, layers), batch, Budget(epochs=1, batch_size=3))
    learner = PrototypeDistillation(network, bank, teacher, layers, student_layer)
    fit(learner, batch, Budget(epochs=1, batch_size=3))
    found, logits = learner.student_tokens(batch.inputs)
    torch.testing.assert_close(network.classifier(found.mean(dim=1)), logits)  # head of the mean token
    assert learner.augmented_logits(batch.inputs).shape == (6, 5)


def test_mimicry_copies_the_projected_tokens():
    student, teacher = ConvNet(width=4, num_classes=5).double(), ConvNet(width=8).double()
    projector, batch = Projector((16, 2, 2), (32, 2, 2)).double(), random_batch(dtype=torch.float64)
    learner = TokenMimicry(student, teacher, "stages.2", "stages.2", projector, weight=2.0).eval()
    terms = learner.losses(batch)
    (maps, logits), (wanted, _) = student.maps(batch.inputs), teacher.maps(batch.inputs)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, batch.labels))
    torch.testing.assert_close(terms["tokens"], 2 * F.mse_loss(projector(maps[2]), wanted[2]))
    cached = learner.losses(with_layers(batch, teacher, ["stages.2"]))
    torch.testing.assert_close(cached["tokens"], terms["tokens"])
    terms["tokens"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prototype_assignment(torch.zeros(2, 3), torch.zeros(4, 3)), r"tokens must have shape \(B, n, d\)"),
        (lambda: prototype_assignment(torch.zeros(2, 0, 3), torch.zeros(4, 3)), "with at least one token"),
        (lambda: prototype_assignment(torch.zeros(2, 3, 4).long(), torch.zeros(4, 4)), "tokens must be floating point"),
        (lambda: prototype_assignment(torch.full((1, 1, 2), math.nan), torch.zeros(1, 2)), "tokens must be finite"),
        (lambda: prototype_assignment(torch.zeros(2, 3, 4), torch.zeros(4, 3)), r"weight must have shape \(K, 4\)"),
        (lambda: prototype_attention(torch.zeros(2, 3, 4), torch.zeros(0, 4)), "prototypes must have .* one row"),
        (
            lambda: prototype_residuals(torch.zeros(2, 3, 4), torch.zeros(2, 3, 6), torch.zeros(5, 4)),
            r"assignment must have shape \(2, 3, 5\), got \(2, 3, 6\)",
        ),
        (lambda: stacked_residuals(torch.zeros(2, 3)), "residuals must have shape"),
        (lambda: prototype_attention(torch.zeros(2, 3, 4), torch.ones(2, 4), 0.0), "sharpness must be a positive"),
        (lambda: descriptor_cosine_bound(torch.zeros(3)), r"prototypes must have shape \(K, d\)"),
        (
            lambda: feature_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, 4)),
            r"teacher_tokens must have the shape of student_tokens, \(2, 3, 4\), got \(2, 4, 4\)",
        ),
        (lambda: variance_explained(torch.zeros(3, 2), torch.arange(3)), "values must differ somewhere"),
        (lambda: variance_explained(torch.zeros(3), torch.arange(3)), r"values must have shape \(N, p\)"),
        (lambda: variance_explained(torch.rand(3, 2), torch.arange(2)), r"groups must have shape \(3,\)"),
    ],
)
def test_functions_refuse_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prototypes": 0}, "prototypes must be a positive number, got 0"),
        ({"width": 0}, "width must be a positive number"),
        ({"shapes": []}, "shapes must name at least one layer"),
        ({"shapes": [(6, 2, 2)]}, "target must have at most the source's"),
        ({"parts": "all"}, "parts must be one of"),
        ({"start": "normal"}, "start must be one of 'uniform', 'sphere'"),
        ({"sharpness": -1.0}, "sharpness must be a positive number"),
    ],
)
def test_bank_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        PrototypeBank(**({"shapes": [(16, 6)], "tokens": 16, "width": 6} | arguments))


def test_bank_refuses_other_tokens():
    bank = bank_of()
    with pytest.raises(ValueError, match=r"tokens must have shape \(B, 5, 6\), got \(2, 4, 6\)"):
        bank.augment(random_tokens(2, 4, 6))
    with pytest.raises(ValueError, match="layers must be as many as the bank's shapes, 3, got 2"):
        bank(random_layers()[:2])
    with pytest.raises(ValueError, match=r"layers\[2\] must have shape \(B, 5, 6\), got \(2, 5, 7\)"):
        bank([*random_layers()[:2], random_tokens(2, 5, 7)])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"feature_weight": -1.0}, "feature_weight must be a number of at least 0"),
        ({"logit_weight": math.inf}, "logit_weight must be a number of at least 0"),
        ({"augmented_weight": -0.5}, "augmented_weight must be a number of at least 0"),
        ({"route": "both"}, "route must be one of 'teacher', 'student'"),
        ({"head": "classifer"}, "head must be one of .* Did you mean 'classifier'"),
    ],
)
def test_distillation_refuses_what_does_not_fit(choices, message):
    with pytest.raises(ValueError, match=message):
        distillation(**choices)


def test_labels_and_layers_that_do_not_fit_are_refused():
    learner = distillation()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\)"):
        learner.losses(Arrays(inputs=torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 5])))
    with pytest.raises(ValueError, match=r"must carry the teacher's layers \['stages.0'"):
        with_augmented(random_batch(), learner.bank, LAYERS)
    with pytest.raises(ValueError, match="layers must name modules of the model"):
        layer_shapes(ConvNet(4), ["stages.7"], torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match="weight must be a number of at least 0"):
        TokenMimicry(ConvNet(4), ConvNet(8), "stages.2", "stages.2", nn.Identity(), weight=-1.0)


def of_classes(rows: Arrays, classes: range) -> Arrays:
    """The rows of some classes, with labels that count from 0."""
    chosen = rows[(rows.labels >= classes.start) & (rows.labels < classes.stop)]
    return chosen.with_(labels=chosen.labels - classes.start)


def test_both_phases_learn_what_holds_for_unseen_images():
    images = digits(1000)
    layers, own, others = ["stages.0", "stages.1"], range(5), range(5, 10)
    few, test = of_classes(images.train, others).split(100)[0], of_classes(images.test, others)
    with seeded(0):
        teacher = ConvNet(width=16, depth=2, num_classes=5)
        student = ConvNet(width=8, depth=2, num_classes=5)
        student.classifier = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 5))
        bank = PrototypeBank(layer_shapes(teacher, layers, few.inputs[:1]), 16, 16, prototypes=8)
    budget = Budget(steps=100, batch_size=50, optimizer="adam", lr=1e-2)
    fit(Supervised(teacher), of_classes(images.train, own), budget)
    few, test = (with_layers(rows, teacher, layers) for rows in (few, test))
    fit(PrototypeLearning(bank, student.classifier, teacher, layers), few, budget)
    few, test = (with_augmented(rows, bank, layers) for rows in (few, test))
    assert accuracy(student.classifier(test.augmented.mean(dim=1)), test.labels) > 50  # chance is 20

    def trained(weight: float) -> tuple[float, float]:
        """Accuracy on unseen images, and how far the augmented tokens are from the teacher's there."""
        learner = PrototypeDistillation(
            copy.deepcopy(student), bank, teacher, layers, "stages.1", feature_weight=weight
        )
        fit(learner, few, budget)
        with torch.no_grad():
            distance = feature_loss(bank.augment(learner.student_tokens(test.inputs)[0]), test.augmented)
        return accuracy(predict(learner.model, test.inputs), test.labels), float(distance)

    before = accuracy(predict(student, test.inputs), test.labels)  # the first phase has trained its head alone
    (without, apart), (right, near) = trained(weight=0.0), trained(weight=10.0)
    assert near < apart / 3
    assert min(right, without) > before + 20
    assert right > 70
