"""The quality gate of int8: what it loses against fp32 on the same labelled images, image by image, and what it gains.

Images that int8 was calibrated on are left out. Clean accuracy is always measured; the worst case where a budget is
given, by the :class:`~edgeadv_export.judge.Judge` that is handed in, and then it must be believable: any masking
verdict but PASS ends the export.

How a drop is judged is in :mod:`edgeadv_export.paired`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeadv.data.datasets import Batch, ImageSet, batches
from edgeadv.gradients.artefact import ArtefactGraph
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch, DataDigest
from edgeadv_runtime.bundle.confidence import first_is_right
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.bundle.training_images import Overlap
from edgeadv_runtime.errors import DataError, EdgeAdvError, ExportError, InputError
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.evidence import ORDER
from edgeadv_runtime.records.statistics import wilson_interval

from .calibration import Calibration
from .draft import Draft
from .frames import check_readable
from .judge import Attacked, Judge, MakeJudge
from .own_gradients import own_gradients
from .paired import Measured, Paired, error_of, images_needed

MAX_DROP = 1.0
PASS = "PASS"
_BATCH = 64
_EVERY_S = 5.0
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Int8Plan:
    """What int8 is made from and what it must keep.

    Attributes:
        calibration: the images for the ranges.
        images: labelled images to measure on, in the order of the model's classes.
        order: int64, positions in ``images``; calibration images among them are left out when they are met.
        max_drop: the largest accepted loss of top-1, in points, above 0; the upper end of its 95% interval is held to
            it.
        eps: also measure the worst case at this budget.
        allow_training_images: measure on more than 1% of images that the network was trained on.
        make_judge: who attacks, where there is a budget.

    Raises:
        InputError: ``max_drop`` is out of range, so few images could not show it even if none were lost, or there is a
            budget and nobody to attack.
    """

    calibration: Calibration
    images: ImageSet
    order: NDArray[np.int64]
    max_drop: float = MAX_DROP
    eps: Eps | None = None
    allow_training_images: bool = False
    make_judge: MakeJudge | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and 0 < self.max_drop <= 100):
            raise InputError(f"`max_drop` must be above 0 and at most 100 points, not {self.max_drop:g}")
        if self.eps is not None and self.make_judge is None:
            raise InputError("`eps` of int8 needs `make_judge`, which attacks: edgeadv.export brings one")
        self.check_images(len(self.order))

    def check_images(self, n: int) -> None:
        """Refuse ``n`` images if they are too few for :attr:`max_drop`.

        Raises:
            InputError: they are; it says how many it takes.
        """
        needed = images_needed(self.max_drop)
        if needed is None or n < needed:
            raise InputError(
                f"{n} labelled images cannot show that at most {self.max_drop:g} points are lost, even if none is: "
                f"give at least {needed or 'ten million'} (`gate_data`, `gate_limit`), or a larger `max_drop`"
            )


class Gate:
    """The labelled images, what fp32 makes of them, and the attacks on them; made once, used for every graph.

    Attributes:
        data: what the manifest says of the images.
    """

    data: dict[str, Any]

    def __init__(self, plan: Int8Plan, fp32: Backend, draft: Draft, *, progress: Progress) -> None:
        """Score fp32, and craft the attacks if the plan has a budget.

        Args:
            plan: images and limits.
            fp32: the float32 artefact, opened.
            draft: whose folder takes the adversarial images.
            progress: told in a few words what begins.

        Raises:
            DataError: no image is left to measure on, or more than 1% of them are unreadable.
            InputError: more than 1% of them are training images and that was not allowed, or they are too few.
            ExportError: the worst case of fp32 may not be believed.
        """
        self._plan = plan
        self._name = Path(plan.images.spec).name
        self._progress = progress
        self._judged: tuple[Judge, Eps] | None = None
        progress(f"measuring fp32 on {len(plan.order)} images of {self._name}")
        self._score_fp32(fp32, Overlap(draft.training_images))
        if plan.eps is not None and plan.make_judge is not None:
            n, eps = len(self._index), plan.eps
            tell = paced(progress, f"attacking {n} images at eps {eps.text}", "images")
            judge = plan.make_judge(fp32, draft, images=plan.images, order=self._index, eps=eps, progress=tell)
            # before hours are spent on graphs that could not be judged
            _check_believable([judge.judge_fp32()], eps)
            self._judged = judge, eps

    def _score_fp32(self, fp32: Backend, overlap: Overlap) -> None:
        """Find the images that may be scored, those that fp32 is right about, and how many it was trained on."""
        total = len(self._plan.order)
        unreadable: list[str] = []
        digest = DataDigest()
        index: list[NDArray[np.int64]] = []
        right: list[NDArray[np.bool_]] = []
        labels: list[NDArray[np.int64]] = []
        for batch in self._batches(self._plan.order):
            unreadable += batch.unreadable
            clean = CleanBatch(batch.index, batch.pixels, batch.labels)
            known = np.isin(clean.hashes, self._plan.calibration.hashes)
            if known.all():
                continue
            clean = clean.select(~known)
            digest.add(clean)
            overlap.add(clean.hashes)
            index.append(clean.index)
            labels.append(clean.labels)
            right.append(first_is_right(fp32.infer_pixels(clean.pixels), clean.labels))
        check_readable(unreadable, total, "to measure int8 on")
        if not index:
            raise DataError(f"int8 was calibrated on all {total} images of {self._name}: give others to measure it on")
        overlap.check(f"int8 is measured on {self._name}", allowed=self._plan.allow_training_images)
        self._index, self._right = np.concatenate(index), np.concatenate(right)
        self._plan.check_images(len(self._index))
        self._warn_of_chance(np.concatenate(labels))
        self.data = {
            "name": self._name,
            "split": self._plan.images.split,
            "n": len(self._index),
            "sha256": digest.hexdigest(),
            "calibration_left_out": total - len(unreadable) - len(self._index),
            "unreadable": len(unreadable),
            "training_images": overlap.known,
            "runtime": f"onnxruntime {onnxruntime.__version__}, {fp32.provider}",
        }

    def _warn_of_chance(self, labels: NDArray[np.int64]) -> None:
        """Say so where float32 is no better than who always names the commonest class: it has nothing to lose."""
        n, correct = len(labels), int(self._right.sum())
        commonest = int(np.bincount(labels).max())
        if wilson_interval(correct, n)[0] <= commonest / n:
            self._progress(
                f"warning: fp32 itself is right on {correct / n:.1%} of {self._name}, and the commonest class is "
                f"{commonest / n:.1%} of it: that int8 loses little there says nothing"
            )

    def measure(self, int8: Backend, proto: Any, *, look: int) -> Measured:
        """Score a graph on the same images.

        Args:
            int8: the graph, opened.
            proto: the graph, an ``onnx.ModelProto``.
            look: which graph of the variant it is that is measured on these images, the first being 1.

        Raises:
            ExportError: its worst case may not be believed.
        """
        clean = [first_is_right(int8.infer_pixels(b.pixels), b.labels) for b in self._batches(self._index)]
        measured = Measured(Paired.of(self._right, np.concatenate(clean)), None, self._plan.max_drop, look)
        if self._judged is None or not measured.holds:  # what fails anyway is not attacked
            return measured
        judge, eps = self._judged
        graph: ArtefactGraph | None = None
        threat = {"threat": "white-box"}
        try:
            graph = self._graph(int8, proto)
        except EdgeAdvError as error:
            threat = {"threat": "query", "no_own_gradients": str(error)}
            self._progress(f"{int8.variant} is not attacked by its own gradients, which may flatter it: {error}")
        else:
            self._progress(f"attacking {int8.variant} by its own gradients")
        fp32, ours = judge.judge_int8(int8, graph)
        verdict = _check_believable([fp32, ours], eps)
        attacks = {"eps": eps.text, "suite": judge.suite, **threat, "verdict": verdict, "judged": True}
        return replace(measured, worst=Paired.of(fp32.right, ours.right), attacks=attacks)

    def _graph(self, int8: Backend, proto: Any) -> ArtefactGraph:
        """Its graph in PyTorch.

        Raises:
            InputError, ExportError: it has no gradients here.
        """
        first = next(self._batches(self._index))
        logits = int8.infer(to_tensor(first.pixels))
        return own_gradients(proto, int8.variant, sha256=int8.artifact_sha256, pixels=first.pixels, logits=logits)[0]

    def to_json(self, measured: Measured) -> dict[str, Any]:
        """What the manifest says of ``measured``."""
        worst: dict[str, Any] = {"not_measured": "no `gate_eps` was given"}
        if measured.worst is not None:
            worst = {**measured.attacks, **measured.worst.to_json(measured.look)}
        return {
            "max_drop": self._plan.max_drop,
            "data": self.data,
            "looks": measured.look,
            "judged_level": 1 - 2 * error_of(measured.look),
            "clean": measured.clean.to_json(measured.look),
            "worst_case": worst,
        }

    def _batches(self, order: NDArray[np.int64]) -> Iterator[Batch]:
        return batches(self._plan.images, self._plan.calibration.preprocess, batch_size=_BATCH, order=order)


def _check_believable(attacked: Sequence[Attacked], eps: Eps) -> str:
    """The least believable verdict of ``attacked``, if it is ``PASS``.

    Raises:
        ExportError: it is another one.
    """
    masking = max((each.masking for each in attacked), key=lambda found: ORDER.index(found.verdict))
    if masking.verdict != PASS:
        more = "give more labelled images (`gate_data`, `gate_limit`)"
        raise ExportError(
            f"int8's worst case at eps {eps.text} may not be believed, and so is not judged: verdict {masking.verdict} "
            f"({next(iter(masking.evidence), 'no reason is known')}); "
            f"{more if masking.verdict == 'UNCHECKED' else 'train another way'}, or leave `gate_eps` out, which judges "
            "clean accuracy alone. No bundle was written"
        )
    return PASS


def paced(progress: Progress, text: str, unit: str) -> Callable[[int, int], None]:
    """A callback for work done and work to do: tells ``progress`` that it begins, and every few seconds how far it
    is."""
    progress(text)
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _EVERY_S:
            last = now
            progress(f"{text}: {done} of {total} {unit}")

    return tell
