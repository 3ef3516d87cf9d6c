"""The logit margin on NumPy arrays, and how far beyond the boundary an image counts as broken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAVE_MARGIN = 0.1
"""Share of an image's largest absolute logit by which it must be misclassified to leave an attack: an image that has
only just crossed the boundary here may not have crossed it on another artefact."""


def margins(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Largest wrong logit minus the logit of the label; from 0 on the image is misclassified.

    Carlini and Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", f6 with its sign turned.

    Args:
        logits: float32 (n, classes), at least two classes.
        labels: int64 (n,), each in [0, classes).

    Returns:
        float32 (n,).
    """
    images = np.arange(len(logits))
    wrong = logits.copy()
    wrong[images, labels] = -np.inf
    margin: NDArray[np.float32] = wrong.max(axis=1) - logits[images, labels]
    return margin


def clearly_broken(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each image's margin is at least :data:`LEAVE_MARGIN` of its largest absolute logit: bool (n,).

    Args:
        logits: float32 (n, classes), at least two classes.
        labels: int64 (n,), each in [0, classes).
    """
    broken: NDArray[np.bool_] = margins(logits, labels) >= LEAVE_MARGIN * np.abs(logits).max(axis=1)
    return broken
