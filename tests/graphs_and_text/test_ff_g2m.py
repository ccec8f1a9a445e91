"""FF-G2M: published figures, closed forms, the graph's spectrum, metrics, the learners."""

from __future__ import annotations

import functools
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from torch.nn import functional as F

from kdcore.data.graphs import GraphData, digits_graph
from kdcore.graphs_and_text.ff_g2m import (
    GraphDistillation,
    GraphTeacher,
    add_self_loops,
    difference_log_probabilities,
    full_batch,
    high_frequency_distance,
    high_frequency_loss,
    high_pass,
    label_loss,
    laplacian_spectrum,
    low_frequency_cosine,
    low_frequency_loss,
    low_pass,
    neighbour_cross_entropy,
    neighbour_targets,
    node_distillation_loss,
    spectral_energy,
    undirected_edges,
)
from kdcore.metrics import accuracy
from kdcore.models import MLP, GraphNetwork
from kdcore.training import Budget, EarlyStopping, fit, predict

DOUBLE = torch.float64
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


def close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, expected, **tolerance)


def edges_of(graph: nx.Graph) -> torch.Tensor:
    pairs = torch.tensor([pair for a, b in graph.edges for pair in ((a, b), (b, a))], dtype=torch.long)
    return pairs.reshape(-1, 2).T.contiguous()


def draw(seed: int, nodes: int = 7, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher logits, and a random connected graph's edges."""
    torch.manual_seed(seed)
    graph = nx.connected_watts_strogatz_graph(nodes, 3, 0.5, seed=seed)
    graph.add_edge(0, nodes - 1)
    student, teacher = 2 * torch.randn(2, nodes, classes, dtype=DOUBLE)
    return student.requires_grad_(), teacher, edges_of(graph)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


# --- published figures --------------------------------------------------------------------------------------------


def published(case: dict) -> dict[str, torch.Tensor]:
    inputs, temperature, weight = case["inputs"], case["hyperparameters"]["tau"], case["hyperparameters"]["lamb"]
    student = torch.tensor(inputs["student_logits"], dtype=DOUBLE, requires_grad=True)
    teacher = torch.tensor(inputs["teacher_logits"], dtype=DOUBLE)
    labels, labelled = torch.tensor(inputs["labels"]), torch.tensor(inputs["train_idx"])
    edges, with_loops = torch.tensor(inputs["edges_without_loops"]), torch.tensor(inputs["edges_with_loops"])
    losses = {
        "label": label_loss(student, labels, labelled),
        "glnn": node_distillation_loss(student, teacher),
        "lfd": low_frequency_loss(student, teacher, with_loops),
        "hfd": high_frequency_loss(student, teacher, edges, temperature),
    }
    graph = GraphData(student, labels, edges, labelled, labelled, labelled)
    computed = {f"loss_{name}": loss for name, loss in losses.items()}
    for mode in ("mlp", "glnn", "lfd", "hfd", "ff_g2m"):  # the learner, with the logits as its features
        learner = GraphDistillation(torch.nn.Identity(), graph, teacher, mode, temperature, weight)
        total = sum(learner.losses(full_batch(graph)).values())
        computed[f"total_{mode.replace('_', '')}"] = total
        computed[f"grad_{mode.replace('_', '')}"] = gradient(total, student)
    return computed


@pytest.mark.parametrize("case", reference_cases("ff-g2m"))
def test_matches_published_figures(case):
    computed = published(case)
    assert_published(computed, case)


# --- low frequencies ----------------------------------------------------------------------------------------------


@few
@given(seeds)
def test_low_frequency_loss_is_the_obvious_loop_and_equals_the_precomputed_form(seed):
    student, teacher, edges = draw(seed)
    with_loops = add_self_loops(edges, 7)
    p_student, p_teacher = student.softmax(1), teacher.softmax(1)
    pairs = with_loops.T.tolist()
    expected = sum((p_teacher[j] * (p_teacher[j] / p_student[i]).log()).sum() for i, j in pairs) / len(pairs)
    by_edge = low_frequency_loss(student, teacher, with_loops)
    by_node = neighbour_cross_entropy(student, neighbour_targets(teacher, with_loops))
    close(by_edge, expected)
    close(by_node, expected)
    close(gradient(by_edge, student), gradient(by_node, student))


@few
@given(seeds)
def test_order_and_direction_of_edges_do_not_matter(seed):
    student, teacher, edges = draw(seed)
    shuffled = edges.flip(0)[:, torch.randperm(edges.shape[1])]
    close(
        low_frequency_loss(student, teacher, add_self_loops(edges, 7)),
        low_frequency_loss(student, teacher, add_self_loops(shuffled, 7)),
    )
    both = high_frequency_loss(student, teacher, edges)
    close(high_frequency_loss(student, teacher, shuffled), both)
    close(high_frequency_loss(student, teacher, undirected_edges(edges, 7)), both)


def test_with_self_loops_alone_low_frequency_loss_is_node_distillation():
    student, teacher, _ = draw(0)
    loops = add_self_loops(torch.empty(2, 0, dtype=torch.long), 7)
    expected = node_distillation_loss(student, teacher)
    close(low_frequency_loss(student, teacher, loops), expected)
    close(neighbour_cross_entropy(student, neighbour_targets(teacher, loops)), expected)


def test_a_perfect_copy_costs_nothing_but_the_disagreement_of_neighbours():
    _, teacher, edges = draw(1)
    with_loops = add_self_loops(edges, 7)
    assert float(node_distillation_loss(teacher, teacher)) == 0
    assert float(high_frequency_loss(teacher, teacher, edges)) == 0
    assert float(low_frequency_loss(teacher, teacher, with_loops)) > 0.1
    shared = teacher[:1] + torch.randn(7, 1, dtype=DOUBLE)  # one distribution, whatever constant each node adds
    assert abs(float(low_frequency_loss(shared, shared, with_loops))) < 1e-12


def test_targets_are_one_joint_distribution_and_the_best_student_is_their_rowwise_normalisation():
    _, teacher, edges = draw(2)
    with_loops = add_self_loops(edges, 7)
    targets = neighbour_targets(teacher, with_loops)
    close(targets.probabilities.sum(), torch.tensor(1.0, dtype=DOUBLE))
    degrees = torch.bincount(with_loops[0]).to(DOUBLE)
    close(targets.probabilities.sum(1), degrees / with_loops.shape[1])
    best = targets.probabilities.log().requires_grad_()
    assert float(gradient(neighbour_cross_entropy(best, targets), best).abs().max()) < 1e-12


@few
@given(seeds)
def test_gradients_over_classes_sum_to_zero(seed):
    student, teacher, edges = draw(seed)
    for loss in (
        node_distillation_loss(student, teacher),
        low_frequency_loss(student, teacher, add_self_loops(edges, 7)),
    ):
        close(gradient(loss, student).sum(1), torch.zeros(7, dtype=DOUBLE))


# --- high frequencies ---------------------------------------------------------------------------------------------


@few
@given(seeds, st.floats(0.5, 4.0))
def test_high_frequency_loss_is_the_obvious_loop(seed, temperature):
    student, teacher, edges = draw(seed)
    expected = 0.0
    for i, j in edges.T.tolist():
        q_teacher = ((teacher[i] - teacher[j]).abs() / temperature).softmax(0)
        q_student = ((student[i] - student[j]).abs() / temperature).softmax(0)
        expected += (q_teacher * (q_teacher / q_student).log()).sum() / edges.shape[1]
    close(high_frequency_loss(student, teacher, edges, temperature), expected)


@few
@given(seeds)
def test_high_frequency_loss_forgets_the_sign_and_common_shifts(seed):
    student, teacher, edges = draw(seed)
    loss = high_frequency_loss(student, teacher, edges)
    close(high_frequency_loss(-student, teacher, edges), loss)
    close(high_frequency_loss(student + 3, teacher, edges), loss)
    close(high_frequency_loss(student + torch.randn(1, 4, dtype=DOUBLE), teacher, edges), loss)


def test_high_frequency_loss_has_no_gradient_where_neighbours_agree():
    _, teacher, edges = draw(3)
    same = torch.ones(7, 4, dtype=DOUBLE, requires_grad=True)
    loss = high_frequency_loss(same, teacher, edges)
    assert float(loss.detach()) > 0.01
    assert torch.equal(gradient(loss, same), torch.zeros_like(same))


def test_high_frequency_loss_vanishes_at_high_temperature_as_its_inverse_square():
    student, teacher, edges = draw(4)
    losses = [float(high_frequency_loss(student, teacher, edges, temperature).detach()) for temperature in (1e3, 1e4)]
    assert losses[0] < 1e-4
    assert losses[0] / losses[1] == pytest.approx(100, rel=0.01)


def test_difference_distribution_has_the_closed_form_of_two_classes():
    logits = torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=DOUBLE)
    q = difference_log_probabilities(logits, torch.tensor([[0], [1]]), temperature=2.0).exp()
    close(q[0, 0], torch.sigmoid(torch.tensor(1.0, dtype=DOUBLE)))  # |3| − |−1| over 2


# --- the graph's frequencies --------------------------------------------------------------------------------------


KARATE = nx.karate_club_graph()


def test_the_two_parts_add_up_and_filter_by_eigenvalue():
    edges, signal = edges_of(KARATE), torch.randn(34, 3, dtype=DOUBLE)
    values, vectors = laplacian_spectrum(edges, 34)
    close(low_pass(signal, edges) + high_pass(signal, edges), signal)
    close(vectors.T @ low_pass(signal, edges), (1 - values / 2)[:, None] * (vectors.T @ signal))
    close(vectors.T @ high_pass(signal, edges), (values / 2)[:, None] * (vectors.T @ signal))


def test_spectrum_is_that_of_networkx():
    values, vectors = laplacian_spectrum(edges_of(KARATE), 34)
    expected = np.sort(nx.normalized_laplacian_spectrum(KARATE, weight=None))
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)
    close(vectors.T @ vectors, torch.eye(34, dtype=DOUBLE))


def test_a_smooth_signal_has_all_its_energy_at_frequency_zero_and_an_alternating_one_at_two():
    ring = edges_of(nx.cycle_graph(8))
    _, vectors = laplacian_spectrum(ring, 8)
    alternating = torch.tensor([1.0, -1.0] * 4)[:, None]
    smooth = spectral_energy(torch.ones(8, 1), vectors)
    rough = spectral_energy(alternating, vectors)
    close(smooth, torch.tensor([8.0, *[0.0] * 7], dtype=DOUBLE))
    close(rough, torch.tensor([*[0.0] * 7, 8.0], dtype=DOUBLE))
    close(high_pass(alternating, ring), alternating)
    close(low_pass(alternating, ring), torch.zeros(8, 1), rtol=0, atol=1e-6)


@few
@given(seeds)
def test_energy_is_conserved(seed):
    signal, _, edges = draw(seed)
    energy = spectral_energy(signal.detach(), laplacian_spectrum(edges, 7)[1])
    assert bool((energy >= 0).all())
    close(energy.sum(), signal.detach().square().sum())


def test_a_node_without_neighbours_keeps_half_in_each_part():
    signal = torch.tensor([[1.0], [3.0], [5.0]])
    pair = torch.tensor([[0, 1], [1, 0]])
    close(low_pass(signal, pair), torch.tensor([[2.0], [2.0], [2.5]]))
    close(high_pass(signal, pair), torch.tensor([[-1.0], [1.0], [2.5]]))


# --- what a student has taken over --------------------------------------------------------------------------------


def test_metrics_of_a_copy_and_of_its_opposite():
    _, teacher, edges = draw(5)
    one = torch.tensor(1.0, dtype=DOUBLE)
    close(low_frequency_cosine(teacher, teacher, edges), one)
    close(low_frequency_cosine(-2 * teacher, teacher, edges), -one)
    assert float(high_frequency_distance(-teacher, teacher, edges)) < 1e-12
    shifted = teacher + torch.randn(7, 1, dtype=DOUBLE)  # the same predictions
    assert float(high_frequency_distance(shifted, teacher, edges)) < 1e-12
    close(
        high_frequency_distance(0 * teacher, 2 * teacher, edges),
        2 * high_frequency_distance(0 * teacher, teacher, edges),
    )


@few
@given(seeds)
def test_metrics_are_the_obvious_loops(seed):
    student, teacher, edges = draw(seed)
    neighbours = {i: [b for a, b in edges.T.tolist() if a == i] for i in range(7)}
    means = [torch.stack([z[neighbours[i]].mean(0) for i in range(7)]) for z in (student, teacher)]
    close(low_frequency_cosine(student, teacher, edges), F.cosine_similarity(*means).mean())
    centred = [z - z.mean(1, keepdim=True) for z in (student, teacher)]
    sizes = [torch.stack([(z[i] - z[j]).abs() for i, j in edges.T.tolist()]) for z in centred]
    distances = torch.stack([(a - b).norm() for a, b in zip(*sizes, strict=True)])
    close(high_frequency_distance(student, teacher, edges), distances.mean())


def test_nodes_without_neighbours_do_not_count_in_the_cosine():
    student, teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [9.0, -9.0]]), torch.tensor([[1.0, 0.0]] * 3)
    close(low_frequency_cosine(student, teacher, torch.tensor([[0, 1], [1, 0]])), torch.tensor(1.0))


# --- the learners -------------------------------------------------------------------------------------------------


@functools.cache
def digits() -> GraphData:
    return digits_graph()


def small_graph() -> GraphData:
    _, _, edges = draw(6, nodes=9, classes=3)
    labels, nodes = torch.arange(9) % 3, torch.arange(9)
    return GraphData(torch.randn(9, 5), labels, edges, nodes[:3], nodes[3:6], nodes[6:])


def student_of(graph: GraphData, **options) -> GraphDistillation:
    torch.manual_seed(0)
    classes = graph.num_classes
    model = MLP(graph.features.shape[1], (16,), classes, dropout=0.5)
    return GraphDistillation(model, graph, torch.randn(len(graph.features), classes), **options)


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("mlp", ["label"]),
        ("glnn", ["label", "node"]),
        ("lfd", ["label", "low_frequency"]),
        ("hfd", ["label", "high_frequency"]),
        ("ff_g2m", ["label", "low_frequency", "high_frequency"]),
    ],
)
def test_terms_of_each_mode_are_the_functions_weighted(mode, names):
    graph = small_graph()
    learner = student_of(graph, mode=mode, temperature=1.2, label_weight=0.3).eval()
    logits, teacher = learner.model(graph.features), learner.teacher_logits
    functions = {
        "label": (1.0 if mode == "mlp" else 0.3) * label_loss(logits, graph.labels, graph.train),
        "node": 0.7 * node_distillation_loss(logits, teacher),
        "low_frequency": 0.7 * low_frequency_loss(logits, teacher, add_self_loops(graph.edges, 9)),
        "high_frequency": 0.7 * high_frequency_loss(logits, teacher, graph.edges, 1.2),
    }
    terms = learner.losses(full_batch(graph))
    assert list(terms) == names
    for name, term in terms.items():
        close(term, functions[name])


def test_full_label_weight_is_plain_cross_entropy():
    graph = small_graph()
    learner = student_of(graph, label_weight=1.0).eval()
    total = sum(learner.losses(full_batch(graph)).values())
    expected = F.cross_entropy(learner.model(graph.features)[graph.train], graph.labels[graph.train])
    for got, want in zip(
        torch.autograd.grad(total, [*learner.parameters()]),
        torch.autograd.grad(expected, [*learner.parameters()]),
        strict=True,
    ):
        close(got, want)


def test_no_gradient_reaches_the_teacher_and_only_the_student_is_trained():
    graph = small_graph()
    teacher = torch.randn(9, 3, requires_grad=True)
    learner = GraphDistillation(MLP(5, (8,), 3), graph, teacher)
    sum(learner.losses(full_batch(graph)).values()).backward()
    assert teacher.grad is None
    student = 2 * torch.randn(9, 3)
    for loss in (
        node_distillation_loss(student.requires_grad_(), teacher),
        high_frequency_loss(student, teacher, graph.edges),
        low_frequency_loss(student, teacher, add_self_loops(graph.edges, 9)),
        neighbour_cross_entropy(student, neighbour_targets(teacher, add_self_loops(graph.edges, 9))),
    ):
        assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None
    assert {name.split(".")[0] for name, _ in learner.named_parameters()} == {"model"}
    assert all(name.startswith("model.") for name in learner.state_dict())


def test_labels_of_unlabelled_nodes_are_never_used():
    graph = small_graph()
    hidden = graph.labels.clone()
    hidden[3:] = (hidden[3:] + 1) % 3
    first, second = (student_of(g).eval().losses(full_batch(graph)) for g in (graph, replace(graph, labels=hidden)))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(0)
    teacher = GraphTeacher(GraphNetwork("gcn", 5, 8, 3), graph).eval()
    blind = GraphTeacher(teacher.model, replace(graph, labels=hidden))
    assert torch.equal(teacher.losses(None)["label"], blind.losses(None)["label"])


def test_dropout_is_on_in_training_and_the_teacher_reports_evaluation_mode():
    graph = small_graph()
    learner = student_of(graph).train()
    first, second = (learner.losses(full_batch(graph))["low_frequency"].detach() for _ in range(2))
    assert not torch.equal(first, second)
    teacher = GraphTeacher(GraphNetwork("gcn", 5, 8, 3), graph).train()
    assert torch.equal(teacher.logits(), teacher.logits())
    assert teacher.training
    assert not teacher.logits().requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_both_precisions_work(dtype):
    student, teacher, edges = draw(8)
    student, teacher = student.detach().to(dtype), teacher.to(dtype)
    with_loops = add_self_loops(edges, 7)
    for value in (
        low_frequency_loss(student, teacher, with_loops),
        neighbour_cross_entropy(student, neighbour_targets(teacher, with_loops)),
        high_frequency_loss(student, teacher, edges),
        low_frequency_cosine(student, teacher, edges),
        high_frequency_distance(student, teacher, edges),
        low_pass(student, edges).sum(),
    ):
        assert value.dtype == dtype
        assert bool(torch.isfinite(value))


# --- bad input ----------------------------------------------------------------------------------------------------


Z, PAIR = torch.zeros(3, 2), torch.tensor([[0, 1], [1, 0]])
NONE = torch.empty(2, 0, dtype=torch.long)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (undirected_edges, (NONE, 3), "edges must hold at least one edge"),
        (undirected_edges, (PAIR.float(), 3), r"edges must be int64 of shape \(2, E\)"),
        (undirected_edges, (torch.zeros(3, 2, dtype=torch.long), 3), r"of shape \(2, E\), got torch.int64 \(3, 2\)"),
        (undirected_edges, (torch.tensor([[0], [1]]), 3), "both directions of every edge, got 1"),
        (undirected_edges, (torch.tensor([[1], [1]]), 3), "edges must not hold self loops, got 1"),
        (undirected_edges, (PAIR, 1), r"edges must lie in \[0, 1\), got node numbers from 0 to 1"),
        (undirected_edges, (-PAIR, 3), r"edges must lie in \[0, 3\), got node numbers from -1 to 0"),
        (add_self_loops, (torch.tensor([[1], [1]]), 3), "edges must not hold self loops"),
        (low_pass, (torch.zeros(3), PAIR), r"signal must have shape \(N, F\)"),
        (high_pass, (torch.full((3, 2), torch.nan), PAIR), "signal must be finite"),
        (label_loss, (Z, torch.tensor([0, 1, 2]), torch.tensor([0])), r"labels must lie in \[0, 2\)"),
        (label_loss, (Z, torch.tensor([0, 1, 1]), torch.tensor([3])), r"labelled must lie in \[0, 3\)"),
        (label_loss, (Z, torch.tensor([0, 1, 1]), NONE[0]), r"labelled must have shape \(L,\) with L >= 1"),
        (node_distillation_loss, (Z, Z[:2]), "teacher_logits must have the shape of student_logits"),
        (low_frequency_loss, (Z, Z, PAIR), "one self loop for each of 3 nodes, got 0"),
        (low_frequency_loss, (Z, Z, NONE), "edges_with_loops must hold at least one edge"),
        (low_frequency_loss, (Z, Z[:, :1], add_self_loops(PAIR, 3)), r"teacher_logits must have shape \(B, C\)"),
        (low_frequency_loss, (Z, Z, add_self_loops(PAIR[:, :1], 3)), "edges_with_loops must list both directions"),
        (neighbour_targets, (Z, torch.cat([add_self_loops(PAIR, 3)] * 2, dim=1)), "one self loop for each of 3 nodes"),
        (neighbour_targets, (Z / 0, add_self_loops(PAIR, 3)), "teacher_logits must be finite"),
        (
            neighbour_cross_entropy,
            (Z[:2], neighbour_targets(Z, add_self_loops(PAIR, 3))),
            "targets must have the shape",
        ),
        (high_frequency_loss, (Z, Z, PAIR, 0.0), "temperature must be a positive number, got 0.0"),
        (high_frequency_loss, (Z, Z, NONE), "edges must hold at least one edge"),
        (high_frequency_loss, (Z, Z, PAIR + 2), r"edges must lie in \[0, 3\)"),
        (high_frequency_loss, (Z, Z, add_self_loops(PAIR, 3)), "edges must not hold self loops, got 3"),
        (high_frequency_loss, (Z, Z / 0, PAIR), "teacher_logits must be finite"),
        (difference_log_probabilities, (Z, PAIR, -1.0), "temperature must be a positive number"),
        (low_frequency_cosine, (Z, Z, torch.tensor([[0], [1]])), "both directions of every edge"),
        (high_frequency_distance, (Z, Z, add_self_loops(PAIR, 3)), "edges must not hold self loops"),
        (laplacian_spectrum, (torch.tensor([[0], [1]]), 2), "both directions of every edge"),
        (spectral_energy, (Z, torch.eye(2)), r"signal must have shape \(N, F\) and eigenvectors \(N, N\)"),
        (spectral_energy, (Z / 0, torch.eye(3)), "signal must be finite"),
    ],
)
def test_functions_refuse_bad_input(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "lfdd"}, "Did you mean 'lfd'"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"label_weight": 1.5}, r"label_weight must lie in \[0, 1\]"),
        ({"teacher_logits": torch.zeros(4, 3)}, "teacher_logits must have a row for each of 9 nodes, got 4"),
    ],
)
def test_learner_refuses_bad_arguments(changes, message):
    arguments = {"student": MLP(5, (8,), 3), "graph": small_graph(), "teacher_logits": torch.zeros(9, 3)}
    with pytest.raises(ValueError, match=message):
        GraphDistillation(**(arguments | changes))


def test_learners_refuse_a_directed_graph():
    graph = small_graph()
    directed = replace(graph, edges=graph.edges[:, graph.edges[0] < graph.edges[1]])
    with pytest.raises(ValueError, match="both directions of every edge"):
        GraphDistillation(MLP(5, (8,), 3), directed, torch.zeros(9, 3))
    with pytest.raises(ValueError, match="both directions of every edge"):
        GraphTeacher(GraphNetwork("gcn", 5, 8, 3), directed)


# --- learning -----------------------------------------------------------------------------------------------------


FULL_BATCH = Budget(epochs=60, optimizer="adam", lr=0.01, weight_decay=5e-4, schedule="constant")


def train_student(mode: str, teacher_logits: torch.Tensor) -> tuple[MLP, list[float]]:
    graph = digits()
    torch.manual_seed(0)
    model = MLP(64, (64,), 10, dropout=0.3)

    def evaluate():
        logits = model(graph.features[graph.validation]).detach()
        return {"validation": accuracy(logits, graph.labels[graph.validation])}

    learner = GraphDistillation(model, graph, teacher_logits, mode, label_weight=0.1)
    rule = EarlyStopping("validation", patience=10)
    history = fit(learner, full_batch(graph), FULL_BATCH, evaluate=evaluate, stopping=rule)
    return model, history.epochs["validation"].tolist()


def test_the_graph_teaches_an_mlp_that_does_not_see_it():
    graph = digits()
    torch.manual_seed(0)
    teacher = GraphTeacher(GraphNetwork("gcn", 64, 64, 10, dropout=0.3), graph)
    fit(teacher, full_batch(graph), FULL_BATCH)
    target, scores, models = graph.labels[graph.test], {}, {}
    for mode in ("mlp", "glnn", "ff_g2m"):
        models[mode], _ = train_student(mode, teacher.logits())
        scores[mode] = accuracy(predict(models[mode], graph.features)[graph.test], target)
    assert accuracy(teacher.logits()[graph.test], target) > scores["mlp"] + 10
    assert min(scores["glnn"], scores["ff_g2m"]) > scores["mlp"] + 8, scores
    cosines = {
        mode: float(low_frequency_cosine(predict(model, graph.features), teacher.logits(), graph.edges))
        for mode, model in models.items()
    }
    assert cosines["ff_g2m"] > cosines["mlp"], cosines
    again, curve = train_student("ff_g2m", teacher.logits())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), models["ff_g2m"].parameters(), strict=True))
    restored = accuracy(predict(again, graph.features)[graph.validation], graph.labels[graph.validation])
    assert restored == max(curve)


def test_trains_in_bfloat16_as_the_loop_offers_it():
    learner = student_of(digits())
    history = fit(learner, full_batch(digits()), replace(FULL_BATCH, epochs=3, precision="bfloat16"))
    assert bool(history.epochs[["label", "low_frequency", "high_frequency"]].notna().all(axis=None))
    assert all(weight.dtype == torch.float32 for weight in learner.parameters())
