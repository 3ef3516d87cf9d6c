"""``edgeadv patch``: a PNG to print, scored as it is and refused where it does not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeadv_runtime import Bundle, Results
from edgeadv_runtime.attacks.patches import patch_shape
from edgeadv_runtime.attacks.stored_patch import StoredPatch
from edgeadv_runtime.errors import BundleError, InputError
from edgeadv_runtime.records.eps import Eps
from tests.edgeadv.conftest import Cli

AREA = Eps.parse("20%", norm="area")


@pytest.fixture
def made(cli: Cli, tiny_bundle: Bundle, many_photos: Path) -> str:
    asked = ["--data", many_photos, "--area", "20%", "--shape", "round", "--print-mm", "80", "--limit", "300"]
    outcome = cli("patch", tiny_bundle.path, *asked, "--out", "p.png")
    assert outcome.status == 0, outcome.err
    return outcome.out


def test_it_is_a_picture_of_the_size_that_was_asked_for(made: str, tiny_bundle: Bundle) -> None:
    with Image.open("p.png") as image:
        assert image.mode == "RGBA" and image.width >= 600
        # inches across, at the resolution that is written in the file
        assert image.width / image.info["dpi"][0] * 25.4 == pytest.approx(80, rel=0.01)
    stored = StoredPatch.load(Path("p.png"), tiny_bundle)
    height, width, _ = tiny_bundle.preprocess.pixel_shape
    shape = patch_shape(stored.area, height, width, stored.kind)
    assert shape.mask.sum() <= 0.2 * height * width and stored.weights_sha256 == tiny_bundle.weights_sha256
    again = StoredPatch(stored.content, stored.area, stored.kind, stored.weights_sha256)
    again.save(Path("q.png"), print_mm=80)
    assert Path("q.png").read_bytes() == Path("p.png").read_bytes()


def test_what_it_says_is_counted_on_other_pictures(made: str) -> None:
    assert "of 150 images that did not make it" in made and "are right without and" in made


def test_it_is_scored_beside_patches_of_its_area(cli: Cli, made: str, tiny_bundle: Bundle, photos: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", photos, "--precision", "fp32", "--patch-file", "p.png"]
    assert cli(*asked, "--patch", "20%", "--limit", "24", "--out", "r.json").status == 0
    rows = {row.attack: row for row in Results.load("r.json").rows}
    assert rows["patch"].correct_top1 <= rows["patch-universal"].correct_top1
    # part of what --resume compares: another picture under the same name is another attack
    content = StoredPatch.load(Path("p.png"), tiny_bundle).content
    assert rows["patch-universal"].params.patch_sha256 == hashlib.sha256(content.tobytes()).hexdigest()
    assert rows["patch-gray"].params.patch_sha256 is None
    assert rows["patch-universal-moved"].params.patch_sha256 == rows["patch-universal"].params.patch_sha256
    outcome = cli(*asked, "--patch", "5%", "--out", "s.json")
    assert outcome.status == 2 and "--patch-file p.png is of 20%: add that area to --patch" in outcome.err
    outcome = cli(*asked, "--out", "s.json")
    assert outcome.status == 2 and "add --patch" in outcome.err


def test_it_is_put_where_it_is_told_and_stays_inside(made: str, tiny_bundle: Bundle) -> None:
    stored = StoredPatch.load(Path("p.png"), tiny_bundle)
    height, width, channels = tiny_bundle.preprocess.pixel_shape
    plain = np.full((height, width, channels), 7, np.uint8)
    mask = patch_shape(AREA, height, width, "round").mask
    side = len(mask)
    for row, column, top, left in ((0, 0, 0, 0), (1, 1, height - side, width - side)):
        moved = stored.applied(plain, row, column)
        changed = (moved != 7).any(axis=2)
        outside = changed.copy()
        outside[top : top + side, left : left + side][mask] = False
        assert changed.any() and not outside.any()
    with pytest.raises(InputError, match=r"is in \[0, 1\]"):
        stored.applied(plain, 1.1, 0)


def test_other_pictures_are_no_patch(cli: Cli, tiny_bundle: Bundle, photos: Path) -> None:
    Image.new("RGB", (600, 600)).save("plain.png")
    with pytest.raises(BundleError, match="is a picture and no patch of edgeadv"):
        StoredPatch.load(Path("plain.png"), tiny_bundle)
    with pytest.raises(BundleError, match="edgeadv patch makes one"):
        StoredPatch.load(Path("gone.png"), tiny_bundle)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--area", "0%"], "is not an area"),
        (["--area", "20%", "--shape", "star"], "--shape 'star' is not one of"),
        (["--area", "20%", "--target", "none"], "--target 'none' is no class"),
        (["--area", "20%", "--print-mm", "0"], "--print-mm must be above 0"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tiny_bundle: Bundle, photos: Path, options: list[str], says: str) -> None:
    outcome = cli("patch", tiny_bundle.path, "--data", photos, *options, "--limit", "8", "--out", "p.png")
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1 and says in outcome.err
    assert not Path("p.png").exists()


def test_an_artefact_with_8_bit_input_is_met_by_what_was_made_for_its_graph(cli: Cli, digits_bundle: Bundle) -> None:
    asked = ["evaluate", digits_bundle.path, "--data", "mnist5k", "--precision", "fp32,int8-u8s8-u8in", "--limit", "20"]
    assert cli(*asked, "--patch", "10%", "--patch-place", "random", "--out", "r.json").status == 0
    rows = {row.attack: row for row in Results.load("r.json").rows if row.variant == "int8-u8s8-u8in"}
    own, control = rows["patch@int8-u8s8"], rows["patch-noise@int8-u8s8"]
    assert own.threat == "white-box" and own.correct_top1 < control.correct_top1 <= rows["clean"].correct_top1
    assert control.params.restarts == 51


def test_a_pack_of_patches_is_scored_without_gradients(cli: Cli, tiny_bundle: Bundle, photos: Path) -> None:
    asked = ["--data", photos, "--limit", "24", "--patch", "5%,20%"]
    assert cli("attack", tiny_bundle.path, *asked, "--out", "patches.pack").status == 0
    scored = ["evaluate", tiny_bundle.path, "--precision", "fp32", "--backend", "onnxruntime"]
    assert cli(*scored, "--pack", "patches.pack", "--out", "of_pack.json").status == 0
    assert cli(*scored, *asked, "--uint8", "--out", "of_data.json").status == 0
    of_pack, of_data = Results.load("of_pack.json"), Results.load("of_data.json")
    assert of_pack.norm == "area" and of_pack.masking.verdict == of_data.masking.verdict
    in_pack = {(row.attack, row.eps): row.correct_top1 for row in of_pack.rows}
    for row in of_data.rows:
        assert in_pack[row.attack, row.eps] == row.correct_top1
    assert {"patch", "patch-gray", "patch-noise"} <= {attack for attack, _ in in_pack}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patch", "5%", "--eps", "8/255"], "--patch has an area and no eps"),
        (["--patch", "5%", "--suite", "fast"], "--patch has an area and no eps"),
        (["--patch-file", "p.png"], "add --patch"),
        (["--eps", "8/255", "--corruptions", "fog"], "--corruptions are made where they are scored"),
        (["--eps", "8/255", "--group", "track"], "--group needs the names of the images"),
        ([], "--eps"),
    ],
)
def test_what_a_pack_cannot_hold_is_refused(
    cli: Cli, tiny_bundle: Bundle, photos: Path, options: list[str], said: str
) -> None:
    outcome = cli("attack", tiny_bundle.path, "--data", photos, *options, "--out", "x.pack")
    assert outcome.status == 2 and said in outcome.err and len(outcome.err.strip().splitlines()) == 1
    assert not Path("x.pack").exists()
