r"""ScaleKD: a vision transformer as teacher: TODO the idea in a line.

TODO authors: *TODO title*, TODO venue and year, arXiv TODO.

**Idea.** TODO three sentences.

**Equations.** TODO symbols as in book/notation.md.

$$L=\dots \tag{1}$$

**Source status.** TODO read from the authors' code, from a re-implementation, or reconstructed.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["scalekd_loss"]


def scalekd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """TODO what it computes, equation (1).

    Args:
        student_logits: shape (B, C).
        teacher_logits: shape (B, C); no gradient flows into them.
        labels: shape (B,).

    Returns:
        Scalar.

    Raises:
        ValueError: TODO.
    """
    raise NotImplementedError("TODO scalekd")
