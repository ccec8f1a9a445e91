"""Running a trained network over a data set: predictions, cached teacher outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcore.checks import check_positive
from kdcore.data.arrays import Arrays
from kdcore.models import features, inference

__all__ = ["carried_layers", "layers_of", "predict", "predict_layers", "with_layers", "with_teacher"]


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
    with inference(model):
        return torch.cat([model(part) for part in inputs.split(batch_size)])


def predict_layers(
    model: nn.Module, inputs: Tensor, layers: Sequence[str], batch_size: int = 1024
) -> tuple[dict[str, Tensor], Tensor]:
    """As `predict`, with the outputs of named modules before the model's own.

    Args:
        model: maps inputs (B, …) to a tensor (B, …); its mode is restored afterwards.
        inputs: shape (N, …), on the model's device.
        layers: names as `kdcore.models.features` takes them.
        batch_size: rows at a time, positive.

    Returns:
        Outputs (N, …) by name, and the model's, shape (N, …).

    Raises:
        ValueError: `batch_size` is not positive, or as `kdcore.models.features`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> maps, logits = predict_layers(ConvNet(width=4), torch.zeros(5, 1, 8, 8), ["stages.1"], batch_size=2)
        >>> maps["stages.1"].shape, logits.shape
        (torch.Size([5, 8, 4, 4]), torch.Size([5, 10]))
    """
    check_positive(batch_size=batch_size)
    with inference(model):
        maps, outputs = zip(*(features(model, part, list(layers)) for part in inputs.split(batch_size)), strict=True)
    return {name: torch.cat([part[name] for part in maps]) for name in layers}, torch.cat(outputs)


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


def with_layers(data: Arrays, teacher: nn.Module, layers: Sequence[str], batch_size: int = 1024) -> Arrays:
    """`data` with the teacher's layers, each as ``teacher:<name>``: computed once instead of at each step.

    Exact when inputs are not augmented. A learner takes them from its batches with `layers_of`.

    Args:
        data: with `inputs`.
        teacher: its mode is restored afterwards.
        layers: names as `kdcore.models.features` takes them.
        batch_size: rows at a time, positive.

    Raises:
        ValueError: as `predict_layers`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> data = Arrays(inputs=torch.zeros(5, 1, 8, 8))
        >>> list(with_layers(data, ConvNet(width=4), ["stages.1"]))
        ['inputs', 'teacher:stages.1']
    """
    found, _ = predict_layers(teacher, data.inputs, layers, batch_size)
    return data.with_(**{_field(name): found[name] for name in layers})


def carried_layers(batch: Arrays, layers: Sequence[str]) -> list[Tensor] | None:
    """A teacher's layers that a batch carries since `with_layers`, in the order of `layers`; None if it lacks one.

    Example:
        >>> from kdcore.models import ConvNet
        >>> data = with_layers(Arrays(inputs=torch.zeros(5, 1, 8, 8)), ConvNet(width=4), ["stages.1"])
        >>> carried_layers(data[:2], ["stages.1"])[0].shape
        torch.Size([2, 8, 4, 4])
        >>> carried_layers(data, ["stages.1", "stages.2"]) is None
        True
    """
    if all(_field(name) in batch for name in layers):
        return [getattr(batch, _field(name)) for name in layers]
    return None


def layers_of(batch: Arrays, layers: Sequence[str], teacher: nn.Module) -> list[Tensor]:
    """A teacher's layers for a batch: those that it carries, else from the teacher as it is, without gradient.

    Args:
        batch: with `inputs` or, since `with_layers`, with the layers.
        layers: names as `kdcore.models.features` takes them.
        teacher: not run if the batch carries all of the layers.

    Raises:
        ValueError: as `kdcore.models.features`.

    Example:
        >>> from kdcore.models import ConvNet
        >>> layers_of(Arrays(inputs=torch.zeros(5, 1, 8, 8)), ["stages.1"], ConvNet(width=4))[0].shape
        torch.Size([5, 8, 4, 4])
    """
    carried = carried_layers(batch, layers)
    if carried is not None:
        return carried
    with torch.no_grad():
        found, _ = features(teacher, batch.inputs, list(layers))
    return [found[name] for name in layers]


def _field(layer: str) -> str:
    return f"teacher:{layer}"
