"""A few images for the report: as they are, what was added, and what that did."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .attack import CLEAN_KEY, AttackInfo, CraftedBatch, Key
from .bundle import Classes


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of the last axis, in float64 so that large logits do not overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


class ExamplePicker:
    """Keeps the first image of each class, in the order they are scored, until there are enough."""

    def __init__(self, most: int, infos: Sequence[AttackInfo], classes: Classes) -> None:
        self.examples: list[dict[str, Any]] = []
        self._most = most
        self._classes = classes
        self._seen: set[int] = set()
        # the last one listed at the largest budget: the margin attack, where it ran
        self._info = max(infos, key=lambda info: info.eps.value) if infos else None
        for info in infos:
            if self._info is not None and info.eps == self._info.eps:
                self._info = info

    def look(
        self,
        batch: CraftedBatch,
        clean: NDArray[np.float32],
        logits: Mapping[Key, NDArray[np.float32]],
        *,
        artefact: str,
    ) -> None:
        """Take what is still wanted from a scored batch."""
        if self._info is None:
            return
        before, after = logits[CLEAN_KEY], logits[self._info.key]
        for i, label in enumerate(batch.clean.labels.tolist()):
            # an image that was wrong to begin with shows nothing about the attack
            if len(self.examples) >= self._most or label in self._seen or int(before[i].argmax()) != label:
                continue
            self._seen.add(label)
            self.examples.append(self._example(batch, i, clean[i], before[i], after[i], artefact))

    def _example(
        self,
        batch: CraftedBatch,
        i: int,
        clean: NDArray[np.float32],
        before: NDArray[np.float32],
        after: NDArray[np.float32],
        artefact: str,
    ) -> dict[str, Any]:
        assert self._info is not None
        adversarial = batch.adversarial[self._info.key][i]
        amplification = 0.5 / self._info.eps.value
        names, (p_before, p_after) = self._classes.names, softmax(np.stack([before, after]))
        return {
            "index": int(batch.clean.index[i]), "label": names[int(batch.clean.labels[i])], "attack": self._info.name,
            "eps": self._info.eps.text, "amplification": amplification, "artefact": artefact,
            "clean_png": _png(clean), "adversarial_png": _png(adversarial),
            "perturbation_png": _png(0.5 + (adversarial - clean) * amplification),
            "clean_prediction": names[int(before.argmax())], "clean_probability": float(p_before.max()),
            "adversarial_prediction": names[int(after.argmax())], "adversarial_probability": float(p_after.max()),
        }  # fmt: skip


def _png(x: NDArray[np.float32]) -> str:
    pixels = np.rint(np.clip(x.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
