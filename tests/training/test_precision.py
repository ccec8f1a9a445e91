"""Half precision around a loss does not reach into it."""

from __future__ import annotations

import pytest
import torch

from kdcore.precision import full_precision


@full_precision
def gram(rows, *, weights):
    """A product that half precision would round, with whole numbers left as they are."""
    assert weights.dtype == torch.long
    return (rows @ rows.T) * weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_products_are_not_rounded_under_autocast(dtype):
    rows, weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(6)
    wide = rows.to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    wanted = (wide @ wide.T) * weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gram(rows, weights=weights)
        inside = gram(wide, weights=weights)
    assert torch.equal(found, wanted)
    assert torch.equal(inside, wanted)
    assert torch.equal(*(torch.autograd.grad(value.sum(), wide)[0] for value in (inside, wanted)))


def test_a_function_can_be_compiled_with_it():
    compiled = torch.compile(lambda rows: gram(rows, weights=torch.arange(2)), backend="eager")
    assert torch.equal(compiled(torch.eye(2)), torch.diag(torch.arange(2.0)))
