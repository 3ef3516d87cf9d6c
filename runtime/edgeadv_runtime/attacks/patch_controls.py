"""What a patch does that nobody trained: plain grey, or noise. One that was trained and does no more has found
nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..draws import image_rng
from ..files import sha256_bytes
from ..records.eps import AREA, Eps
from ..records.rows import AttackParams
from .base import Crafted
from .margins import clearly_broken, margins
from .patches import drawn_places, patch_shape, place_words

GRAY, NOISE, UNIVERSAL = "patch-gray", "patch-noise", "patch-universal"
MOVED = "patch-universal-moved"
CONTROLS = (GRAY, NOISE)
_GRAY = np.float32(128 / 255)


@dataclass(frozen=True)
class PatchControl:
    """A grey patch, or one of noise, at the places that :class:`~edgeadv.attacks.patch.PatchAttack` uses, as an
    :class:`~edgeadv_runtime.Attack`.

    Attributes:
        kind: of :data:`CONTROLS`, or :data:`UNIVERSAL`.
        eps: budgets, shares of the picture.
        backend: the artefact that is asked which place, and which draw, is the worst; it stays the caller's to close.
        shape: of :data:`~edgeadv_runtime.attacks.patches.SHAPES`.
        place: ``"worst"`` or ``"random"``.
        seed: of what is drawn.
        content: of one patch for all pictures, uint8 (h, w, channels).
        draws: of noise at each place: as many as a patch has steps, each of which is a patch that may be the worst.
        suffix: of the name in rows, for an artefact that is not the reference.
        about: more of its place, in words.
    """

    kind: str
    eps: Sequence[Eps]
    backend: Backend
    shape: str = "square"
    place: str = "worst"
    seed: int = 0
    content: NDArray[np.uint8] | None = None
    draws: int = 1
    suffix: str = ""
    about: str = ""
    gradients: ClassVar[None] = None
    gradients_sha256: ClassVar[None] = None
    control: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Its name in result rows."""
        return f"{self.kind}{self.suffix}"

    @property
    def queried(self) -> str | None:
        """Whom it asked."""
        return self.backend.identity if self._asks else None

    @property
    def _asks(self) -> bool:
        return self.place == "worst" or self._draws > 1

    @property
    def _draws(self) -> int:
        return self.draws if self.kind == NOISE else 1

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        made = None if self.content is None else sha256_bytes(self.content.tobytes())
        place = place_words(self.shape, self.place) + self.about
        drawn = self._draws if self._draws > 1 else None
        return AttackParams(norm=AREA, seed=self.seed, restarts=drawn, place=place, patch_sha256=made)

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Cover each image at every budget."""
        return [Crafted(self._covered(x, y, area), None) for area in self.eps]

    def _covered(self, x: NDArray[np.float32], y: NDArray[np.int64], area: Eps) -> NDArray[np.float32]:
        shape = patch_shape(area, x.shape[2], x.shape[3], self.shape)
        places = shape.places()
        drawn = drawn_places(x, places, seed=self.seed)
        best, largest = x.copy(), np.full(len(x), -np.inf, np.float32)
        clear = np.zeros(len(x), np.bool_)
        for number, place in enumerate(places):
            for draw in range(self._draws):
                here = ~clear if self.place == "worst" else ~clear & (drawn == number)
                rows = np.flatnonzero(here)
                if not len(rows):
                    break
                made = np.where(shape.at(place), self._content(x[rows], place, draw * len(places) + number), x[rows])
                if not self._asks:
                    best[rows] = made
                    continue
                logits = self.backend.infer(made)
                reached = margins(logits, y[rows])
                better = reached > largest[rows]
                best[rows[better]], largest[rows[better]] = made[better], reached[better]
                if self._draws > 1:
                    # as the attack does, what is clearly broken is left as it is
                    clear[rows] = clearly_broken(logits, y[rows])
        return best

    def _content(self, x: NDArray[np.float32], place: tuple[int, int], part: int) -> NDArray[np.float32]:
        if self.content is not None:
            whole = np.zeros(x.shape[1:], np.float32)
            h, w = self.content.shape[:2]
            there = self.content.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            whole[:, place[0] : place[0] + h, place[1] : place[1] + w] = there
            return np.broadcast_to(whole, x.shape)
        if self.kind == GRAY:
            return np.full_like(x, _GRAY)
        drawn = [
            image_rng("patch control", self.seed, image, part).integers(0, 256, image.shape, dtype=np.uint8)
            for image in x
        ]
        return np.stack(drawn).astype(np.float32) / np.float32(255)
