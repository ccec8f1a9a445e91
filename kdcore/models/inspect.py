"""Looking inside any network: features by module name, parameters, FLOPs, latency."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["features", "flops", "latency", "parameter_count"]


def features(model: nn.Module, inputs: Tensor, layers: list[str]) -> tuple[dict[str, Tensor], Any]:
    """Outputs of the named modules in one forward pass, and the model's own output.

    Gradients flow as usual. Hooks are removed even when the model fails.

    Args:
        model: any module.
        inputs: what the model takes.
        layers: names as in ``model.named_modules()``, e.g. ``"stages.1"``.

    Returns:
        Outputs by name, and the output of `model`.

    Raises:
        ValueError: a name is unknown, or a module did not run.

    Example:
        >>> from kdcore.models import ConvNet
        >>> maps, logits = features(ConvNet(8, 2), torch.zeros(1, 1, 8, 8), ["stages.0"])
        >>> maps["stages.0"].shape
        torch.Size([1, 8, 8, 8])
    """
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        raise ValueError(
            f"layers must name modules of the model, got {unknown}; there are {', '.join(filter(None, modules))}."
        )
    taken: dict[str, Tensor] = {}
    hooks = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: taken.__setitem__(name, output))
        for name in layers
    ]
    try:
        output = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in taken]
    if missing:
        raise ValueError(f"modules {missing} did not run in the forward pass.")
    return taken, output


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
    was_training = model.training
    model.eval()
    times = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            model(inputs)
            if inputs.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    model.train(was_training)
    return float(torch.tensor(times[1:]).median())
