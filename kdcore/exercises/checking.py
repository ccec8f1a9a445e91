"""Compare a reader's function with the right one on hidden cases, and recognise the usual mistakes.

A mistake is recognised by doing it: each exercise has, beside the right function, functions that are wrong in one
way, each with a hint. An answer that agrees with one of them on every case gets its hint. What no list needs to
foresee (shape, type, a factor, a changed argument, a gradient where none should be) is found by comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcore.checks import check_choice

__all__ = ["Exercise", "Result", "check", "exercise_names", "gradient_of"]

Case = Mapping[str, Any]
_MODULES = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "checking"))
)


@dataclass(frozen=True)
class Exercise:
    """What a check knows.

    Attributes:
        cases: arguments by name, in the order in which the answer takes them. Where a tensor has `requires_grad`,
            the gradient that arrives at it is compared too.
        right: the right function, from the method's own module.
        mistakes: functions that are wrong in one way, by the hint that says which.

    Example:
        >>> double = Exercise(
        ...     cases=[{"x": torch.tensor([1.0, 2.0])}],
        ...     right=lambda x: 2 * x,
        ...     mistakes={"This is the square.": lambda x: x * x},
        ... )
        >>> double.right(*double.cases[0].values())
        tensor([2., 4.])
    """

    cases: Sequence[Case]
    right: Callable[..., Tensor]
    mistakes: Mapping[str, Callable[..., Tensor]]


@dataclass(frozen=True)
class Result:
    """What a check found; shown as its message, and true if the answer is right.

    Attributes:
        right: whether the answer agrees with the right function on every hidden case.
        message: one line.

    Example:
        >>> Result(False, "The factor τ² is missing.")
        The factor τ² is missing.
    """

    right: bool
    message: str

    def __repr__(self) -> str:
        return self.message

    def __bool__(self) -> bool:
        return self.right


class _Outcome(NamedTuple):
    """What a call returned, the gradient at each argument that asks for one, and the arguments that it changed."""

    value: Any
    gradients: dict[str, Tensor]
    changed: list[str]


def check(name: str, answer: Callable[..., Tensor]) -> Result:
    """Check the reader's function for an exercise on hidden cases, drawn with fixed seeds.

    Args:
        name: chapter and number of the checked exercise, as "spherical_kd.1".
        answer: the function, with the arguments that the exercise names, in their order.

    Returns:
        "Right." with the number of cases, or what is wrong; never the solution. An answer that is no function,
        raises, or returns something else than the exercise asks for is told so in the same way.

    Raises:
        ValueError: there is no such exercise; names the nearest.

    Example:
        >>> from kdcore.foundations import kd
        >>> check("kd.1", kd.distillation_loss)
        Right. 4 hidden cases agree.
        >>> check("kd.1", lambda student, teacher, temperature: -kd.distillation_loss(student, teacher, temperature))
        The sign is turned round.
    """
    exercise = _find(name)
    if not callable(answer):
        return Result(False, f"The answer must be a function, given by its name without (), got {_kind(answer)}.")
    outcomes = []
    for case in exercise.cases:
        try:
            outcomes.append(_run(answer, case))
        except Exception as error:
            said = " ".join(str(error).split()) or "no message"
            return Result(False, f"Called with {_describe(case)} the answer raised {type(error).__name__}: {said}")
    wanted = [_run(exercise.right, case) for case in exercise.cases]
    changed = [name for outcome in outcomes for name in outcome.changed]
    if changed:
        return Result(False, f"The answer changes its argument {changed[0]} in place; it should leave it as it is.")
    if all(map(_same, outcomes, wanted)):
        return Result(True, f"Right. {len(wanted)} hidden cases agree.")
    return Result(False, _recognise(exercise, outcomes, wanted) or _difference(outcomes, wanted))


def exercise_names() -> list[str]:
    """All names that `check` takes.

    Example:
        >>> "spherical_kd.1" in exercise_names()
        True
    """
    return [name for module in _MODULES for name in _exercises(module)]


def gradient_of(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function that returns the gradient of a scalar loss with respect to its first argument, by autograd.

    Example:
        >>> gradient_of(lambda x: (x * x).sum())(torch.tensor([3.0]))
        tensor([6.])
    """

    def gradient(first: Tensor, *others: Any) -> Tensor:
        leaf = first.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf, *others), leaf)[0]

    return gradient


def _exercises(module: str) -> dict[str, Exercise]:
    return import_module(f"kdcore.exercises.{module}").EXERCISES


def _find(name: str) -> Exercise:
    """Load the one module that the name asks for; all of them only to find the nearest name."""
    module = str(name).partition(".")[0]
    own = _exercises(module) if module in _MODULES else {}
    if name not in own:
        check_choice("name", name, exercise_names())
    return own[name]


def _run(function: Callable[..., Any], case: Case) -> _Outcome:
    """Call a function on copies of the arguments, with gradients even where the caller has switched them off."""
    leaves: dict[str, Tensor] = {}
    given: dict[str, Any] = {}
    with torch.enable_grad():
        for name, value in case.items():
            given[name] = value
            if isinstance(value, Tensor):
                leaf = value.detach().clone().requires_grad_(value.requires_grad)
                leaves |= {name: leaf} if value.requires_grad else {}
                given[name] = leaf.clone()  # of a leaf that needs a gradient torch forbids what is to be found here
        value = function(*given.values())
        changed = [name for name, old in case.items() if isinstance(old, Tensor) and not torch.equal(given[name], old)]
        return _Outcome(value, {} if changed else _gradients(value, leaves), changed)


def _gradients(value: Any, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of a fixed weighted sum of the value; zeros where nothing arrives."""
    if not leaves or not isinstance(value, Tensor) or not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    found = torch.autograd.grad(
        (value * weights).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def _close(first: Tensor, second: Tensor) -> bool:
    """Equal up to what float32 and another order of operations explain."""
    scale = float(second.detach().abs().max()) if second.numel() else 0.0
    return torch.allclose(first, second, rtol=1e-3, atol=1e-4 * scale + 1e-6)


def _same_value(first: _Outcome, second: _Outcome) -> bool:
    one, other = first.value, second.value
    fits = isinstance(one, Tensor) and one.shape == other.shape and one.dtype == other.dtype
    return fits and _close(one, other)


def _same(first: _Outcome, second: _Outcome) -> bool:
    pairs = ((first.gradients[name], gradient) for name, gradient in second.gradients.items())
    return _same_value(first, second) and all(_close(one, other) for one, other in pairs)


def _recognise(exercise: Exercise, outcomes: list[_Outcome], wanted: list[_Outcome]) -> str | None:
    """The hint of the mistake that explains every case; gradients decide only where the values are right."""
    same = _same if all(map(_same_value, outcomes, wanted)) else _same_value
    for hint, mistake in exercise.mistakes.items():
        if all(same(outcome, _run(mistake, case)) for outcome, case in zip(outcomes, exercise.cases, strict=True)):
            return hint
    return None


def _difference(outcomes: list[_Outcome], wanted: list[_Outcome]) -> str:
    """In what the first case that differs does so, where no mistake of the list explains it."""
    for outcome, right in zip(outcomes, wanted, strict=True):
        got, value = outcome.value, right.value
        if not isinstance(got, Tensor):
            missing = " Is a return missing?" if got is None else ""
            return f"The answer must return a tensor of shape {tuple(value.shape)}, got {_kind(got)}.{missing}"
        if got.shape != value.shape:
            return f"The result must have shape {tuple(value.shape)}, got {tuple(got.shape)}."
        if got.dtype != value.dtype:
            return f"The result must be {value.dtype}, as the arguments are, got {got.dtype}."
        if not bool(torch.isfinite(got).all()):
            return f"The result must be finite, got {int((~torch.isfinite(got)).sum())} NaN or infinite values."
    if all(map(_same_value, outcomes, wanted)):
        return _gradient_difference(outcomes, wanted)
    return _value_difference(
        torch.cat([outcome.value.detach().flatten() for outcome in outcomes]),
        torch.cat([outcome.value.detach().flatten() for outcome in wanted]),
        len(wanted),
    )


def _gradient_difference(outcomes: list[_Outcome], wanted: list[_Outcome]) -> str:
    for name in wanted[0].gradients:
        got, right = ([outcome.gradients[name].abs().max() for outcome in group] for group in (outcomes, wanted))
        if max(right) == 0 and max(got) > 0:
            return f"The values are right, but gradient flows into {name}, a constant of this loss: detach it."
        if max(got) == 0 and max(right) > 0:
            return f"The values are right, but no gradient arrives at {name}: what was detached on the way to it?"
    return "The values are right, but their gradient is not: was a part of the computation detached, or left attached?"


def _value_difference(got: Tensor, right: Tensor, cases: int) -> str:
    factor = float((got * right).sum() / right.square().sum())
    if _close(got, -right):
        return "The sign is turned round."
    if abs(factor) > 1e-3 and _close(got, factor * right):
        return f"Right up to a constant factor: the answer is {factor:.3g} times what is wanted, in all cases."
    error, largest = float((got - right).abs().max()), float(right.abs().max())
    return f"The largest error over {cases} hidden cases is {error:.3g}, where values reach {largest:.3g}."


def _describe(case: Case) -> str:
    """Names, with shapes or values, of a hidden case's arguments."""
    parts = (tuple(value.shape) if isinstance(value, Tensor) else value for value in case.values())
    return ", ".join(f"{name} {part}" for name, part in zip(case, parts, strict=True))


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
