"""Measuring a guard: false alarms, detection, what gets past it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._version import __version__
from .attack import Attack, CleanBatch, Key, infos
from .backends.base import Backend
from .bundle import Bundle
from .confidence import first_is_right
from .device import environment
from .errors import BundleError, DataError, InputError
from .evaluate import DataDigest, DataInfo, check_readable
from .guard import Guard
from .guard_file import CleanRow, GuardFile, GuardRow
from .perturbation import check_crafted, round_to_uint8
from .preprocess import to_tensor
from .results import WORST_CASE, AttackParams

Progress = Callable[[int, int], None]
FEWEST = 100
"""Clean images for a rate of false alarms that says anything."""
_AT_ONCE = 16
_Flags = NDArray[np.bool_]


def measure_guard(
    batches: Iterable[CleanBatch],
    attacks: Sequence[Attack],
    *,
    adaptive: Sequence[Attack],
    bundle: Bundle,
    backends: Sequence[Backend],
    data: DataInfo,
    unreadable: Sequence[str] = (),
    progress: Progress | None = None,
) -> GuardFile:
    """Score the guard of ``bundle`` on images that it was not fitted on, which are left out where they are met.

    Adversarial images are rounded to 8 bits within eps: a guard sees frames of a camera.

    Args:
        batches: labelled images.
        attacks: those that do not know the guard.
        adaptive: those that do; at least one, at the same budgets: no rate of detection is told without it.
        bundle: whose guard it is.
        backends: the artefacts, opened.
        data: what the images are.
        unreadable: messages of images that could not be decoded, filled by the iterator.
        progress: called with the images done and the images there are.

    Raises:
        InputError: the bundle has no guard, or two attacks share a name and a budget.
        BundleError: what the manifest says of the guard is damaged.
        DataError: too few images are left, or too many are unreadable.
        EdgeAdvError: whatever a backend or an attack raises.
    """
    guard, entry = Guard.of(bundle), bundle.manifest["guard"]
    fitted = _fitted(bundle)
    if missing := {"false_alarms", "n"} - entry.keys():
        raise BundleError(
            f"{bundle.path} does not say how its guard was set ({', '.join(sorted(missing))}); export it again"
        )
    told = infos([*attacks, *adaptive], uint8=True)
    if controls := [info.name for info in told if info.control]:
        raise InputError(f"{', '.join(controls)} is a control, and no attack to measure a guard with: leave it out")
    knows = {(attack.name, eps.text) for attack in adaptive for eps in attack.eps}
    if not adaptive:
        raise ValueError("a guard is not measured without an attack that knows it")
    digest, left_out, done = DataDigest(), 0, 0
    scores = [_Scores() for _ in backends]
    for complete in batches:
        known = np.array([image in fitted for image in complete.hashes], dtype=np.bool_)
        left_out += int(known.sum())
        done += len(known)
        batch = complete.select(~known)
        if len(batch.labels):
            digest.add(batch)
            _score(batch, [*attacks, *adaptive], guard, backends, scores)
        if progress is not None:
            progress(done, data.total)
    n = sum(len(part) for part in scores[0].clean_flagged)
    check_readable(unreadable, data)
    _check_number(n, left_out, data)
    clean, rows = [], []
    for backend, found in zip(backends, scores, strict=True):
        who = _who(backend)
        right = np.concatenate(found.right)
        if not right.any():
            raise DataError(
                f"{data.name}: {who['backend']} {who['variant']} is right about no image: nothing can be attacked"
            )
        flagged = np.concatenate(found.clean_flagged)
        clean.append(CleanRow(**who, n=n, right=int(right.sum()), flagged=int(flagged.sum())))
        for eps in sorted({info.eps for info in told}, key=lambda eps: eps.value):
            for info in told:
                if info.eps == eps:
                    wrong, evaded = found.of([info.key], right)
                    rows.append(
                        GuardRow(
                            **who, attack=info.name, eps=eps.text, eps_value=eps.value, params=info.params,
                            adaptive=info.key in knows, n=int(right.sum()), succeeded=wrong, evaded=evaded,
                        )
                    )  # fmt: skip
            within = [info for info in told if info.eps.value <= eps.value]
            wrong, evaded = found.of([info.key for info in within], right)
            params = AttackParams(norm="linf", uint8=True, attacks=tuple(dict.fromkeys(info.name for info in within)))
            rows.append(
                GuardRow(
                    **who, attack=WORST_CASE, eps=eps.text, eps_value=eps.value, params=params, adaptive=True,
                    n=int(right.sum()), succeeded=wrong, evaded=evaded,
                )
            )  # fmt: skip
    return GuardFile(
        bundle={
            "id": bundle.id, "name": bundle.path.resolve().name, "title": bundle.manifest["title"],
            "weights_sha256": bundle.weights_sha256,
        },
        data={
            "name": data.name, "split": data.split, "n": n, "sha256": digest.hexdigest(), "unreadable": list(unreadable),
            "fitted_left_out": left_out,
        },
        environment=environment(), guard=entry, clean=tuple(clean), rows=tuple(rows),
        edgeadv_version=__version__, created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def check_enough(
    batches: Iterable[CleanBatch], bundle: Bundle, data: DataInfo, *, progress: Progress | None = None
) -> None:
    """Look at the images before hours are spent on attacks.

    Raises:
        DataError: fewer than :data:`FEWEST` are left to measure a guard on.
    """
    fitted = _fitted(bundle)
    seen: list[bool] = []
    for batch in batches:
        seen += [image in fitted for image in batch.hashes]
        if progress is not None:
            progress(len(seen), data.total)
    _check_number(len(seen) - sum(seen), sum(seen), data)


def _fitted(bundle: Bundle) -> frozenset[str]:
    """Images that something in the bundle was set on: the guard, or int8."""
    try:
        return frozenset(bundle.manifest["confidence"]["images"]) | bundle.calibration_images
    except (KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path} does not say how its guard was set ({error!r}); export it again") from error


def _check_number(n: int, left_out: int, data: DataInfo) -> None:
    if n < FEWEST:
        raise DataError(
            f"{data.name}: {n} images are left to measure the guard on (guard or int8 were fitted on {left_out} of {data.total}), {FEWEST} are "
            "needed: give more or others (--data, --limit)"
        )


class _Scores:
    """What one artefact and the guard on it made of the images, batch by batch."""

    def __init__(self) -> None:
        self.right: list[_Flags] = []
        self.clean_flagged: list[_Flags] = []
        self.wrong: dict[Key, list[_Flags]] = {}
        self.flagged: dict[Key, list[_Flags]] = {}

    def of(self, keys: Sequence[Key], right: _Flags) -> tuple[int, int]:
        """Of the ``right`` images, those that any of the attacks broke, and those that any broke unflagged."""
        wrong, evaded = np.zeros_like(right), np.zeros_like(right)
        for key in keys:
            broken = np.concatenate(self.wrong[key])
            wrong |= broken
            evaded |= broken & ~np.concatenate(self.flagged[key])
        return int((wrong & right).sum()), int((evaded & right).sum())


def _score(
    batch: CleanBatch, attacks: Sequence[Attack], guard: Guard, backends: Sequence[Backend], scores: Sequence[_Scores]
) -> None:
    """Attack one batch, once for all artefacts, and keep what they make of it."""
    x = to_tensor(batch.pixels)
    for backend, found in zip(backends, scores, strict=True):
        right, flagged = _answers(guard, backend, x, batch.labels)
        found.right.append(right)
        found.clean_flagged.append(flagged)
    # who is wrong already need not be attacked
    attacked = np.logical_or.reduce([found.right[-1] for found in scores])
    some = batch.select(attacked)
    for attack in attacks:
        crafted = attack.craft(x[attacked], some.labels) if attacked.any() else []
        for i, eps in enumerate(attack.eps):
            wrong, flagged = np.zeros((2, len(backends), len(x)), dtype=np.bool_)
            if attacked.any():
                check_crafted(crafted[i].x, x[attacked], attack.name, eps)
                made = to_tensor(round_to_uint8(crafted[i].x, some.pixels, eps))
                for k, backend in enumerate(backends):
                    right, flagged[k, attacked] = _answers(guard, backend, made, some.labels)
                    wrong[k, attacked] = ~right
            for k, found in enumerate(scores):
                found.wrong.setdefault((attack.name, eps.text), []).append(wrong[k])
                found.flagged.setdefault((attack.name, eps.text), []).append(flagged[k])


def _answers(
    guard: Guard, backend: Backend, x: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[_Flags, _Flags]:
    """Which images are right and which are flagged, in calls that fit into a device's memory."""
    parts = [guard.check(backend, x[i : i + _AT_ONCE]) for i in range(0, len(x), _AT_ONCE)]
    right = first_is_right(np.concatenate([part.logits for part in parts]), labels)
    return right, np.concatenate([part.flagged for part in parts])


def _who(backend: Backend) -> dict[str, Any]:
    return {
        "variant": backend.variant, "artifact_sha256": backend.artifact_sha256, "backend": backend.name,
        "provider": backend.provider, "device": backend.device,
    }  # fmt: skip
