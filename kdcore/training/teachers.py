"""Running a trained network over a data set: predictions, cached teacher outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcore.data.arrays import Arrays

__all__ = ["predict", "with_teacher"]


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, batch_size: int = 1024) -> Tensor:
    """Outputs of `model` in evaluation mode, without gradient.

    Args:
        model: maps inputs (B, …) to a tensor (B, …); its mode is restored afterwards.
        inputs: shape (N, …), on the model's device.
        batch_size: rows at a time.

    Returns:
        Shape (N, …).

    Example:
        >>> predict(nn.Linear(4, 3), torch.zeros(5, 4), batch_size=2).shape
        torch.Size([5, 3])
    """
    was_training = model.training
    model.eval()
    outputs = torch.cat([model(part) for part in inputs.split(batch_size)])
    model.train(was_training)
    return outputs


def with_teacher(data: Arrays, teacher: nn.Module) -> Arrays:
    """`data` with the teacher's logits as `teacher_logits`: computed once instead of at each step.

    Exact when inputs are not augmented; with augmentation the teacher must see the augmented batch (leave the
    teacher to `Distillation` then).

    Example:
        >>> data = Arrays(inputs=torch.zeros(5, 4), labels=torch.zeros(5, dtype=torch.long))
        >>> with_teacher(data, nn.Linear(4, 3)).teacher_logits.shape
        torch.Size([5, 3])
    """
    return data.with_(teacher_logits=predict(teacher, data.inputs))
