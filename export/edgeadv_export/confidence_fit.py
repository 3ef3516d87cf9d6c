"""Temperature and rejection threshold at export: fitted on one half of labelled images, measured on the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeadv.data.datasets import ImageSet, balanced_subset, batches, open_data
from edgeadv.data.sources import Data
from edgeadv.models.builder import PixelModel
from edgeadv_runtime.bundle.batches import CleanBatch, DataDigest
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.bundle.confidence import (
    BINS,
    ece,
    first_is_right,
    fit_temperature,
    nll,
    rejection_threshold,
    reliability,
    softmax,
)
from edgeadv_runtime.bundle.entries import ConfidenceEntry
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.records.statistics import wilson_interval

from .frames import check_readable
from .parity import torch_logits

METHOD = "temperature scaling of the float32 logits (Guo et al. 2017)"
FEWEST, DEFAULT_LIMIT, COVERAGE = 100, 2000, 0.95
"""Images to fit on, all images by default, and the share of them that the threshold lets be answered."""
TEST = "test"
_SEED = 0
# streams of their own: a --limit of the same seed would otherwise choose the very images that the temperature was
# fitted on
_STREAM, _HALVES = 0xC0F1, 0xC0F2
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ConfidencePlan:
    """What temperature and threshold are made from.

    Attributes:
        images: labelled images that were not trained on, in the order of the model's classes.
        order: int64, positions in ``images``; half of them is fitted on.
        coverage: the share of images that the rejection threshold is to let through, in (0, 1].
    """

    images: ImageSet
    order: NDArray[np.int64]
    coverage: float = COVERAGE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coverage) and 0 < self.coverage <= 1):
            raise InputError(f"`coverage` is a share of the images in (0, 1], such as 0.95, not {self.coverage:g}")

    def measure(self, model: PixelModel, preprocess: Preprocess, *, progress: Callable[[str], None]) -> ConfidenceEntry:
        """Fit on one half and measure on the other.

        Args:
            model: float32, on the CPU, in evaluation mode: the reference. Its temperature serves all variants. Parity
                holds the logits of fp16 to it; nothing holds those of int8, whose gate looks at labels.
            preprocess: how a frame becomes the model's input.
            progress: told in a few words what begins.

        Returns:
            What the manifest says under ``confidence``.

        Raises:
            DataError: images are too few or unreadable, or have no temperature.
        """
        name = Path(self.images.spec).name
        progress(f"fitting the temperature on half of {len(self.order)} images of {name}")
        fit, held_out, unreadable = self._halves(preprocess)
        logits = torch_logits(model, fit.pixels, model.architecture.name)
        temperature = fit_temperature(logits, fit.labels)
        threshold = rejection_threshold(softmax(logits, temperature=temperature).max(axis=1), coverage=self.coverage)
        digest = DataDigest()
        digest.add(fit)
        other = torch_logits(model, held_out.pixels, model.architecture.name)
        right = first_is_right(other, held_out.labels)
        found: dict[str, Any] = {}
        tables = {}
        for when, t in (("before", 1.0), ("after", temperature)):
            said = softmax(other, temperature=t).max(axis=1)
            bins = reliability(said, right)
            found |= {f"nll_{when}": nll(other, held_out.labels, temperature=t), f"ece_{when}": ece(bins)}
            tables[when] = [asdict(each) for each in bins]
        answered = said >= threshold
        n, k, errors = len(right), int(answered.sum()), int((answered & ~right).sum())
        found |= {
            "method": METHOD,
            "temperature": temperature,
            "n": len(fit.labels),
            "n_held_out": n,
            "bins": BINS,
            "reliability": tables,
            "rejection": {
                "coverage": self.coverage,
                "threshold": threshold,
                "n": n,
                "answered": k,
                "answered_ci95": wilson_interval(k, n),
                "wrong": int((~right).sum()),
                "wrong_answered": errors,
                "error_answered_ci95": wilson_interval(errors, k) if k else None,
            },
            "data": {
                "name": name,
                "split": self.images.split,
                "sha256": digest.hexdigest(),
                "seed": _SEED,
                "unreadable": unreadable,
            },
            "images": fit.hashes,
        }
        return convert(found, ConfidenceEntry, what="confidence")

    def _halves(self, preprocess: Preprocess) -> tuple[CleanBatch, CleanBatch, int]:
        """The images to fit on, the images to measure on, and how many could not be read."""
        unreadable: list[str] = []
        parts = []
        for batch in batches(self.images, preprocess, batch_size=_BATCH, order=self.order):
            unreadable += batch.unreadable
            parts.append((batch.index, batch.pixels, batch.labels))
        check_readable(unreadable, len(self.order), "to fit the temperature on")
        every = CleanBatch(*map(np.concatenate, zip(*parts, strict=True)))
        n = len(every.labels)
        # blindly: only then are the halves images of one kind, which the rank of the threshold rests on; as many of
        # each class would leave none of a rare class to measure
        chosen = np.zeros(n, dtype=np.bool_)
        chosen[np.random.default_rng((_SEED, _HALVES)).permutation(n)[: n // 2]] = True
        fit = every.select(chosen)
        # a picture that is there twice must not be fitted on and measured as well
        held_out = every.select(~chosen & ~np.isin(every.hashes, fit.hashes))
        if min(len(fit.labels), len(held_out.labels)) < FEWEST:
            raise DataError(
                f"{n} labelled images are too few for a temperature: {FEWEST} are fitted on and {FEWEST} others "
                f"measured; give {2 * FEWEST} different ones or more (`confidence_data`, `confidence_limit`)"
            )
        return fit, held_out, len(unreadable)


def confidence_images(
    spec: str, classes: Classes, *, run_data: Data | None = None, root: Path | None = None, limit: int | None = None
) -> tuple[ImageSet, NDArray[np.int64]]:
    """Open what ``confidence_data`` names, and choose images of it.

    ::

        images, order = confidence_images("held-out/", classes, run_data=None, root=None, limit=2000)

    Args:
        spec: ``"test"`` for the test images of the run, or a name or a folder, of which the test part is read.
        classes: the model's.
        run_data: what the run was trained and tested on; None without a run.
        root: where torchvision keeps its data.
        limit: at most this many, as many of each class; None is :data:`DEFAULT_LIMIT`.

    Returns:
        The set, labelled in the order of ``classes``, and positions in it, ascending.

    Raises:
        InputError: ``test`` without a run, training images, unknown classes, or no such images.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`confidence_limit` must be at least 1, not {limit}")
    if spec == TEST:
        if run_data is None:
            raise InputError(
                f"`confidence_data` {TEST} is the test images of a run, and there is none: give a folder of class "
                "folders"
            )
        images = run_data.test
    else:
        images = open_data(spec, split="test", root=root)
    if images.split == "train":
        raise InputError(
            f"`confidence_data` {spec} holds training images, of which a network is too sure: give test images"
        )
    labelled = images.relabel(classes)
    return labelled, balanced_subset(labelled.labels, DEFAULT_LIMIT if limit is None else limit, seed=(_SEED, _STREAM))
