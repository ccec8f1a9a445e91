"""One training loop for all methods."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from kdcore.checks import finiteness_left_to_loss
from kdcore.data.arrays import Arrays
from kdcore.training.budget import Budget
from kdcore.training.learners import Learner
from kdcore.training.seeding import seeded
from kdcore.training.stopping import EarlyStopping

__all__ = ["History", "fit"]

_CHECK_EVERY = 200  # steps between looks for a non-finite loss; reading a loss at each step would stall a GPU
_GATHER = 16  # batches that are collected in one go


@dataclass
class History:
    """What happened in training.

    Attributes:
        epochs: one row per epoch: `epoch`, mean of each loss term, `seconds`, and what `evaluate` returned.
        averaged: the exponential moving average of the learner, where the budget asked for one.

    Example:
        >>> History(epochs=pd.DataFrame({"epoch": [1], "cross_entropy": [2.3]}), averaged=None).epochs["epoch"].tolist()
        [1]
    """

    epochs: pd.DataFrame
    averaged: nn.Module | None = None


@dataclass
class _State:
    """Everything a checkpoint holds, and the learning rates that the schedule multiplies, one per parameter group."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    rates: list[float]
    scaler: torch.amp.GradScaler
    averaged: AveragedModel | None
    streams: dict[str, _Stream]
    epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        content: dict[str, Any] = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else None,
        }
        content["streams"] = {name: stream.state() for name, stream in self.streams.items()}
        content |= {"epoch": self.epoch, "rows": self.rows, "best": self.best, "rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            content["cuda_rng"] = torch.cuda.get_rng_state()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        torch.save(content, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            self.learner.load_state_dict(content["learner"])
        except Exception as error:
            raise ValueError(f"checkpoint {path} cannot be resumed ({error}); delete it to start afresh.") from error
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        if self.averaged:
            self.averaged.load_state_dict(content["averaged"])
        for name, stream in self.streams.items():
            stream.restore(content["streams"][name])
        self.epoch, self.rows, self.best = content["epoch"], content["rows"], content["best"]
        torch.set_rng_state(content["rng"])
        if "cuda_rng" in content and torch.cuda.is_available():
            torch.cuda.set_rng_state(content["cuda_rng"])


class _Stream:
    """Endless batches of one data set, each pass in a fresh order that depends on the seed alone."""

    def __init__(self, data: Arrays, batch_size: int, seed: int) -> None:
        self.data = data
        self.size = min(batch_size, len(data))
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long, device=data.device)
        self.position = 0
        self.ahead: Iterator[Arrays] = iter(())

    def next(self) -> Arrays:
        batch = next(self.ahead, None)
        if batch is None:
            self.ahead = self._look_ahead()
            batch = next(self.ahead)
        self.position += self.size
        return batch

    def _look_ahead(self) -> Iterator[Arrays]:
        if self.position + self.size > len(self.order):
            self.order = torch.randperm(len(self.data), generator=self.generator).to(self.data.device)
            self.position = 0
        complete = min(_GATHER, (len(self.order) - self.position) // self.size)
        return self.data.batches(self.order[self.position : self.position + complete * self.size], self.size)

    def state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "order": self.order.cpu(), "position": self.position}

    def restore(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.order, self.position = state["order"].to(self.data.device), state["position"]
        self.ahead = iter(())


def fit(
    learner: Learner,
    data: Arrays | Mapping[str, Arrays],
    budget: Budget,
    *,
    seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stopping: EarlyStopping | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> History:
    """Train `learner` on `data` within `budget`; the learner ends in evaluation mode.

    Weights of two-dimensional convolutions are laid out channels-last, where they stay.

    Args:
        learner: its `losses(batch)` are summed and minimised. It must lie on the data's device.
        data: one data set, or several by name (source, target); an epoch is one pass over the first. With several,
            the batch is a namespace of `Arrays`.
        budget: length, batch size, optimiser, schedule, precision.
        seed: of the data order, augmentation and dropout.
        augment: changes a batch's `inputs` (of every stream), given a generator on the CPU.
        evaluate: called after each epoch, the learner in evaluation mode; what it returns joins the history.
        stopping: may end training before the budget is spent; the learner then has the weights of the best epoch (not
            so `History.averaged`). Schedules still follow the whole budget.
        checkpoint: file written after each epoch (atomically) and resumed from if it is there.
        progress: show a progress bar.

    Returns:
        The history, with the moving average of the learner where asked for.

    Raises:
        FloatingPointError: a loss term became NaN or infinite; names the term and the step.
        ValueError: the checkpoint cannot be resumed, or the history lacks the column that `stopping` monitors.

    Example:
        >>> from kdcore.data import digits
        >>> from kdcore.metrics import accuracy
        >>> from kdcore.models import MLP
        >>> from kdcore.training import Supervised, predict
        >>> images, model = digits(), MLP(64)
        >>> history = fit(Supervised(model), images.train, Budget(epochs=3, batch_size=64, lr=0.1))
        >>> accuracy(predict(model, images.test.inputs), images.test.labels) > 80
        True
    """
    named = {"": data} if isinstance(data, Arrays) else dict(data)
    streams = {name: _Stream(part, budget.batch_size, seed * 1000 + k) for k, (name, part) in enumerate(named.items())}
    rows = len(next(iter(named.values())))
    device = next(iter(named.values())).device
    total, per_epoch = budget.total_steps(rows), budget.steps_per_epoch(rows)
    learner.to(memory_format=torch.channels_last)  # changes no value, and makes steps of convolutions cheaper
    optimizer = budget.build_optimizer(learner.parameter_groups())
    state = _State(
        learner=learner,
        optimizer=optimizer,
        rates=[group["lr"] for group in optimizer.param_groups],
        scaler=torch.amp.GradScaler(device.type, enabled=budget.precision == "float16"),
        averaged=AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(budget.ema)) if budget.ema else None,
        streams=streams,
    )
    augmenter = torch.Generator().manual_seed(seed)
    with seeded(seed):
        if checkpoint is not None and Path(checkpoint).exists():
            state.load(Path(checkpoint))
        epochs = -(-total // per_epoch)
        learner.train()  # once, not at each epoch: the walk through all modules is slow, and an epoch may be one step
        bar = tqdm(total=total, initial=state.epoch * per_epoch, disable=not progress, unit="step", leave=False)
        for epoch in range(state.epoch, epochs):
            if stopping is not None and stopping.finished(state.rows):
                break
            augmenter.manual_seed(seed * 100003 + epoch)
            first, last = epoch * per_epoch, min((epoch + 1) * per_epoch, total)
            began = time.perf_counter()
            with finiteness_left_to_loss():
                means = _train_epoch(state, budget, range(first, last), total, augment, augmenter, bar)
            learner.on_epoch_end(epoch + 1)
            row = {"epoch": epoch + 1, **means, "seconds": time.perf_counter() - began}
            state.rows.append(row | (_evaluated(learner, evaluate) if evaluate else {}))
            state.epoch = epoch + 1
            if stopping is not None and stopping.best(state.rows) == epoch:
                state.best = {name: value.clone() for name, value in learner.state_dict().items()}
            if checkpoint is not None:
                state.save(Path(checkpoint))
        bar.close()
    if state.best is not None:
        learner.load_state_dict(state.best)
    learner.eval()
    averaged = state.averaged.module.eval() if state.averaged else None
    return History(epochs=pd.DataFrame(state.rows), averaged=averaged)


def _train_epoch(
    state: _State,
    budget: Budget,
    steps: range,
    total: int,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None,
    augmenter: torch.Generator,
    bar: tqdm,
) -> dict[str, float]:
    """Run the given steps; return the mean of each loss term."""
    learner, optimizer, scaler = state.learner, state.optimizer, state.scaler
    autocast: Any = nullcontext()
    if budget.precision != "float32":
        device = next(iter(state.streams.values())).data.device.type
        autocast = torch.autocast(device, dtype=torch.bfloat16 if budget.precision == "bfloat16" else torch.float16)
    rate_factor = budget.rate_factor(total)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    pending: list[dict[str, Tensor]] = []
    sums: dict[str, float] = {}
    for step in steps:
        learner.on_step(step / total)
        batch = _next_batch(state.streams, augment, augmenter)
        with autocast:
            terms = learner.losses(batch)
            loss = reduce(torch.add, terms.values())
        for parameter in parameters:
            parameter.grad = None
        scaler.scale(loss).backward()
        if budget.max_grad_norm:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, budget.max_grad_norm)
        for group, rate in zip(optimizer.param_groups, state.rates, strict=True):
            group["lr"] = rate * rate_factor(step)
        scaler.step(optimizer)
        scaler.update()
        if state.averaged is not None:
            state.averaged.update_parameters(learner)
        pending.append({name: term.detach() for name, term in terms.items()})
        if len(pending) == _CHECK_EVERY or step == steps[-1]:
            _collect(pending, sums, first_step=step + 1 - len(pending))
            bar.update(len(pending))
            pending.clear()
    return {name: value / len(steps) for name, value in sums.items()}


def _evaluated(learner: Learner, evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What `evaluate` returns with the learner in evaluation mode; training goes on afterwards."""
    learner.eval()
    found = evaluate()
    learner.train()
    return found


def _next_batch(
    streams: dict[str, _Stream], augment: Callable[[Tensor, torch.Generator], Tensor] | None, generator: torch.Generator
) -> Any:
    batches = {name: stream.next() for name, stream in streams.items()}
    if augment is not None:
        batches = {name: batch.with_(inputs=augment(batch.inputs, generator)) for name, batch in batches.items()}
    return batches[""] if "" in batches else SimpleNamespace(**batches)


def _collect(pending: list[dict[str, Tensor]], sums: dict[str, float], first_step: int) -> None:
    """Add the pending loss terms to their sums; stop at the first that is not finite."""
    names = list(pending[0])
    for offset, terms in enumerate(pending):
        if list(terms) != names:
            step = first_step + offset
            raise ValueError(f"losses must return the same terms at every step, got {list(terms)} at step {step}.")
    values = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in pending]).cpu()
    if not bool(torch.isfinite(values).all()):
        step, term = (~torch.isfinite(values)).nonzero()[0].tolist()
        raise FloatingPointError(
            f"loss term '{names[term]}' became {values[step, term].item()} at step {first_step + step}; "
            "lower the learning rate, or look at this term's inputs."
        )
    for name, value in zip(names, values.double().sum(dim=0).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
