"""TRG: the graph, its three losses, their limits and symmetries, the schedule, the learner, learning.

No figures computed with published code exist for this paper: no code of its authors is known. The tests hold the
module to closed forms and invariances.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.features.trg import (
    TokenGraphDistillation,
    cache_teacher,
    context,
    contextual_loss,
    global_loss,
    grid_tokens,
    kept_neighbours,
    local_loss,
    median_bandwidth,
    nearest,
    sample_nodes,
    temperature_at,
    token_graph,
)
from kdcore.foundations.kd import distillation_loss
from kdcore.metrics import accuracy
from kdcore.models import ConvNet, VisionTransformer
from kdcore.training import Budget, Supervised, fit, predict, seeded

OFF = {"inner_weight": 0.0, "local_weight": 0.0, "global_weight": 0.0}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width, seed=1):
    return torch.linalg.qr(drawn(width, width, seed=seed)).Q


def graphs(neighbours=4):
    return tuple(token_graph(drawn(30, 5, seed=seed), neighbours, bandwidth=2.0) for seed in (0, 1))


def batch(rows=6):
    return Arrays(
        inputs=torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0)), labels=torch.arange(rows)
    )


def learner(teacher=True, **changed):
    with seeded(0):
        student, large = ConvNet(4, 2), ConvNet(8, 2)
        return TokenGraphDistillation(student, (8, 16), 1.0, teacher=large if teacher else None, **changed)


# Tokens and nodes


def test_tokens_of_unequal_maps_lie_at_the_same_places():
    """A ramp from left to right keeps its order whatever the resolution."""
    for size in (4, 7, 8):
        ramp = torch.linspace(0, 1, size).expand(1, 1, size, size)
        tokens = grid_tokens(ramp, 4).reshape(4, 4)
        assert bool((tokens.diff(dim=1) > 0).all())
        torch.testing.assert_close(tokens, tokens[:1].expand(4, 4))


def test_tokens_of_a_map_and_of_a_transformer():
    maps = drawn(2, 5, 4, 4)
    torch.testing.assert_close(grid_tokens(maps, 4), maps.flatten(2).transpose(1, 2))
    torch.testing.assert_close(grid_tokens(maps.flatten(2).transpose(1, 2), 1)[:, 0], maps.mean(dim=(2, 3)))
    assert grid_tokens(maps.half(), 2).dtype == torch.float32


def test_both_networks_give_nodes_of_the_same_places_without_repetition():
    places = torch.arange(12.0).reshape(3, 4, 1)
    student, teacher = sample_nodes(places, places + 100, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(student + 100, teacher)
    assert student.unique().numel() == 9
    assert torch.equal((student / 4).floor().flatten(), torch.arange(3.0).repeat_interleave(3))


def test_all_places_are_drawn():
    places = torch.arange(4.0).reshape(1, 4, 1)
    assert {int(sample_nodes(places, places, 1)[0]) for _ in range(200)} == {0, 1, 2, 3}


# The graph, equation (1)


def test_graph_by_hand():
    found = token_graph(torch.tensor([[0.0], [1.0], [3.0], [3.5]]), neighbours=2, bandwidth=0.5)
    e = math.exp
    wanted = [[0, e(-1), e(-9), 0], [e(-1), 0, e(-4), 0], [0, e(-4), 0, e(-0.25)], [0, e(-6.25), e(-0.25), 0]]
    torch.testing.assert_close(found, torch.tensor(wanted))


@given(seed=st.integers(0, 10_000), neighbours=st.integers(1, 19))
@settings(max_examples=25, deadline=None)
def test_every_row_has_k_edges_and_none_to_itself(seed, neighbours):
    graph = token_graph(drawn(20, 3, seed=seed), neighbours, bandwidth=2.0)
    assert bool((graph.diagonal() == 0).all())
    assert bool(((graph > 0).sum(dim=1) == neighbours).all())
    assert bool((graph <= 1).all())


def test_neighbours_are_those_of_scikit_learn():
    nodes = drawn(50, 6)
    wanted = NearestNeighbors(n_neighbors=7).fit(nodes.numpy()).kneighbors(return_distance=False)
    np.testing.assert_array_equal(nearest(nodes, 7).numpy(), wanted)


def test_graph_does_not_see_rotation_and_translation():
    nodes = drawn(30, 5)
    moved = nodes @ rotation(5) + drawn(1, 5, seed=3)
    torch.testing.assert_close(token_graph(moved, 4, 2.0), token_graph(nodes, 4, 2.0))


def test_identical_tokens_have_edges_of_weight_one_and_a_finite_gradient():
    nodes = torch.ones(6, 3, requires_grad=True)
    graph = token_graph(nodes, 2, 0.1)
    assert bool((graph.diagonal() == 0).all())
    torch.testing.assert_close(graph[graph > 0].detach(), torch.ones(12))
    graph.sum().backward()
    assert bool(torch.isfinite(nodes.grad).all())


def test_gradient_of_the_graph():
    assert torch.autograd.gradcheck(lambda nodes: token_graph(nodes, 3, 2.0), drawn(9, 3).requires_grad_())


def test_unscaled_features_underflow_and_a_measured_bandwidth_does_not():
    nodes = (1000 * drawn(30, 5)).float().requires_grad_()
    (lost,) = torch.autograd.grad(token_graph(nodes, 4, 1.0).sum(), nodes)
    assert bool((lost == 0).all())
    (kept,) = torch.autograd.grad(token_graph(nodes, 4, median_bandwidth(nodes)).sum(), nodes)
    assert bool((kept != 0).any(dim=1).all())


def test_median_bandwidth_follows_the_scale():
    tokens = drawn(20, 4, 3)
    assert median_bandwidth(3 * tokens) == pytest.approx(9 * median_bandwidth(tokens), rel=1e-9)
    squared = torch.cdist(tokens.flatten(0, 1), tokens.flatten(0, 1)).square()
    assert median_bandwidth(tokens) == pytest.approx(
        squared[~torch.eye(80, dtype=torch.bool)].median().item(), rel=1e-9
    )


# The local loss, equations (2) and (3)


@pytest.mark.parametrize("edges_only", [False, True])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_equal_graphs_have_no_local_loss(direction, edges_only):
    graph = graphs()[0].requires_grad_()
    loss = local_loss(graph, graph.detach(), direction, edges_only)
    (gradient,) = torch.autograd.grad(loss, graph)
    assert abs(loss.item()) < 1e-12
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_local_loss_by_hand(direction):
    student, teacher = graphs()
    rows = [log_softmax(graph.numpy(), axis=1) for graph in (student, teacher)]
    first, second = rows if direction == "reverse" else rows[::-1]
    wanted = (np.exp(first) * (first - second)).sum(axis=1).mean()
    assert local_loss(student, teacher, direction).item() == pytest.approx(wanted, rel=1e-9)


def test_local_loss_over_edges_only_by_hand():
    student = torch.tensor([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0.9], [0, 0, 0.9, 0]], dtype=torch.float64)
    teacher = torch.tensor([[0, 0, 0.7, 0], [0.7, 0, 0, 0], [0, 0, 0, 0.9], [0, 0, 0.9, 0]], dtype=torch.float64)

    def divergence(first, second):
        p, q = (np.exp(row) / np.exp(row).sum() for row in map(np.array, (first, second)))
        return (p * np.log(p / q)).sum()

    wanted = (divergence([0, 0.5, 0], [0, 0, 0.7]) + divergence([0.5, 0], [0.7, 0])) / 4
    assert local_loss(student, teacher, edges_only=True).item() == pytest.approx(wanted, rel=1e-9)


@given(nodes=st.integers(10, 60), neighbours=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_disjoint_neighbourhoods_are_hardly_apart(nodes, neighbours):
    """Equation (3): with full edges to no common neighbour, the whole loss is about 1.7 k/M."""
    number = torch.arange(nodes).unsqueeze(1)
    ones = torch.ones(nodes, neighbours, dtype=torch.float64)
    near, far = (
        torch.zeros(nodes, nodes, dtype=torch.float64).scatter(
            1, (number + start + torch.arange(neighbours)) % nodes, ones
        )
        for start in (1, 1 + neighbours)
    )
    bound = neighbours * (math.e - 1) / (nodes + neighbours * (math.e - 1))
    assert local_loss(near, far).item() == pytest.approx(bound, rel=1e-9)
    apart = local_loss(near, far, edges_only=True).item()
    support = 2 * neighbours + 1
    assert apart == pytest.approx(neighbours * (math.e - 1) / (support + neighbours * (math.e - 1)), rel=1e-9)


def test_edges_only_survives_rows_without_edges():
    student = torch.zeros(4, 4, requires_grad=True)
    loss = local_loss(student, torch.zeros(4, 4), edges_only=True)
    loss.backward()
    assert loss.item() == 0
    assert bool(torch.isfinite(student.grad).all())


# The global loss, equations (4) and (5)


def test_global_loss_by_hand():
    student, teacher = drawn(7, 3), drawn(7, 3, seed=1)
    cosines = F.cosine_similarity(student.unsqueeze(1), teacher.unsqueeze(0), dim=2) / 0.3
    wanted = -log_softmax(cosines.numpy(), axis=1).diagonal().mean()
    assert global_loss(student, teacher, 0.3).item() == pytest.approx(wanted, rel=1e-9)


def test_at_high_temperature_it_is_the_logarithm_of_the_number_of_nodes():
    assert global_loss(drawn(12, 3), drawn(12, 3, seed=1), 1e6).item() == pytest.approx(math.log(12), rel=1e-5)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2.0))
@settings(max_examples=25, deadline=None)
def test_equal_student_tokens_lose_at_least_the_logarithm(seed, temperature):
    """Jensen: with the same row of cosines everywhere, the mean of −log p is at least log M."""
    student = drawn(1, 4, seed=seed).expand(9, 4).clone().requires_grad_()
    loss = global_loss(student, drawn(9, 4, seed=seed + 1), temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() >= math.log(9) - 1e-9
    assert bool(torch.isfinite(gradient).all())


def test_own_features_are_best_at_unit_scale_but_not_free():
    nodes = F.normalize(drawn(10, 20), dim=1)
    own = global_loss(nodes, nodes, 0.1).item()
    others = [global_loss(drawn(10, 20, seed=seed), nodes, 0.1).item() for seed in range(1, 201)]
    assert 0 < own < min(others)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 2.0), noise=st.floats(1e-3, 10.0))
@settings(max_examples=50, deadline=None)
def test_own_features_on_a_simplex_are_the_minimum_but_not_zero(seed, temperature, noise):
    """Directions that sum to zero: −log softmax is then least, by Jensen, where the own cosine is 1."""
    nodes = torch.eye(6, dtype=torch.float64) - 1 / 6
    own = global_loss(nodes, nodes, temperature).item()
    assert own == pytest.approx(math.log1p(5 * math.exp(-6 / 5 / temperature)), rel=1e-6)
    assert own > 0
    assert global_loss(nodes + noise * drawn(6, 6, seed=seed), nodes, temperature).item() >= own - 1e-12


@pytest.mark.parametrize("size", [1, 2, 5])
def test_duplicates_set_a_floor(size):
    """Equation (5), and at the floor the gradient is zero: pulls and pushes of one direction cancel."""
    teacher = torch.eye(6, dtype=torch.float64).repeat_interleave(size, dim=0)
    student = teacher.clone().requires_grad_()
    loss = global_loss(student, teacher, 0.02)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(math.log(size), abs=1e-9)
    assert gradient.abs().max() < 1e-9
    assert global_loss(drawn(6 * size, 6), teacher, 0.02).item() > math.log(size)


# The contextual loss, equation (6)


def test_context_of_nothing_is_uniform_and_rows_sum_to_one():
    torch.testing.assert_close(context(torch.zeros(2, 5, 3)), torch.full((2, 5, 5), 0.2))
    torch.testing.assert_close(context(drawn(2, 5, 3)).sum(dim=2), torch.ones(2, 5, dtype=torch.float64))


def test_context_is_attention_without_projections():
    tokens = drawn(2, 5, 3)
    torch.testing.assert_close(
        context(tokens) @ tokens, F.scaled_dot_product_attention(tokens, tokens, tokens), rtol=1e-9, atol=1e-12
    )


def test_context_does_not_see_rotation_but_sees_translation():
    tokens = drawn(2, 5, 3)
    torch.testing.assert_close(context(tokens @ rotation(3)), context(tokens))
    assert (context(tokens + 1) - context(tokens)).abs().max() > 0.01


def test_contextual_loss_has_a_bound():
    hard = 1000 * torch.eye(4, dtype=torch.float64).unsqueeze(0)
    assert contextual_loss(hard, hard).item() == 0
    assert contextual_loss(torch.zeros_like(hard), hard).item() == pytest.approx(3 / 16)  # (n − 1)/n²
    shifted = 1000 * torch.tensor([[[1.0, 0], [1, 0.0], [0, 1], [0, 1]]], dtype=torch.float64)
    assert contextual_loss(shifted, hard).item() <= 2 / 4


def test_one_token_has_no_context():
    assert contextual_loss(drawn(5, 1, 3), drawn(5, 1, 8, seed=1)).item() == 0


# Symmetries of all


def all_losses(student, teacher, per_row=None):
    """Local, global and contextual loss of tokens (B, n, D), all of them nodes."""
    nodes, others = student.flatten(0, 1), teacher.flatten(0, 1)
    local = local_loss(token_graph(nodes, 4, 2.0), token_graph(others, 4, 2.0))
    return [local.item(), global_loss(nodes, others, 0.3).item(), contextual_loss(student, teacher).item()]


def test_order_of_images_and_of_places_does_not_matter():
    student, teacher = drawn(4, 6, 5), drawn(4, 6, 5, seed=1)
    images, places = torch.randperm(4), torch.randperm(6)
    moved = (part[images][:, places] for part in (student, teacher))
    assert all_losses(*moved) == pytest.approx(all_losses(student, teacher), rel=1e-9)


def test_scale_of_the_student_matters_to_all_but_the_global_loss():
    student, teacher = drawn(4, 6, 5), drawn(4, 6, 5, seed=1)
    before, after = all_losses(student, teacher), all_losses(3 * student, teacher)
    assert after[1] == pytest.approx(before[1], rel=1e-9)
    assert after[0] != pytest.approx(before[0], rel=1e-3)
    assert after[2] != pytest.approx(before[2], rel=1e-3)


def test_the_teachers_own_features_leave_the_global_loss_alone():
    tokens = drawn(4, 6, 5)
    found = all_losses(tokens, tokens)
    assert found[0] == pytest.approx(0, abs=1e-12)
    assert found[2] == 0
    assert found[1] > 0


@pytest.mark.parametrize("loss", [0, 1, 2])
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = drawn(2, 6, 5).requires_grad_(), drawn(2, 6, 5, seed=1).requires_grad_()
    nodes, others = student.flatten(0, 1), teacher.flatten(0, 1)
    [
        lambda: local_loss(token_graph(nodes, 3, 2.0), token_graph(others, 3, 2.0)),
        lambda: global_loss(nodes, others, 0.3),
        lambda: contextual_loss(student, teacher),
    ][loss]().backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_kept_neighbours():
    nodes = drawn(200, 4)
    assert kept_neighbours(3 * nodes @ rotation(4), nodes, 5) == 100
    assert kept_neighbours(drawn(200, 4, seed=9), nodes, 20) == pytest.approx(100 * 20 / 199, abs=3)


# Equation (7)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule_runs_from_start_to_end(schedule):
    values = [temperature_at(u / 10, 2.0, 0.2, schedule) for u in range(11)]
    assert (values[0], values[-1]) == (pytest.approx(2.0), pytest.approx(0.2))
    assert values[5] == pytest.approx(1.1)
    assert all(np.diff(values) < 0)


def test_constant_schedule_stays_at_the_end():
    assert {temperature_at(u, 2.0, 0.2, "constant") for u in (0.0, 0.3, 1.0)} == {0.2}


def test_the_learner_follows_the_schedule():
    method = learner()
    assert method.node_temperature == 1.0
    method.on_step(1.0)
    assert method.node_temperature == pytest.approx(0.1)


# The learner


@pytest.mark.parametrize("term", ["inner", "local", "global"])
def test_a_weight_of_zero_takes_its_term_out(term):
    names = list(learner(**{f"{term}_weight": 0.0}).losses(batch()))
    assert names == [name for name in ("cross_entropy", "distillation", "inner", "local", "global") if name != term]


def test_terms_are_those_of_the_functions():
    with seeded(0):  # wide enough for no cell to be dead: two at one place would be a tie between neighbours
        student, teacher = ConvNet(16, 2), ConvNet(24, 2)
        weights = {"inner_weight": 2.0, "local_weight": 3.0, "global_weight": 4.0}
        method = TokenGraphDistillation(student, (32, 48), 1.0, teacher=teacher, per_image=16, **weights)
    method = method.double().eval()
    rows = batch().with_(inputs=batch().inputs.double())
    terms = method.losses(rows)
    maps, logits = method.model.maps(rows.inputs)
    teacher_maps, teacher_logits = method.teacher.maps(rows.inputs)
    ours, theirs = (part[1].flatten(2).transpose(1, 2) for part in (maps, teacher_maps))
    nodes, others = ours.flatten(0, 1), theirs.flatten(0, 1)
    assert all(len(part.unique(dim=0)) == len(part) for part in (nodes, others))
    wanted = {
        "cross_entropy": F.cross_entropy(logits, rows.labels),
        "distillation": distillation_loss(logits, teacher_logits, 4.0),
        "inner": 2 * contextual_loss(ours, theirs),
        "local": 3 * local_loss(token_graph(nodes, 8, 1.0), token_graph(others, 8, 1.0)),
        "global": 4 * global_loss(method.projection(nodes), others, 1.0),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-6, atol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_without_its_terms_it_is_plain_distillation():
    method, rows = learner(**OFF), batch()
    terms = method.losses(rows)
    logits, teacher_logits = method.model(rows.inputs), method.teacher(rows.inputs)
    assert list(terms) == ["cross_entropy", "distillation"]
    torch.testing.assert_close(terms["distillation"], distillation_loss(logits, teacher_logits, 4.0))


def test_cached_teacher_says_the_same():
    method, rows = learner(), batch()
    cached = cache_teacher(rows, method.teacher, "stages.1", side=4)
    told = []
    for one in (rows, cached):
        torch.manual_seed(0)
        told.append(method.losses(one))
    for name in told[0]:
        torch.testing.assert_close(told[0][name], told[1][name])
    assert list(learner(teacher=False).losses(cached)) == list(told[0])


def test_whole_images_as_nodes_have_no_context():
    terms = learner(side=1, per_image=1, neighbours=3).losses(batch())
    assert terms["inner"].item() == 0
    assert terms["local"].item() > 0


def test_networks_of_other_kinds_and_resolutions():
    """A transformer's patches under a convolutional teacher of another resolution."""
    student = VisionTransformer(image_size=8, patch_size=2, width=8, depth=1, heads=2)
    teacher = ConvNet(8, 1)
    method = TokenGraphDistillation(student, (8, 8), 1.0, ("encoder", "stages.0"), teacher=teacher, neighbours=3)
    terms = method.losses(batch())
    sum(terms.values()).backward()
    assert all(math.isfinite(value.item()) for value in terms.values())
    assert method.projection.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    "value",
    [
        lambda a, b: token_graph(a, 4, 2.0),
        lambda a, b: local_loss(token_graph(a, 4, 2.0), token_graph(b, 4, 2.0)),
        lambda a, b: global_loss(a, b, 0.1),
        lambda a, b: context(a.view(2, 15, 6)),
        lambda a, b: torch.tensor([median_bandwidth(a), kept_neighbours(a, b, 4)]),
    ],
    ids=["graph", "local", "global", "context", "measurements"],
)
def test_autocast_leaves_graph_and_losses_in_full_precision(value):
    student, teacher = drawn(30, 6).float(), drawn(30, 6, seed=1).float()
    wanted = value(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_half_precision():
    method = learner()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.losses(batch())
    assert all(math.isfinite(value.item()) for value in terms.values())


def test_learns_the_teachers_neighbourhoods():
    """On digits, in a few seconds: better than plain training, and more of the teacher's neighbours than KD keeps."""
    images = digits(train_size=400)
    with seeded(0):
        teacher = ConvNet(12, 2, convolutions=2)
    fit(Supervised(teacher), images.train, Budget(steps=150, batch_size=32, lr=0.4, warmup=0.1), seed=0)
    cached = cache_teacher(images.train, teacher.requires_grad_(False), "stages.1", side=4)
    probe = images.test[:60]
    wanted = grid_tokens(teacher.maps(probe.inputs)[0][1], 4).flatten(0, 1)
    found = {}
    for arm, weights in {"KD": OFF, "TRG": {"inner_weight": 1.0, "local_weight": 400.0, "global_weight": 1.0}}.items():
        with seeded(1):
            student = ConvNet(6, 2, convolutions=2)  # sees as much of the image as its teacher
            method = TokenGraphDistillation(student, (12, 24), median_bandwidth(cached.teacher_tokens), **weights)
        fit(method, cached, Budget(steps=150, batch_size=32, lr=0.3, warmup=0.2, max_grad_norm=2.0), seed=0)
        tokens = method.student_tokens(probe.inputs)[0].flatten(0, 1)
        reached = accuracy(predict(student, images.test.inputs), images.test.labels)
        found[arm] = reached, kept_neighbours(tokens, wanted, 8)

    assert found["TRG"][0] > 80
    assert found["TRG"][1] > found["KD"][1] + 2


# Bad input

NODES, TOKENS, GRAPH = torch.rand(6, 4), torch.rand(2, 4, 3), torch.rand(6, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_tokens(NODES[0], 2), r"tokens must have shape \(B, n, d\)"),
        (lambda: grid_tokens(torch.rand(2, 5, 3), 2), "n a square number"),
        (lambda: grid_tokens(torch.rand(2, 3, 4, 4), 5), r"side must be at most .* \(4, 4\), got 5"),
        (lambda: grid_tokens(TOKENS, 0), "side must be at least 1, got 0"),
        (lambda: sample_nodes(TOKENS, TOKENS[:1], 2), "teacher_tokens must have the images and places"),
        (lambda: sample_nodes(TOKENS, TOKENS, 5), r"per_image must lie in \[1, 4\], got 5"),
        (lambda: sample_nodes(NODES, NODES, 1), r"student_tokens must have shape \(B, n, D\), got \(6, 4\)"),
        (lambda: nearest(NODES, 6), r"neighbours must lie in \[1, 5\] for 6 nodes, got 6"),
        (lambda: nearest(NODES[:1], 1), "at least two rows"),
        (lambda: token_graph(NODES, 0, 1.0), r"neighbours must lie in \[1, 5\]"),
        (lambda: token_graph(NODES, 2, 0.0), "bandwidth must be a positive number, got 0.0"),
        (lambda: token_graph(NODES / 0, 2, 1.0), "nodes must be finite"),
        (lambda: local_loss(GRAPH[:5], GRAPH), "student_graph must be a square matrix"),
        (lambda: local_loss(GRAPH, GRAPH[:5, :5]), "teacher_graph must be a square matrix, as large as the other"),
        (lambda: local_loss(GRAPH, GRAPH, "backward"), "direction must be one of 'reverse', 'forward'"),
        (lambda: local_loss(GRAPH, GRAPH / 0), "teacher_graph must be finite"),
        (lambda: global_loss(NODES, NODES[:5], 1.0), r"must have one shape \(M, D\), got \(6, 4\) and \(5, 4\)"),
        (lambda: global_loss(NODES, NODES, 0.0), "temperature must be a positive number"),
        (lambda: global_loss(NODES / 0, NODES, 1.0), "projected_nodes must be finite"),
        (lambda: context(NODES), r"tokens must have shape \(B, n, D\), got \(6, 4\)"),
        (lambda: contextual_loss(TOKENS, TOKENS[:, :3]), "teacher_tokens must have the images and places"),
        (lambda: contextual_loss(TOKENS / 0, TOKENS), "tokens must be finite"),
        (lambda: temperature_at(1.5), r"progress must lie in \[0, 1\], got 1.5"),
        (lambda: temperature_at(0.5, start=0.0), "start must be a positive number"),
        (lambda: temperature_at(0.5, schedule="cos"), "schedule must be one of .* Did you mean"),
        (lambda: median_bandwidth(torch.ones(9, 2)), "tokens must differ"),
        (lambda: median_bandwidth(torch.ones(9)), "tokens must have shape"),
        (lambda: median_bandwidth(NODES, rows=0), "rows must be a positive number"),
        (lambda: kept_neighbours(NODES, NODES[:5], 2), "both must have as many nodes, got 6 and 5"),
        (lambda: learner(inner_weight=-1.0), "inner_weight must be a number of at least 0"),
        (lambda: learner(local_weight=math.nan), "local_weight must be a number of at least 0"),
        (lambda: learner(per_image=17), "per_image must be at most side² = 16, got 17"),
        (lambda: learner(neighbours=0), "neighbours must be a positive number"),
        (lambda: learner(node_temperatures=(0.0, 0.1)), "start must be a positive number"),
        (lambda: learner(schedule="step"), "schedule must be one of"),
        (lambda: learner(direction="both"), "direction must be one of"),
        (lambda: learner(temperature=0.0), "temperature must be a positive number"),
        (lambda: learner(layers=("stages.9", "stages.1")).losses(batch()), "layers must name modules of the model"),
        (lambda: learner(teacher=False).losses(batch()), "needs a teacher, or data with its outputs"),
        (lambda: learner(neighbours=8).losses(batch()[:1]), r"neighbours must lie in \[1, 7\] for 8 nodes"),
        (lambda: cache_teacher(batch(), nn.Linear(1, 1), "head", 4), "layers must name modules"),
    ],
)  # fmt: skip
def test_rejects_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
