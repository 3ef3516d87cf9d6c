"""From a frame to what an application, or the page, shows of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..attacks.stored_patch import StoredPatch
from ..bundle.preprocess import to_pixels, to_tensor
from ..corruptions.kinds import corrupt
from ..inference.classifier import Classifier, Label
from ..inference.smoothing import Smoothed, Smoother
from .demonstration import StoredPerturbation
from .frames import Frame
from .serve import Chosen, View


@dataclass(frozen=True, eq=False)
class Recognition:
    """What was recognised in a frame.

    Attributes:
        labels: most probable first.
        pixels: what the model saw, uint8 (height, width, channels).
        levels: grey levels by which a demonstration has moved them at most.
        smoothed: what the vote over the last frames shows, None without one.
    """

    labels: list[Label]
    pixels: NDArray[np.uint8]
    levels: int
    smoothed: Smoothed | None = None

    @property
    def label(self) -> Label | None:
        """What is to be shown: that of the vote, or the most probable one; None is unknown."""
        return self.labels[0] if self.smoothed is None else self.smoothed.label


class Recognizer:
    """Classifies frames of one camera, in order: with a patch, a corruption and a stored perturbation if a view's
    controls say so, and put to a vote."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        top: int = 5,
        smoother: Smoother | None = None,
        perturbation: StoredPerturbation | None = None,
        patch: StoredPatch | None = None,
        view: View | None = None,
    ) -> None:
        """Use an open classifier.

        Args:
            classifier: what classifies.
            top: how many labels to give at most.
            smoother: lets the last frames vote.
            perturbation: what the slider adds.
            patch: what is put where the page says.
            view: where the controls are.
        """
        self._classifier, self._top, self._view = classifier, top, view
        self._perturbation, self._patch = perturbation, patch
        self._smoother = smoother
        self._again = threading.Event()

    def restart(self) -> None:
        """Forget the vote before the next frame, from any thread: after an outage the camera sees another scene."""
        self._again.set()

    def __call__(self, frame: Frame) -> Recognition:
        """What is in ``frame``.

        Raises:
            InputError: it is no uint8 frame of three channels.
            BackendError: inference failed.
        """
        pixels = self._classifier.bundle.preprocess(frame.image, color_order=frame.color_order)
        levels = 0
        if self._view is not None:
            pixels = self._seen(pixels, self._view.chosen)
        if self._perturbation is not None and self._view is not None:
            strength = self._view.strength
            levels, pixels = self._perturbation.levels(strength), self._perturbation.applied(pixels, strength)
        labels = self._classifier.classify_pixels(pixels, top=self._top)
        smoothed = None
        if self._smoother is not None:
            if self._again.is_set():
                self._again.clear()
                self._smoother.reset()
            smoothed = self._smoother.update(labels)
        return Recognition(labels, pixels, levels, smoothed)

    def _seen(self, pixels: NDArray[np.uint8], chosen: Chosen) -> NDArray[np.uint8]:
        """What a camera would see: the patch is a part of the scene, and what corrupts comes between."""
        if chosen.patch is not None and self._patch is not None:
            pixels = self._patch.applied(pixels, *chosen.patch)
        if chosen.corruption is None:
            return pixels
        made = corrupt(to_tensor(pixels[None])[0], chosen.corruption, chosen.severity)
        found: NDArray[np.uint8] = to_pixels(made[None])[0]
        return found
