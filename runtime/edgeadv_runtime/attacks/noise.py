"""Uniform noise: what chance alone does within a budget. An attack that is no better has found nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..draws import image_rng
from ..errors import InputError
from ..records.eps import Eps
from ..records.rows import AttackParams
from ..records.suites import NOISE
from .ball import ball
from .base import Crafted
from .margins import margins
from .square_attack import query_attack_name


@dataclass(frozen=True)
class NoiseAttack:
    """Noise that is uniform in [-eps, eps], clipped to [0, 1], as an :class:`~edgeadv_runtime.Attack`.

    The draws belong to the image and are the same at every budget but for their size. With one draw no model is asked;
    of several the one with the highest logit margin is kept, the first of them being the one that is drawn alone.

    Attributes:
        eps: budgets.
        queries: draws for an image, at least 1.
        seed: of the draws, not negative.
        backend: the artefact that is asked where there are several draws; it stays the caller's to close.
        name: its name in result rows; left empty, ``"noise"``, with the artefact behind it where one is asked that is
            not the reference.
    """

    eps: Sequence[Eps]
    queries: int = 1
    seed: int = 0
    backend: Backend | None = None
    name: str = ""
    gradients: ClassVar[None] = None
    gradients_sha256: ClassVar[None] = None
    control: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.queries < 1 or self.seed < 0:
            raise InputError(
                f"draws of noise must be at least 1 and the seed not negative, not {self.queries} and {self.seed}"
            )
        if self.queries > 1 and self.backend is None:
            raise InputError(f"{self.queries} draws of noise need a backend that tells which is the strongest")
        if not self.name:
            object.__setattr__(
                self, "name", NOISE if (asked := self._asked) is None else query_attack_name(NOISE, asked)
            )

    @property
    def queried(self) -> str | None:
        """Identity of the backend that is asked; None for one draw."""
        return None if (asked := self._asked) is None else asked.identity

    @property
    def _asked(self) -> Backend | None:
        return self.backend if self.queries > 1 else None

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        loss = None if self._asked is None else "logit margin"
        return AttackParams(norm="linf", loss=loss, seed=self.seed, queries=self.queries)

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Add noise to a batch at every budget.

        Raises:
            BackendError: the backend failed.
        """
        bounds = [ball(x, eps.value) for eps in self.eps]
        best = [x] * len(self.eps)
        highest = np.full((len(self.eps), len(x)), -np.inf, np.float32)
        rngs = [image_rng(NOISE, self.seed, image) for image in x]
        for _ in range(self.queries if len(x) else 0):
            unit = np.stack([rng.random(x.shape[1:], dtype=np.float32) * 2 - 1 for rng in rngs])
            for k, (eps, (lower, upper)) in enumerate(zip(self.eps, bounds, strict=True)):
                noisy = np.clip(x + np.float32(eps.value) * unit, lower, upper)
                if (asked := self._asked) is None:
                    best[k] = noisy
                    continue
                found = margins(asked.infer(noisy), y)
                better = found > highest[k]
                best[k] = np.where(better[:, None, None, None], noisy, best[k])
                highest[k] = np.where(better, found, highest[k])
        return [Crafted(x_adv, None) for x_adv in best]


class CumulativeNoise(NoiseAttack):
    """A :class:`NoiseAttack` of several draws that runs on what the attacks before it left standing."""

    @property
    def asked(self) -> Backend | None:
        """The artefact on which images have to stand."""
        return self.backend

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Add noise to images that stand; ``start`` is no part of it.

        Raises:
            BackendError: the backend failed.
        """
        return replace(self, eps=(eps,)).craft(x, y)[0]
