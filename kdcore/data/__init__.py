"""Real data sets and what is made from them, as tensors on a device."""

from kdcore.data.arrays import Arrays

__all__ = ["Arrays"]
