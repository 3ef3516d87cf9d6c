"""Reading attack packs: bound to one model, checked before anything in them is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attack import CLEAN_KEY, AttackInfo, CallableAttack, CleanBatch, CraftedBatch, craft, infos
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.eps import Eps
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError, SchemaError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.pack import AttackPack, info_from_json, info_to_json, load_shard, save_shard
from edgeadv_runtime.results import AttackParams

EPS = Eps.parse("8/255")


def _brighten(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.minimum(x + np.float32(EPS.value), 1)


@pytest.fixture(scope="module")
def crafted(tiny_bundle: Bundle) -> tuple[list[CraftedBatch], list[AttackInfo]]:
    """Two batches of the golden frames, brightened: no torch is needed to make or read them."""
    pixels = tiny_bundle.golden().pixels
    clean = [
        CleanBatch(np.arange(5), pixels[:5], np.arange(5)),
        CleanBatch(np.arange(5, 8), pixels[5:], np.arange(3)),
    ]
    attack = CallableAttack(_brighten, "brighten", EPS)
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32", threads=1) as reference:
        batches = list(craft(clean, [attack], reference, uint8=True))
    key = ("brighten", EPS.text)
    flagged = [CraftedBatch(b.clean, b.adversarial, b.reference, {key: b.clean.index % 2 == 0}) for b in batches]
    return flagged, infos([attack], uint8=True)


@pytest.fixture
def pack(tmp_path: Path, tiny_bundle: Bundle, crafted: tuple[list[CraftedBatch], list[AttackInfo]]) -> Path:
    """A pack as ``docs/pack.md`` describes it, written by hand."""
    batches, listed = crafted
    folder = tmp_path / "a.pack"
    folder.mkdir()
    shards = []
    for number, batch in enumerate(batches):
        file = folder / f"shard-{number:05d}.npz"
        save_shard(file, batch, listed, (f"bad-{number}.png: cut off",), uint8=True)
        shards.append({"file": file.name, "sha256": sha256_file(file), "n": len(batch.clean.labels)})
    manifest = {
        "schema_version": 1, "kind": "pack", "edgeadv_version": "0", "bundle_id": tiny_bundle.id,
        "weights_sha256": tiny_bundle.weights_sha256, "preprocess": tiny_bundle.preprocess.to_json(),
        "class_ids": list(tiny_bundle.classes.ids), "uint8": True, "attacks": [info_to_json(i) for i in listed],
        "data": {"name": "golden", "split": "test", "total": 10, "allow_unreadable": True}, "created": "", "shards": shards,
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(manifest))
    return folder


def change(pack: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((pack / "pack.json").read_text())
    edit(manifest)
    (pack / "pack.json").write_text(json.dumps(manifest))


def test_what_was_written_is_read(
    pack: Path, tiny_bundle: Bundle, crafted: tuple[list[CraftedBatch], list[AttackInfo]]
) -> None:
    batches, listed = crafted
    opened = AttackPack.open(pack, bundle=tiny_bundle)
    assert opened.infos == listed
    assert (opened.data.name, opened.data.total, opened.data.allow_unreadable) == ("golden", 10, True)
    messages: list[str] = []
    stream = opened.batches(messages)
    first = next(stream)
    # shard by shard
    assert messages == ["bad-0.png: cut off"]
    second = next(stream)
    assert messages == ["bad-0.png: cut off", "bad-1.png: cut off"]
    key = listed[0].key
    for ours, theirs in zip((first, second), batches, strict=True):
        np.testing.assert_array_equal(ours.clean.index, theirs.clean.index)
        np.testing.assert_array_equal(ours.clean.pixels, theirs.clean.pixels)
        np.testing.assert_array_equal(ours.clean.labels, theirs.clean.labels)
        np.testing.assert_array_equal(ours.adversarial[key], theirs.adversarial[key])
        np.testing.assert_array_equal(ours.reference[key], theirs.reference[key])
        np.testing.assert_array_equal(ours.reference[CLEAN_KEY], theirs.reference[CLEAN_KEY])
        np.testing.assert_array_equal(ours.zero_gradient[key], theirs.zero_gradient[key])


def test_an_attack_keeps_its_description() -> None:
    described = AttackInfo("z", EPS, AttackParams(norm="linf", steps=3, attacks=("a",)), "torch fp32", "a" * 64)
    assert info_from_json(json.loads(json.dumps(info_to_json(described)))) == described


def test_floats_and_missing_flags_survive_a_shard(
    tmp_path: Path, crafted: tuple[list[CraftedBatch], list[AttackInfo]]
) -> None:
    (batch, _), listed = crafted
    shifted = {listed[0].key: batch.adversarial[listed[0].key] * np.float32(0.99)}
    plain = CraftedBatch(batch.clean, shifted, batch.reference, {})
    save_shard(tmp_path / "s.npz", plain, listed, (), uint8=False)
    again, messages = load_shard(tmp_path / "s.npz", listed)
    np.testing.assert_array_equal(again.adversarial[listed[0].key], shifted[listed[0].key])
    assert again.zero_gradient == {} and messages == ()


def test_messages_keep_their_letters(tmp_path: Path, crafted: tuple[list[CraftedBatch], list[AttackInfo]]) -> None:
    (batch, _), listed = crafted
    save_shard(tmp_path / "s.npz", batch, listed, ("für/é.png: leer", "x"), uint8=True)
    assert load_shard(tmp_path / "s.npz", listed)[1] == ("für/é.png: leer", "x")


@pytest.mark.parametrize("key", ["weights_sha256", "preprocess", "class_ids"])
def test_a_pack_for_another_model_is_refused(pack: Path, tiny_bundle: Bundle, key: str) -> None:
    other = {"weights_sha256": "0" * 64, "preprocess": {}, "class_ids": ["a", "b"]}
    change(pack, lambda m: m.update({key: other[key]}))
    with pytest.raises(InputError, match=f"made for another model .{key} differs"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_the_order_of_the_classes_matters(pack: Path, tiny_bundle: Bundle) -> None:
    change(pack, lambda m: m["class_ids"].reverse())
    with pytest.raises(InputError, match="class_ids differs"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_a_slim_bundle_takes_the_pack_of_the_full_one(pack: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    assert len(list(AttackPack.open(pack, bundle=slim).batches([]))) == 2


def test_a_missing_shard(pack: Path, tiny_bundle: Bundle) -> None:
    (pack / "shard-00001.npz").unlink()
    stream = AttackPack.open(pack, bundle=tiny_bundle).batches([])
    next(stream)
    with pytest.raises(IntegrityError, match=r"shard-00001\.npz is missing or damaged"):
        next(stream)


def test_a_shard_with_one_flipped_bit(pack: Path, tiny_bundle: Bundle) -> None:
    file = pack / "shard-00000.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"shard-00000\.npz is missing or damaged"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


def test_exchanged_shards(pack: Path, tiny_bundle: Bundle) -> None:
    shutil.copyfile(pack / "shard-00001.npz", pack / "shard-00000.npz")
    with pytest.raises(IntegrityError):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


def test_a_shard_that_holds_something_else(pack: Path, tiny_bundle: Bundle) -> None:
    """Its hash fits, but it is not a shard: no pickle is ever opened."""
    file = pack / "shard-00000.npz"
    np.savez(file, index=np.array([{"a": 1}], dtype=object))
    change(pack, lambda m: m["shards"][0].update(sha256=sha256_file(file)))
    with pytest.raises(BundleError, match="not a shard of an attack pack"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_a_shard_that_is_no_archive(pack: Path, tiny_bundle: Bundle, content: bytes) -> None:
    file = pack / "shard-00000.npz"
    file.write_bytes(content)
    change(pack, lambda m: m["shards"][0].update(sha256=sha256_file(file)))
    with pytest.raises(BundleError, match="not a shard of an attack pack"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


def rewrite(pack: Path, **edits: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change arrays of the first shard, and its hash with them."""
    file = pack / "shard-00000.npz"
    with np.load(file) as shard:
        arrays = {name: shard[name] for name in shard.files}
    for name, edit in edits.items():
        arrays[name] = edit(arrays[name])
    np.savez(file, **arrays)
    change(pack, lambda m: m["shards"][0].update(sha256=sha256_file(file)))


def test_a_shard_whose_images_left_their_eps_is_refused(pack: Path, tiny_bundle: Bundle) -> None:
    """Whoever can write a pack could otherwise break any model, or none."""
    rewrite(pack)
    assert len(list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))) == 2
    rewrite(pack, x_adv_0=lambda x: np.where(x < 128, x + np.uint8(9), x - np.uint8(9)))
    with pytest.raises(BundleError, match=r"shard-00000\.npz does not hold what its pack says: .*more than eps 8/255"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("labels", lambda a: a + 10),
        ("labels", lambda a: a - 100),
        ("labels", lambda a: a[:-1]),
        ("index", lambda a: a[:-1]),
        ("reference_clean", lambda a: a[:-1]),
        ("reference_0", lambda a: a + 10),
        ("zero_gradient_0", lambda a: a[:-1]),
        ("pixels", lambda a: a[:, :-1]),
        ("pixels", lambda a: a.astype(np.float32)),
        ("x_adv_0", lambda a: a[:-1]),
        ("x_adv_0", lambda a: a.astype(np.float64)),
    ],
)
def test_a_shard_whose_arrays_do_not_fit_together_is_refused(
    pack: Path, tiny_bundle: Bundle, name: str, edit: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    rewrite(pack, **{name: edit})
    with pytest.raises(BundleError, match=r"shard-00000\.npz does not"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


@pytest.mark.parametrize("name", ["../shard-00000.npz", "/etc/passwd", "sub/shard-00000.npz", "./shard-00000.npz", ""])
def test_a_path_outside_the_pack_is_refused(pack: Path, tiny_bundle: Bundle, name: str) -> None:
    change(pack, lambda m: m["shards"][1].update(file=name))
    with pytest.raises((BundleError, IntegrityError)) as caught:
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))
    if name:
        assert "a path outside the pack" in str(caught.value)


@pytest.mark.parametrize("edit", [{"schema_version": 2}, {"schema_version": None}, {"kind": "results"}])
def test_a_foreign_pack_is_refused(pack: Path, tiny_bundle: Bundle, edit: dict[str, Any]) -> None:
    change(pack, lambda m: m.update(edit))
    with pytest.raises(SchemaError, match="reads attack packs of version 1"):
        AttackPack.open(pack, bundle=tiny_bundle)


@pytest.mark.parametrize("key", ["weights_sha256", "attacks", "data", "shards"])
def test_a_damaged_manifest_is_named(pack: Path, tiny_bundle: Bundle, key: str) -> None:
    change(pack, lambda m: m.pop(key))
    with pytest.raises(BundleError, match=r"pack\.json is damaged"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_a_shard_without_its_hash_is_damage(pack: Path, tiny_bundle: Bundle) -> None:
    change(pack, lambda m: m["shards"][0].pop("sha256"))
    with pytest.raises(BundleError, match=r"pack\.json is damaged"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_there_must_be_a_pack(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no attack pack there"):
        AttackPack.open(tmp_path / "nothing", bundle=tiny_bundle)
