"""What `fit` trains: a module that turns a batch into named losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Distillation", "Learner", "Supervised"]


class Learner(nn.Module):
    """Base of everything that `fit` trains.

    A subclass holds its networks as submodules and defines `losses`. The other methods are hooks with sensible
    defaults. Frozen networks (a teacher) have ``requires_grad_(False)`` and are kept in evaluation mode by
    being named in `frozen`.

    Example:
        >>> class Median(Learner):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.location = nn.Parameter(torch.zeros(()))
        ...
        ...     def losses(self, batch):
        ...         return {"absolute": (batch.values - self.location).abs().mean()}
        >>> from kdcore.data import Arrays
        >>> list(Median().losses(Arrays(values=torch.tensor([1.0, 2.0, 9.0]))))
        ['absolute']
    """

    frozen: tuple[str, ...] = ()
    """Names of submodules that stay in evaluation mode."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named scalar terms, the same names at every step; `fit` minimises their sum.

        Args:
            batch: `Arrays`, or, where `fit` was given several streams, a namespace with one `Arrays` per stream.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Parameter groups for the optimiser; ``lr_factor`` in a group multiplies its learning rate."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def on_step(self, progress: float) -> None:
        """Called before each step with the fraction of training done, in [0, 1)."""

    def on_epoch_end(self, epoch: int) -> None:
        """Called after each epoch (counted from 1)."""

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


class Supervised(Learner):
    """Cross-entropy with the labels; the baseline of every chapter.

    Args:
        model: maps inputs (B, …) to logits (B, C) or (B, C, H, W).
        label_smoothing: in [0, 1).
        ignore_index: label that does not count (segmentation).

    Example:
        >>> from kdcore.data import Arrays
        >>> learner = Supervised(nn.Linear(4, 3))
        >>> list(learner.losses(Arrays(inputs=torch.rand(2, 4), labels=torch.tensor([0, 2]))))
        ['cross_entropy']
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0, ignore_index: int = -100) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def losses(self, batch: Any) -> dict[str, Tensor]:
        logits = self.model(batch.inputs)
        loss = F.cross_entropy(
            logits, batch.labels, label_smoothing=self.label_smoothing, ignore_index=self.ignore_index
        )
        return {"cross_entropy": loss}


class Distillation(Learner):
    """Any loss of the form ``loss(student_logits, teacher_logits, labels)`` as a learner.

    Where the batch carries `teacher_logits` (see `kdcore.training.with_teacher`) they are used; else the teacher
    runs, without gradient and in evaluation mode.

    Args:
        student: maps inputs (B, …) to logits (B, C).
        loss: function or module of (student_logits, teacher_logits, labels); a module's own parameters are
            trained along with the student.
        teacher: frozen by this learner; may be left out if the data carry `teacher_logits`.

    Example:
        >>> from kdcore.data import Arrays
        >>> from kdcore.foundations.kd import KnowledgeDistillation
        >>> from kdcore.models import MLP
        >>> learner = Distillation(MLP(4, (8,), 3), KnowledgeDistillation(), teacher=MLP(4, (32,), 3))
        >>> list(learner.losses(Arrays(inputs=torch.rand(6, 4), labels=torch.arange(6) % 3)))
        ['distillation']
    """

    def __init__(
        self, student: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor], teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.model = student
        self.loss = loss
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.frozen = ("teacher",) if teacher is not None else ()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        return {"distillation": self.loss(self.model(batch.inputs), self.teacher_logits_of(batch), batch.labels)}

    def teacher_logits_of(self, batch: Any) -> Tensor:
        """The teacher's logits (B, C), from the batch where it carries them, else from the teacher.

        Raises:
            ValueError: there are neither.
        """
        if "teacher_logits" in batch:
            return batch.teacher_logits
        if self.teacher is None:
            raise ValueError("Distillation needs a teacher, or data with teacher_logits (see with_teacher).")
        with torch.no_grad():
            return self.teacher(batch.inputs)
