"""Writing attack packs: shard by shard, and resumable."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import to_builtins
from numpy.typing import NDArray

from edgeadv_runtime._version import __version__
from edgeadv_runtime.attacks.base import Attack, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import (
    PACK_FILE,
    SCHEMA_VERSION,
    SHARD_SIZE,
    AttackPack,
    info_to_json,
    load_shard,
    save_shard,
)
from edgeadv_runtime.backends import Backend
from edgeadv_runtime.bundle.batches import CleanBatch, DataDigest, DataInfo, Progress, check_readable, readable
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.training_images import Overlap
from edgeadv_runtime.device.facts import library_versions
from edgeadv_runtime.errors import DataError, InputError, StorageError
from edgeadv_runtime.evaluation.outcomes import Artefact
from edgeadv_runtime.files import atomic_file, canonical_json, partial_of, sha256_bytes, sha256_file, write_json
from edgeadv_runtime.records.about import Skipped
from edgeadv_runtime.unfinished import PLAN_FILE, begin_partial, plan_sha256, publish, remove_folder

from ..data.datasets import ImageSet, balanced_subset, batches


def clean_batches(
    images: ImageSet, bundle: Bundle, order: NDArray[np.int64], *, unreadable: list[str], workers: int = 0
) -> Iterator[CleanBatch]:
    """Images for the evaluation loop, labelled by the bundle's classes, in batches of one shard.

    Args:
        images: already relabelled to the bundle's classes.
        bundle: whose preprocessing is applied.
        order: positions in ``images``.
        unreadable: gets a message for each image that cannot be decoded.
        workers: processes that decode.
    """
    for batch in batches(images, bundle.preprocess, batch_size=SHARD_SIZE, order=order, workers=workers):
        unreadable += batch.unreadable
        yield CleanBatch(batch.index, batch.pixels, batch.labels)


def images_sha256(images: ImageSet, order: NDArray[np.int64]) -> str:
    """Hash of which images these are: where they come from, their names and their labels, not their pixels.

    Work that is resumed must go on with the same ones.
    """
    source = str(Path(images.spec).resolve()) if Path(images.spec).exists() else images.spec
    plan = {
        "source": source,
        "names": [images.names[int(i)] for i in order],
        "labels": images.labels[order].tolist(),
    }
    return sha256_bytes(canonical_json(plan))


def check_images(pack: AttackPack, images: ImageSet, bundle: Bundle, *, workers: int = 0) -> None:
    """Make sure that a pack was made from ``images``, pixel by pixel; how they are called does not matter.

    Args:
        pack: the pack.
        images: relabelled to the bundle's classes.
        bundle: whose preprocessing is applied.
        workers: processes that decode.

    Raises:
        InputError: it was made from others.
    """
    order = balanced_subset(images.labels, pack.data.total)
    digest = DataDigest()
    for batch in clean_batches(images, bundle, order, unreadable=[], workers=workers):
        digest.add(batch)
    if digest.hexdigest() != pack.manifest.data_sha256:
        raise InputError(
            f"{pack.path} was not made from the images of {images.spec}: give the data that it was made from, or "
            "leave `data` out"
        )


def check_training_images(
    images: ImageSet,
    bundle: Bundle,
    order: NDArray[np.int64],
    *,
    data: DataInfo,
    workers: int = 0,
    progress: Progress | None = None,
) -> None:
    """Look, before the hours that attacks take, whether too many of ``images`` are ones that the bundle was trained on.

    Reads every image once, unless the bundle does not know or they are allowed.

    Args:
        images: relabelled to the bundle's classes.
        bundle: whose preprocessing is applied.
        order: positions in ``images`` that are to be scored.
        data: how the images are named, and whether training images are allowed.
        workers: processes that decode.
        progress: called with the images done, the images there are, and what is being done.

    Raises:
        InputError: they are, and that was not allowed.
    """
    if bundle.training_images is None or data.allow_training_images:
        return
    overlap = Overlap(bundle.training_images, bundle.calibration_images)
    for batch in clean_batches(images, bundle, order, unreadable=[], workers=workers):
        overlap.add(batch.hashes)
        if progress is not None:
            progress(overlap.n, len(order), "looking at the images")
    overlap.check(data.name, allowed=False)


def write_pack(
    out: Path,
    *,
    bundle: Bundle,
    images: ImageSet,
    order: NDArray[np.int64],
    attacks: Sequence[Attack],
    reference: Backend,
    data: DataInfo,
    uint8: bool = True,
    resume: bool = False,
    workers: int = 0,
    skipped: Sequence[Skipped] = (),
    progress: Progress | None = None,
) -> AttackPack:
    """Attack ``images`` and write a pack.

    Work goes on in ``OUT.partial``, which becomes ``out`` when it is whole. Interrupted, it is continued by ``resume``.

    Args:
        out: the pack's folder; must not exist.
        bundle: whose weights are attacked.
        images: relabelled to the bundle's classes.
        order: positions in ``images`` to attack.
        attacks: what to run.
        reference: the model whose gradients are used.
        data: how the images are named in results.
        uint8: store adversarial images as 8-bit pixels, rounded within eps; else float32.
        resume: continue what an interrupted call left.
        workers: processes that decode.
        skipped: variants that their own gradients do not attack, for the results of who scores the pack.
        progress: called with the images done, the images there are, and what is being done.

    Raises:
        StorageError: ``out`` exists or cannot be written, or there is an unfinished pack and ``resume`` is false.
        InputError: the unfinished pack was started with other settings, or too many of the images were trained on and
            that was not allowed; :func:`check_training_images` says so sooner.
        DataError: more than 1% of the images are unreadable and that was not allowed.
    """
    if out.exists():
        raise StorageError(f"{out} exists: choose another `out`")
    # in one piece: what a resumed call may take over is decided by the order of the plan, the shards and the manifest
    partial = partial_of(out)
    listed = infos(attacks, uint8=uint8)
    plan: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "pack",
        "edgeadv_version": __version__,
        "bundle_id": bundle.id,
        "weights_sha256": bundle.weights_sha256,
        "preprocess": bundle.preprocess.to_json(),
        "class_ids": list(bundle.classes.ids),
        "data": asdict(data),
        "uint8": uint8,
        "attacks": [info_to_json(info) for info in listed],
        "skipped": [to_builtins(entry) for entry in skipped],
    }
    # where the images come from is nobody's business but a resumed call's, which may also allow what turned out to be
    # unreadable
    begun = {
        **plan,
        "data": data.binding(),
        "images": images_sha256(images, order),
        "reference": Artefact.of(reference).binding(),
        "versions": library_versions(),
    }
    begin_partial(partial, PLAN_FILE, begun, what="pack", resume=resume, finished=PACK_FILE)
    digest, overlap = DataDigest(), Overlap(bundle.training_images, bundle.calibration_images)
    unreadable: list[str] = []
    shards: list[dict[str, Any]] = []
    for number, first in enumerate(range(0, len(order), SHARD_SIZE)):
        file = partial / f"shard-{number:05d}.npz"
        batch, messages = load_shard(file, listed) if file.exists() else (None, ())
        # an image that could not be read may have been mended since
        if batch is None or (messages and not data.allow_unreadable):
            chosen = order[first : first + SHARD_SIZE]
            before = len(unreadable)
            stream = clean_batches(images, bundle, chosen, unreadable=unreadable, workers=workers)
            try:
                batch = next(craft(readable(stream, unreadable, data), attacks, reference, uint8=uint8))
            except DataError:
                if not any(partial.glob("shard-*.npz")):
                    remove_folder(partial)
                raise
            with atomic_file(file) as temporary:
                save_shard(temporary, batch, listed, tuple(unreadable[before:]), uint8=uint8)
        else:
            unreadable += messages
            check_readable(unreadable, data)
        digest.add(batch.clean)
        overlap.add(batch.clean.hashes)
        shards.append({"file": file.name, "sha256": sha256_file(file), "n": len(batch.clean.labels)})
        if progress is not None:
            progress(min(first + SHARD_SIZE, len(order)), len(order), "attacking")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    scored = sum(shard["n"] for shard in shards)
    overlap.check(data.name, allowed=data.allow_training_images)
    named = asdict(replace(data, training_images=overlap.known))
    made = {
        **plan,
        "data": named,
        "created": now,
        "plan_sha256": plan_sha256(begun),
        "data_sha256": digest.hexdigest(),
        "n": scored,
        "shards": shards,
    }
    for left_over in partial.glob("square-*.npz"):
        left_over.unlink()
    write_json(partial / PACK_FILE, made)
    publish(partial, out, PLAN_FILE)
    return AttackPack.open(out, bundle=bundle)
