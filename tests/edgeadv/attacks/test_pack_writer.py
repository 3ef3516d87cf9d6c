"""Writing attack packs: the same images as streaming, continued after an interruption, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgeadv.attacks import build_attacks
from edgeadv.attacks.pack_writer import clean_batches, write_pack
from edgeadv.backends.pytorch import TorchBackend
from edgeadv.data.datasets import ImageSet, open_data
from edgeadv_runtime.attacks.base import Attack, CallableAttack, CraftedBatch, infos
from edgeadv_runtime.attacks.crafting import craft
from edgeadv_runtime.attacks.pack import PACK_FILE, SHARD_SIZE, AttackPack
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.batches import DataInfo
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.errors import BundleError, DataError, InputError, StorageError
from edgeadv_runtime.evaluation.loop import evaluate
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.results import Results
from edgeadv_runtime.records.suites import SUITES, Effort

EPS = Eps.parse_list("1/255,8/255")
CHEAP = ("fgsm", "fgsm-rs")
N = 135


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photographs: list[NDArray[np.uint8]]) -> Path:
    """Cut-outs of photographs in folders of three of the bundle's ten class ids."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(N):
        frame = photographs[i % len(photographs)]
        top, left = rng.integers(frame.shape[0] - 40), rng.integers(frame.shape[1] - 40)
        out = root / ("n0007", "n0002", "n0005")[i % 3] / f"{i:03d}.png"
        out.parent.mkdir(exist_ok=True)
        Image.fromarray(frame[top : top + 40, left : left + 40]).save(out)
    return root


@pytest.fixture(scope="module")
def images(folder: Path, tiny_bundle: Bundle) -> ImageSet:
    return open_data(str(folder), split="test").relabel(tiny_bundle.classes)


@pytest.fixture(scope="module")
def reference(tiny_bundle: Bundle) -> TorchBackend:
    return TorchBackend(tiny_bundle, device=torch.device("cpu"), threads=1)


def attacks(reference: TorchBackend, names: Sequence[str] = CHEAP, eps: Sequence[Eps] = EPS) -> list[Attack]:
    return build_attacks(
        reference.model,
        eps,
        efforts=efforts(names),
        classes=reference.n_classes,
        gradients_sha256=reference.artifact_sha256,
    )


def efforts(names: Sequence[str]) -> dict[str, Effort]:
    return {name: SUITES["fast"][name] for name in names}


def info(total: int = N, **more: bool) -> DataInfo:
    return DataInfo("photographs", "all", total, **more)


def stored(pack: AttackPack) -> list[CraftedBatch]:
    return list(pack.batches([]))


def arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    found = {}
    for file in sorted(path.glob("shard-*.npz")):
        with np.load(file) as shard:
            found |= {f"{file.name}:{name}": shard[name] for name in shard.files}
    return found


def assert_same_shards(a: Path, b: Path) -> None:
    ours, theirs = arrays(a), arrays(b)
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype, name
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def cheap_pack(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> AttackPack:
    """135 images under two attacks at two budgets. Shared: tests must not change it."""
    out = tmp_path_factory.mktemp("packs") / "cheap.pack"
    return write_pack(
        out,
        bundle=tiny_bundle,
        images=images,
        order=np.arange(N),
        attacks=attacks(reference),
        reference=reference,
        data=info(),
    )


def counts(results: Results) -> list[tuple[str, str, str, int, int | None, float | None]]:
    return [(r.variant, r.attack, r.eps, r.correct_top1, r.correct_top5, r.zero_gradient_share) for r in results.rows]


def test_a_pack_and_the_streamed_run_agree_image_by_image(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    """All attacks of the verdict, on two shards, scored on two artefacts."""
    order, listed = np.arange(70), attacks(reference, ("fgsm", "fgsm-rescaled", "fgsm-rs", "pgd-margin"), EPS[1:])
    pack = write_pack(
        tmp_path / "a.pack",
        bundle=tiny_bundle,
        images=images,
        order=order,
        attacks=listed,
        reference=reference,
        data=info(70),
    )
    streamed = list(craft(clean_batches(images, tiny_bundle, order, unreadable=[]), listed, reference, uint8=True))
    packed = stored(pack)
    assert [len(b.clean.labels) for b in packed] == [SHARD_SIZE, 70 - SHARD_SIZE]
    for ours, theirs in zip(packed, streamed, strict=True):
        np.testing.assert_array_equal(ours.clean.index, theirs.clean.index)
        np.testing.assert_array_equal(ours.clean.pixels, theirs.clean.pixels)
        np.testing.assert_array_equal(ours.clean.labels, theirs.clean.labels)
        for mine, other in (
            (ours.adversarial, theirs.adversarial),
            (ours.evidence.answers, theirs.evidence.answers),
            (ours.evidence.unrounded, theirs.evidence.unrounded),
            (ours.evidence.zero_gradient, theirs.evidence.zero_gradient),
        ):
            assert mine.keys() == other.keys() and len(mine) >= 4
            for key in mine:
                np.testing.assert_array_equal(mine[key], other[key])
    # something was attacked, and within eps
    moved = np.abs(
        packed[0].adversarial["fgsm", "8/255"] - streamed[0].clean.pixels.transpose(0, 3, 1, 2) / np.float32(255)
    )
    assert 7.9 / 255 < moved.max() < 8.1 / 255

    backends = [reference, OnnxRuntimeBackend(tiny_bundle, variant="fp16", threads=1)]
    from_pack = evaluate(tiny_bundle, pack, backends=backends)
    from_stream = evaluate(tiny_bundle, streamed, infos=infos(listed, uint8=True), backends=backends, data=info(70))
    assert counts(from_pack) == counts(from_stream)
    assert from_pack.masking == from_stream.masking
    assert from_pack.data == from_stream.data
    assert {r.threat for r in from_pack.select(variant="fp32", attack="fgsm")} == {"white-box"}
    assert {r.threat for r in from_pack.select(variant="fp16", attack="fgsm")} == {"transfer"}


def test_a_pack_scores_as_the_stream_with_query_attacks_and_controls(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    """Counts, evidence, comparisons, examples and what rounding costs: all that a results file says, in a process of
    its own that never loads PyTorch."""

    def noise(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
        draws = [np.random.default_rng(zlib.crc32(image.tobytes())).uniform(-1, 1, image.shape) for image in x]
        return np.clip(x + np.stack(draws).astype(np.float32) * np.float32(EPS[1].value), 0, 1)

    listed = [
        *attacks(reference, ("fgsm", "pgd-margin"), EPS),
        CallableAttack(noise, "noise", EPS[1]),
        CallableAttack(noise, "square", EPS[1], queried=reference.identity),
        CallableAttack(
            lambda x, y: 1 - x, "inverse", Eps.parse("1"), gradients_sha256=reference.artifact_sha256, control=True
        ),
    ]
    # labels that the network gives: with others there is nothing to break
    known = np.concatenate(
        [
            reference.infer(to_tensor(b.pixels)).argmax(axis=1)
            for b in clean_batches(images, tiny_bundle, np.arange(N), unreadable=[])
        ]
    )
    images = replace(images, labels=known)
    plan = {"order": np.arange(70), "bundle": tiny_bundle, "images": images, "reference": reference, "data": info(70)}
    pack = write_pack(tmp_path / "a.pack", attacks=listed, **plan)
    stream = craft(clean_batches(images, tiny_bundle, plan["order"], unreadable=[]), listed, reference, uint8=True)
    streamed = evaluate(
        tiny_bundle,
        stream,
        infos=infos(listed, uint8=True),
        data=info(70),
        backends=[OnnxRuntimeBackend(tiny_bundle, variant=variant, threads=1) for variant in ("fp32", "fp16")],
    )
    assert {row.attack for row in streamed.rows} == {"clean", "fgsm", "pgd-margin", "noise", "square", "worst-case"}
    assert len({row.correct_top1 for row in streamed.rows}) > 3
    assert all((row.rounding_lost is None) == (row.attack in ("clean", "noise", "worst-case")) for row in streamed.rows)
    code = (
        "import sys; from edgeadv.cli import main; "
        f"status = main(['evaluate', {str(tiny_bundle.path)!r}, '--pack', {str(pack.path)!r}, '--threads', '1', "
        "'--out', 'r.json']); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr
    packed = Results.load(tmp_path / "r.json")
    assert packed.rows == streamed.rows
    assert packed.masking == streamed.masking and packed.data == streamed.data
    assert packed.comparisons == streamed.comparisons and len(packed.comparisons) == 3
    assert packed.examples == streamed.examples and len(packed.examples) > 0


def test_labels_are_the_bundles(cheap_pack: AttackPack, images: ImageSet) -> None:
    labels = np.concatenate([b.clean.labels for b in stored(cheap_pack)])
    # folders in alphabetical order n0002, n0005, n0007, 45 images each
    np.testing.assert_array_equal(labels, np.repeat([2, 5, 7], 45))


def test_a_pack_lists_what_it_holds(cheap_pack: AttackPack) -> None:
    assert [i.key for i in cheap_pack.infos] == [(name, eps.text) for name in CHEAP for eps in EPS]
    assert all(i.params.uint8 for i in cheap_pack.infos)
    assert cheap_pack.data == info()
    assert sorted(f.name for f in cheap_pack.path.iterdir()) == [PACK_FILE, *(f"shard-{k:05d}.npz" for k in range(3))]
    assert not cheap_pack.path.with_name("cheap.pack.partial").exists()
    assert [shard.n for shard in cheap_pack.manifest.shards] == [64, 64, 7]


def test_the_order_is_kept(tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend) -> None:
    order = np.array([100, 3, 77])
    pack = write_pack(
        tmp_path / "a.pack",
        bundle=tiny_bundle,
        images=images,
        order=order,
        attacks=attacks(reference, ("fgsm",)),
        reference=reference,
        data=info(3),
    )
    assert stored(pack)[0].clean.index.tolist() == [100, 3, 77]


def test_floats_are_kept_whole(tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend) -> None:
    tiny = Eps.parse_list("0.3/255")
    listed, order = attacks(reference, CHEAP, tiny), np.arange(5)
    pack = write_pack(
        tmp_path / "a.pack",
        bundle=tiny_bundle,
        images=images,
        order=order,
        attacks=listed,
        reference=reference,
        data=info(5),
        uint8=False,
    )
    (streamed,) = craft(clean_batches(images, tiny_bundle, order, unreadable=[]), listed, reference, uint8=False)
    (packed,) = stored(pack)
    assert packed.adversarial.keys() == streamed.adversarial.keys()
    for key, x_adv in packed.adversarial.items():
        assert x_adv.dtype == np.float32
        np.testing.assert_array_equal(x_adv, streamed.adversarial[key])
    assert not pack.infos[0].params.uint8
    with pytest.raises(InputError, match="less than one grey level"):
        write_pack(
            tmp_path / "b.pack",
            bundle=tiny_bundle,
            images=images,
            order=order,
            attacks=listed,
            reference=reference,
            data=info(5),
        )


class Stop(KeyboardInterrupt):
    pass


def interrupt_after(images_done: int, seen: list[tuple[int, int]]) -> object:
    def progress(done: int, total: int, _: str) -> None:
        seen.append((done, total))
        if done >= images_done:
            raise Stop

    return progress


def test_an_interrupted_pack_goes_on_to_the_same_bytes(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend, cheap_pack: AttackPack
) -> None:
    out, seen = tmp_path / "a.pack", list[tuple[int, int]]()
    arguments = {
        "bundle": tiny_bundle,
        "images": images,
        "order": np.arange(N),
        "attacks": attacks(reference),
        "reference": reference,
        "data": info(),
    }
    with pytest.raises(Stop):
        write_pack(out, **arguments, progress=interrupt_after(65, seen))
    assert seen == [(64, N), (128, N)]
    partial = tmp_path / "a.pack.partial"
    kept = {file.name: file.stat().st_mtime_ns for file in partial.glob("shard-*.npz")}
    assert list(kept) and not out.exists()

    with pytest.raises(StorageError, match="`resume`"):
        write_pack(out, **arguments)
    with pytest.raises(BundleError):
        AttackPack.open(partial, bundle=tiny_bundle)

    pack = write_pack(out, **arguments, resume=True)
    # what was there was not made again
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert not partial.exists()
    assert_same_shards(out, cheap_pack.path)
    assert {k: v for k, v in pack.manifest.to_json().items() if k not in ("created", "shards")} == {
        k: v for k, v in cheap_pack.manifest.to_json().items() if k not in ("created", "shards")
    }


def test_an_interruption_while_attacking_leaves_whole_shards_only(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend, cheap_pack: AttackPack
) -> None:
    out = tmp_path / "a.pack"

    def image(i: int) -> Image.Image:
        if i == 100:
            raise KeyboardInterrupt
        return images.image(i)

    listed = attacks(reference)
    with pytest.raises(KeyboardInterrupt):
        write_pack(
            out,
            bundle=tiny_bundle,
            images=replace(images, image=image),
            order=np.arange(N),
            attacks=listed,
            reference=reference,
            data=info(),
        )
    assert sorted(f.name for f in (tmp_path / "a.pack.partial").iterdir()) == ["plan.json", "shard-00000.npz"]
    write_pack(
        out,
        bundle=tiny_bundle,
        images=images,
        order=np.arange(N),
        attacks=listed,
        reference=reference,
        data=info(),
        resume=True,
    )
    assert_same_shards(out, cheap_pack.path)


def test_it_cannot_go_on_with_other_settings(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    out = tmp_path / "a.pack"
    fgsm = attacks(reference, ("fgsm",))
    plain = {"bundle": tiny_bundle, "images": images, "order": np.arange(70), "reference": reference}
    with pytest.raises(Stop):
        write_pack(out, **plain, attacks=fgsm, data=info(70), progress=interrupt_after(1, []))
    changes = [
        {"attacks": attacks(reference, ("fgsm",), EPS[:1]), "data": info(70)},
        {"attacks": attacks(reference), "data": info(70)},
        {"attacks": fgsm, "data": info(71)},
        {"attacks": fgsm, "data": info(70), "uint8": False},
        {
            "attacks": build_attacks(
                reference.model, EPS, efforts=efforts(("fgsm",)), classes=reference.n_classes, gradients_sha256="0" * 64
            ),
            "data": info(70),
        },
    ]
    for change in changes:
        with pytest.raises(InputError, match="other settings"):
            write_pack(out, **{**plain, **change}, resume=True)
    write_pack(out, **plain, attacks=fgsm, data=info(70), resume=True)


def test_a_damaged_shard_of_an_unfinished_pack_is_named(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    out = tmp_path / "a.pack"
    arguments = {
        "bundle": tiny_bundle,
        "images": images,
        "order": np.arange(70),
        "attacks": attacks(reference, ("fgsm",)),
        "reference": reference,
        "data": info(70),
    }
    with pytest.raises(Stop):
        write_pack(out, **arguments, progress=interrupt_after(1, []))
    shard = tmp_path / "a.pack.partial" / "shard-00000.npz"
    whole = shard.read_bytes()
    for content in (b"", whole[:1000], whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :]):
        shard.write_bytes(content)
        with pytest.raises(BundleError, match=r"shard-00000\.npz is not a shard"):
            write_pack(out, **arguments, resume=True)


def test_nothing_is_written_over(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    out = tmp_path / "a.pack"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(StorageError, match=r"a\.pack exists"):
            write_pack(
                out,
                bundle=tiny_bundle,
                images=images,
                order=np.arange(3),
                attacks=attacks(reference),
                reference=reference,
                data=info(3),
                resume=resume,
            )
    assert [f.name for f in tmp_path.iterdir()] == ["a.pack"]
    assert (out / "mine.txt").read_text() == "mine"


def test_unreadable_images_travel_with_the_pack(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    """Even where one is all there is to a shard."""

    def image(i: int) -> Image.Image:
        if i == 128:
            raise DataError("cut off")
        return images.image(i)

    broken = replace(images, image=image)
    listed = attacks(reference, ("fgsm",))
    pack = write_pack(
        tmp_path / "a.pack",
        bundle=tiny_bundle,
        images=broken,
        order=np.arange(129),
        attacks=listed,
        reference=reference,
        data=info(129),
    )
    results = evaluate(tiny_bundle, pack, backends=[reference])
    assert results.data.n == 128
    assert results.data.unreadable == (f"{images.names[128]}: cut off",)


def test_too_many_unreadable_images_are_an_error(
    tmp_path: Path, tiny_bundle: Bundle, images: ImageSet, reference: TorchBackend
) -> None:
    def image(i: int) -> Image.Image:
        if i < 2:
            raise DataError("cut off")
        return images.image(i)

    arguments = {
        "bundle": tiny_bundle,
        "images": replace(images, image=image),
        "order": np.arange(10),
        "attacks": attacks(reference, ("fgsm",)),
        "reference": reference,
    }
    with pytest.raises(DataError, match="2 of 10 images are unreadable"):
        write_pack(tmp_path / "a.pack", **arguments, data=info(10))
    # nothing is left to go on from: who repairs the images starts afresh
    assert list(tmp_path.iterdir()) == []
    pack = write_pack(tmp_path / "b.pack", **arguments, data=info(10, allow_unreadable=True))
    assert len(stored(pack)[0].clean.labels) == 8
