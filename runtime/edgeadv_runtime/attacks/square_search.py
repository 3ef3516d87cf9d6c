"""The random search of :func:`edgeadv_runtime.attacks.square_attack`, query by query: what may be interrupted, saved
and continued."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..arrays import Due, Dues, load_arrays
from ..draws import image_rng
from ..errors import BackendError, InputError
from ..files import atomic_file, canonical_json, sha256_bytes
from ..reading import decoded, read_bytes
from .ball import ball
from .margins import clearly_broken, margins

P_INIT = 0.8
_STATE_OF = "edgeadv square 1"
_RESCALED_TO = 10_000
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# streams of an image's random draws: the stripes, and the squares, block by block
_STRIPES, _SQUARES = "square: stripes", "square: squares"
_BLOCK = 256

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""float32 (n, 3, H, W) in [0, 1] to logits, float32 (n, classes); it neither keeps nor changes what it is given."""


@dataclass(frozen=True)
class SquareResult:
    """What the search made of a batch.

    Attributes:
        x: float32 (n, 3, H, W) in [0, 1]: of all that was asked of an image, the clean one included, the one with the
            highest margin.
        margins: its logit margin, float32 (n,): above 0 the image is misclassified.
        queries: how often the model was asked for each image, int64 (n,), the clean image included.
        broken: bool (n,): wrong without an attack, or misclassified so clearly that the search ended there.
    """

    x: NDArray[np.float32]
    margins: NDArray[np.float32]
    queries: NDArray[np.int64]
    broken: NDArray[np.bool_]


def square_side(i: int, queries: int, p_init: float, height: int, width: int) -> int:
    """Side of the square at iteration ``i`` (from 0), in pixels, at least 1 and at most the image's shorter side.

    The share of the image is halved after iterations 10, 50, 200, 500, 1,000, 2,000, 4,000, 6,000 and 8,000 of 10,000.
    """
    rescaled = i * _RESCALED_TO // queries
    share = p_init / 2 ** sum(rescaled > after for after in _HALVED_AFTER)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


@dataclass(eq=False)
class Search:
    """A run between two queries; the arguments are those of :func:`~edgeadv_runtime.square`.

    Attributes:
        asked: queries that each image had which still stands.
        standing: positions of those images, ascending, (m,); the underscored arrays hold theirs and no others'.
        bound_to: hash of all that the result depends on, which a saved state is bound to.

    Raises:
        InputError: an argument is out of range.
    """

    predict: Predict
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    eps: float
    queries: int
    seed: int
    p_init: float = P_INIT
    identity: str = ""
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.bound_to: str = self._checked()
        self.y = self.y.astype(np.int64)
        n = len(self.x)
        self.standing: NDArray[np.int64]
        self._current: NDArray[np.float32]
        self._bounds: NDArray[np.float32]
        self._block = self._side = -1
        self._images = self.x.copy()
        self._clean, self._best = np.zeros(n, np.float32), np.zeros(n, np.float32)
        self._queries = np.zeros(n, np.int64)
        self._left = np.zeros(n, np.bool_)
        self._stand()

    def _checked(self) -> str:
        x, y, eps, queries, seed, p_init = self.x, self.y, self.eps, self.queries, self.seed, self.p_init
        if x.ndim != 4 or x.dtype != np.float32 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise InputError(
                f"images are float32 (n, 3, H, W) with n whole labels, not {x.dtype} {x.shape} and {y.dtype} {y.shape}"
            )
        if len(x) and not (x.min() >= 0 and x.max() <= 1):
            raise InputError(
                "images are out of [0, 1]: pass pixels, not normalised tensors; the model normalises by itself"
            )
        if not 0 < eps <= 1 or not 0 < p_init <= 1:
            raise InputError(f"eps and p_init must be in (0, 1], not {eps} and {p_init}")
        if queries < 1 or seed < 0:
            raise InputError(f"queries must be at least 1 and the seed not negative, not {queries} and {seed}")
        run = [_STATE_OF, list(x.shape), float(eps), queries, seed, float(p_init), self.identity]
        return sha256_bytes(canonical_json(run) + x.tobytes() + y.astype(np.int64).tobytes())

    def ask(self) -> None:
        """Ask once for every image that still stands."""
        if self.asked == 0:
            self._ask_clean()
        elif self.asked == 1:
            self._ask_stripes()
        else:
            self._ask_squares()
        self.asked += 1

    def result(self) -> SquareResult:
        """The best of each image so far."""
        self._put_back()
        clean_is_better = (self._clean > self._best)[:, None, None, None]
        return SquareResult(
            np.where(clean_is_better, self.x, self._images),
            np.maximum(self._clean, self._best),
            self._queries,
            self._left,
        )

    def save(self, path: Path) -> None:
        """Write all that is not known from the arguments. An attacked pixel is at one end of its range or the other: a
        bit."""
        self._put_back()
        _, upper = ball(self.x, self.eps)
        arrays: dict[str, Any] = {
            "bound_to": np.array(self.bound_to),
            "asked": np.array(self.asked),
            "upper": np.packbits(self._images == upper),
            "clean": self._clean,
            "best": self._best,
            "queries": self._queries,
            "left": self._left,
        }
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)

    def load(self, path: Path) -> None:
        """Continue from what :meth:`save` wrote."""
        n = len(self.x)
        of_each = {"clean": "float32", "best": "float32", "queries": "int64", "left": "bool"}
        due: dict[str, Dues] = {name: Due.of(kind, n) for name, kind in of_each.items()}
        due |= {"bound_to": Due.of("str"), "asked": Due.of("int64"), "upper": Due.of("uint8", -(-self.x.size // 8))}
        with decoded(path, what="not a state of Square", mend="delete it and begin again"):
            arrays = load_arrays(read_bytes(path, what="state of Square"), due)
            if str(arrays["bound_to"]) != self.bound_to:
                raise InputError(
                    f"{path} is the state of another run of Square: delete it, or repeat that run with its own "
                    "images, labels, eps, queries, seed and model"
                )
            upper_ends = np.unpackbits(arrays["upper"], count=self.x.size).reshape(self.x.shape).astype(np.bool_)
            asked, clean, best = int(arrays["asked"]), arrays["clean"], arrays["best"]
            queries, left = arrays["queries"], arrays["left"]
            if not 0 <= asked <= self.queries or (queries < 0).any() or (queries > asked).any():
                raise ValueError(f"{asked} queries of {self.queries} were asked")
        self.asked, self._clean, self._best, self._queries, self._left = asked, clean, best, queries, left
        lower, upper = ball(self.x, self.eps)
        attacked = (self._queries > 1)[:, None, None, None]
        self._images = np.where(attacked, np.where(upper_ends, upper, lower), self.x)
        self._stand()

    def _ask_clean(self) -> None:
        logits = self._logits()
        self._clean = margins(logits, self.y)
        self._best = self._clean.copy()
        # without a leave margin: what is wrong already is wrong in the worst case whatever an attack does
        self._leave(self._clean >= 0)

    def _ask_stripes(self) -> None:
        x, (_, channels, _, width) = self.x, self.x.shape
        draws = [image_rng(_STRIPES, self.seed, x[i]).integers(2, size=(channels, 1, width)) for i in self.standing]
        self._current = np.where(np.stack(draws) == 1, self._bounds[1], self._bounds[0])
        logits = self._logits()
        self._best[self.standing] = margins(logits, self.y[self.standing])
        self._leave(clearly_broken(logits, self.y[self.standing]))

    def _ask_squares(self) -> None:
        i = self.asked - 2
        side = square_side(i, self.queries, self.p_init, *self.x.shape[2:])
        current, bounds = self._windows(side)
        row, column, signs, others = self._draw(i, side)
        image = np.arange(len(self.standing))
        old = current[image, :, row, column]
        new = self._at_ends(bounds, image, row, column, signs)
        same = np.flatnonzero((new == old).reshape(len(new), -1).all(axis=1))
        if len(same):
            new[same] = self._at_ends(bounds, same, row[same], column[same], signs[same] ^ others[same])
        # in place: a query costs its square and not the image; what does not help is put back as it was
        current[image, :, row, column] = new
        logits = self._logits()
        labels = self.y[self.standing]
        found = margins(logits, labels)
        better = found > self._best[self.standing]
        worse = np.flatnonzero(~better)
        current[worse, :, row[worse], column[worse]] = old[worse]
        self._best[self.standing[better]] = found[better]
        self._leave(better & clearly_broken(logits, labels))

    def _logits(self) -> NDArray[np.float32]:
        logits = self.predict(self._current)
        labels = self.y[self.standing]
        self._queries[self.standing] += 1
        if not isinstance(logits, np.ndarray) or logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
            raise BackendError(
                f"the model gave {getattr(logits, 'shape', type(logits).__name__)} for {len(labels)} images"
            )
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise InputError(
                f"labels run from {labels.min()} to {labels.max()}; the model has {logits.shape[1]} classes"
            )
        if not np.isfinite(logits).all():
            raise BackendError("the model gave logits that are NaN or infinite: nothing can be searched for")
        return logits

    def _draw(self, i: int, side: int) -> Sequence[NDArray[np.int64]]:
        """Row, column and signs of each image's square, and what to turn of the signs if that square is there already.

        Bit k of the signs belongs to channel k. Turning at least one of them leaves each other square equally likely.
        """
        block, place = divmod(i, _BLOCK)
        if block != self._block:
            rngs = [image_rng(_SQUARES, self.seed, self.x[j], block) for j in self.standing]
            self._draws = np.stack([rng.random((_BLOCK, 4)) for rng in rngs])
            self._block = block
        _, channels, height, width = self.x.shape
        counts = np.array([height - side + 1, width - side + 1, 2**channels, 2**channels - 1])
        drawn = (self._draws[:, place] * counts).astype(np.int64)
        return drawn[:, 0], drawn[:, 1], drawn[:, 2], drawn[:, 3] + 1

    def _at_ends(
        self,
        bounds: NDArray[np.float32],
        image: NDArray[np.int64],
        row: NDArray[np.int64],
        column: NDArray[np.int64],
        signs: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """The square of each image at the upper or the lower end of its pixels' range, (m, channels, side, side)."""
        channel = np.arange(self.x.shape[1])
        ends = (signs[:, None] >> channel) & 1
        squares: NDArray[np.float32] = bounds[ends, image[:, None], channel, row[:, None], column[:, None]]
        return squares

    def _windows(self, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Every square of that side, as views: the first is written to."""
        if side != self._side:
            shape = (side, side)
            self._views: tuple[NDArray[np.float32], NDArray[np.float32]] = (
                sliding_window_view(self._current, shape, axis=(2, 3), writeable=True),
                sliding_window_view(self._bounds, shape, axis=(3, 4)),
            )
            self._side = side
        return self._views

    def _stand(self) -> None:
        """Make working copies for the images that still stand."""
        self.standing = np.flatnonzero(~self._left)
        self._current = self._images[self.standing]
        self._bounds = np.stack(ball(self.x[self.standing], self.eps))
        self._block = self._side = -1

    def _put_back(self) -> None:
        self._images[self.standing] = self._current

    def _leave(self, broken: NDArray[np.bool_]) -> None:
        """Let the broken ones among the standing images, bool (m,), go."""
        if not broken.any():
            return
        gone, stay = self.standing[broken], ~broken
        self._images[gone] = self._current[broken]
        self._left[gone] = True
        self.standing, self._current, self._bounds = self.standing[stay], self._current[stay], self._bounds[:, stay]
        if self._block >= 0:
            self._draws = self._draws[stay]
        self._side = -1
