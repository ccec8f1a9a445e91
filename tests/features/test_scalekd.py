"""Checks of ScaleKD: a vision transformer as teacher: closed forms, limits, gradients, bad input, published figures, learning."""

from __future__ import annotations

import torch

from kdcore.features.scalekd import scalekd_loss


def test_todo_closed_form():
    logits = torch.zeros(2, 3)
    assert float(scalekd_loss(logits, logits, torch.tensor([0, 1]))) == 0.0
