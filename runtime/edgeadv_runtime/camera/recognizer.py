"""From a frame to what an application, or the page, shows of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..classifier import Classifier, Label
from .demonstration import StoredPerturbation
from .frames import Frame
from .serve import View


@dataclass(frozen=True, eq=False)
class Recognition:
    """What was recognised in a frame.

    Attributes:
        labels: most probable first.
        pixels: what the model saw, uint8 (crop, crop, 3) RGB.
        levels: grey levels by which a demonstration has moved them at most.
    """

    labels: list[Label]
    pixels: NDArray[np.uint8]
    levels: int

    @property
    def label(self) -> Label:
        """The most probable label."""
        return self.labels[0]


class Recognizer:
    """Classifies frames, with a stored perturbation added if a view's slider says so."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        top: int = 5,
        perturbation: StoredPerturbation | None = None,
        view: View | None = None,
    ) -> None:
        """Use an open classifier.

        Args:
            classifier: what classifies.
            top: how many labels to give at most.
            perturbation: what the slider adds.
            view: where the slider is.
        """
        self._classifier, self._top, self._perturbation, self._view = classifier, top, perturbation, view

    def __call__(self, frame: Frame) -> Recognition:
        """What is in ``frame``.

        Raises:
            InputError: it is no uint8 frame of three channels.
            BackendError: inference failed.
        """
        pixels = self._classifier.bundle.preprocess(frame.image, color_order=frame.color_order)
        levels = 0
        if self._perturbation is not None and self._view is not None:
            strength = self._view.strength
            levels, pixels = self._perturbation.levels(strength), self._perturbation.applied(pixels, strength)
        return Recognition(self._classifier.classify_pixels(pixels, top=self._top), pixels, levels)
