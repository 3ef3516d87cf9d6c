"""Reading attack packs: bound to one model, checked before anything in them is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.attacks.base import CLEAN_KEY, AttackInfo, CallableAttack, CraftedBatch, Evidence, infos
from edgeadv_runtime.attacks.crafting import craft, extend
from edgeadv_runtime.attacks.pack import AttackPack, info_to_json, load_shard, save_shard
from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.batches import CleanBatch
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import BundleError, EdgeAdvError, InputError, IntegrityError, SchemaError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.records.eps import Eps
from edgeadv_runtime.records.rows import AttackParams
from tests.mutations import assert_one_line, mutated, places

EPS = Eps.parse("8/255")


def _brighten(x: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.minimum(x + np.float32(EPS.value), 1)


def assert_same_evidence(ours: Evidence, theirs: Evidence) -> None:
    for mine, other in (
        (ours.answers, theirs.answers),
        (ours.unrounded, theirs.unrounded),
        (ours.zero_gradient, theirs.zero_gradient),
    ):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    np.testing.assert_array_equal(ours.unstable, theirs.unstable)


@pytest.fixture(scope="module")
def crafted(tiny_bundle: Bundle) -> tuple[list[CraftedBatch], list[AttackInfo]]:
    """Two batches of the golden frames, brightened: no torch is needed to make or read them."""
    pixels = tiny_bundle.golden().pixels
    clean = [
        CleanBatch(np.arange(5), pixels[:5], np.arange(5)),
        CleanBatch(np.arange(5, 8), pixels[5:], np.arange(3)),
    ]
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32", threads=1) as reference:
        asked = CallableAttack(_brighten, "brighten", EPS, queried=reference.identity)
        white = CallableAttack(lambda x, y: np.ones_like(x), "white", Eps.parse("1"), control=True)
        batches = list(craft(clean, [asked, white], reference, uint8=True))
    key = ("brighten", EPS.text)
    flagged = []
    for b in batches:
        odd = b.clean.index % 2 == 1
        told = replace(b.evidence, zero_gradient={key: ~odd}, probabilities=odd, unstable=b.clean.index == 3)
        flagged.append(replace(b, evidence=told))
    return flagged, infos([asked, white], uint8=True)


@pytest.fixture
def pack(tmp_path: Path, tiny_bundle: Bundle, crafted: tuple[list[CraftedBatch], list[AttackInfo]]) -> Path:
    """A pack as ``docs/reference/pack.md`` describes it, written by hand."""
    batches, listed = crafted
    folder = tmp_path / "a.pack"
    folder.mkdir()
    shards = []
    for number, batch in enumerate(batches):
        file = folder / f"shard-{number:05d}.npz"
        save_shard(file, batch, listed, (f"bad-{number}.png: cut off",), uint8=True)
        shards.append({"file": file.name, "sha256": sha256_file(file), "n": len(batch.clean.labels)})
    manifest = {
        "schema_version": 1,
        "kind": "pack",
        "edgeadv_version": "0",
        "bundle_id": tiny_bundle.id,
        "weights_sha256": tiny_bundle.weights_sha256,
        "preprocess": tiny_bundle.preprocess.to_json(),
        "class_ids": list(tiny_bundle.classes.ids),
        "uint8": True,
        "attacks": [info_to_json(i) for i in listed],
        "data": {"name": "golden", "split": "test", "total": 10, "allow_unreadable": True},
        "created": "",
        "shards": shards,
    }
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
        assert_same_evidence(ours.evidence, theirs.evidence)


def test_of_a_control_there_is_what_the_reference_says_and_no_image(
    pack: Path, tiny_bundle: Bundle, crafted: tuple[list[CraftedBatch], list[AttackInfo]]
) -> None:
    opened = AttackPack.open(pack, bundle=tiny_bundle)
    assert [(i.name, i.control, i.queried is None) for i in opened.infos] == [
        ("brighten", False, False),
        ("white", True, True),
    ]
    with np.load(pack / "shard-00000.npz") as shard:
        assert "x_adv_0" in shard.files and "x_adv_1" not in shard.files
        assert "reference_float_0" in shard.files and "reference_float_1" not in shard.files
        np.testing.assert_array_equal(shard["reference_1"], crafted[0][0].evidence.answers["white", "1"])
    first = next(opened.batches([]))
    assert list(first.adversarial) == [("brighten", EPS.text)]
    # all images are one image
    assert len(set(first.evidence.answers["white", "1"].tolist())) == 1


def test_a_pack_of_an_older_version_loads_with_what_it_did_not_tell(pack: Path, tiny_bundle: Bundle) -> None:
    """As it was before query attacks, controls, and what rounding costs were known."""
    for number in (0, 1):
        file = pack / f"shard-{number:05d}.npz"
        with np.load(file) as shard:
            known = (
                "index",
                "labels",
                "pixels",
                "unreadable",
                "reference_clean",
                "x_adv_0",
                "reference_0",
                "zero_gradient_0",
            )
            arrays = {name: shard[name] for name in known}
        np.savez(file, **arrays)
        change(pack, lambda m, k=number, f=file: m["shards"][k].update(sha256=sha256_file(f)))

    def older(manifest: dict[str, Any]) -> None:
        manifest["attacks"].pop()
        for name in ("queried", "control"):
            del manifest["attacks"][0][name]

    change(pack, older)
    opened = AttackPack.open(pack, bundle=tiny_bundle)
    assert [(i.name, i.queried, i.control) for i in opened.infos] == [("brighten", None, False)]
    for batch in opened.batches([]):
        assert set(batch.evidence.answers) == {CLEAN_KEY, ("brighten", EPS.text)}
        assert batch.evidence.unrounded == {}
        assert not batch.evidence.probabilities.any() and not batch.evidence.unstable.any()
        assert len(batch.evidence.unstable) == len(batch.clean.labels)


def test_attacks_can_be_added_to_a_pack(pack: Path, tiny_bundle: Bundle) -> None:
    """Those that know nothing of the reference, which is not asked: there is none."""
    half = CallableAttack(lambda x, y: np.maximum(x - np.float32(EPS.value / 2), 0), "darken", EPS)
    opened = AttackPack.open(pack, bundle=tiny_bundle)
    plain, added = list(opened.batches([])), list(extend(opened.batches([]), [half], opened.infos, uint8=True))
    for before, after in zip(plain, added, strict=True):
        assert list(after.adversarial) == [("brighten", EPS.text), ("darken", EPS.text)]
        np.testing.assert_array_equal(after.adversarial["brighten", EPS.text], before.adversarial["brighten", EPS.text])
        assert_same_evidence(after.evidence, before.evidence)
        grey = np.rint(after.adversarial["darken", EPS.text] * 255).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(grey, np.maximum(before.clean.pixels.astype(int) - 4, 0))
    too_far = CallableAttack(lambda x, y: np.zeros_like(x), "dark", EPS)
    with pytest.raises(InputError, match="attack dark moved a pixel"):
        list(extend(opened.batches([]), [too_far], opened.infos, uint8=True))


def test_shards_can_be_read_by_number(pack: Path, tiny_bundle: Bundle) -> None:
    opened = AttackPack.open(pack, bundle=tiny_bundle)
    messages: list[str] = []
    (second,) = opened.batches(messages, [1])
    assert (opened.shards, second.clean.index.tolist(), messages) == (2, [5, 6, 7], ["bad-1.png: cut off"])


def test_a_pack_that_lost_its_last_shards_is_refused(pack: Path, tiny_bundle: Bundle) -> None:
    change(pack, lambda m: m.update(n=8))
    assert AttackPack.open(pack, bundle=tiny_bundle).shards == 2
    change(pack, lambda m: m["shards"].pop())
    with pytest.raises(BundleError, match="is cut short: its shards hold 5 of 8 images"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_a_shard_that_holds_fewer_images_than_stated_is_refused(pack: Path, tiny_bundle: Bundle) -> None:
    change(pack, lambda m: m["shards"][0].update(n=6))
    with pytest.raises(BundleError, match=r"shard-00000\.npz is not a shard of an attack pack .*int64 \(6\) is due"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


def test_an_attack_keeps_its_description() -> None:
    params = AttackParams(norm="linf", steps=3, attacks=("a",))
    described = AttackInfo("z", EPS, params, "torch fp32", "a" * 64, "torch fp32 " + "a" * 64, control=True)
    assert convert(json.loads(json.dumps(info_to_json(described))), AttackInfo, what="attack") == described


def test_floats_and_missing_flags_survive_a_shard(
    tmp_path: Path, crafted: tuple[list[CraftedBatch], list[AttackInfo]]
) -> None:
    (batch, _), listed = crafted
    shifted = {listed[0].key: batch.adversarial[listed[0].key] * np.float32(0.99)}
    plain = CraftedBatch(batch.clean, shifted, replace(batch.evidence, zero_gradient={}))
    save_shard(tmp_path / "s.npz", plain, listed, (), uint8=False)
    again, messages = load_shard(tmp_path / "s.npz", listed)
    np.testing.assert_array_equal(again.adversarial[listed[0].key], shifted[listed[0].key])
    assert again.evidence.zero_gradient == {} and messages == ()


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
    stream = AttackPack.open(pack, bundle=tiny_bundle).batches([])
    next(stream)
    (pack / "shard-00001.npz").unlink()
    with pytest.raises(IntegrityError, match=r"shard-00001\.npz is missing or damaged"):
        next(stream)
    # and before any is scored
    with pytest.raises(IntegrityError, match=r"shard-00001\.npz is missing or damaged"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_a_shard_with_one_flipped_bit(pack: Path, tiny_bundle: Bundle) -> None:
    file = pack / "shard-00000.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"shard-00000\.npz is damaged"):
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
        ("reference_1", lambda a: a - 10),
        ("reference_float_0", lambda a: a + 10),
        ("reference_float_0", lambda a: a[:-1]),
        ("probabilities", lambda a: a[:-1]),
        ("unstable", lambda a: a[:-1]),
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
    with pytest.raises(BundleError, match=r"shard-00000\.npz (does not|is not a shard)"):
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))


@pytest.mark.parametrize(
    "name", ["../shard-00000.npz", "/etc/passwd", "sub/shard-00000.npz", "./shard-00000.npz", "", ".."]
)
def test_a_path_outside_the_pack_is_refused(pack: Path, tiny_bundle: Bundle, name: str) -> None:
    change(pack, lambda m: m["shards"][1].update(file=name))
    with pytest.raises(BundleError) as caught:
        list(AttackPack.open(pack, bundle=tiny_bundle).batches([]))
    assert "a path outside the folder" in str(caught.value)


@pytest.mark.parametrize("edit", [{"schema_version": 2}, {"schema_version": None}, {"kind": "results"}])
def test_a_foreign_pack_is_refused(pack: Path, tiny_bundle: Bundle, edit: dict[str, Any]) -> None:
    change(pack, lambda m: m.update(edit))
    with pytest.raises(SchemaError, match="reads attack packs of version 1"):
        AttackPack.open(pack, bundle=tiny_bundle)


@pytest.mark.parametrize("key", ["weights_sha256", "attacks", "data", "shards"])
def test_a_damaged_manifest_is_named(pack: Path, tiny_bundle: Bundle, key: str) -> None:
    change(pack, lambda m: m.pop(key))
    with pytest.raises(BundleError, match=r"pack\.json is not a complete attack pack"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_a_shard_without_its_hash_is_damage(pack: Path, tiny_bundle: Bundle) -> None:
    change(pack, lambda m: m["shards"][0].pop("sha256"))
    with pytest.raises(BundleError, match=r"pack\.json is not a complete attack pack"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_there_must_be_a_pack(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no attack pack there"):
        AttackPack.open(tmp_path / "nothing", bundle=tiny_bundle)


@pytest.mark.parametrize(
    "eps",
    [
        {"text": "8/255", "value": 0.5},
        {"text": "8", "value": 8.0},
        {"text": "much", "value": 0.1},
        {"text": "1" * 400 + "/1", "value": 1.0},
    ],
)
def test_a_budget_that_is_not_the_one_written_is_refused(pack: Path, tiny_bundle: Bundle, eps: dict[str, Any]) -> None:
    """Images would be held to one and shown under the other."""
    change(pack, lambda m: m["attacks"][0].update(eps=eps))
    with pytest.raises(SchemaError, match=r"pack\.json is not a complete attack pack"):
        AttackPack.open(pack, bundle=tiny_bundle)


def test_no_pack_json_is_more_than_one_sentence(pack: Path, tiny_bundle: Bundle) -> None:
    document = json.loads((pack / "pack.json").read_text()) | {
        "n": 8,
        "skipped": [{"backend": "a", "variant": "b", "reason": "c"}],
    }
    every, rng = list(places(document)), random.Random(0)
    opened = 0
    for _ in range(600):
        (pack / "pack.json").write_bytes(mutated(document, rng, every[rng.randrange(len(every))]))
        try:
            found = AttackPack.open(pack, bundle=tiny_bundle)
            opened += 1
            _ = found.infos, found.data, found.n, found.uint8, found.skipped, found.shards
            list(found.batches([]))
        except EdgeAdvError as error:
            assert_one_line(error)
    assert 10 < opened < 200
