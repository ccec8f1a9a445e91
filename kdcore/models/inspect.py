"""Looking inside any network: features by module name, parameters, FLOPs, latency."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["features", "flops", "inference", "latency", "parameter_count"]


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient inside; afterwards each module is in the mode it was in, even after an error.

    Example:
        >>> model = nn.Dropout()
        >>> with inference(model):
        ...     model(torch.ones(3))
        tensor([1., 1., 1.])
        >>> model.training
        True
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def features(model: nn.Module, inputs: Tensor, layers: list[str]) -> tuple[dict[str, Tensor], Any]:
    """Outputs of the named modules in one forward pass, and the model's own output.

    Gradients flow as usual, and autocast applies as in any forward pass. Hooks are removed even when the model fails.
    What `torch.compile` has made of a model knows no hooks; the model that it was made from, with the same
    parameters, is run in its place. A function that calls this one can be compiled itself.

    Args:
        model: any module.
        inputs: what the model takes.
        layers: names as in ``model.named_modules()`` before compilation, e.g. ``"stages.1"``.

    Returns:
        Outputs by name, and the output of `model`.

    Raises:
        ValueError: a name is unknown, or a module did not run, ran more than once, or gave something else than a
            tensor.

    Example:
        >>> from kdcore.models import ConvNet
        >>> maps, logits = features(ConvNet(8, 2), torch.zeros(1, 1, 8, 8), ["stages.0"])
        >>> maps["stages.0"].shape
        torch.Size([1, 8, 8, 8])
    """
    model = getattr(model, "_orig_mod", model)  # as torch.compile names it, in state dicts too
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(
            f"layers must name modules of the model, got {unknown}; there are {', '.join(filter(None, modules))}."
        )
    taken: dict[str, list[Any]] = {name: [] for name in layers}
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: taken[name].append(output))
        for name in layers
    ]
    try:
        output = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: _only_output(name, found) for name, found in taken.items()}, output


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, frozen ones included.

    Example:
        >>> parameter_count(nn.Linear(3, 5))
        20
    """
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, inputs: Tensor) -> int:
    """Floating point operations of one forward pass of `inputs`, by torch's own counter (2 per multiply-add).

    Example:
        >>> flops(nn.Linear(3, 5, bias=False), torch.zeros(2, 3))  # 2 · 2 · 3 · 5
        60
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return int(counter.get_total_flops())


def latency(model: nn.Module, inputs: Tensor, repeats: int = 20) -> float:
    """Median seconds of a forward pass in evaluation mode, after one to warm up.

    Example:
        >>> latency(nn.Linear(3, 5), torch.zeros(2, 3), repeats=3) > 0
        True
    """
    times = []
    with inference(model):
        for _ in range(repeats + 1):
            began = time.perf_counter()
            model(inputs)
            if inputs.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    return float(torch.tensor(times[1:]).median())


def _only_output(name: str, found: list[Any]) -> Tensor:
    """The output of a module that ran once and gave a tensor."""
    if not found:
        raise ValueError(f"module {name!r} did not run in the forward pass.")
    if len(found) > 1:
        raise ValueError(
            f"module {name!r} ran {len(found)} times; name one that runs once, such as the block around it."
        )
    if not isinstance(found[0], Tensor):
        raise ValueError(
            f"module {name!r} must give a tensor, got {type(found[0]).__name__}; name one inside or around it."
        )
    return found[0]
