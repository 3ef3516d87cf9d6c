"""Square: black-box search in the L-infinity ball that asks for logits and nothing else.

Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial attack via
random search", algorithms 1 and 2. It has no use for gradients, so it attacks any artefact that answers: a TensorRT
plan or an int8 graph as well as fp32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ..backends.base import Backend
from ..records.eps import Eps
from ..records.rows import AttackParams
from ..records.suites import SQUARE
from .base import Crafted
from .square_search import P_INIT, Predict, Search, SquareResult

SAVE_EVERY_S = 10.0

Progress = Callable[[int, int], None]


def square(
    predict: Predict,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    eps: float,
    queries: int,
    seed: int = 0,
    p_init: float = P_INIT,
    identity: str = "",
    progress: Progress | None = None,
    state: Path | None = None,
) -> SquareResult:
    """Search the L-infinity ball for the highest logit margin, by squares of random place and sign.

    An image's first query is the clean image, the second vertical stripes of -eps and +eps, every other the best image
    so far with one square of it set to -eps or +eps in each channel. What raises the margin is kept. An image leaves
    when it is
    broken: wrong on the clean image, or misclassified by at least :data:`~edgeadv_runtime.attacks.margins.LEAVE_MARGIN`
    of its largest absolute logit.

    The square begins with a share ``p_init`` of the image and is halved in area by the schedule of the authors' code
    for 10,000 queries, rescaled to ``queries``. They take p 0.05 for undefended ImageNet networks and 0.3 to 0.8 for
    defended ones; AutoAttack (Croce and Hein 2020) takes 0.8, as we do. A square that would change nothing is drawn
    again, as in their code; unlike there it can lie on the last row and column.

    The random draws belong to the image. A batch split otherwise gives the same images, as long as ``predict`` gives an
    image the same logits in every batch; a library that adds up in another order for another batch size may not.

    ::

        found = square(backend.infer, x, y, eps=8 / 255, queries=1000)

    Args:
        predict: float32 (n, 3, H, W) in [0, 1] to logits, float32 (n, classes), such as ``Backend.infer``. It is called
            with all images that still stand, so the size of the batch shrinks.
        x: float32 (n, 3, H, W) in [0, 1].
        y: true labels, int64 (n,).
        eps: the budget, in (0, 1]; no pixel moves further.
        queries: most queries for an image, at least 1.
        seed: of the random draws, not negative.
        p_init: in (0, 1].
        identity: what ``predict`` is, such as ``Backend.identity``: part of what ``state`` is bound to.
        progress: called after every query with the queries that each standing image has had, and ``queries``.
        state: a file to continue from, written every 10 seconds and removed at the end. An interrupted call continues
            there and ends in the same result.

    Raises:
        InputError: an argument is out of range, or ``state`` belongs to another run.
        BundleError: ``state`` is damaged.
        BackendError: ``predict`` gave something else than finite logits.
        StorageError: ``state`` cannot be written.
    """
    search = Search(predict, x, y, eps, queries, seed, p_init, identity)
    result = _run(search, progress, state)
    if state is not None:
        state.unlink(missing_ok=True)
    return result


def _run(search: Search, progress: Progress | None, state: Path | None) -> SquareResult:
    """Search to the end, from ``state`` if there is one, which stays."""
    queries = search.queries
    if state is not None and state.exists():
        search.load(state)
    saved_s = time.monotonic()
    while search.asked < queries and len(search.standing):
        search.ask()
        if state is not None and time.monotonic() - saved_s >= SAVE_EVERY_S:
            search.save(state)
            saved_s = time.monotonic()
        if progress is not None:
            progress(search.asked, queries)
    if progress is not None and search.asked < queries:
        progress(queries, queries)
    if state is not None:
        search.save(state)
    return search.result()


def query_attack_name(base: str, backend: Backend) -> str:
    """Name of an attack that asks ``backend``: plain for the reference, ``square@onnxruntime-int8-u8s8`` for other
    artefacts."""
    reference = (backend.name, backend.variant) == ("torch", "fp32")
    return base if reference else f"{base}@{backend.name}-{backend.variant}"


@dataclass(frozen=True)
class SquareAttack:
    """:func:`square` on an open backend, at several budgets, as an :class:`~edgeadv_runtime.Attack`.

    An image that is broken within a smaller eps is broken within a larger one: there it is the same image, and nothing
    is asked. Every other image is attacked at each budget as if that were the only one.

    Attributes:
        backend: the artefact that is asked; it stays the caller's to close.
        eps: budgets.
        queries: most queries for an image at one budget, at least 1.
        seed: of the random draws.
        name: its name in result rows; left empty, what :func:`query_attack_name` makes of ``"square"``.
        progress: called with the queries that each standing image has had, all budgets together, and the most there may
            be.
        state: a folder for the states of batches that were interrupted, bound to the backend's identity.
    """

    backend: Backend
    eps: Sequence[Eps]
    queries: int
    seed: int = 0
    name: str = ""
    progress: Progress | None = field(default=None, compare=False)
    state: Path | None = field(default=None, compare=False)
    gradients: ClassVar[None] = None
    gradients_sha256: ClassVar[None] = None
    control: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", query_attack_name(SQUARE, self.backend))

    @property
    def queried(self) -> str:
        """Identity of the backend that is asked."""
        return self.backend.identity

    @property
    def asked(self) -> Backend:
        """The artefact on which images have to stand."""
        return self.backend

    def params(self, eps: Eps) -> AttackParams:
        """How it is run at ``eps``."""
        return AttackParams(norm="linf", loss="logit margin", restarts=1, seed=self.seed, queries=self.queries)

    def craft(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[Crafted]:
        """Attack a batch at every budget, the smallest first.

        Raises:
            InputError, BundleError, BackendError, StorageError: as :func:`square`.
        """
        crafted: dict[int, Crafted] = {}
        x_adv, left = x, np.arange(len(x))
        states: list[Path] = []
        for k, i in enumerate(sorted(range(len(self.eps)), key=lambda i: self.eps[i].value)):
            x_adv = x_adv.copy()
            result = self._run(x[left], y[left], self.eps[i], states, done=k)
            x_adv[left] = result.x
            left = left[~result.broken]
            crafted[i] = Crafted(x_adv, None)
        for path in states:
            path.unlink(missing_ok=True)
        return [crafted[i] for i in range(len(self.eps))]

    def craft_from(self, x: NDArray[np.float32], y: NDArray[np.int64], start: NDArray[np.float32], eps: Eps) -> Crafted:
        """Attack images that stand. The search begins at its own stripes: what gradients led to is no part of its
        evidence.

        Raises:
            InputError, BundleError, BackendError, StorageError: as :func:`square`.
        """
        states: list[Path] = []
        result = self._run(x, y, eps, states, done=list(self.eps).index(eps))
        for path in states:
            path.unlink(missing_ok=True)
        return Crafted(result.x, None)

    def _run(
        self, x: NDArray[np.float32], y: NDArray[np.int64], eps: Eps, states: list[Path], *, done: int
    ) -> SquareResult:
        search = Search(self.backend.infer, x, y, eps.value, self.queries, self.seed, identity=self.backend.identity)
        state = None if self.state is None else self.state / f"square-{search.bound_to[:16]}.npz"
        states += [] if state is None else [state]
        return _run(search, self._progress(done), state)

    def _progress(self, done: int) -> Progress | None:
        if (report := self.progress) is None:
            return None
        return lambda asked, most: report(done * most + asked, len(self.eps) * most)
