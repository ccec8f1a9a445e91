"""Metrics: thin names over torchmetrics and scikit-learn. All take tensors and return plain numbers or arrays.

Throughout, `logits` have shape (N, C) and `labels` (N,); for segmentation, `logits` (N, C, H, W) and `labels`
(N, H, W). torchmetrics is imported on first use.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcore.checks import check_labels, check_logits, check_positive, check_same_shape

__all__ = [
    "accuracy",
    "agreement",
    "calibration_error",
    "confusion",
    "intersection_over_union",
    "linear_probe",
    "macro_f1",
    "negative_log_likelihood",
    "reliability",
    "top_k_accuracy",
]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is the label's, in percent.

    Example:
        >>> accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
        75.0
    """
    return top_k_accuracy(logits, labels, k=1)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int = 5) -> float:
    """Share of samples whose label is among the `k` largest logits, in percent.

    Raises:
        ValueError: `k` lies outside [1, C].

    Example:
        >>> top_k_accuracy(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]), k=2)
        100.0
    """
    _check(logits, labels)
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must lie in [1, {logits.shape[1]}], got {k}.")
    hits = (logits.topk(k, dim=1).indices == labels.unsqueeze(1)).any(dim=1)
    return 100 * float(hits.double().mean())


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean negative log-probability of the labels, in nats.

    Example:
        >>> round(negative_log_likelihood(torch.zeros(1, 10), torch.tensor([3])), 4)  # log 10
        2.3026
    """
    _check(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal-width confidence bins, in percent (Guo et al. 2017).

    Example:
        >>> sure_and_always_wrong = 50 * torch.eye(2)
        >>> calibration_error(sure_and_always_wrong, torch.tensor([1, 0]))
        100.0
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    _check(logits, labels)
    check_positive(bins=bins)
    error = multiclass_calibration_error(logits.softmax(dim=1), labels, logits.shape[1], n_bins=bins, norm="l1")
    return 100 * float(error)


def reliability(logits: Tensor, labels: Tensor, bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy, the data of a reliability diagram.

    Returns:
        One row per bin that holds samples: `confidence`, `accuracy` (both in [0, 1]) and `count`.

    Example:
        >>> reliability(50 * torch.eye(2), torch.tensor([0, 0]))
           confidence  accuracy  count
        0         1.0       0.5      2
    """
    _check(logits, labels)
    check_positive(bins=bins)
    confidence, prediction = logits.softmax(dim=1).max(dim=1)
    frame = pd.DataFrame({"confidence": confidence.cpu().numpy(), "accuracy": (prediction == labels).cpu().numpy()})
    frame["bin"] = np.minimum((frame["confidence"] * bins).astype(int), bins - 1)
    grouped = frame.groupby("bin")
    return grouped.mean().assign(count=grouped.size()).reset_index(drop=True)


def agreement(logits: Tensor, other_logits: Tensor) -> float:
    """Share of samples on which two networks predict the same class, in percent.

    Example:
        >>> agreement(torch.eye(2), torch.tensor([[5.0, 0.0], [5.0, 0.0]]))
        50.0
    """
    check_same_shape(logits=logits, other_logits=other_logits)
    return 100 * float((logits.argmax(dim=1) == other_logits.argmax(dim=1)).double().mean())


def confusion(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Counts (C, C): row is the label, column the prediction.

    Example:
        >>> confusion(torch.eye(2), torch.tensor([1, 1]))
        array([[0, 0],
               [1, 1]])
    """
    from sklearn.metrics import confusion_matrix

    _check(logits, labels)
    return confusion_matrix(labels.cpu(), logits.argmax(dim=1).cpu(), labels=range(logits.shape[1]))


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """F1 score averaged over classes, in percent.

    Example:
        >>> macro_f1(torch.eye(2), torch.tensor([0, 1]))
        100.0
    """
    from sklearn.metrics import f1_score

    _check(logits, labels)
    prediction = logits.argmax(dim=1).cpu()
    return 100 * float(
        f1_score(labels.cpu(), prediction, average="macro", labels=range(logits.shape[1]), zero_division=0)
    )


def intersection_over_union(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> np.ndarray:
    """Intersection over union of each class over all pixels, in percent; NaN where a class occurs in neither.

    The mean over classes (mIoU) is ``np.nanmean`` of this.

    Args:
        logits: (N, C, H, W).
        labels: (N, H, W).
        ignore_index: label of pixels that do not count.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> labels = torch.tensor([[[0, 0], [1, 1]]])
        >>> predicted = torch.tensor([[[0, 0], [0, 1]]])
        >>> logits = F.one_hot(predicted, 2).permute(0, 3, 1, 2).float()
        >>> intersection_over_union(logits, labels).round(1)
        array([66.7, 50. ])
    """
    if logits.ndim != 4 or labels.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits must have shape (N, C, H, W) and labels (N, H, W), "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    classes = logits.shape[1]
    keep = labels != ignore_index
    pairs = torch.bincount(labels[keep] * classes + logits.argmax(dim=1)[keep], minlength=classes**2)
    counts = pairs.reshape(classes, classes).double().cpu().numpy()
    both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return np.divide(100 * both, either, out=np.full(classes, np.nan), where=either > 0)


def linear_probe(
    features: Tensor, labels: Tensor, test_features: Tensor, test_labels: Tensor, penalty: float = 1.0
) -> float:
    """Accuracy in percent of a linear classifier on frozen features: how much of the classes can be read off them.

    Ridge regression of the classes on standardised features (scikit-learn): convex, without a learning rate.

    Args:
        features: (N, ...) of the images that the probe is fitted to, each flattened.
        labels: (N,).
        test_features: (M, ...).
        test_labels: (M,).
        penalty: of the squared weights, positive.

    Raises:
        ValueError: features of the two parts differ in shape, lengths do not fit, or `penalty` is not positive.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> linear_probe(points, torch.tensor([0, 0, 1, 1]), torch.tensor([[0.5], [9.0]]), torch.tensor([0, 1]))
        100.0
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_positive(penalty=penalty)
    if features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"both parts must have the same features, got {tuple(features.shape)} and {tuple(test_features.shape)}."
        )
    if len(features) != len(labels) or len(test_features) != len(test_labels):
        raise ValueError("features and labels must be equally long.")
    probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=penalty))
    probe.fit(features.detach().flatten(1).cpu().numpy(), labels.cpu().numpy())
    return 100 * float(probe.score(test_features.detach().flatten(1).cpu().numpy(), test_labels.cpu().numpy()))


def _check(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits=logits)
    check_labels(labels, *logits.shape)
