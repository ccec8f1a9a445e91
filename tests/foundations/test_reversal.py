"""Gradient reversal, the domain loss, the discriminator, and domain-adversarial training."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdcore.data import Arrays
from kdcore.foundations.reversal import (
    Discriminator,
    DomainAdversarial,
    domain_loss,
    forward_domains,
    linear_classifier,
    ramp,
    reverse_gradient,
)
from kdcore.models import MLP
from kdcore.training import Budget, Supervised, fit, predict


def two_streams() -> SimpleNamespace:
    source = Arrays(inputs=torch.randn(6, 4), labels=torch.arange(6) % 3)
    return SimpleNamespace(source=source, target=Arrays(inputs=torch.randn(5, 4) + 1))


def blobs(seed: int, offset: float = 5.0, classes: int = 4, width: int = 10) -> dict[str, Arrays]:
    """Gaussian classes; the target is the source moved in one direction."""
    generator = torch.Generator().manual_seed(seed)
    means = 1.2 * torch.randn(classes, width, generator=generator)
    move = F.normalize(torch.randn(width, generator=generator), dim=0) * offset
    labels = torch.arange(400) % classes
    points = means[labels] + 0.5 * torch.randn(2, 400, width, generator=generator)
    return {"source": Arrays(inputs=points[0], labels=labels), "target": Arrays(inputs=points[1] + move, labels=labels)}


def accuracy(model: nn.Module, data: Arrays) -> float:
    return float((predict(model, data.inputs).argmax(1) == data.labels).float().mean())


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_reversal_is_the_identity_forward_and_negative_backward(strength):
    features = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    passed = reverse_gradient(features, strength)
    (passed * weights).sum().backward()
    assert torch.equal(passed, features)
    torch.testing.assert_close(features.grad, -strength * weights)


def test_domain_loss_is_half_of_each_binary_cross_entropy():
    source, target = torch.randn(5, dtype=torch.float64), torch.randn(3, 1, dtype=torch.float64)
    expected = 0.5 * F.binary_cross_entropy_with_logits(source, torch.ones_like(source))
    expected += 0.5 * F.binary_cross_entropy_with_logits(target, torch.zeros_like(target))
    torch.testing.assert_close(domain_loss(source, target), expected)
    with pytest.raises(ValueError, match="target_scores must have shape"):
        domain_loss(source, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="source_scores must have shape"):
        domain_loss(source[:0], target)


def test_ramp_rises_from_zero_and_refuses_what_is_no_fraction():
    values = [ramp(step / 20) for step in range(21)]
    assert values[0] == 0
    assert all(later > earlier for earlier, later in pairwise(values))
    assert ramp(0.1, steepness=20.0) == ramp(0.2)
    with pytest.raises(ValueError, match="progress must lie"):
        ramp(1.1)


def test_forward_domains_apart_or_joint_differ_only_where_batch_norm_does():
    source, target = torch.randn(6, 4), torch.randn(5, 4) + 3
    plain = MLP(4, (8,), 3)
    for apart, joint in zip(
        forward_domains(plain, source, target), forward_domains(plain, source, target, joint=True), strict=True
    ):
        torch.testing.assert_close(apart, joint)
    norm = nn.BatchNorm1d(4)
    apart, joint = forward_domains(norm, source, target)[1], forward_domains(norm, source, target, joint=True)[1]
    assert float(apart.detach().mean().abs()) < 1e-6
    assert float(joint.detach().mean()) > 0.5


def test_discriminator_starts_as_published_and_drops_half():
    discriminator, features = Discriminator(20, hidden=400, outputs=3), torch.randn(64, 20)
    for layer in (*discriminator.layers, discriminator.output):
        assert float(layer.bias.abs().max()) == 0
        spread = (2 / (layer.in_features + layer.out_features)) ** 0.5
        assert float(layer.weight.std()) == pytest.approx(spread, rel=0.1)
    first, second = discriminator.dropout_masks(features)
    assert sorted(first.unique().tolist()) == [0.0, 2.0]
    assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(first, second)
    assert not torch.equal(discriminator(features), discriminator(features))
    discriminator.eval()
    chain = nn.Sequential(discriminator.layers[0], nn.ReLU(), discriminator.layers[1], nn.ReLU(), discriminator.output)
    torch.testing.assert_close(discriminator(features), chain(features))


@pytest.mark.parametrize("name", ["in_features", "hidden", "outputs"])
def test_discriminator_refuses_empty_layers(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive number"):
        Discriminator(**({"in_features": 4, "hidden": 8, "outputs": 1} | {name: 0}))


def test_linear_classifier_refuses_models_that_do_not_split():
    broken = MLP(4, (8,), 3)
    broken.classifier = nn.Sequential(broken.classifier)
    for model in (nn.Linear(4, 3), broken):
        with pytest.raises(ValueError, match=r"model must have embed\(inputs\)"):
            linear_classifier(model)


def test_domain_term_trains_the_discriminator_fully_and_the_network_in_reverse():
    learner, batch, found = DomainAdversarial(MLP(4, (8,), 3), hidden=16).eval(), two_streams(), {}
    for progress in (0.1, 0.3):
        learner.zero_grad()
        learner.on_step(progress)
        learner.losses(batch)["domain"].backward()
        found[progress] = {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}
    assert not any(name.startswith("model.classifier") for name in found[0.1])
    for name, gradient in found[0.1].items():
        factor = ramp(0.3) / ramp(0.1) if name.startswith("model") else 1.0
        torch.testing.assert_close(found[0.3][name], factor * gradient)
    scores = [learner.discriminator(learner.model.embed(part.inputs)) for part in (batch.source, batch.target)]
    direct = torch.autograd.grad(domain_loss(*scores), learner.model.layers[1].weight)[0]
    torch.testing.assert_close(found[0.1]["model.layers.1.weight"], -ramp(0.1) * direct)


def test_warm_up_leaves_the_discriminator_alone():
    learner, batch = DomainAdversarial(MLP(4, (8,), 3), hidden=16, adapt_after=0.5), two_streams()
    terms = learner.losses(batch)
    sum(terms.values()).backward()
    assert float(terms["domain"]) == 0
    assert all(weight.grad is None for weight in learner.discriminator.parameters())
    learner.on_step(0.5)
    assert float(learner.losses(batch)["domain"].detach()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"adapt_after": -0.1}, "adapt_after must lie"), ({"steepness": -1.0}, "steepness must be")],
)
def test_learner_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DomainAdversarial(MLP(4, (8,), 3), **arguments)


def test_aligns_moved_classes():
    budget = Budget(steps=250, batch_size=64, optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="constant")
    alone, adapted = [], []
    for seed in (0, 1, 2):
        data = blobs(seed)
        torch.manual_seed(seed)
        first, second = MLP(10, (64,), 4), MLP(10, (64,), 4)
        second.load_state_dict(first.state_dict())
        fit(Supervised(first), data["source"], budget, seed=seed)
        fit(DomainAdversarial(second, hidden=64), data, budget, seed=seed)
        alone.append(accuracy(first, data["target"]))
        adapted.append(accuracy(second, data["target"]))
    assert sum(adapted) / 3 > sum(alone) / 3 + 0.05, (adapted, alone)
