"""How long and how to train: one frozen description for every method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from kdcore.checks import check_choice, check_fraction, check_positive
from kdcore.training.optimizers import SGD, Adam, AdamW

__all__ = ["Budget"]

Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "steps", "polynomial"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Budget:
    """Length of training, batch size, optimiser, schedule and precision.

    Attributes:
        epochs: passes over the (first) data stream; give either `epochs` or `steps`.
        steps: optimiser steps.
        batch_size: rows per step and stream; an incomplete last batch is dropped.
        optimizer: "sgd" (Nesterov momentum), "adam" or "adamw".
        lr: peak learning rate.
        momentum: of SGD.
        weight_decay: as the optimiser defines it.
        schedule: "constant", "cosine" (to 0), "steps" (times `gamma` at each of `milestones`) or "polynomial"
            ((1 − t)^0.9).
        milestones: fractions of training at which "steps" acts.
        gamma: factor of "steps".
        warmup: fraction of training over which the rate rises linearly from 0.
        ema: decay of an exponential moving average of the weights; 0 for none.
        precision: "float32", or autocast to "bfloat16" or "float16" (with loss scaling).
        max_grad_norm: clip the gradient's norm to this; 0 for no clipping.

    Raises:
        ValueError: a value is out of range, or not exactly one of `epochs` and `steps` is given.

    Example:
        >>> Budget(epochs=10, lr=0.1).total_steps(rows=640)
        50
    """

    epochs: int = 0
    steps: int = 0
    batch_size: int = 128
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    milestones: tuple[float, ...] = (0.6, 0.8)
    gamma: float = 0.1
    warmup: float = 0.0
    ema: float = 0.0
    precision: Precision = "float32"
    max_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0):
            raise ValueError(f"give either epochs or steps, got epochs={self.epochs}, steps={self.steps}.")
        check_positive(lr=self.lr, batch_size=self.batch_size)
        check_choice("optimizer", self.optimizer, ("sgd", "adam", "adamw"))
        check_choice("schedule", self.schedule, ("constant", "cosine", "steps", "polynomial"))
        check_choice("precision", self.precision, ("float32", "bfloat16", "float16"))
        check_fraction(warmup=self.warmup, ema=self.ema)

    def steps_per_epoch(self, rows: int) -> int:
        """Complete batches in one pass over `rows` rows; at least 1 (then the batch is smaller)."""
        return max(1, rows // self.batch_size)

    def total_steps(self, rows: int) -> int:
        """Optimiser steps in all."""
        return self.steps or self.epochs * self.steps_per_epoch(rows)

    def rate_factor(self, total: int) -> Callable[[int], float]:
        """The learning rate as a multiple of `lr`, as a function of the step, of `total`."""

        def factor(step: int) -> float:
            progress = min(step / total, 1.0)
            if progress < self.warmup:
                return (step + 1) / (self.warmup * total + 1)
            if self.schedule == "cosine":
                return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / max(1 - self.warmup, 1e-9)))
            if self.schedule == "steps":
                return self.gamma ** sum(progress >= milestone for milestone in self.milestones)
            if self.schedule == "polynomial":
                return (1 - progress) ** 0.9
            return 1.0

        return factor

    def build_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """The optimiser over parameter groups; a group's ``lr_factor`` multiplies its rate."""
        groups = [{**group, "lr": self.lr * group.get("lr_factor", 1.0)} for group in groups]
        if self.optimizer == "sgd":
            nesterov = self.momentum > 0
            return SGD(groups, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=nesterov, fused=True)
        kind = Adam if self.optimizer == "adam" else AdamW
        return kind(groups, weight_decay=self.weight_decay, fused=True)
