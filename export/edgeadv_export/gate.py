"""The quality gate of int8: what it loses against fp32 on the same labelled images, image by image, and what it gains.

Images that int8 was calibrated on are left out. Clean accuracy is always measured; the worst case where a budget is given, under
attacks on fp32 and, for int8, under its own gradients too. It is judged only where the masking verdict says that it may be believed.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeadv.attacks import build_attacks
from edgeadv.data import ImageSet, batches
from edgeadv.models import PixelModel
from edgeadv.pack import write_pack
from edgeadv.surrogate import Surrogate
from edgeadv_runtime.attack import Attack, CleanBatch, CraftedBatch
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.crafting import craft
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import DataError, ExportError, InputError
from edgeadv_runtime.evaluate import MOST_UNREADABLE, DataDigest, DataInfo
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.noise import NoiseAttack
from edgeadv_runtime.pack import AttackPack
from edgeadv_runtime.preprocess import to_tensor
from edgeadv_runtime.stats import paired_difference_interval
from edgeadv_runtime.suites import ON_SURROGATE, SUITES, SuiteName
from edgeadv_runtime.training_images import Overlap
from edgeadv_runtime.variants import U8S8, is_x86
from edgeadv_runtime.verdict import MaskingEvidence

from .calibration import Calibration
from .draft import Draft
from .surrogate import make

MAX_DROP = 1.0
FEWEST = 100
"""Images to measure on for a limit of one point: that is what one of them counts then."""
PASS = "PASS"
ROUNDS, _WARM_UP = 30, 3
_BATCH = 64
_SUITE: SuiteName = "fast"
_EVERY_S = 5.0
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Int8Plan:
    """What int8 is made from and what it must keep.

    Attributes:
        calibration: the images for the ranges.
        images: labelled images to measure on, in the order of the model's classes.
        order: int64, positions in ``images``; calibration images among them are left out when they are met.
        max_drop: the largest accepted loss of top-1, in points.
        eps: also measure the worst case at this budget.
        allow_training_images: measure on more than 1% of images that the network was trained on.
    """

    calibration: Calibration
    images: ImageSet
    order: NDArray[np.int64]
    max_drop: float = MAX_DROP
    eps: Eps | None = None
    allow_training_images: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop <= 100):
            raise InputError(f"--max-drop must be from 0 to 100 points, not {self.max_drop:g}")


@dataclass(frozen=True)
class Paired:
    """Right answers of fp32 and of int8 on the same images.

    Attributes:
        n: images.
        fp32_correct: fp32 is right.
        lost: fp32 is right and int8 is wrong.
        gained: int8 is right and fp32 is wrong.
    """

    n: int
    fp32_correct: int
    lost: int
    gained: int

    @classmethod
    def of(cls, fp32: NDArray[np.bool_], int8: NDArray[np.bool_]) -> Paired:
        """Count; both bool of shape (n,)."""
        return cls(len(fp32), int(fp32.sum()), int((fp32 & ~int8).sum()), int((~fp32 & int8).sum()))

    @property
    def drop(self) -> float:
        """Points of top-1 that int8 loses."""
        return 100 * (self.lost - self.gained) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of :attr:`drop`."""
        low, high = paired_difference_interval(self.lost, self.gained, self.n)
        return 100 * low, 100 * high

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "n": self.n, "fp32_correct": self.fp32_correct, "int8_correct": self.fp32_correct - self.lost + self.gained,
            "lost": self.lost, "gained": self.gained, "drop": self.drop, "drop_ci95": list(self.interval),
        }  # fmt: skip

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.drop:.2f} points [{low:.2f}, {high:.2f}] of {self.n} images"


@dataclass(frozen=True)
class Measured:
    """What one graph lost.

    Attributes:
        clean: without an attack.
        worst: under the worst of the attacks and none; None where that was not measured.
        judged_worst: whether the worst case counts.
        no_own: why int8 was not attacked by its own gradients; None where it was.
        max_drop: what may be lost, in points.
    """

    clean: Paired
    worst: Paired | None
    judged_worst: bool
    max_drop: float
    no_own: str | None = None

    @property
    def holds(self) -> bool:
        """Whether no more is lost than may be."""
        judged = [self.clean, *([self.worst] if self.worst is not None and self.judged_worst else [])]
        return all(paired.drop <= self.max_drop for paired in judged)

    def __str__(self) -> str:
        worst = f", and in the worst case {self.worst}" if self.worst is not None and self.judged_worst else ""
        return f"{self.clean}{worst}"


class Gate:
    """The labelled images, what fp32 makes of them, and the attacks on them; made once, used for every graph.

    Attributes:
        data: what the manifest says of the images.
        verdict: of the masking rules on the attacks; None without attacks.
    """

    data: dict[str, Any]
    verdict: str | None = None

    def __init__(self, plan: Int8Plan, fp32: Backend, draft: Draft, model: PixelModel, *, progress: Progress) -> None:
        """Score fp32, and craft the attacks if the plan has a budget.

        Args:
            plan: images and limits.
            fp32: the float32 artefact, opened.
            draft: whose folder takes the adversarial images.
            model: the same weights in PyTorch, on the CPU in evaluation mode, for the gradients.
            progress: told in a few words what begins.

        Raises:
            DataError: no image is left to measure on, or more than 1% of them are unreadable.
            InputError: more than 1% of them are training images and that was not allowed, or they are too few.
        """
        self._plan = plan
        self._calibration = frozenset(plan.calibration.hashes)
        self._name = Path(plan.images.spec).name
        self._classes = len(draft.classes)
        self._progress = progress
        self._pack: AttackPack | None = None
        progress(f"measuring fp32 on {len(plan.order)} images of {self._name}")
        self._score_fp32(fp32, Overlap(draft.training_images))
        if plan.eps is not None:
            self._pack = self._craft(plan.eps, fp32, draft, model, progress)
            evidence = MaskingEvidence(self._pack.infos)
            for batch in self._pack.batches([]):
                evidence.add(batch.clean.labels, batch.evidence)
            self.verdict = str(evidence.verdict()["verdict"])
            self._fp32_worst = self._worst(fp32, self._pack)

    def _score_fp32(self, fp32: Backend, overlap: Overlap) -> None:
        """Find the images that may be scored, those that fp32 is right about, and how many it was trained on."""
        total, left_out = len(self._plan.order), Counter[str]()
        unreadable: list[str] = []
        digest = DataDigest()
        index: list[NDArray[np.int64]] = []
        right: list[NDArray[np.bool_]] = []
        for batch in self._batches(self._plan.order, unreadable, left_out):
            digest.add(batch)
            overlap.add(batch.hashes)
            index.append(batch.index)
            right.append(_right(fp32, to_tensor(batch.pixels), batch.labels))
        if len(unreadable) > MOST_UNREADABLE * total:
            raise DataError(
                f"{len(unreadable)} of {total} images to measure int8 on are unreadable, e.g. {unreadable[0]}; repair or remove them"
            )
        if not index:
            raise DataError(f"int8 was calibrated on all {total} images of {self._name}: give others to measure it on")
        overlap.check(f"int8 is measured on {self._name}", allowed=self._plan.allow_training_images)
        self._index, self._fp32 = np.concatenate(index), np.concatenate(right)
        needed = math.ceil(FEWEST / max(self._plan.max_drop, 1.0))
        if len(self._index) < needed:
            raise InputError(
                f"{len(self._index)} labelled images cannot tell a loss of {self._plan.max_drop:g} points: give at least {needed} "
                "(--gate-data, --gate-limit), or a larger --max-drop"
            )
        self.data = {
            "name": self._name, "split": self._plan.images.split, "n": len(self._index), "sha256": digest.hexdigest(),
            "calibration_left_out": left_out["calibration"], "unreadable": len(unreadable),
            "training_images": overlap.known,
            "runtime": f"onnxruntime {onnxruntime.__version__}, {fp32.provider}",
        }  # fmt: skip

    def measure(self, int8: Backend, proto: Any) -> Measured:
        """Score a graph on the same images.

        Args:
            int8: the graph, opened.
            proto: the graph, an ``onnx.ModelProto``.
        """
        clean = [_right(int8, to_tensor(b.pixels), b.labels) for b in self._batches(self._index, [], Counter())]
        paired = Paired.of(self._fp32, np.concatenate(clean))
        if self._pack is None or paired.drop > self._plan.max_drop:  # what fails anyway is not attacked
            return Measured(paired, None, False, self._plan.max_drop)
        own: Sequence[Attack] = ()
        no_own = None
        try:
            own = self._own_attacks(int8, proto)
        except ExportError as error:
            no_own = str(error)
            self._progress(f"{int8.variant} meets transferred attacks only, which may flatter it: {error}")
        worst = Paired.of(self._fp32_worst, self._worst(int8, self._pack, own))
        return Measured(paired, worst, self.verdict == PASS, self._plan.max_drop, no_own)

    def _own_attacks(self, int8: Backend, proto: Any) -> list[Attack]:
        """Attacks that follow the gradients of ``proto``.

        Raises:
            ExportError: it has no surrogate.
        """
        assert self._plan.eps is not None
        first = next(self._batches(self._index[:_BATCH], [], Counter()))
        graph, _ = make(
            proto, int8.variant, onnx_sha256=int8.artifact_sha256, pixels=first.pixels,
            logits=int8.infer(to_tensor(first.pixels)), runtime=f"onnxruntime {onnxruntime.__version__}",
        )  # fmt: skip
        surrogate = Surrogate(graph).eval()
        efforts = {name: effort for name, effort in SUITES[_SUITE].items() if name in ON_SURROGATE}
        self._progress(f"attacking {int8.variant} by its own gradients")
        return build_attacks(
            surrogate, [self._plan.eps], efforts=efforts, classes=self._classes, gradients_sha256=surrogate.sha256,
            gradients=surrogate.gradients,
        )  # fmt: skip

    def to_json(self, measured: Measured) -> dict[str, Any]:
        """What the manifest says of ``measured``."""
        worst: dict[str, Any] = {"not_measured": "no --gate-eps was given"}
        if measured.worst is not None and self._plan.eps is not None:
            threat: dict[str, Any] = {"threat": "white-box"}
            if measured.no_own is not None:
                threat = {"threat": "transfer", "no_own_gradients": measured.no_own}
            worst = {
                "eps": self._plan.eps.text, **threat, "verdict": self.verdict, "judged": measured.judged_worst,
                **measured.worst.to_json(),
            }  # fmt: skip
        return {
            "max_drop": self._plan.max_drop, "data": self.data, "clean": measured.clean.to_json(), "worst_case": worst
        }  # fmt: skip

    def _batches(self, order: NDArray[np.int64], unreadable: list[str], left_out: Counter[str]) -> Iterator[CleanBatch]:
        """The images in ``order`` without those of the calibration, which are counted."""
        preprocess = self._plan.calibration.preprocess
        for batch in batches(self._plan.images, preprocess, batch_size=_BATCH, order=order):
            unreadable += batch.unreadable
            known = [sha256_bytes(pixels.tobytes()) in self._calibration for pixels in batch.pixels]
            left_out["calibration"] += sum(known)
            keep = ~np.array(known, dtype=np.bool_)
            if keep.any():
                yield CleanBatch(batch.index[keep], batch.pixels[keep], batch.labels[keep])

    def _craft(self, eps: Eps, fp32: Backend, draft: Draft, model: PixelModel, progress: Progress) -> AttackPack:
        attacks = build_attacks(
            model, [eps], efforts=SUITES[_SUITE], classes=self._classes, gradients_sha256=draft.weights_sha256
        )  # fmt: skip
        # the verdict wants an attack without gradients among them
        attacks.append(NoiseAttack([eps]))
        images = self._plan.images
        data = DataInfo(self._name, images.split, len(self._index), allow_unreadable=True)
        tell = paced(progress, f"attacking {len(self._index)} images at eps {eps.text}", "images")
        return write_pack(
            draft.folder / "gate.pack", bundle=draft.bundle(), images=images, order=self._index, attacks=attacks, reference=fp32,
            data=data, uint8=eps.fits_8_bits, progress=tell,
        )  # fmt: skip

    def _worst(self, backend: Backend, pack: AttackPack, own: Sequence[Attack] = ()) -> NDArray[np.bool_]:
        """For each image, whether ``backend`` is right about it without and under every attack.

        Args:
            backend: what is scored.
            pack: attacks on fp32.
            own: attacks on ``backend``, run on what stands those.
        """
        found = []
        for batch in pack.batches([]):
            right = _all_right(backend, batch)
            if own and right.any():
                (crafted,) = craft([batch.clean.select(right)], own, backend, uint8=own[0].eps[0].fits_8_bits)
                right[right] = _all_right(backend, crafted)
            found.append(right)
        return np.concatenate(found)


def _all_right(backend: Backend, batch: CraftedBatch) -> NDArray[np.bool_]:
    labels = batch.clean.labels
    right = _right(backend, to_tensor(batch.clean.pixels), labels)
    for x in batch.adversarial.values():
        right &= _right(backend, x, labels)
    return right


def _right(backend: Backend, x: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the label comes first; as in evaluation, a tie goes against the model."""
    logits = backend.infer(x)
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    right: NDArray[np.bool_] = (logits >= own).sum(axis=1) == 1
    return right


def gain(draft: Draft, variant: str, images: NDArray[np.float32]) -> dict[str, Any]:
    """What ``variant`` gains over fp32: bytes, and latency where this machine is one that it is made for.

    Args:
        draft: holds both graphs.
        variant: the int8 one.
        images: float32 (n, 3, crop, crop) to time with.
    """
    fp32, int8 = draft.path("fp32").stat().st_size, draft.path(variant).stat().st_size
    size = {"fp32_bytes": fp32, "int8_bytes": int8, "smaller": fp32 / int8}
    if variant != U8S8:
        return {
            **size,
            "latency": {"not_measured": "it is made for TensorRT and ARM, not for the machine that exports"},
        }
    if not is_x86():
        return {**size, "latency": {"not_measured": "it is made for x86 processors, and this is none"}}
    # one thread, so that the figure does not depend on how many cores are idle just now
    with draft.backend("fp32", threads=1) as slow, draft.backend(variant, threads=1) as fast:
        times = _interleaved([slow, fast], images)
    p50 = np.median(times, axis=0) / 1e6
    return {
        **size,
        "latency": {
            "faster": float(np.median(times[:, 0] / times[:, 1])), "fp32_ms": float(p50[0]), "int8_ms": float(p50[1]),
            "rounds": ROUNDS, "batch": 1, "threads": 1, "backend": slow.name, "provider": slow.provider, "device": slow.device,
        },
    }  # fmt: skip


def _interleaved(backends: Sequence[Backend], images: NDArray[np.float32]) -> NDArray[np.int64]:
    """Nanoseconds of each call, int64 (rounds, backends): one image a round through all of them, in alternating order."""
    times = np.empty((ROUNDS, len(backends)), dtype=np.int64)
    for i in range(-_WARM_UP, ROUNDS):
        x = images[i % len(images)][None]
        for k in range(len(backends)) if i % 2 else reversed(range(len(backends))):
            start = time.perf_counter_ns()
            backends[k].infer(x)
            if i >= 0:
                times[i, k] = time.perf_counter_ns() - start
    return times


def paced(progress: Progress, text: str, unit: str) -> Callable[[int, int], None]:
    """A callback for work done and work to do: tells ``progress`` that it begins, and every few seconds how far it is."""
    progress(text)
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _EVERY_S:
            last = now
            progress(f"{text}: {done} of {total} {unit}")

    return tell
