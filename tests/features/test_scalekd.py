"""ScaleKD: views, cosine transform, projector, the pass through the teacher's stage, published figures, learning."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from scipy.fft import dctn, idctn
from torch.nn import functional as F

from kdcore.data import Arrays, digits
from kdcore.features.scalekd import (
    CrossAttentionProjector,
    ScaleDistillation,
    TokenNetwork,
    alternative_view,
    constant_share,
    cosine_transform,
    inverse_cosine_transform,
    unit_channels,
    view_distance,
    with_teacher_maps,
)
from kdcore.foundations.kd import distillation_loss, soft_cross_entropy, soften
from kdcore.metrics import accuracy
from kdcore.models import ConvNet, to_map, to_tokens
from kdcore.training import Budget, Supervised, fit, predict, seeded

# Names of the published projector's parameters, in ours.
PUBLISHED = {
    "proj_student.0": "convolution.0", "proj_student.1": "convolution.1", "proj_pos.0": "query_layer.0",
    "pos_attention.q": "query", "pos_attention.k": "key", "pos_attention.v": "value", "pos_attention.proj": "output",
    "ffn.fc1": "feed_forward.0", "ffn.fc2": "feed_forward.2", "norm": "norm",
}  # fmt: skip


def random_map(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def networks(image_size=8):
    with seeded(0):
        teacher = TokenNetwork(image_size, 2, widths=(8, 16), depths=(1, 1), heads=2)
        return ConvNet(width=4), teacher


def soft_labels(student, teacher, temperature):
    """Equation (8)."""
    return temperature**2 * soft_cross_entropy(student, soften(teacher, temperature), temperature)


def learner_and_batch(stage_heads=2, **options):
    student, teacher = networks()
    inputs = random_map(6, 1, 8, 8, dtype=torch.float32)
    with seeded(1):
        learner = ScaleDistillation(student, teacher, inputs, heads=stage_heads, **options)
    return learner, Arrays(inputs=inputs, labels=torch.arange(6))


# Published figures


def float64(case, name):
    return torch.tensor(case["inputs"][name], dtype=torch.float64)


def dual_view(case):
    weights, teacher = case["hyperparameters"], float64(case, "teacher_map")
    found = {}
    for view, change in {"original": lambda one: one, "alternative": alternative_view}.items():
        tokens = float64(case, "student_tokens").requires_grad_()
        loss = weights[f"alpha_{view}"] * view_distance(change(to_map(tokens)), change(teacher))
        (found[f"grad_{view}"],) = torch.autograd.grad(loss, tokens)
        found[f"loss_{view}"] = loss
    return found


def transform(case):
    features = float64(case, "map")
    spectrum = cosine_transform(features)
    return {
        "dct": spectrum,
        "idct_of_dct": inverse_cosine_transform(spectrum),
        "dc_removed": alternative_view(features),
    }


def soft_term(case):
    alpha, temperature = (case["hyperparameters"][name] for name in ("alpha", "temp"))
    student = float64(case, "student_logits").requires_grad_()
    loss = alpha * soft_labels(student, float64(case, "teacher_logits"), temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    return {"ce_weight": torch.tensor(1 - alpha), "loss": loss, "grad_student_logits": gradient}


def plain_features(case):
    distance = view_distance(float64(case, "student_map"), float64(case, "teacher_map"))
    return {"loss": case["hyperparameters"]["alpha_fd"] * distance}


def projector(case):
    wanted, source = case["hyperparameters"], float64(case, "student_map")
    target = (wanted["teacher_dims"], *wanted["query_hw"])
    ours = CrossAttentionProjector(source.shape[1:], target, wanted["num_heads"], wanted["softmax_scale"]).double()
    given = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["inputs"]["weights"].items()}
    state = {"positions": given.pop("pos_embed"), "queries": to_map(given.pop("query.weight")[None])}
    state["convolution.1.num_batches_tracked"] = torch.tensor(0)
    for name, value in given.items():
        module, _, kind = name.rpartition(".")
        state[f"{PUBLISHED[module]}.{kind}"] = (
            value.flatten(1) if module == "proj_pos.0" and kind == "weight" else value
        )
    ours.load_state_dict(state)
    ours.eval()
    return {
        "tokens_learned_query": to_tokens(ours(source)),
        "tokens_external_query": to_tokens(ours(source, to_map(float64(case, "external_query_tokens")))),
    }


COMPUTE = {
    "loss_alternative": dual_view,
    "dc_removed": transform,
    "ce_weight": soft_term,
    "tokens_learned_query": projector,
}


@pytest.mark.parametrize("case", reference_cases("scalekd"))
def test_matches_published_figures(case):
    compute = next((found for output, found in COMPUTE.items() if output in case["outputs"]), plain_features)
    assert_published(compute(case), case, decimals=10)


# Views, equations (4) and (5)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_distance_in_closed_form(channels, height, width, scale, seed):
    teacher, student = random_map(2, 3, channels, height, width, seed=seed)
    zero, opposite = view_distance(scale * teacher, teacher), view_distance(-teacher, teacher)
    assert view_distance(teacher, teacher).item() == 0
    assert zero.item() == pytest.approx(0, abs=1e-12)
    assert opposite.item() == pytest.approx(4 * height * width)
    cosines = F.cosine_similarity(student, teacher, dim=1)
    assert view_distance(student, teacher).item() == pytest.approx((2 - 2 * cosines).sum().item() / 3)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(2, 7), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_cosine_transform_agrees_with_scipy(channels, height, width, seed):
    features = random_map(2, channels, height, width, seed=seed)
    spectrum = cosine_transform(features)
    torch.testing.assert_close(spectrum, torch.from_numpy(dctn(features.numpy(), type=2, axes=(2, 3))))
    torch.testing.assert_close(
        inverse_cosine_transform(spectrum), torch.from_numpy(idctn(spectrum.numpy(), type=2, axes=(2, 3)))
    )
    torch.testing.assert_close(inverse_cosine_transform(spectrum), features)
    torch.testing.assert_close(spectrum[:, :, 0, 0], 4 * features.sum(dim=(2, 3)))
    spectrum[:, :, 0, 0] = 0
    torch.testing.assert_close(inverse_cosine_transform(spectrum), alternative_view(features))


def test_alternative_view_is_a_projection_that_kills_constants():
    features, constant = random_map(2, 5, 3, 4), random_map(2, 5, 1, 1, seed=1)
    once = alternative_view(features)
    torch.testing.assert_close(alternative_view(once), once)
    torch.testing.assert_close(alternative_view(features + constant), once)
    torch.testing.assert_close(alternative_view(constant.expand_as(features)), torch.zeros_like(features))
    torch.testing.assert_close((once * constant).sum(dim=(2, 3)), torch.zeros(2, 5, dtype=torch.float64))


def test_alternative_loss_ignores_constants_on_either_side():
    student, teacher = random_map(2, 3, 5, 4, 4)
    constant = 7 * random_map(3, 5, 1, 1, seed=2)
    wanted = view_distance(alternative_view(student), alternative_view(teacher))
    for pair in [(student + constant, teacher), (student, teacher + constant)]:
        torch.testing.assert_close(view_distance(*map(alternative_view, pair)), wanted)


def test_constant_share_by_the_spectrum_and_at_its_ends():
    features = random_map(4, 3, 5, 6)
    lengths = cosine_transform(torch.eye(30, dtype=torch.float64).reshape(30, 1, 5, 6)).square().sum(dim=0)
    energy = (cosine_transform(features).square() / lengths).sum(dim=1)
    torch.testing.assert_close(constant_share(features), energy[:, 0, 0] / energy.sum(dim=(1, 2)))
    torch.testing.assert_close(constant_share(torch.ones(1, 2, 3, 3)), torch.ones(1))
    assert constant_share(alternative_view(features)).max().item() < 1e-25


def test_a_constant_student_fills_the_plain_view_and_misses_the_other():
    """The closed forms of the chapter: orthogonal rest of relative squared length ρ at each position."""
    rest = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    teacher = torch.stack([torch.full((2, 2), 3.0, dtype=torch.float64), rest])[None]
    student = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])[None].double()
    ratio = 1 / 9
    assert view_distance(student, teacher).item() == pytest.approx(4 * (2 - 2 / (1 + ratio) ** 0.5))
    assert constant_share(teacher).item() == pytest.approx(1 / (1 + ratio))
    assert view_distance(alternative_view(student), alternative_view(teacher)).item() == pytest.approx(4)


def test_distance_pulls_across_a_vector_and_less_on_a_longer_one():
    student, teacher = random_map(2, 3, 5, 2, 2)

    def gradient(one):
        one = one.clone().requires_grad_()
        return torch.autograd.grad(view_distance(one, teacher), one)[0]

    torch.testing.assert_close((gradient(student) * student).sum(dim=1), torch.zeros(3, 2, 2, dtype=torch.float64))
    torch.testing.assert_close(10 * gradient(10 * student), gradient(student))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_constant_map_gets_no_gradient_from_the_view_without_constant_part(dtype):
    """Its direction is nothing but rounding, and a gradient of that over its length would be as large as can be."""
    constant = random_map(2, 5, 1, 1, dtype=torch.float32).expand(2, 5, 3, 3).to(dtype)
    teacher = random_map(2, 5, 3, 3, seed=1, dtype=torch.float32).to(dtype)
    student = constant.clone().requires_grad_()
    loss = view_distance(alternative_view(student), alternative_view(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(9, rel=1e-3)  # HW: a zero vector against unit vectors
    assert student.grad.abs().max().item() == 0
    zero = torch.zeros(2, 5, 3, 3, dtype=dtype, requires_grad=True)
    view_distance(zero, teacher).backward()
    assert zero.grad.abs().max().item() == 0
    # One step above rounding the rest has a direction, exact to the digits that it has left.
    if dtype == torch.float32:
        small = constant + 1e3 * torch.finfo(dtype).eps * teacher
        assert view_distance(alternative_view(small), alternative_view(teacher)).item() < 0.05


def test_half_precision_is_normalised_in_float32():
    student, teacher = random_map(2, 3, 5, 2, 2).mul(300).half()
    found, wanted = view_distance(student, teacher), view_distance(student.double(), teacher.double())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert unit_channels(torch.zeros(1, 3, 2, 2)).abs().sum().item() == 0


# Soft term, equation (8)


def test_soft_term_is_the_divergence_plus_the_entropy():
    student, teacher = random_map(2, 5, 7)
    entropy = torch.distributions.Categorical(logits=teacher / 2).entropy().mean()
    wanted = distillation_loss(student, teacher, 2.0) + 4 * entropy
    torch.testing.assert_close(soft_labels(student, teacher, 2.0), wanted)
    assert torch.isfinite(soft_labels(1e4 * student, 1e4 * teacher, 1.0))


# Projector, equations (1) to (3)


def test_blunt_attention_is_uniform_and_all_tokens_equal():
    projector = CrossAttentionProjector((4, 3, 3), (6, 2, 2), heads=2, sharpness=1e-12).double().eval()
    features = random_map(2, 4, 3, 3)
    torch.testing.assert_close(projector.attention(features), torch.full((2, 2, 4, 9), 1 / 9, dtype=torch.float64))
    tokens = to_tokens(projector(features))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))
    sharp = CrossAttentionProjector((4, 3, 3), (6, 2, 2), heads=2).double().eval()
    assert to_tokens(sharp(features)).std(dim=1).min().item() > 1e-4


def test_attention_is_what_forward_uses_and_knows_positions():
    projector = CrossAttentionProjector((4, 3, 3), (6, 2, 2), heads=2).double().eval()
    features, queries = random_map(2, 4, 3, 3), random_map(2, 6, 2, 2, seed=1)
    weights = projector.attention(features, queries)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 4, dtype=torch.float64))
    values = projector.value(to_tokens(projector.convolution(features) + projector.positions))
    read = weights @ values.unflatten(2, (2, 3)).transpose(1, 2)
    normed = projector.norm(projector.output(read.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(to_tokens(projector(features, queries)), normed + projector.feed_forward(normed))
    same = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    assert projector.attention(same).std(dim=-1).max().item() > 0  # only E tells the positions apart


def test_queries_given_replace_learned_ones_and_rows_are_in_order():
    projector = CrossAttentionProjector((4, 3, 5), (6, 2, 3), heads=3).double().eval()
    features = random_map(2, 4, 3, 5)
    given = projector.queries.detach().expand(2, -1, -1, -1)
    torch.testing.assert_close(projector(features, given), projector(features))
    swapped = projector(features, given.flip(3))
    torch.testing.assert_close(swapped, projector(features).flip(3))


# Learner, equations (7) and (9)


def test_terms_are_those_of_the_equations():
    learner, batch = learner_and_batch(original_weight=0.3, alternative_weight=0.2, soft_weight=0.4, temperature=2.0)
    learner.eval()
    terms = learner.losses(batch)
    student_maps, logits = learner.model.maps(batch.inputs)
    teacher_maps, teacher_logits = learner.teacher.maps(batch.inputs)
    wanted = {"cross_entropy": 0.6 * F.cross_entropy(logits, batch.labels)}
    wanted["soft"] = 0.4 * soft_labels(logits, teacher_logits, 2.0)
    target = teacher_maps[-1]
    for view, weight, change in (("original", 0.3, lambda one: one), ("alternative", 0.2, alternative_view)):
        perceived = learner.teacher.stages[-1](learner.early[view](student_maps[-2]))
        projected = learner.late[view](student_maps[-1], perceived)
        wanted[f"perceived {view}"] = weight * view_distance(change(perceived), change(target))
        wanted[view] = weight * view_distance(change(projected), change(target))
    assert terms.keys() == wanted.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, wanted[name], rtol=1e-4, atol=1e-5)


def test_views_have_projectors_of_their_own():
    learner, _ = learner_and_batch()
    names = [id(parameter) for parameter in learner.parameters()]
    assert len(names) == len(set(names))
    assert list(learner.late) == list(learner.early) == ["original", "alternative"]
    only, batch = learner_and_batch(alternative_weight=0.0)
    assert list(only.late) == ["original"]
    assert "alternative" not in only.losses(batch)


def test_weights_and_heads_by_stage():
    """The published configuration for Swin-S: no second view at stage 4 alone, other numbers of heads."""
    learner, batch = learner_and_batch(alternative_weight=(0.06, 0.0), stage_heads=(4, 2))
    assert list(learner.late) == ["original"]
    assert list(learner.early) == ["original", "alternative"]
    assert {part.heads for part in learner.early.values()} == {4}
    assert {part.heads for part in learner.late.values()} == {2}
    terms = learner.losses(batch)
    assert "alternative" not in terms
    assert {"perceived alternative", "perceived original", "original"} < terms.keys()
    same, _ = learner_and_batch(original_weight=(0.3, 0.3), alternative_weight=(0.2, 0.2))
    number, _ = learner_and_batch(original_weight=0.3, alternative_weight=0.2)
    wanted = number.losses(batch)
    assert same.losses(batch).keys() == wanted.keys()
    for name, term in same.losses(batch).items():
        torch.testing.assert_close(term, wanted[name])


def test_perception_comes_apart_into_its_loss_and_its_query():
    query, batch = learner_and_batch(original_weight=(0.0, 0.3), alternative_weight=(0.0, 0.2))
    assert {"original", "alternative"} < query.losses(batch).keys()
    assert not any(name.startswith("perceived") for name in query.losses(batch))
    assert all(one.queries is None for one in query.late.values())
    loss, _ = learner_and_batch(linked=False)
    assert {"perceived original", "perceived alternative"} < loss.losses(batch).keys()
    assert all(one.queries is not None for one in loss.late.values())
    loss.eval()
    maps, _ = loss.model.maps(batch.inputs)
    torch.testing.assert_close(loss.project(maps)[1]["original"], loss.late["original"](maps[-1]))
    early, _ = learner_and_batch(original_weight=(0.3, 0.0), alternative_weight=0.0)
    assert list(early.losses(batch)) == ["cross_entropy", "soft", "perceived original"]


def test_gradient_reaches_the_earlier_stage_through_the_query_and_never_the_teacher():
    learner, batch = learner_and_batch()
    learner.train()
    maps, _ = learner.model.maps(batch.inputs)
    cut = [maps[-2].detach().requires_grad_(), maps[-1].detach()]
    _, projected = learner.project(cut)
    target = learner.teacher.maps(batch.inputs)[0][-1]
    (gradient,) = torch.autograd.grad(view_distance(projected["original"], target), cut[0])
    assert gradient.abs().max().item() > 0
    sum(learner.losses(batch).values()).backward()
    assert all(parameter.grad is None for parameter in learner.teacher.parameters())
    assert all(parameter.grad is not None for parameter in learner.model.parameters())
    assert all(parameter.grad is not None for parameter in [*learner.early.parameters(), *learner.late.parameters()])


def test_teacher_stays_in_evaluation_mode_and_is_untouched():
    learner, batch = learner_and_batch()
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    statistics = learner.model.stages[0][1].running_mean
    assert statistics.abs().sum().item() == 0  # the look at shapes has left no trace
    fit(learner, batch, Budget(steps=2, batch_size=6, lr=0.05))
    assert not learner.train().teacher.training
    assert all(torch.equal(value, before[name]) for name, value in learner.teacher.state_dict().items())


def test_weight_zero_of_the_soft_term_leaves_the_labels_whole():
    learner, batch = learner_and_batch(soft_weight=0.0)
    terms = learner.losses(batch)
    assert "soft" not in terms
    logits = learner.model(batch.inputs)
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, batch.labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"perception": False}, {"perception": False, "projector": "convolution"}])
def test_cached_teacher_outputs_change_nothing(options):
    learner, batch = learner_and_batch(**options)
    learner.eval()
    plain, cached = learner.losses(batch), learner.losses(with_teacher_maps(batch, learner.teacher))
    for name, term in plain.items():
        torch.testing.assert_close(cached[name], term, rtol=1e-4, atol=1e-5)
    assert ("perceived original" in plain) == (not options)


@pytest.mark.parametrize("mixing", ["attention", "mlp"])
@pytest.mark.parametrize("merge", [True, False])
def test_students_of_every_family(mixing, merge):
    _, teacher = networks()
    student = TokenNetwork(8, 2, widths=(8, 8), depths=(1, 1), heads=2, mixing=mixing, merge=merge)
    batch = Arrays(inputs=torch.rand(4, 1, 8, 8), labels=torch.arange(4))
    maps, logits = student.maps(batch.inputs)
    assert maps[-1].shape == ((4, 8, 2, 2) if merge else (4, 8, 4, 4))
    torch.testing.assert_close(student(batch.inputs), logits)
    torch.testing.assert_close(student.tail(0)(maps[0]), logits)
    keys = student.state_dict().keys()
    learner = ScaleDistillation(student, teacher, batch.inputs, heads=2)
    fit(learner, batch, Budget(steps=1, batch_size=4))
    assert all(torch.isfinite(term) for term in learner.losses(batch).values())
    assert learner.model.state_dict().keys() == keys  # nothing is added to the student


def test_tokens_are_rows_first():
    with seeded(0):
        network = TokenNetwork(8, 2, widths=(8, 16), depths=(1, 1), heads=2).eval()
    inputs = torch.zeros(1, 1, 8, 8)
    inputs[..., :2, 6:] = 1  # the patch in the first row, last column
    change = (network.stem(inputs) - network.stem(torch.zeros_like(inputs))).abs().sum(dim=1)[0]
    assert change.nonzero().tolist() == [[0, 3]]


# Bad input

IMAGES = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alternative_view(torch.ones(2, 3, 1, 1)), "more than one position"),
        (lambda: alternative_view(torch.ones(2, 3)), r"features must have shape \(B, C, H, W\)"),
        (lambda: view_distance(torch.ones(2, 3, 2, 2), torch.ones(2, 3, 4, 4)), "teacher_map must have the shape"),
        (lambda: view_distance(torch.ones(2, 3, 2, 2), torch.full((2, 3, 2, 2), torch.nan)), "must be finite"),
        (lambda: unit_channels(torch.ones(2, 3, 2, 2, dtype=torch.long)), "floating point"),
        (lambda: soft_labels(torch.ones(2, 3), torch.ones(2, 3), 0.0), "temperature"),
        (lambda: CrossAttentionProjector((4, 3, 3), (6, 2, 2), heads=4), "heads must divide the teacher's 6 channels"),
        (lambda: CrossAttentionProjector((4, 9), (6, 2, 2)), r"source must be the shape \(C, H, W\)"),
        (lambda: CrossAttentionProjector((4, 3, 3), (8, 2, 2), sharpness=0.0), "sharpness"),
        (lambda: CrossAttentionProjector((4, 3, 3), (8, 2, 2))(torch.ones(1, 4, 2, 2)), r"features must have shape"),
        (
            lambda: CrossAttentionProjector((4, 3, 3), (8, 2, 2))(torch.ones(1, 4, 3, 3), torch.ones(1, 8, 3, 3)),
            "queries must have shape",
        ),
        (
            lambda: CrossAttentionProjector((4, 3, 3), (8, 2, 2), learned_queries=False)(torch.ones(1, 4, 3, 3)),
            "queries must be given",
        ),
        (lambda: learner_and_batch(original_weight=0.0, alternative_weight=0.0), "must be positive"),
        (lambda: learner_and_batch(original_weight=-1.0), "original_weight"),
        (lambda: learner_and_batch(alternative_weight=(0.1, -1.0)), "alternative_weight"),
        (lambda: learner_and_batch(original_weight=(0.1, 0.0), alternative_weight=0.0, perception=False), "positive"),
        (lambda: learner_and_batch(soft_weight=1.5), "soft_weight"),
        (lambda: learner_and_batch(projector="convolution"), "perception needs"),
        (
            lambda: learner_and_batch(projector="conv", perception=False),
            "projector must be one of 'attention', 'convolution'",
        ),
        (lambda: ScaleDistillation(ConvNet(4, depth=1), networks()[1], IMAGES), "the student must have at least two"),
        (lambda: ScaleDistillation(ConvNet(4), ConvNet(4, depth=4), IMAGES), "single position"),
        (lambda: TokenNetwork(10, 4), "image_size must be divisible by 8"),
        (lambda: TokenNetwork(8, 2, widths=(6, 8), heads=4), "heads must divide all widths"),
        (lambda: TokenNetwork(8, 2, widths=(8, 16), merge=False), "widths must agree"),
        (lambda: TokenNetwork(8, 2, widths=(8,), depths=(1, 1)), "as many stages"),
        (lambda: TokenNetwork(8, 2, mixing="mpl"), "Did you mean 'mlp'"),
        (lambda: with_teacher_maps(Arrays(inputs=IMAGES), ConvNet(4), batch_size=0), "batch_size"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_out_of_range_are_named():
    learner, batch = learner_and_batch()
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
        learner.losses(batch.with_(labels=batch.labels + 9))


# Learning


def test_a_small_transformer_learns_more_from_the_teachers_map_than_from_labels():
    torch.set_num_threads(1)
    images = digits(train_size=1000, size=12)
    budget = {"optimizer": "adamw", "weight_decay": 0.02, "warmup": 0.1}
    with seeded(0):
        teacher = TokenNetwork(12, 2, widths=(24, 48), depths=(1, 1), heads=2)
    fit(Supervised(teacher), images.train, Budget(steps=150, batch_size=64, lr=4e-3, **budget), seed=0)
    rows = with_teacher_maps(images.train.split(100, seed=0)[0], teacher)
    scores = {}
    for arm in ("labels", "taught"):
        with seeded(1):
            student = TokenNetwork(12, 3, widths=(16, 16), depths=(1, 1), heads=2, merge=False)
            taught = ScaleDistillation(student, teacher, rows.inputs, heads=2)
        learner = Supervised(student) if arm == "labels" else taught
        fit(learner, rows, Budget(steps=70, batch_size=32, lr=0.01, **budget), seed=1)
        scores[arm] = accuracy(predict(student, images.test.inputs), images.test.labels)
    assert scores["taught"] > scores["labels"] + 3
