"""torch's optimisers, bare of what they wear for `torch.compile`.

Every method of a torch optimiser is wrapped so that a compiler can break its graph there. The wrappers import the
compiler, which takes two seconds in each new process, and cost time at every step. `fit` compiles nothing, so these
classes take the wrapped methods out of their wrappers; the arithmetic, the state and the options are torch's. Hooks
before and after a step are not called.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

__all__ = ["SGD", "Adam", "AdamW"]


class _Bare(torch.optim.Optimizer):
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @staticmethod
    def profile_hook_step(func: Any) -> Any:
        """The step as it is: without marks for the profiler, and without hooks around it."""
        return func


class SGD(_Bare, torch.optim.SGD):
    """`torch.optim.SGD`, not to be compiled.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = SGD([weight], lr=0.5)
        >>> (3 * weight).sum().backward()
        >>> optimizer.step()
        >>> weight.item()
        -0.5
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Bare, torch.optim.Adam):
    """`torch.optim.Adam`, not to be compiled.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = Adam([weight], lr=0.5)
        >>> (3 * weight).sum().backward()
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.5
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Bare, torch.optim.AdamW):
    """`torch.optim.AdamW`, not to be compiled.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> optimizer = AdamW([weight], lr=0.5, weight_decay=0.1)
        >>> (3 * weight).sum().backward()
        >>> optimizer.step()
        >>> round(weight.item(), 4)
        0.45
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
