"""A bundle opens whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.golden import Golden
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.preprocess import Preprocess
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError, SchemaError, StorageError
from edgeadv_runtime.files import sha256_file


@pytest.fixture
def copy(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy.edgeadv"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None], *, sign: bool = True) -> None:
    """Change the manifest; with ``sign`` its id fits again, as a careful attacker would see to."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    if sign:
        manifest["bundle_id"] = bundle_id(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_an_intact_bundle(tiny_bundle: Bundle, tiny_classes: Classes, tiny_preprocess: Preprocess, copy: Path) -> None:
    bundle = Bundle.open(str(copy))
    assert bundle.id == tiny_bundle.id == bundle_id(json.loads((copy / "manifest.json").read_text()))
    assert bundle.variants == ("fp32", "fp16")
    assert bundle.classes == tiny_classes
    assert bundle.preprocess == tiny_preprocess
    assert bundle.weights_sha256 == sha256_file(bundle.weights_path)
    assert set(bundle.files) == {p.name for p in copy.iterdir()} - {"manifest.json"}


FILES = ["model.fp32.onnx", "model.fp16.onnx", "weights.safetensors", "golden.npz"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=name):
        Bundle.open(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        Bundle.open(copy)


def test_a_symbolic_link_is_not_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "golden.npz").rename(tmp_path / "golden.npz")
    (copy / "golden.npz").symlink_to(tmp_path / "golden.npz")
    with pytest.raises(IntegrityError, match="not a plain file"):
        Bundle.open(copy)


def test_a_folder_in_the_place_of_a_file(copy: Path) -> None:
    (copy / "golden.npz").unlink()
    (copy / "golden.npz").mkdir()
    with pytest.raises(IntegrityError, match="not a plain file"):
        Bundle.open(copy)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize(
    "name", ["../golden.npz", "/etc/passwd", "sub/golden.npz", "sub\\golden.npz", "..", ".", "", "g" * 300]
)
def test_a_path_outside_the_bundle(copy: Path, name: Any, left_out: bool) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["golden"]["file"] = name
        manifest["left_out"] = [name] * left_out

    rewrite(copy, change)
    with pytest.raises(BundleError, match="outside the folder"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["../../evil", "x/y", "FP16", "fp16.", "", "-"])
def test_a_variant_whose_name_would_lead_elsewhere(copy: Path, name: str) -> None:
    """Plans are kept in files that are called after it."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["variants"][name] = manifest["variants"].pop("fp16")

    rewrite(copy, change)
    with pytest.raises(SchemaError, match=r"\(variants: .*regex"):
        Bundle.open(copy)


def test_a_changed_manifest(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest.update(title="another"), sign=False)
    with pytest.raises(IntegrityError, match="changed after export"):
        Bundle.open(copy)


def test_only_the_expected_hash_stops_a_careful_change(copy: Path) -> None:
    expected = sha256_file(copy / "manifest.json")
    assert Bundle.open(copy, expected_sha256=expected.upper()).path == copy
    rewrite(copy, lambda manifest: manifest.update(title="another"))
    assert Bundle.open(copy).manifest.title == "another"
    with pytest.raises(IntegrityError, match="not the manifest you expect"):
        Bundle.open(copy, expected_sha256=expected)


@pytest.mark.parametrize("change", [{"kind": "attack-pack"}, {"schema_version": 2}, {"schema_version": None}])
def test_another_schema(copy: Path, change: dict[str, Any]) -> None:
    rewrite(copy, lambda manifest: manifest.update(change))
    with pytest.raises(SchemaError, match="schema version"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "key", ["bundle_id", "left_out", "variants", "weights", "golden", "classes", "preprocess", "architecture"]
)
def test_a_missing_key(copy: Path, key: str) -> None:
    rewrite(copy, lambda manifest: manifest.pop(key), sign=key != "bundle_id")
    with pytest.raises(BundleError, match="not a complete bundle manifest"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "key", ["left_out", "variants", "weights", "golden", "classes", "preprocess", "architecture", "calibration"]
)
@pytest.mark.parametrize("value", [True, 7, "text", [1], {"a": 1}])
def test_a_key_of_another_type(copy: Path, key: str, value: Any) -> None:
    rewrite(copy, lambda manifest: manifest.update({key: value}))
    with pytest.raises(BundleError):
        Bundle.open(copy)


def test_a_key_that_nothing_reads_does_no_harm(rewritten: Callable[..., Path]) -> None:
    """Such as the ``guard`` of bundles that were exported with one: it only describes."""
    guard = {"squeezers": ["bits-5", "median-2"], "threshold": 0.5, "temperature": 1.2, "n": 500}
    path = rewritten(guard=guard)
    slim = Bundle.open(path).slim(path.with_name("slim"), variants=["fp16"], weights=False)
    assert json.loads((slim.path / "manifest.json").read_text())["guard"] == guard


@pytest.mark.parametrize("images", ["a" * 64, ["a"], [["a" * 64]], {"a" * 64: 1}, None, ["a" * 64 + "\n"]])
def test_calibration_images_that_are_no_hashes(copy: Path, images: Any) -> None:
    """Else evaluation would leave none of them out, and say nothing."""
    rewrite(copy, lambda manifest: manifest.update(calibration={"images": images}))
    with pytest.raises(BundleError, match="not a complete bundle manifest"):
        Bundle.open(copy)


def test_a_tolerance_that_is_no_number(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["variants"]["fp32"].update(tolerance="small"))
    with pytest.raises(BundleError, match="not a complete bundle manifest"):
        Bundle.open(copy)


def test_left_out_cannot_hide_a_file_that_is_read(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest.update(left_out=["golden.npz"]), sign=False)
    Golden([], np.zeros((0, 4, 4, 3), np.uint8), {}).save(copy / "golden.npz")
    with pytest.raises(BundleError, match="left_out"):
        Bundle.open(copy)


def test_preprocessing_that_this_version_cannot_apply(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["preprocess"].update(color_order="bgr"))
    with pytest.raises(BundleError, match=r"preprocess\.color_order: .*update edgeadv"):
        Bundle.open(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000], ids=range(5))
def test_a_manifest_that_is_none(copy: Path, text: bytes) -> None:
    (copy / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match="bundle manifest"):
        Bundle.open(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle manifest there"):
        Bundle.open(tmp_path)


def test_slim_keeps_the_id_and_leaves_the_rest_out(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    assert slim.id == tiny_bundle.id
    assert {p.name for p in slim.path.iterdir()} == {"manifest.json", "model.fp16.onnx", "golden.npz"}
    assert slim.variants == ("fp16",)
    assert slim.weights_sha256 == tiny_bundle.weights_sha256
    assert slim.artifact_sha256("fp32") == tiny_bundle.artifact_sha256("fp32")
    with pytest.raises(InputError, match="slim bundle without weights"):
        _ = slim.weights_path
    with pytest.raises(InputError, match=r"no variant 'fp32' \(it has: fp16\)"):
        slim.onnx_path("fp32")
    with pytest.raises(InputError, match="slim bundle without weights"):
        slim.slim(tmp_path / "more", variants=["fp16"], weights=True)
    with pytest.raises(InputError, match="no variant 'fp32'"):
        slim.slim(tmp_path / "more", variants=["fp32"], weights=False)
    assert not (tmp_path / "more").exists()


def test_slim_may_keep_the_weights_and_never_overwrites_unasked(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim", variants=["fp32"], weights=True)
    assert slim.weights_path.is_file()
    with pytest.raises(StorageError, match="exists"):
        tiny_bundle.slim(tmp_path / "slim", variants=["fp32"], weights=True)
    assert tiny_bundle.slim(tmp_path / "slim", variants=["fp16"], weights=False, overwrite=True).variants == ("fp16",)
    with pytest.raises(InputError, match="at least one variant"):
        tiny_bundle.slim(tmp_path / "none", variants=[], weights=True)


def test_golden_frames_come_back(tmp_path: Path, photographs: list[NDArray[np.uint8]]) -> None:
    logits = {"fp32": np.eye(3, dtype=np.float32), "fp16": np.ones((3, 3), np.float32)}
    golden = Golden(photographs[:3], np.zeros((3, 4, 4, 3), np.uint8), logits)
    golden.save(tmp_path / "golden.npz")
    again = Golden.load(tmp_path / "golden.npz")
    assert all(np.array_equal(a, b) for a, b in zip(golden.frames, again.frames, strict=True))
    assert np.array_equal(golden.pixels, again.pixels)
    assert set(again.logits) == {"fp32", "fp16"}
    assert all(np.array_equal(logits[variant], again.logits[variant]) for variant in logits)


def test_a_golden_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", pixels=np.array([{"a": 1}]))
    for name in ("text", "other.npz", "pickle.npz", "missing"):
        with pytest.raises(BundleError, match=r"no(t a)? golden file"):
            Golden.load(tmp_path / name)


def test_classes() -> None:
    classes = Classes(("n1", "n2"), ("same", "same"))
    assert len(classes) == 2
    assert classes.index("n2") == 1
    assert Classes.from_json(classes.to_json()) == classes
    with pytest.raises(InputError, match="'n3' is not one of the model's 2"):
        classes.index("n3")
    for ids, names in [(("a",), ("a",)), (("a", "a"), ("x", "y")), (("a", "b"), ("x",))]:
        with pytest.raises(InputError, match="distinct"):
            Classes(ids, names)


# --- what an older edgeadv wrote: each int8 graph a second time, for the gradient side

SURROGATE = "surrogate.int8-u8s8.safetensors"


@pytest.fixture
def int8(digits_bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle with every variant that a test may damage."""
    return Path(shutil.copytree(digits_bundle.path, tmp_path / "int8.edgeadv"))


@pytest.fixture
def older(int8: Path) -> Path:
    """The same with a second file of an int8 graph."""
    (int8 / SURROGATE).write_bytes(b"a graph")

    def name(manifest: dict[str, Any]) -> None:
        entry = manifest["variants"]["int8-u8s8"]
        parity = entry["gradients"].pop("parity")
        del entry["gradients"]
        digest = sha256_file(int8 / SURROGATE)
        entry["surrogate"] = {"file": SURROGATE, "sha256": digest, "bytes": 7, "parity": parity}

    rewrite(int8, name)
    return int8


def test_a_second_graph_is_checked_like_every_file_and_left_out_of_slim_copies(older: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(older)
    assert set(bundle.files) == {p.name for p in older.iterdir()} - {"manifest.json"}
    slim = bundle.slim(tmp_path / "slim", variants=["int8-u8s8"], weights=True)
    assert slim.id == bundle.id and SURROGATE in slim.manifest.left_out and not (slim.path / SURROGATE).exists()
    (older / SURROGATE).write_bytes(b"another")
    with pytest.raises(IntegrityError, match=rf"{SURROGATE} is damaged"):
        Bundle.open(older)
    (older / SURROGATE).unlink()
    with pytest.raises(IntegrityError, match=rf"{SURROGATE} is missing"):
        Bundle.open(older)


@pytest.mark.parametrize("value", [7, "text", [], {}, ["file"], {"file": "a"}, {"file": None, "sha256": ""}])
def test_a_surrogate_entry_of_another_type(int8: Path, value: Any) -> None:
    rewrite(int8, lambda manifest: manifest["variants"]["int8-s8s8"].update(surrogate=value))
    with pytest.raises(BundleError):
        Bundle.open(int8)


@pytest.mark.parametrize("value", [7, "text", [], {}, {"parity": 1}, {"missing": 2}])
def test_a_gradients_entry_of_another_type(int8: Path, value: Any) -> None:
    rewrite(int8, lambda manifest: manifest["variants"]["int8-s8s8"].update(gradients=value))
    with pytest.raises(BundleError):
        Bundle.open(int8)


# --- uint8 input


def test_a_variant_with_pixels_knows_its_float_one(int8: Path) -> None:
    bundle = Bundle.open(int8)
    for base in ("fp32", "fp16", "int8-s8s8", "int8-u8s8"):
        assert bundle.float_sha256(f"{base}-u8in") == bundle.artifact_sha256(base)
        assert bundle.float_sha256(base) is None


def test_slim_with_pixels_only(digits_bundle: Bundle, tmp_path: Path) -> None:
    slim = digits_bundle.slim(tmp_path / "slim", variants=["int8-s8s8-u8in"], weights=True)
    assert slim.variants == ("int8-s8s8-u8in",) and slim.id == digits_bundle.id
    assert slim.float_sha256("int8-s8s8-u8in") == digits_bundle.artifact_sha256("int8-s8s8")


@pytest.mark.parametrize("value", [7, "text", [], {}, {"variant": "fp32"}])
def test_made_from_of_another_type(int8: Path, value: Any) -> None:
    rewrite(int8, lambda manifest: manifest["variants"]["fp32-u8in"].update(made_from=value))
    with pytest.raises(BundleError, match="made_from"):
        Bundle.open(int8)
