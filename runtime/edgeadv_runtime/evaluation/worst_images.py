"""A few images for the report: as they are, what was added, and what that did."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..attacks.base import AttackInfo, CraftedBatch, Key
from ..bundle.bundle import Classes
from ..bundle.confidence import softmax
from ..records.about import Example
from ..records.suites import PGD_MARGIN
from ..records.tracks import SHARED
from .outcomes import LabelledExample


class ExamplePicker:
    """Keeps the first image of each class, in the order they are scored, until there are enough; or the frames of a
    track.

    Over batches that several processes scored, each in ascending order, :func:`first_examples` then finds the same
    images as one process: what comes first among all came first in its process too.
    """

    def __init__(
        self,
        most: int,
        infos: Sequence[AttackInfo],
        classes: Classes,
        seen: Iterable[int] = (),
        *,
        temperature: float = 1.0,
        frames: Sequence[int] = (),
    ) -> None:
        """Settle what is shown.

        Args:
            most: examples in all.
            infos: the attacks that are scored.
            classes: of the model.
            seen: labels that are shown already by batches that come before those that will be looked at.
            temperature: of the bundle: the probabilities shown are those that an application is told.
            frames: positions of the images to show in the place of one of each class.
        """
        self._most = most
        self._frames = {position: number for number, position in enumerate(frames)}
        self._classes = classes
        self._temperature = temperature
        self._seen = set(seen)
        largest = max((info.eps.value for info in infos), default=0.0)
        shown = {info.name: info for info in infos if info.eps.value == largest}
        # what a track's frames share, or the margin attack, where it ran; else the one listed last
        first = next((shown[name] for name in (*(SHARED if frames else ()), PGD_MARGIN) if name in shown), None)
        self._info = first or next(reversed(shown.values()), None)

    @property
    def key(self) -> Key | None:
        """The attack that is shown; None where none is."""
        return None if self._info is None or self._most == 0 else self._info.key

    def look(
        self,
        batch: CraftedBatch,
        clean: NDArray[np.float32],
        before: NDArray[np.float32],
        after: NDArray[np.float32],
        *,
        artefact: str,
    ) -> tuple[LabelledExample, ...]:
        """Take what is still wanted from a scored batch.

        Args:
            batch: the images, n of them.
            clean: float32 (n, channels, H, W) in [0, 1].
            before: logits of the clean images, float32 (n, classes).
            after: logits under the attack :attr:`key`.
            artefact: whose logits they are, in words.
        """
        found: list[LabelledExample] = []
        if (info := self._info) is None:
            return ()
        names, amplification = self._classes.names, 0.5 / info.eps.value
        for i, label in enumerate(batch.clean.labels.tolist()):
            clean_label = int(before[i].argmax())
            if self._frames:
                number = self._frames.get(int(batch.clean.index[i]))
                if number is None:
                    continue
            # an image that was wrong to begin with shows nothing about the attack
            elif len(self._seen) >= self._most or label in self._seen or clean_label != label:
                continue
            else:
                number = label
                self._seen.add(label)
            adversarial = batch.adversarial[info.key][i]
            p_before, p_after = softmax(np.stack([before[i], after[i]]), temperature=self._temperature)
            entry = Example(
                index=int(batch.clean.index[i]),
                label=names[label],
                attack=info.name,
                eps=info.eps.text,
                amplification=amplification,
                artefact=artefact,
                clean_png=_png(clean[i]),
                adversarial_png=_png(adversarial),
                perturbation_png=_png(0.5 + (adversarial - clean[i]) * amplification),
                clean_prediction=names[clean_label],
                clean_probability=float(p_before.max()),
                adversarial_prediction=names[int(after[i].argmax())],
                adversarial_probability=float(p_after.max()),
            )
            found.append(LabelledExample(number, entry))
        return tuple(found)


def first_examples(found: Iterable[LabelledExample], most: int) -> tuple[Example, ...]:
    """The first example of each label, or frame of a track, ``most`` of them."""
    first: dict[int, Example] = {}
    for example in found:
        if len(first) < most:
            first.setdefault(example.label, example.entry)
    return tuple(first.values())


def _png(x: NDArray[np.float32]) -> str:
    pixels = np.rint(np.clip(x.transpose(1, 2, 0), 0, 1) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
