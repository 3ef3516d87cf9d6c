"""The list of training images: what it finds, what it refuses to be, and how a bundle carries it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.training_images import (
    TRAINING_FILE,
    Overlap,
    TrainingImages,
    check_overlap,
    overlap_sentence,
    too_many,
)
from edgeadv_runtime.errors import BundleError, InputError, IntegrityError
from edgeadv_runtime.files import sha256_file


def named(*numbers: int) -> list[str]:
    """Hex SHA-256 of different images."""
    return [hashlib.sha256(bytes([number])).hexdigest() for number in numbers]


def test_only_the_first_eight_bytes_are_kept_and_found_again(tmp_path: Path) -> None:
    listed = TrainingImages.of(named(3, 1, 2, 1))
    expected = sorted(int.from_bytes(bytes.fromhex(image)[:8], "little") for image in named(1, 2, 3))
    assert listed.hashes.tolist() == expected and len(listed) == 3
    # an image that is asked for twice counts twice
    assert listed.count(named(1, 9, 1, 2)) == 3 and listed.count([]) == 0
    listed.save(tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy", allow_pickle=False).dtype == np.dtype("<u8")
    assert TrainingImages.load(tmp_path / "a.npy", count=3).hashes.tolist() == expected
    assert TrainingImages.of([]).count(named(1)) == 0
    both = listed | TrainingImages.of(named(3, 4))
    assert len(both) == 4 and both.count(named(1, 2, 3, 4, 5)) == 4
    assert (listed | None) is listed


@pytest.mark.parametrize(
    "array",
    [
        np.array([1, 2, 3], dtype=np.int64),
        np.array([1, 2, 3], dtype=">u8"),
        np.array([1, 2, 3], dtype=np.float64),
        np.array([[1], [2], [3]], dtype=np.uint64),
        np.array([3, 2, 1], dtype=np.uint64),
        np.array([1, 2, 2], dtype=np.uint64),
        np.array([1, 2], dtype=np.uint64),
        np.array([None, 1, 2], dtype=object),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(BundleError, match="is not a list of training images") as caught:
        TrainingImages.load(tmp_path / "a.npy", count=3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "archive", "gone"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.npy"
    TrainingImages.of(named(*range(100))).save(file)
    if damage == "archive":
        with file.open("wb") as stream:
            np.savez(stream, a=np.arange(3))
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"cut": file.read_bytes()[:-100], "empty": b"", "text": b"not an array at all"}[damage])
    with pytest.raises(BundleError, match=r"(is not a|no) list of training images"):
        TrainingImages.load(file, count=100)


@pytest.mark.parametrize(("known", "n", "wrong"), [(0, 5, False), (1, 100, False), (1, 99, True), (2, 199, True)])
def test_one_in_a_hundred_is_accepted_and_no_more(known: int, n: int, wrong: bool) -> None:
    assert too_many(known, n) is wrong and not too_many(None, n)
    check_overlap(known, n, name="holiday", allowed=True)
    check_overlap(None, n, name="holiday", allowed=False)
    if wrong:
        with pytest.raises(
            InputError, match=rf"^holiday: {known} of {n} images were trained on.*`allow_training_images`"
        ):
            check_overlap(known, n, name="holiday", allowed=False)
    else:
        check_overlap(known, n, name="holiday", allowed=False)


def test_at_a_million_images_too_the_limit_is_exact() -> None:
    assert [n for n in range(100, 10**6, 4900) if too_many(n // 100, n) or not too_many(n // 100 + 1, n)] == []


def test_what_a_reader_is_told() -> None:
    assert overlap_sentence(0, 50) == ""
    assert overlap_sentence(1, 100) == "1 of 100 images were trained on"
    assert overlap_sentence(50, 100) == "50 of 100 images were trained on: these figures flatter"
    assert "not known" in overlap_sentence(None, 100)


def test_images_that_are_not_scored_do_not_count() -> None:
    overlap = Overlap(TrainingImages.of(named(1, 2, 3)), frozenset(named(1, 8)))
    overlap.add(named(1, 2, 8))
    overlap.add(named(9))
    assert (overlap.n, overlap.known) == (2, 1)
    unknown = Overlap(None)
    unknown.add(named(1))
    assert (unknown.n, unknown.known) == (1, None)
    unknown.check("x", allowed=False)


# in a bundle


@pytest.fixture
def knowing(tmp_path: Path, tiny_bundle: Bundle) -> Path:
    """A copy of the tiny bundle that lists three images."""
    folder = shutil.copytree(tiny_bundle.path, tmp_path / "knowing.edgeadv")
    TrainingImages.of(named(1, 2, 3)).save(folder / TRAINING_FILE)
    entry = {"file": TRAINING_FILE, "sha256": sha256_file(folder / TRAINING_FILE), "count": 3}
    rewrite(folder, {**json.loads((folder / "manifest.json").read_text()), "training_images": entry})
    return folder


def rewrite(folder: Path, manifest: dict[str, object]) -> None:
    (folder / "manifest.json").write_text(json.dumps({**manifest, "bundle_id": bundle_id(manifest)}))


def test_a_bundle_without_a_list_does_not_know(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.training_images is None and tiny_bundle.training_images is None


def test_every_copy_carries_the_list(knowing: Path, tmp_path: Path) -> None:
    full = Bundle.open(knowing)
    assert full.training_images is not None and full.training_images.count(named(1, 2, 3, 4)) == 3
    slim = full.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    assert slim.id == full.id and (slim.path / TRAINING_FILE).read_bytes() == (knowing / TRAINING_FILE).read_bytes()
    assert slim.training_images is not None and len(slim.training_images) == 3


def test_a_copy_cannot_say_that_the_list_was_left_out(knowing: Path) -> None:
    """The id does not cover what was left out, and a bundle that lost its list would let its training images pass."""
    manifest = json.loads((knowing / "manifest.json").read_text())
    rewrite(knowing, {**manifest, "left_out": [TRAINING_FILE]})
    (knowing / TRAINING_FILE).unlink()
    with pytest.raises(BundleError, match="left_out is not a list of files to leave out"):
        Bundle.open(knowing)


def test_a_list_that_is_not_the_manifests_is_refused(knowing: Path) -> None:
    TrainingImages.of(named(1, 2)).save(knowing / TRAINING_FILE)
    with pytest.raises(IntegrityError, match=r"training-images\.npy is damaged"):
        Bundle.open(knowing)
    (knowing / TRAINING_FILE).unlink()
    with pytest.raises(IntegrityError, match=r"training-images\.npy is missing"):
        Bundle.open(knowing)


@pytest.mark.parametrize("count", [2, "3", None])
def test_a_list_of_another_length_than_the_manifest_says(knowing: Path, count: object) -> None:
    manifest = json.loads((knowing / "manifest.json").read_text())
    manifest["training_images"]["count"] = count
    rewrite(knowing, manifest)
    with pytest.raises(BundleError, match=r"training_images.count|is not a list of training images"):
        _ = Bundle.open(knowing).training_images


@pytest.mark.parametrize(
    "entry", [[], "x", {"file": TRAINING_FILE}, {"file": "../x.npy", "sha256": "0" * 64, "count": 3}]
)
def test_a_damaged_entry(knowing: Path, entry: object) -> None:
    manifest = json.loads((knowing / "manifest.json").read_text())
    rewrite(knowing, {**manifest, "training_images": entry})
    with pytest.raises(BundleError):
        Bundle.open(knowing)
