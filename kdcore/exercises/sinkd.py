"""Checks of the chapter on Sinkhorn distillation: the plan, and the whole transport term with its gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcore.exercises.checking import Exercise
from kdcore.logits import sinkd

__all__ = ["EXERCISES"]

_SIZES = [(5, 4, 0.3, 3), (3, 10, 0.2, 20), (6, 2, 0.5, 2), (2, 3, 0.8, 1)]
"""Samples, classes, regularisation, iterations."""


def _plan_cases() -> list[dict]:
    generator = torch.Generator().manual_seed(2402)
    return [
        {
            "cost": (1.5 * torch.rand(rows, rows, generator=generator)).requires_grad_(),
            "epsilon": epsilon,
            "iterations": iterations,
        }
        for rows, _, epsilon, iterations in _SIZES
    ]


def _loss_cases() -> list[dict]:
    generator, cases = torch.Generator().manual_seed(17110), []
    for rows, classes, epsilon, iterations in _SIZES:
        student, teacher = ((2 * torch.randn(rows, classes, generator=generator)).requires_grad_() for _ in range(2))
        logits = {"student_logits": student, "teacher_logits": teacher}
        cases.append({**logits, "temperature": 1.5, "epsilon": epsilon, "iterations": iterations})
    return cases


def _alternate(plan: Tensor, iterations: int, dims: tuple[int, ...] = (1, 0), detached: bool = False) -> Tensor:
    for _ in range(iterations):
        for dim in dims:
            total = plan.sum(dim=dim, keepdim=True)
            plan = plan / (total.detach() if detached else total)
    return plan


def _loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    epsilon: float,
    iterations: int,
) -> Tensor:
    return sinkd.SinkhornDistance(temperature, epsilon, iterations)(student_logits, teacher_logits)


def _with_distance(power: float, share: float = 1.0):
    """The loss for another distance between predictions, as some multiple of it."""

    def wrong(student: Tensor, teacher: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
        p, q = (logits.div(temperature).softmax(dim=1) for logits in (student, teacher.detach()))
        cost = share * (p.unsqueeze(1) - q).abs().pow(power).sum(dim=2).pow(1 / power)
        return (sinkd.transport_plan(cost, epsilon, iterations) * cost).sum()

    return wrong


def _detached(what: str):
    """The loss with the gradient through plan or cost cut."""

    def wrong(student: Tensor, teacher: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
        cost = sinkd.transport_cost(student, teacher, temperature)
        plan = sinkd.transport_plan(cost.detach() if what == "plan" else cost, epsilon, iterations)
        return (plan * (cost.detach() if what == "cost" else cost)).sum()

    return wrong


def _diagonal(student: Tensor, teacher: Tensor, temperature: float, epsilon: float, iterations: int) -> Tensor:
    return 2 * len(student) * sinkd.total_variation(student, teacher, temperature)


EXERCISES = {
    "sinkd.1": Exercise(
        _plan_cases(),
        sinkd.transport_plan,
        {
            "Only rows are divided by their sums: each iteration must divide the columns, too.": lambda w, e, n: (
                _alternate((-w / e).exp(), n, (1,))
            ),
            "Columns come first and rows last: (2) ends with the columns, which then sum to exactly 1.": (
                lambda w, e, n: _alternate((-w / e).exp(), n, (0, 1))
            ),
            "Columns are divided once, after all iterations: they alternate with the rows in each.": lambda w, e, n: (
                _alternate(_alternate((-w / e).exp(), n, (1,)), 1, (0,))
            ),
            "The plan has mass 1 in all: here each row and column has mass 1, and the plan mass B.": lambda w, e, n: (
                sinkd.transport_plan(w, e, n) / len(w)
            ),
            "The sign in the exponent is turned round: dear pairs get the most.": lambda w, e, n: _alternate(
                (w / e).exp(), n
            ),
            "ε is missing from the exponent.": lambda w, e, n: sinkd.transport_plan(w, 1.0, n),
            "The cost is multiplied by ε: it is divided, so that a small ε makes a sharp plan.": lambda w, e, n: (
                _alternate((-w * e).exp(), n)
            ),
            "The values are right, but the sums were detached: the gradient flows through them, too.": (
                lambda w, e, n: _alternate((-w / e).exp(), n, detached=True)
            ),
        },
    ),
    "sinkd.2": Exercise(
        _loss_cases(),
        _loss,
        {
            "The values are right, but the plan was detached: half of equation (7) is missing.": _detached("plan"),
            "The values are right, but the cost was detached: the 1 of equation (7) is missing.": _detached("cost"),
            "It is the mean over samples: the published (3) is the sum.": lambda s, t, h, e, n: (
                _loss(s, t, h, e, n) / len(s)
            ),
            "The plan is the diagonal: each sample is compared with its own target only.": _diagonal,
            "The cost is the Euclidean distance: (1) is the L1 distance.": _with_distance(2.0),
            "The cost is half the L1 distance, the total variation: (1) is the whole.": _with_distance(1.0, 0.5),
            "The softmax is taken at temperature 1.": lambda s, t, h, e, n: _loss(s, t, 1.0, e, n),
            "The logits are multiplied by the temperature.": lambda s, t, h, e, n: _loss(s, t, 1 / h, e, n),
        },
    ),
}
"""The checks, by name."""
