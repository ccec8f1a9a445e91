"""ALDA: closed forms, the gradient of the published step, published figures, and learning under a shift."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_figures import assert_published, reference_cases
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from kdcore.adaptation.alda import (
    ALDA,
    adversarial_loss,
    confusion_matrix,
    corrected_labels,
    corrected_target_loss,
    correction_error,
    regulariser_loss,
)
from kdcore.data import Arrays
from kdcore.foundations.reversal import ramp, reverse_gradient
from kdcore.foundations.self_training import pseudo_labels
from kdcore.models import MLP, ConvNet
from kdcore.training import Budget, Supervised, fit, predict

few = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 7), st.integers(0, 10_000))


def draw(batch: int, classes: int, seed: int) -> dict[str, torch.Tensor]:
    """Random arguments of the losses, float64."""
    generator = torch.Generator().manual_seed(seed)
    scores, logits = 2 * torch.randn(2, 2 * batch, classes, generator=generator, dtype=torch.float64)
    return {
        "source_scores": scores[:batch],
        "target_scores": scores[batch:],
        "source_pseudo": logits[:batch].argmax(1),
        "target_pseudo": logits[batch:].argmax(1),
        "source_labels": torch.randint(classes, (batch,), generator=generator),
        "keep": torch.rand(batch, generator=generator) > 0.4,
    }


def two_streams(source: int = 6, target: int = 5, classes: int = 3, features: int = 4) -> SimpleNamespace:
    labelled = Arrays(inputs=torch.randn(source, features), labels=torch.arange(source) % classes)
    return SimpleNamespace(source=labelled, target=Arrays(inputs=torch.randn(target, features) + 1))


def started(progress: float = 0.3, **arguments) -> ALDA:
    arguments = {"threshold": 0.0, "hidden": 16} | arguments
    learner = ALDA(MLP(4, (8,), 3), **arguments)
    learner.on_step(progress)
    return learner


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}


# Published figures


def published(case: dict) -> dict[str, torch.Tensor]:
    """Every output of a case, computed here."""
    inputs, settings_ = case["inputs"], case["hyperparameters"]
    if "iteration" in inputs:
        # The published ramp is not clipped: choose a length that holds all iterations, and steepen to match.
        length = max(settings_["max_iter"], *inputs["iteration"])
        steepness = settings_["alpha"] * length / settings_["max_iter"]
        low, high = settings_["low"], settings_["high"]
        rise = [low + (high - low) * ramp(iteration / length, steepness) for iteration in inputs["iteration"]]
        return {"coefficient": torch.tensor(rise, dtype=torch.float64)}
    rows = settings_["n_source"]
    scores = torch.tensor(inputs["disc_scores"], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor(inputs["logits"], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(inputs["source_labels"])
    assert scores.shape[1] == settings_["n_classes"]
    source = pseudo_labels(logits[:rows])
    target = pseudo_labels(logits[rows:], settings_["threshold"])
    adversarial = adversarial_loss(scores[:rows], scores[rows:], source.labels, target.labels, labels, target.keep)
    regulariser = regulariser_loss(scores[:rows], labels)
    corrected = corrected_target_loss(logits[rows:], scores[rows:], target.labels, target.keep)

    def gradient(loss: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(of) if found is None else found

    return {
        "adv_loss": adversarial,
        "reg_loss": regulariser,
        "correct_loss": corrected,
        "kept_target": target.keep.to(torch.int64),
        "grad_adv_wrt_disc_scores": gradient(adversarial, scores),
        "grad_reg_wrt_disc_scores": gradient(regulariser, scores),
        "grad_correct_wrt_logits": gradient(corrected, logits),
        "max_abs_grad_adv_wrt_logits": gradient(adversarial, logits).abs().max(),
        "max_abs_grad_correct_wrt_disc_scores": gradient(corrected, scores).abs().max(),
    }


@pytest.mark.parametrize("case", reference_cases("alda"))
def test_matches_published_figures(case):
    computed = published(case)
    assert_published(computed, case)


# Confusion matrix and corrected labels


@few
@given(sizes)
def test_columns_and_corrected_labels_sum_to_one(size):
    batch, classes, seed = size
    given_ = draw(batch, classes, seed)
    matrix = confusion_matrix(given_["source_scores"])
    corrected = corrected_labels(given_["source_scores"], given_["source_pseudo"])
    torch.testing.assert_close(matrix.sum(1), torch.ones(batch, classes, dtype=torch.float64))
    torch.testing.assert_close(corrected.sum(1), torch.ones(batch, dtype=torch.float64))
    assert bool((corrected >= 0).all())
    one_hot = F.one_hot(given_["source_pseudo"], classes).double()
    torch.testing.assert_close(corrected, torch.einsum("bkl,bl->bk", matrix, one_hot))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_trust_keeps_the_pseudo_label_and_none_makes_it_uniform(classes, dtype):
    labels = torch.arange(4) % classes
    kept = corrected_labels(torch.full((4, classes), 60.0, dtype=dtype), labels)
    torch.testing.assert_close(kept, F.one_hot(labels, classes).to(dtype))
    chance = torch.full((4, classes), -math.log(classes - 1), dtype=dtype)
    torch.testing.assert_close(corrected_labels(chance, labels), torch.full((4, classes), 1 / classes, dtype=dtype))
    torch.testing.assert_close(confusion_matrix(chance), torch.full((4, classes, classes), 1 / classes, dtype=dtype))


def test_two_classes_give_the_binary_channel_and_the_opposite_flips_the_pseudo_label():
    scores = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    first, second = scores[0].sigmoid()
    torch.testing.assert_close(
        confusion_matrix(scores)[0], torch.stack([torch.stack([first, 1 - second]), torch.stack([1 - first, second])])
    )
    kept, sure, zero = torch.tensor([True]), torch.tensor([[60.0, -60.0]], dtype=torch.float64), torch.tensor([0])
    for pseudo in (0, 1):
        label = torch.tensor([pseudo])
        beside_a_sure_source = adversarial_loss(sure, scores, zero, label, zero, kept)  # the mean of 0 and the target's
        as_source = adversarial_loss(scores, scores, label, label, 1 - label, ~kept)
        torch.testing.assert_close(2 * beside_a_sure_source, as_source)


# The adversarial loss


@few
@given(sizes, st.sampled_from(["true", "opposite", "uniform"]))
def test_short_form_of_the_error_is_binary_cross_entropy_of_whole_vectors(size, kind):
    batch, classes, seed = size
    given_ = draw(batch, classes, seed)
    scores, pseudo = given_["source_scores"], given_["source_pseudo"]
    vectors = {
        "true": F.one_hot(given_["source_labels"], classes).double(),
        "opposite": (1 - F.one_hot(pseudo, classes).double()) / (classes - 1),
        "uniform": torch.full((batch, classes), 1 / classes, dtype=torch.float64),
    }[kind]
    slow = F.binary_cross_entropy(corrected_labels(scores, pseudo), vectors, reduction="none").sum(1)
    fast = correction_error(scores, pseudo, vectors.gather(1, pseudo[:, None]).squeeze(1))
    torch.testing.assert_close(fast, slow)


@few
@given(sizes, st.sampled_from(["opposite", "uniform"]))
def test_adversarial_loss_is_the_mean_over_source_and_kept_target(size, target_vector):
    given_ = draw(*size)
    classes = size[1]
    rows = []
    for scores, pseudo, label in zip(
        given_["source_scores"], given_["source_pseudo"], given_["source_labels"], strict=True
    ):
        corrected = [float(scores[pseudo].sigmoid())] * classes
        corrected = [v if k == pseudo else (1 - v) / (classes - 1) for k, v in enumerate(corrected)]
        rows.append(-sum(math.log(c if k == label else 1 - c) for k, c in enumerate(corrected)))
    for scores, pseudo, kept in zip(given_["target_scores"], given_["target_pseudo"], given_["keep"], strict=True):
        if not kept:
            continue
        trust = float(scores[pseudo].sigmoid())
        error = 0.0
        for k in range(classes):
            corrected_k = trust if k == pseudo else (1 - trust) / (classes - 1)
            wanted = 1 / classes if target_vector == "uniform" else float(k != pseudo) / (classes - 1)
            error -= wanted * math.log(corrected_k) + (1 - wanted) * math.log(1 - corrected_k)
        rows.append(error)
    expected = torch.tensor(sum(rows) / len(rows), dtype=torch.float64)
    torch.testing.assert_close(adversarial_loss(**given_, target_vector=target_vector), expected)


@few
@given(sizes)
def test_renaming_classes_changes_nothing(size):
    given_ = draw(*size)
    order = torch.randperm(size[1], generator=torch.Generator().manual_seed(size[2]))
    renamed = {name: value[:, order] if value.ndim == 2 else value for name, value in given_.items()}
    renamed |= {name: order.argsort()[value] for name, value in given_.items() if value.dtype == torch.long}
    torch.testing.assert_close(adversarial_loss(**renamed), adversarial_loss(**given_))


def test_adversarial_gradient_is_zero_beside_the_pseudo_label_and_on_dropped_rows():
    given_ = draw(5, 4, seed=1)
    given_["keep"] = torch.tensor([True, False, True, False, True])
    for name in ("source_scores", "target_scores"):
        given_[name] = given_[name].clone().requires_grad_()
    adversarial_loss(**given_).backward()
    source = F.one_hot(given_["source_pseudo"], 4).bool()
    target = F.one_hot(given_["target_pseudo"], 4).bool() & given_["keep"][:, None]
    assert torch.equal(given_["source_scores"].grad != 0, source)
    assert torch.equal(given_["target_scores"].grad != 0, target)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_error_vanishes_for_the_right_label_and_grows_with_trust_in_a_target_label(classes):
    labels = torch.arange(4) % classes
    sure = torch.full((4, classes), 60.0, dtype=torch.float64)
    assert float(correction_error(sure, labels, torch.ones(4)).abs().max()) < 1e-12
    trust = torch.linspace(-8, 8, 30, dtype=torch.float64)
    zero = torch.zeros(30, dtype=torch.long)
    errors = correction_error(trust[:, None].expand(30, classes), zero, torch.zeros(30))
    assert bool((errors.diff() > 0).all())
    even = correction_error(trust[:, None].expand(30, classes), zero, torch.full((30,), 1 / classes))
    assert abs(float(trust[even.argmin()].sigmoid()) - 1 / classes) < 0.1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("score", [-1e4, 1e4])
def test_losses_and_gradients_stay_finite_at_extreme_scores(classes, dtype, score):
    scores = torch.full((2, classes), score, dtype=dtype, requires_grad=True)
    labels, keep = torch.tensor([0, 1]), torch.tensor([True, True])
    loss = adversarial_loss(scores, scores, labels, labels, labels, keep)
    loss = loss + corrected_target_loss(scores, scores, labels, keep) + regulariser_loss(scores, labels)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(scores.grad).all())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# The corrected target loss


@few
@given(sizes)
def test_code_reduction_is_the_papers_without_its_constant_over_the_classes(size):
    batch, classes, seed = size
    given_ = draw(batch, classes, seed)
    given_["keep"][0] = True
    logits = torch.randn(batch, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    arguments = (logits, given_["target_scores"], given_["target_pseudo"], given_["keep"])
    paper = corrected_target_loss(*arguments, reduction="paper")
    torch.testing.assert_close(paper, 1 + classes * corrected_target_loss(*arguments, reduction="code"))
    probabilities, corrected = logits.softmax(1), corrected_labels(given_["target_scores"], given_["target_pseudo"])
    slow = [float((c * (1 - p)).sum()) for c, p, k in zip(corrected, probabilities, given_["keep"], strict=True) if k]
    torch.testing.assert_close(paper, torch.tensor(sum(slow) / len(slow), dtype=torch.float64))


def test_corrected_target_loss_reaches_the_classifier_and_not_the_discriminator():
    scores = torch.randn(3, 4, requires_grad=True)
    logits = torch.randn(3, 4, requires_grad=True)
    keep = torch.tensor([True, False, True])
    corrected_target_loss(logits, scores, logits.argmax(1), keep).backward()
    assert scores.grad is None
    assert torch.equal(logits.grad.abs().sum(1) > 0, keep)


@pytest.mark.parametrize("reduction", ["code", "paper"])
def test_without_confident_target_samples_the_target_says_nothing(reduction):
    given_ = draw(3, 4, seed=2) | {"keep": torch.zeros(3, dtype=torch.bool)}
    logits = torch.randn(3, 4, requires_grad=True)
    loss = corrected_target_loss(
        logits, given_["target_scores"], given_["target_pseudo"], given_["keep"], reduction=reduction
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(logits.grad.abs().max()) == 0
    right = (given_["source_pseudo"] == given_["source_labels"]).double()
    source_alone = correction_error(given_["source_scores"], given_["source_pseudo"], right).mean()
    torch.testing.assert_close(adversarial_loss(**given_), source_alone)


# The learner


def published_step(learner: ALDA, batch: SimpleNamespace, seed: int) -> None:
    """The step of the published script: one discriminator pass, two backward passes, the network frozen in the first.

    Sets `.grad` of all parameters.
    """
    model, critic = learner.model, learner.discriminator
    source, target = model.embed(batch.source.inputs), model.embed(batch.target.inputs)
    logits, target_logits = model.classifier(source), model.classifier(target)
    strength = ramp(learner.progress)
    hidden = reverse_gradient(torch.cat([source, target]), strength)
    torch.manual_seed(seed)
    for layer, dropout in zip(critic.layers, critic.dropout_masks(hidden), strict=True):
        hidden = layer(hidden).relu() * dropout
    scores = critic.output(hidden)
    rows, labels = len(source), batch.source.labels
    pseudo = pseudo_labels(target_logits, learner.threshold)
    model.requires_grad_(False)
    F.cross_entropy(scores[:rows], labels).backward(retain_graph=True)
    model.requires_grad_(True)
    assert all(weight.grad is None for weight in model.parameters())
    adversarial = adversarial_loss(scores[:rows], scores[rows:], logits.argmax(1), pseudo.labels, labels, pseudo.keep)
    corrected = corrected_target_loss(target_logits, scores[rows:], pseudo.labels, pseudo.keep)
    (F.cross_entropy(logits, labels) + adversarial + strength * corrected).backward()


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_one_backward_pass_gives_the_gradients_of_the_published_two(threshold):
    learner = started(0.2, threshold=threshold).double()
    batch = two_streams(12, 9)
    batch = SimpleNamespace(
        source=batch.source.with_(inputs=batch.source.inputs.double()),
        target=Arrays(inputs=batch.target.inputs.double()),
    )
    published_step(learner, batch, seed=5)
    expected = gradients(learner)
    learner.zero_grad()
    torch.manual_seed(5)
    sum(learner.losses(batch).values()).backward()
    computed = gradients(learner)
    assert computed.keys() == expected.keys() == dict(learner.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(computed[name], gradient, msg=name)


def test_regulariser_teaches_the_discriminator_alone_and_shares_the_dropout_of_the_main_pass(monkeypatch):
    learner, batch, seen = started(), two_streams(), []
    forward = learner.discriminator.forward

    def record(features, masks=None):
        seen.append(forward(features, masks))
        return seen[-1]

    monkeypatch.setattr(learner.discriminator, "forward", record)
    learner.losses(batch)["regulariser"].backward()
    assert not gradients(learner.model)
    assert gradients(learner.discriminator).keys() == dict(learner.discriminator.named_parameters()).keys()
    both, source_again = seen
    torch.testing.assert_close(both[:6], source_again)
    assert not torch.allclose(both[:6], forward(learner.model.embed(batch.source.inputs)))


def test_adversarial_term_is_reversed_for_the_network_and_spares_the_classifier():
    learner, batch = started(0.1).eval(), two_streams()
    learner.losses(batch)["adversarial"].backward()
    weak = gradients(learner.model)
    assert not any(name.startswith("classifier") for name in weak)
    learner.zero_grad()
    learner.on_step(0.4)
    learner.losses(batch)["adversarial"].backward()
    for name, gradient in gradients(learner.model).items():
        torch.testing.assert_close(gradient, weak[name] * ramp(0.4) / ramp(0.1))
    step = 1e-2 / sum(float(gradient.square().sum()) for gradient in weak.values()) ** 0.5
    with torch.no_grad():
        before = float(learner.losses(batch)["adversarial"])
        for name, weight in learner.model.named_parameters():
            weight -= step * weak[name] if name in weak else 0
        assert float(learner.losses(batch)["adversarial"]) > before


def test_warm_up_trains_the_network_alone():
    learner, batch = started(0.19, adapt_after=0.2), two_streams()
    terms = learner.losses(batch)
    sum(terms.values()).backward()
    assert not gradients(learner.discriminator)
    assert [name for name, term in terms.items() if float(term.detach()) != 0] == ["source_cross_entropy"]
    learner.on_step(0.2)
    later = learner.losses(batch)
    assert list(later) == list(terms)
    assert all(float(term.detach()) != 0 for term in later.values())


def test_target_loss_is_ramped_as_for_office_or_not_as_for_digits():
    batch = two_streams()
    terms = {}
    for ramp_target in (True, False):
        torch.manual_seed(3)
        terms[ramp_target] = started(0.05, ramp_target=ramp_target).losses(batch)["corrected_target"]
    torch.testing.assert_close(terms[True], ramp(0.05) * terms[False])


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ({"use_target_loss": False}, "corrected_target"),
        ({"use_regulariser": False}, "regulariser"),
        ({"target_vector": "uniform"}, "adversarial"),
        ({"reduction": "paper"}, "corrected_target"),
    ],
)
def test_each_ablation_changes_its_term_only(switch, changed):
    batch, terms = two_streams(), []
    for arguments in ({}, switch):
        torch.manual_seed(3)
        terms.append({name: float(term.detach()) for name, term in started(**arguments).losses(batch).items()})
    assert [name for name in terms[0] if terms[0][name] != terms[1][name]] == [changed]
    if False in switch.values():
        assert terms[1][changed] == 0


@pytest.mark.parametrize(("joint", "passes"), [(False, 2), (True, 1)])
def test_batch_norm_sees_one_domain_or_the_mixture(joint, passes):
    learner = ALDA(ConvNet(width=4, depth=1, num_classes=3), hidden=8, joint=joint)
    source = Arrays(inputs=torch.randn(6, 1, 4, 4), labels=torch.arange(6) % 3)
    learner.losses(SimpleNamespace(source=source, target=Arrays(inputs=torch.randn(4, 1, 4, 4) + 5)))
    assert int(learner.model.stages[0][1].num_batches_tracked) == passes


@pytest.mark.parametrize("training", [True, False])
def test_noise_scores_are_those_of_evaluation_mode(training):
    learner = started().train(training)
    inputs = torch.randn(7, 4)
    scores = learner.noise_scores(inputs)
    assert learner.training is learner.discriminator.training is training
    probabilities = predict(learner.model, inputs).softmax(1)
    torch.testing.assert_close(scores.confidence, probabilities.amax(1))
    assert torch.equal(scores.labels, probabilities.argmax(1))
    learner.eval()
    trust = confusion_matrix(learner.discriminator(learner.model.embed(inputs)))[range(7), scores.labels, scores.labels]
    torch.testing.assert_close(scores.trust, trust)
    assert not scores.trust.requires_grad


# Bad input


def loss_arguments(**changes) -> dict:
    return draw(3, 4, seed=0) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_scores": torch.zeros(3, 1)}, "source_scores must have shape"),
        ({"source_scores": torch.full((3, 4), torch.nan)}, "source_scores must be finite"),
        ({"target_scores": torch.zeros(3, 5)}, r"target_scores must have shape \(B_t, 4\)"),
        ({"target_scores": torch.full((3, 4), torch.inf)}, "scores must be finite"),
        ({"source_labels": torch.tensor([0, 1, 4])}, "source_labels must lie"),
        ({"source_pseudo": torch.tensor([0, 1])}, "source_pseudo must have shape"),
        ({"target_pseudo": torch.zeros(3)}, "target_pseudo must be integer"),
        ({"keep": torch.ones(3)}, "keep must be bool"),
        ({"keep": torch.ones(2, dtype=torch.bool)}, r"keep must be bool of shape \(3,\)"),
        ({"target_vector": "oposite"}, "Did you mean 'opposite'"),
    ],
)
def test_adversarial_loss_refuses_bad_input(changes, message):
    with pytest.raises(ValueError, match=message):
        adversarial_loss(**loss_arguments(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_logits": torch.zeros(3, 5)}, "target_scores must have the shape of target_logits"),
        ({"target_pseudo": torch.tensor([0, 1, 7])}, "target_pseudo must lie"),
        ({"keep": torch.ones(3)}, "keep must be bool"),
        ({"reduction": "mean"}, "reduction must be one of"),
    ],
)
def test_corrected_target_loss_refuses_bad_input(changes, message):
    arguments = {
        "target_logits": torch.zeros(3, 4),
        "target_scores": torch.zeros(3, 4),
        "target_pseudo": torch.zeros(3, dtype=torch.long),
        "keep": torch.ones(3, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=message):
        corrected_target_loss(**(arguments | changes))


def test_the_other_functions_refuse_bad_input():
    scores, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="scores must have shape"):
        confusion_matrix(scores[:, :1])
    with pytest.raises(ValueError, match="labels must lie"):
        corrected_labels(scores, labels + 2)
    with pytest.raises(ValueError, match="agreement must have shape"):
        correction_error(scores, labels, torch.ones(3))
    with pytest.raises(ValueError, match="source_labels must have shape"):
        regulariser_loss(scores, labels[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.0}, r"threshold must lie in \[0, 1\)"),
        ({"threshold": -0.1}, "threshold must lie"),
        ({"hidden": 0}, "hidden must be"),
        ({"adapt_after": 1.5}, "adapt_after must lie"),
        ({"steepness": 0.0}, "steepness must be"),
        ({"reduction": "papr"}, "Did you mean 'paper'"),
        ({"target_vector": "flat"}, "target_vector must be one of"),
        ({"model": MLP(4, (8,), 1)}, "at least 2 classes"),
        ({"model": nn.Linear(4, 3)}, "model must have embed"),
    ],
)
def test_learner_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ALDA(**({"model": MLP(4, (8,), 3)} | arguments))


# Learning


def shifted_digits(seed: int) -> dict[str, Arrays]:
    """Half of the real digits as they are, the other half one row lower."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    source, target = Arrays(inputs=images, labels=labels).split(898, 898, seed=seed)
    return {"source": source, "target": target.with_(inputs=target.inputs.roll(1, dims=2))}


def accuracy(model: nn.Module, data: Arrays) -> float:
    return float((predict(model, data.inputs).argmax(1) == data.labels).float().mean())


def test_adapts_to_shifted_digits_and_recognises_wrong_pseudo_labels():
    budget = Budget(steps=200, batch_size=64, optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="constant")
    gains, margins = [], []
    for seed in (0, 1):
        data = shifted_digits(seed)
        torch.manual_seed(seed)
        alone, adapted = MLP(64, (128,), 10), MLP(64, (128,), 10)
        adapted.load_state_dict(alone.state_dict())
        fit(Supervised(alone), data["source"], budget, seed=seed)
        learner = ALDA(adapted, hidden=64, adapt_after=0.1)
        fit(learner, data, budget, seed=seed)
        gains.append(accuracy(adapted, data["target"]) - accuracy(alone, data["target"]))
        scores = learner.noise_scores(data["target"].inputs)
        right = scores.labels == data["target"].labels
        margins.append(float(scores.trust[right].mean() - scores.trust[~right].mean()))
    assert min(gains) > 0.05, gains
    assert min(margins) > 0.02, margins


def test_trains_in_bfloat16_as_the_loop_offers_it():
    data = shifted_digits(0)
    learner = ALDA(MLP(64, (32,), 10), hidden=32, threshold=0.0)
    history = fit(learner, data, Budget(steps=10, batch_size=64, precision="bfloat16", lr=0.01))
    means = history.epochs[["source_cross_entropy", "adversarial", "regulariser", "corrected_target"]]
    assert bool(means.notna().all(axis=None))
    assert all(weight.dtype == torch.float32 for weight in learner.parameters())
