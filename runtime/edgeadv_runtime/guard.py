"""A cheap check of each frame for adversarial input. **It is no robustness**: who knows it gets round it.

Feature squeezing (Xu, Evans and Qi 2018, "Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks"): a clean frame
keeps its probabilities when its grey levels are made fewer or its pixels smoothed; many adversarial frames do not. It catches
attacks that were made without it in mind. He, Wei, Chen, Carlini and Song 2017 ("Adversarial Example Defenses: Ensembles of
Weak Defenses are not Strong") broke it with an attack that looks at the squeezed frames too; ``edgeadv guard`` runs one and
says how often it succeeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .backends import Backend
from .bundle import Bundle
from .classifier import Classifier, Label
from .confidence import softmax
from .errors import BundleError, InputError
from .preprocess import ColorOrder, to_tensor

Pixels = NDArray[np.float32]
DEFAULT_SQUEEZERS: tuple[str, ...] = ("bits-5", "median-2")
"""Those that Xu et al. 2018 choose for CIFAR-10, without their non-local means, which are no cheap check."""
_NAME = re.compile(r"bits-([1-7])|median-([23])")
_SLACK = 1e-9
# Compare-exchanges after which element 4 of 9 is the median (Devillard 1998, "Fast median search", after Paeth 1990), and
# element 2 of 4 is the third smallest: of an even window the upper middle, as scipy's median_filter has it
NETWORKS: Mapping[int, tuple[tuple[tuple[int, int], ...], int]] = {
    2: (((0, 1), (2, 3), (0, 2), (1, 3), (1, 2)), 2),
    3: (
        (
            (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3), (5, 8), (4, 7), (3, 6), (1, 4), (2, 5),
            (4, 7), (4, 2), (6, 4), (4, 2),
        ),
        4,
    ),
}  # fmt: skip


def check_squeezers(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` as they are, if each is a squeezer: ``bits-1`` to ``bits-7``, ``median-2`` or ``median-3``.

    Raises:
        InputError: one is not, is there twice, or there is none.
    """
    unknown = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if unknown or not names or len(set(names)) != len(names):
        got = ", ".join(map(str, names)) or "none"
        raise InputError(f"squeezers are one or more of bits-1 to bits-7, median-2, median-3, each once, not {got}")
    return tuple(names)


def parameters(name: str) -> tuple[int | None, int | None]:
    """Bits and side of the window of a squeezer; the one that it has not is None."""
    found = _NAME.fullmatch(name)
    assert found is not None
    bits, side = found.groups()
    return (int(bits), None) if bits else (None, int(side))


def squeeze(x: Pixels, name: str) -> Pixels:
    """One squeezer on a batch.

    ``bits-B`` rounds each pixel to the nearest of 2^B evenly spaced levels, halves to the even one; ``median-K`` takes the median
    of a K by K window in each channel, edges repeated: the colour depth and the local smoothing of Xu et al. 2018.

    Args:
        x: float32 (n, 3, H, W) in [0, 1].
        name: see :func:`check_squeezers`.

    Returns:
        float32 of the same shape, in [0, 1].
    """
    bits, side = parameters(name)
    if bits is not None:
        levels = np.float32(2**bits - 1)
        rounded: Pixels = np.rint(x * levels) / levels
        return rounded
    assert side is not None
    height, width = x.shape[2:]
    # of an even window the pixel is the lower right one, as in scipy
    padded = np.pad(x, ((0, 0), (0, 0), (side // 2, (side - 1) // 2), (side // 2, (side - 1) // 2)), mode="edge")
    window = [padded[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    exchanges, middle = NETWORKS[side]
    for a, b in exchanges:
        window[a], window[b] = np.minimum(window[a], window[b]), np.maximum(window[a], window[b])
    return window[middle]


def fit_threshold(scores: NDArray[np.floating], *, false_alarms: float) -> float:
    """The score above which a frame is flagged, so that of clean frames at most a share ``false_alarms`` is.

    The k-th smallest of n with ``k = ceil((n + 1) (1 - false_alarms))``: a further clean frame of the same kind lies above it with
    probability at most ``false_alarms``, whatever the distribution (split conformal prediction, Lei et al. 2018, section 2.2).

    Args:
        scores: of clean frames, (n,).
        false_alarms: in (0, 1).

    Raises:
        InputError: the rate is out of range, or the frames are too few for it.
    """
    if not 0 < false_alarms < 1:
        raise InputError(
            f"a rate of false alarms is a share of the frames in (0, 1), such as 0.05, not {false_alarms:g}"
        )
    n = len(scores)
    rank = math.ceil((n + 1) * (1 - false_alarms) - _SLACK)
    if rank > n:
        raise InputError(
            f"{n} clean images cannot set a rate of {false_alarms:g} false alarms: give {math.ceil(1 / false_alarms - 1 - _SLACK)} or more, "
            "or a larger rate"
        )
    return float(np.sort(scores)[rank - 1])


@dataclass(frozen=True)
class Checked:
    """A batch and what the guard makes of it.

    Attributes:
        logits: of the frames as they are, float32 (n, classes).
        scores: float64 (n,) in [0, 2]: the largest L1 distance between the probabilities of a frame and of one of its
            squeezed versions, the joint detection of Xu et al. 2018.
        flagged: bool (n,): the score is above the threshold.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float64]
    flagged: NDArray[np.bool_]


@dataclass(frozen=True)
class Guarded:
    """One frame classified under guard.

    Attributes:
        labels: as :meth:`~edgeadv_runtime.Classifier.classify` gives them.
        score: in [0, 2].
        flagged: whether the frame is suspicious. A frame that is not flagged is not thereby safe.
    """

    labels: list[Label]
    score: float
    flagged: bool


@dataclass(frozen=True)
class Guard:
    """Squeezers and a threshold; it holds no state and may be shared by threads.

    Example::

        guard = Guard.of(classifier.bundle)
        seen = guard.classify(classifier, frame, color_order="bgr")
        shown = smoother.update(seen.labels, flagged=seen.flagged)

    Attributes:
        squeezers: their names; every one costs one inference a frame.
        threshold: score above which a frame is flagged.
        temperature: what logits are divided by before the softmax.
    """

    squeezers: tuple[str, ...]
    threshold: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_squeezers(self.squeezers)
        if not 0 <= self.threshold <= 2 or not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(
                f"a guard's threshold is in [0, 2] and its temperature above 0, not {self.threshold:g} and {self.temperature:g}"
            )

    @classmethod
    def of(cls, bundle: Bundle) -> Guard:
        """The guard of ``bundle``, as it was fitted at export.

        Raises:
            InputError: the bundle has none.
            BundleError: what its manifest says of it is damaged.
        """
        entry = bundle.manifest.get("guard")
        if entry is None:
            raise InputError(
                f"{bundle.path} has no guard: export it with --confidence-data and --guard-false-alarms 0.05"
            )
        try:
            return cls(tuple(entry["squeezers"]), float(entry["threshold"]), float(entry["temperature"]))
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise BundleError(f"the guard of {bundle.path} is damaged ({error}); export the bundle again") from error

    def judge(self, infer: Callable[[Pixels], NDArray[np.float32]], x: Pixels) -> Checked:
        """Check a batch with any function from pixels to logits.

        Args:
            infer: float32 (m, 3, H, W) in [0, 1] to logits, float32 (m, classes); called once, with all versions of all frames.
            x: float32 (n, 3, H, W) in [0, 1].
        """
        n = len(x)
        logits = infer(np.ascontiguousarray(np.concatenate([x, *(squeeze(x, name) for name in self.squeezers)])))
        p = softmax(logits, temperature=self.temperature).reshape(len(self.squeezers) + 1, n, -1)
        scores: NDArray[np.float64] = np.abs(p[1:] - p[0]).sum(axis=2).max(axis=0)
        return Checked(logits[:n].copy(), scores, scores > self.threshold)

    def check(self, backend: Backend, x: Pixels) -> Checked:
        """Check a batch on an open backend, with ``1 + len(squeezers)`` images for each frame in one call.

        Args:
            backend: any.
            x: float32 (n, 3, H, W) in [0, 1], as for :meth:`~edgeadv_runtime.Backend.infer`.

        Raises:
            InputError, BackendError: as ``infer`` does.
        """
        return self.judge(backend.infer, x)

    def classify(
        self,
        classifier: Classifier,
        frame: Image.Image | NDArray[np.uint8],
        *,
        color_order: ColorOrder | None = None,
        top: int = 5,
    ) -> Guarded:
        """Classify one frame and check it; arguments and errors are those of :meth:`~edgeadv_runtime.Classifier.classify`."""
        pixels = classifier.bundle.preprocess(frame, color_order=color_order)
        checked = self.check(classifier.backend, to_tensor(pixels[None]))
        return Guarded(classifier.rank(checked.logits[0], top=top), float(checked.scores[0]), bool(checked.flagged[0]))
