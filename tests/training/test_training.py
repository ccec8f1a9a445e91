"""The loop against a hand-written one; resuming, determinism, errors, schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdcore import data, models, training
from kdcore.data import Arrays
from kdcore.foundations.kd import KnowledgeDistillation
from kdcore.training import optimizers


def problem(rows: int = 96) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 6, generator=generator)
    return Arrays(inputs=inputs, labels=(inputs[:, 0] + inputs[:, 1] > 0).long())


def network(seed: int = 0) -> nn.Module:
    with training.seeded(seed):
        return models.MLP(6, (8,), 2, dropout=0.2)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_loop_equals_hand_written_forward_backward_step():
    rows = problem()
    model, copy = models.MLP(6, (8,), 2), models.MLP(6, (8,), 2)
    copy.load_state_dict(model.state_dict())
    training.fit(
        training.Supervised(model), rows, training.Budget(epochs=2, batch_size=32, lr=0.1, schedule="constant")
    )
    optimizer = torch.optim.SGD(copy.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(96, generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(copy(rows.inputs[batch]), rows.labels[batch]).backward()
            optimizer.step()
    torch.testing.assert_close(weights(model), weights(copy))


@pytest.mark.parametrize(
    ("ours", "torchs", "options"),
    [
        (optimizers.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "fused": True}),
        (optimizers.Adam, torch.optim.Adam, {"fused": True}),
        (optimizers.AdamW, torch.optim.AdamW, {}),
    ],
)
def test_optimisers_are_torch_s_to_the_bit_and_continue_from_its_state(ours, torchs, options):
    def steps(kinds: list) -> torch.Tensor:
        weight = torch.linspace(-1, 1, 7, requires_grad=True)
        state = None
        for kind in kinds:
            optimizer = kind([weight], lr=0.1, weight_decay=0.01, **options)
            if state is not None:
                optimizer.load_state_dict(state)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            for _ in range(3):
                optimizer.zero_grad()
                (weight**4).sum().backward()
                optimizer.step()
                schedule.step()
            state = optimizer.state_dict()
        return weight.detach()

    assert torch.equal(steps([torchs, torchs]), steps([ours, ours]))
    assert torch.equal(steps([torchs, torchs]), steps([torchs, ours]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_same_seed_same_bits_and_another_seed_other_bits(optimizer):
    def run(seed: int) -> torch.Tensor:
        model = network()
        training.fit(
            training.Supervised(model),
            problem(),
            training.Budget(epochs=3, batch_size=16, optimizer=optimizer),
            seed=seed,
        )
        return weights(model)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_global_random_state_is_left_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    training.fit(training.Supervised(network()), problem(), training.Budget(epochs=1, batch_size=16))
    assert torch.equal(torch.rand(3), wanted)


class _Interrupted(Exception):
    pass


def test_killed_training_resumes_to_the_same_bits(tmp_path):
    budget = training.Budget(epochs=6, batch_size=20, ema=0.9)
    whole = network()
    reference = training.fit(training.Supervised(whole), problem(), budget, seed=1)
    halves = network()
    calls = []

    def stop_after_third() -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise _Interrupted
        return {}

    path = tmp_path / "folder" / "run.pt"
    with pytest.raises(_Interrupted):
        training.fit(training.Supervised(halves), problem(), budget, seed=1, checkpoint=path, evaluate=stop_after_third)
    resumed = network(seed=9)
    history = training.fit(training.Supervised(resumed), problem(), budget, seed=1, checkpoint=path)
    assert torch.equal(weights(whole), weights(resumed))
    assert history.epochs["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert reference.averaged is not None
    assert history.averaged is not None
    assert torch.equal(weights(reference.averaged), weights(history.averaged))


def test_corrupt_or_foreign_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"run.pt cannot be resumed"):
        training.fit(training.Supervised(network()), problem(), training.Budget(epochs=1), checkpoint=path)


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path):
    marker = tmp_path / "marker"

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"learner": Attack()}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="cannot be resumed"):
        training.fit(
            training.Supervised(network()), problem(), training.Budget(epochs=1), checkpoint=tmp_path / "run.pt"
        )
    assert not marker.exists()


class _Exploding(training.Learner):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.step = 0

    def losses(self, batch):
        self.step += 1
        return {"fine": self.weight**2, "broken": self.weight + (math.nan if self.step == 6 else 0.0)}


def test_non_finite_loss_names_term_and_step():
    with pytest.raises(FloatingPointError, match=r"'broken' became nan at step 5"):
        training.fit(_Exploding(), problem(), training.Budget(epochs=3, batch_size=32))


def test_non_finite_logits_end_in_the_loss_and_are_looked_at_again_afterwards():
    rows = problem()
    rows = rows.with_(inputs=rows.inputs / 0, teacher_logits=torch.zeros(len(rows), 2))
    learner = training.Distillation(network(), KnowledgeDistillation())
    with pytest.raises(FloatingPointError, match=r"'distillation' became nan at step 0"):
        training.fit(learner, rows, training.Budget(steps=2, batch_size=32))
    with pytest.raises(ValueError, match="student_logits must be finite"):
        learner.losses(rows)


class _Changing(training.Learner):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.step = 0

    def losses(self, batch):
        self.step += 1
        return {f"term{self.step}": self.weight**2}


def test_changing_terms_are_refused():
    with pytest.raises(ValueError, match="same terms at every step"):
        training.fit(_Changing(), problem(), training.Budget(epochs=1, batch_size=32))


class _TwoStreams(training.Learner):
    def __init__(self) -> None:
        super().__init__()
        self.model = models.MLP(6, (8,), 2)
        self.progress: list[float] = []
        self.epochs: list[int] = []

    def losses(self, batch):
        assert len(batch.source) == 32
        assert len(batch.target) == 10
        return {"source": F.cross_entropy(self.model(batch.source.inputs), batch.source.labels)}

    def on_step(self, progress):
        self.progress.append(progress)

    def on_epoch_end(self, epoch):
        self.epochs.append(epoch)


def test_streams_cycle_and_hooks_are_called():
    learner = _TwoStreams()
    budget = training.Budget(epochs=2, batch_size=32)
    training.fit(learner, {"source": problem(), "target": problem(10)}, budget)
    assert learner.progress == [k / 6 for k in range(6)]
    assert learner.epochs == [1, 2]
    assert not learner.training


def test_every_row_is_seen_once_per_epoch():
    seen = []

    class Watching(training.Supervised):
        def losses(self, batch):
            seen.append(batch.number)
            return super().losses(batch)

    training.fit(
        Watching(network()), problem().with_(number=torch.arange(96)), training.Budget(epochs=2, batch_size=32)
    )
    assert torch.equal(torch.cat(seen[:3]).sort().values, torch.arange(96))
    assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))


def test_frozen_teacher_keeps_weights_statistics_and_mode():
    rows = data.digits(200).train
    teacher, student = models.ConvNet(4, 2), models.ConvNet(4, 2)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    learner = training.Distillation(student, lambda s, t, y: F.mse_loss(s, t), teacher)
    learner.losses(rows)
    training.fit(learner, rows, training.Budget(epochs=1, batch_size=50))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_cached_teacher_gives_the_same_training_as_a_live_one():
    rows = data.digits(200).train
    with training.seeded(0):
        teacher = models.ConvNet(4, 2).eval()
    results = []
    for cached in (True, False):
        with training.seeded(1):
            student = models.MLP(64, (8,))
        loss = lambda s, t, y: F.mse_loss(s, t)  # noqa: E731
        learner = training.Distillation(student, loss, None if cached else teacher)
        training.fit(
            learner, training.with_teacher(rows, teacher) if cached else rows, training.Budget(epochs=2, batch_size=50)
        )
        results.append(weights(student))
    torch.testing.assert_close(*results)


def test_distillation_without_teacher_says_what_to_do():
    with pytest.raises(ValueError, match="needs a teacher, or data with teacher_logits"):
        training.Distillation(network(), lambda s, t, y: s.sum()).losses(problem())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either epochs or steps"),
        ({"epochs": 1, "steps": 1}, "either epochs or steps"),
        ({"epochs": 1, "lr": -1.0}, "lr must be a positive number"),
        ({"epochs": 1, "optimizer": "sgdd"}, "Did you mean 'sgd'"),
        ({"epochs": 1, "schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"epochs": 1, "warmup": 2.0}, "warmup must lie in"),
    ],
)
def test_bad_budgets_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        training.Budget(**settings)


def test_schedules_pass_through_the_points_they_promise():
    cosine = training.Budget(epochs=1, warmup=0.1).rate_factor(100)
    assert cosine(0) < 0.1
    assert cosine(10) == pytest.approx(1.0)
    assert cosine(55) == pytest.approx(0.5)
    assert cosine(100) == pytest.approx(0.0, abs=1e-12)
    steps = training.Budget(epochs=1, schedule="steps", milestones=(0.5,), gamma=0.1).rate_factor(10)
    assert (steps(4), steps(5)) == (1.0, 0.1)
    assert training.Budget(epochs=1, schedule="polynomial").rate_factor(10)(5) == pytest.approx(0.5**0.9)
    assert training.Budget(epochs=1, schedule="constant").rate_factor(10)(7) == 1.0


def test_learning_rate_factor_of_a_group_is_used():
    layer = nn.Linear(2, 2)
    optimizer = training.Budget(epochs=1, lr=0.1).build_optimizer([{"params": layer.parameters(), "lr_factor": 10.0}])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


def test_moving_average_follows_its_formula():
    learner = training.Supervised(models.MLP(6, (), 2))
    seen = [weights(learner)]

    class Recording(training.Supervised):
        def on_step(self, progress):
            seen.append(weights(self))

    recording = Recording(models.MLP(6, (), 2))
    history = training.fit(recording, problem(), training.Budget(steps=4, batch_size=32, ema=0.5, schedule="constant"))
    states = [*seen[2:], weights(recording)]  # after each of the four steps
    expected = states[0]
    for state in states[1:]:
        expected = 0.5 * expected + 0.5 * state
    assert history.averaged is not None
    torch.testing.assert_close(weights(history.averaged), expected)


def test_gradient_norm_is_clipped():
    model = models.MLP(6, (), 2)
    before = weights(model)
    budget = training.Budget(steps=1, lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", max_grad_norm=1e-3)
    training.fit(training.Supervised(model), problem(), budget)
    assert float((weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_trains(precision):
    model = network()
    history = training.fit(
        training.Supervised(model), problem(), training.Budget(epochs=8, batch_size=16, lr=0.1, precision=precision)
    )
    assert history.epochs["cross_entropy"].iloc[-1] < history.epochs["cross_entropy"].iloc[0]
    assert next(model.parameters()).dtype == torch.float32


def test_asking_for_an_absent_gpu_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device='cuda' was asked for, but no CUDA GPU is present"):
        training.pick_device("cuda")
    with pytest.raises(ValueError, match="device must be"):
        training.pick_device("gpuu")
    assert training.pick_device("auto").type == "cpu"
