r"""Knowledge distillation: a student learns from a teacher's softened class probabilities.

Geoffrey Hinton, Oriol Vinyals, Jeff Dean: *Distilling the Knowledge in a Neural Network*, 2015, arXiv 1503.02531.

**Idea.** A trained network does not only say which class is right; the small probabilities of the wrong classes
say how the classes resemble each other. Dividing logits by a temperature makes these small probabilities large
enough to be learned from. The student minimises the cross-entropy with the teacher's softened distribution,
mixed with the usual cross-entropy with the labels.

**Equations.** Student logits $z^s$, teacher logits $z^t$ in $\mathbb{R}^{B\times C}$, labels $y$, temperature
$\tau$, weight $\alpha$:

$$p_{ik}(\tau)=\frac{\exp(z_{ik}/\tau)}{\sum_j\exp(z_{ij}/\tau)} \tag{1}$$

$$L_{KD}=\frac{\tau^2}{B}\sum_i\sum_k p^t_{ik}(\tau)\,\log\frac{p^t_{ik}(\tau)}{p^s_{ik}(\tau)} \tag{2}$$

$$L=\alpha L_{KD}+(1-\alpha)\,\frac1B\sum_i-\log p^s_{iy_i}(1) \tag{3}$$

**Conventions.** The paper writes cross-entropy where (2) has the Kullback-Leibler divergence; the two differ by
the teacher's entropy, a constant for the student. The sum runs over classes and the mean over samples
(``reduction="batchmean"``); PyTorch's default ``"mean"`` would divide by $C$ as well. The factor $\tau^2$ keeps
the gradient's size when the temperature changes (section 2.1 of the paper).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdcore.checks import check_fraction, check_labels, check_logits, check_positive
from kdcore.precision import at_least_float32

__all__ = ["KnowledgeDistillation", "distillation_loss", "soft_cross_entropy", "soften"]


def soften(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Class probabilities at a temperature, equation (1).

    Args:
        logits: shape (B, C).
        temperature: positive; 1 is the usual softmax, large values approach the uniform distribution.

    Returns:
        Probabilities of shape (B, C); each row sums to 1.

    Raises:
        ValueError: `logits` is not a finite (B, C) matrix, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> soften(torch.tensor([[2.0, 0.0]]), temperature=2.0)
        tensor([[0.7311, 0.2689]])
    """
    check_logits(logits=logits)
    check_positive(temperature=temperature)
    return (logits / temperature).softmax(dim=1)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Divergence of the student's softened probabilities from the teacher's, times τ², equation (2).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        temperature: τ > 0.

    Returns:
        Scalar, at least 0; 0 if and only if both give the same probabilities.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> same = torch.tensor([[1.0, 2.0, 3.0]])
        >>> distillation_loss(same + 5, same).abs() < 1e-6
        tensor(True)
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of softened probabilities with given ones, without a factor τ².

    With ``targets = soften(teacher_logits, temperature)`` it exceeds (2) without its τ² by the teacher's mean entropy.

    Args:
        logits: shape (B, C).
        targets: probabilities, shape (B, C); no gradient flows into them.
        temperature: τ > 0, of the logits alone.

    Returns:
        Scalar, mean over samples; at least the mean entropy of the targets.

    Raises:
        ValueError: shapes differ, C < 2, a value is not finite, or `temperature` is not positive.

    Example:
        >>> import torch
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))  # log 4
        tensor(1.3863)
    """
    check_logits(logits=logits, targets=targets)
    check_positive(temperature=temperature)
    softened = (at_least_float32(logits) / temperature).log_softmax(dim=1)
    return -(targets.detach().to(softened.dtype) * softened).sum(dim=1).mean()


class KnowledgeDistillation(nn.Module):
    """Distillation mixed with cross-entropy, equation (3).

    Args:
        temperature: τ > 0 of the distillation term.
        alpha: weight α in [0, 1] of the distillation term; the labels get 1 − α.

    Raises:
        ValueError: `temperature` is not positive or `alpha` lies outside [0, 1].

    Example:
        >>> import torch
        >>> loss = KnowledgeDistillation(temperature=4.0, alpha=0.9)
        >>> student = torch.zeros(2, 3, requires_grad=True)
        >>> loss(student, torch.eye(3)[:2], torch.tensor([0, 1])).backward()
        >>> student.grad.sum(dim=1).abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, temperature: float = 4.0, alpha: float = 0.9) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_fraction(alpha=alpha)
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of logits (B, C), teacher logits (B, C) and labels (B,)."""
        soft = distillation_loss(student_logits, teacher_logits, self.temperature)
        check_labels(labels, *student_logits.shape)
        return self.alpha * soft + (1 - self.alpha) * F.cross_entropy(student_logits, labels)
