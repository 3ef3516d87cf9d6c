"""Pipelines that do one known step otherwise: each is named, and what it costs is what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

import edgeadv as ea
from edgeadv.models.builder import PixelModel
from edgeadv_runtime import Bundle, Classifier, InputError, Preprocess
from edgeadv_runtime.bundle.bundle import Classes
from edgeadv_runtime.errors import DataError

SIDE, CROP = 40, 32
Pipeline = Callable[[Path], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve parts of real photographs, of odd sizes; three lie on their side by EXIF."""
    from sklearn.datasets import load_sample_images

    rng, out = np.random.default_rng(3), tmp_path_factory.mktemp("photographs")
    pictures = load_sample_images().images
    for i in range(12):
        height, width = int(rng.integers(90, 300)), int(rng.integers(90, 300))
        top, left = int(rng.integers(427 - height)), int(rng.integers(640 - width))
        exif = Image.Exif()
        if i % 4 == 3:
            exif[0x0112] = 6
        cut = Image.fromarray(pictures[i % 2][top : top + height, left : left + width])
        cut.save(out / f"{i:02d}.jpg", quality=95, exif=exif)
    return out


def exported(folder: Path, model: PixelModel, classes: Classes, text: str, frames: Any) -> Bundle:
    from edgeadv_export import Origin, export_bundle

    return export_bundle(
        model,
        folder / "x.edgeadv",
        classes=classes,
        preprocess=Preprocess.parse(text),
        frames=frames,
        variants=("fp32",),
        origin=Origin(title="tiny", provenance={}),
    )


@pytest.fixture(scope="module")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: PixelModel, tiny_classes: Classes, photographs: Any
) -> Bundle:
    out = tmp_path_factory.mktemp("cropped")
    return exported(out, tiny_model, tiny_classes, f"resize={SIDE},crop={CROP}", photographs)


def rgb(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def tensor(image: Image.Image) -> torch.Tensor:
    return v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])(image)


def resized(image: Image.Image, kind: InterpolationMode = InterpolationMode.BILINEAR) -> Image.Image:
    made: Image.Image = v2.Resize(SIDE, kind)(image)
    return made


def cropped(image: Image.Image) -> Image.Image:
    made: Image.Image = v2.CenterCrop(CROP)(image)
    return made


def plain(path: Path) -> torch.Tensor:
    return tensor(cropped(resized(rgb(path))))


def bgr(path: Path) -> Any:
    return np.asarray(cropped(resized(rgb(path))))[..., ::-1]


def without_antialias(path: Path) -> Any:
    pixels = torch.from_numpy(np.array(rgb(path))).permute(2, 0, 1)
    whole: torch.Tensor = v2.CenterCrop(CROP)(v2.Resize(SIDE, antialias=False)(pixels))
    return whole.float() / 255


def nearest(path: Path) -> Any:
    return np.asarray(cropped(resized(rgb(path), InterpolationMode.NEAREST)))


def bicubic(path: Path) -> Any:
    return tensor(cropped(resized(rgb(path), InterpolationMode.BICUBIC)))[None]


def turned(path: Path) -> Any:
    from PIL import ImageOps

    return tensor(cropped(resized(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))))


def off_by_one(path: Path) -> Any:
    image = resized(rgb(path))
    left, top = round((image.width - CROP) / 2) + 1, round((image.height - CROP) / 2)
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def rounded_down(path: Path) -> Any:
    image = resized(rgb(path))
    left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
    return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def corner(path: Path) -> Any:
    return np.asarray(resized(rgb(path)).crop((0, 0, CROP, CROP)))


def not_scaled(path: Path) -> Any:
    return plain(path) * 255


def by_256(path: Path) -> Any:
    return np.asarray(cropped(resized(rgb(path))), np.float32).transpose(2, 0, 1) / 256


def normalised(path: Path) -> Any:
    return v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(plain(path)).double().numpy()


def stretched(path: Path) -> Any:
    return np.asarray(rgb(path).resize((CROP, CROP), Image.Resampling.BILINEAR))


def no_margin(path: Path) -> Any:
    return np.asarray(cropped(v2.Resize(CROP)(rgb(path))))


def boxed(path: Path) -> Any:
    image = rgb(path)
    scale = CROP / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (CROP, CROP), (114, 114, 114))
    canvas.paste(image, ((CROP - image.width) // 2, (CROP - image.height) // 2))
    return np.asarray(canvas)


@pytest.mark.parametrize(
    ("other", "step", "says"),
    [
        (bgr, "colour", "BGR"),
        (without_antialias, "antialias", "without antialiasing"),
        (nearest, "interpolation", "nearest, where the bundle has bilinear"),
        (bicubic, "interpolation", "bicubic, where"),
        (turned, "decoding", "it turns pictures by their EXIF"),
        (off_by_one, "crop", "1 pixel right of the middle"),
        (rounded_down, "crop", "rounds the corner of the crop down"),
        (corner, "crop", "upper left corner"),
        (not_scaled, "scaling", "not divided by 255"),
        (by_256, "scaling", "divided by 256, not by 255"),
        (normalised, "scaling", "normalised with ImageNet's"),
        (stretched, "size", "stretches the frame to 32x32"),
        (no_margin, "size", "shorter side to 32"),
        (boxed, "size", "letterbox of 32x32, filled with 114"),
    ],
)
def test_the_one_step_that_differs_is_named(
    bundle: Bundle, folder: Path, other: Pipeline, step: str, says: str
) -> None:
    found = ea.compare_pipelines(bundle, other, folder)
    assert [each.step for each in found.steps] == [step], found
    assert says in found.steps[0].what
    assert found.n == 12 and 0 < found.different <= 12 and found.explained and found.unexplained < 0.2
    if other is turned:
        assert found.different == 3
    if step != "scaling":
        assert found.largest > 2 and 0 < found.share <= 1
    else:
        # of a dark picture a 256th is not half a level
        assert found.largest < 0.01 and found.share == 0 and found.different >= (11 if other is by_256 else 12)
    assert not found.same and not found.misfits


def test_the_same_pipeline_is_the_same(bundle: Bundle, folder: Path) -> None:
    for other in (plain, lambda path: plain(path)[None].numpy(), bundle_steps(bundle)):
        found = ea.compare_pipelines(bundle, other, folder, limit=5)
        assert found.same and found.n == 5 and found.steps == () and found.flips == () and found.share == 0


def bundle_steps(bundle: Bundle) -> Pipeline:
    return lambda path: bundle.preprocess(Image.open(path))


def test_two_steps_are_both_named_the_first_one_first(bundle: Bundle, folder: Path) -> None:
    def opencv(path: Path) -> Any:
        pixels = torch.from_numpy(np.array(rgb(path))).permute(2, 0, 1)
        small: torch.Tensor = v2.CenterCrop(CROP)(v2.Resize(SIDE, antialias=False)(pixels))
        return small.flip(0).float()

    found = ea.compare_pipelines(bundle, opencv, folder)
    assert [each.step for each in found.steps] == ["colour", "antialias", "scaling"] and found.explained


def test_a_step_of_a_few_pictures_beside_one_of_all(bundle: Bundle, folder: Path) -> None:
    found = ea.compare_pipelines(bundle, lambda path: turned(path).flip(0), folder)
    assert [each.step for each in found.steps] == ["decoding", "colour"] and found.explained


def test_what_no_known_step_explains_is_not_explained_away(bundle: Bundle, folder: Path) -> None:
    rng = np.random.default_rng(0)
    found = ea.compare_pipelines(bundle, lambda path: rng.random((3, CROP, CROP)), folder)
    assert not found.explained and found.unexplained > 20


def test_flips_are_those_of_the_classifier(bundle: Bundle, folder: Path) -> None:
    found = ea.compare_pipelines(bundle, bgr, folder)
    expected = []
    with Classifier.open(bundle.path) as classifier:
        for file in sorted(folder.iterdir()):
            ours = classifier.classify(Image.open(file), top=1)[0].class_id
            other = classifier.classify_pixels(np.ascontiguousarray(bgr(file)), top=1)[0].class_id
            expected += [(file.name, ours, other)] if ours != other else []
    assert found.flips is not None and [(f.file, f.ours, f.other) for f in found.flips] == expected


def test_grey_letterboxes_and_regions(
    tmp_path: Path, tiny_model: PixelModel, tiny_classes: Classes, photographs: Any, folder: Path
) -> None:
    grey = exported(tmp_path, tiny_model, tiny_classes, "letterbox=32x40,fill=0,color=gray,roi=0:0:1:0.8", photographs)
    steps = grey.preprocess

    def mean(path: Path) -> Any:
        image = rgb(path)
        pixels = np.rint(np.asarray(image, np.float64).mean(axis=2)).astype(np.uint8)
        return steps(pixels)

    def whole(path: Path) -> Any:
        return Preprocess.parse("letterbox=32x40,fill=0,color=gray")(rgb(path))[..., 0]

    assert ea.compare_pipelines(grey, lambda path: steps(rgb(path)), folder).same
    for other, step in ((mean, "colour"), (whole, "region")):
        found = ea.compare_pipelines(grey, other, folder)
        assert [each.step for each in found.steps] == [step] and found.explained


@pytest.mark.parametrize(
    ("made", "step"),
    [
        (lambda path: np.zeros((3, 40, 40), np.float32), "size"),
        (lambda path: np.zeros((32, 32), np.uint8), "colour"),
    ],
)
def test_another_shape(bundle: Bundle, folder: Path, made: Pipeline, step: str) -> None:
    found = ea.compare_pipelines(bundle, made, folder)
    assert [each.step for each in found.steps] == [step]
    due = "3x32x32" if step == "size" else "32x32x3"
    assert f"the model takes {due}" in found.steps[0].what
    assert len(found.misfits) == 12 and found.n == 0 and not found.same and found.flips is None and not found.explained


def test_floats_are_channels_first_as_a_model_takes_them(bundle: Bundle, folder: Path) -> None:
    found = ea.compare_pipelines(bundle, lambda path: plain(path).permute(1, 2, 0), folder)
    assert not found.same and found.misfits[0].endswith("32x32x3 where 3x32x32 is due")


def leaving(path: Path) -> Any:
    raise SystemExit(0)


def raising(path: Path) -> Any:
    raise RuntimeError("no such model\nand more")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (raising, r"`other` failed on .*00.jpg: RuntimeError: no such model \(test_comparing.py, line \d+\); it takes"),
        (leaving, r"`other` failed on .*00.jpg: SystemExit: 0 \(test_comparing.py, line \d+\)"),
        (lambda path: [[1, 2], [3]], "gives list that is no array; it must give a uint8 array"),
        (lambda path: "pixels", "it must give a uint8 array"),
        (lambda path: np.zeros((32, 32, 3), np.int64), "it must give a uint8 array"),
        (lambda path: np.full((3, 32, 32), np.nan), "NaN or infinity for 00.jpg"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("nothing", "FILE.py:NAME"),
        ("no_such_module_at_all:f", "there is no module no_such_module_at_all in "),
        (3, "^`other` is a function or text, not an int"),
    ],
)
def test_functions_that_are_none(bundle: Bundle, folder: Path, other: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ea.compare_pipelines(bundle, other, folder)


def test_data_that_is_none(bundle: Bundle, tmp_path: Path) -> None:
    for data, says in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no pictures")):
        with pytest.raises(DataError, match=says):
            ea.compare_pipelines(bundle, plain, data)
    with pytest.raises(InputError, match="`limit` must be at least 1"):
        ea.compare_pipelines(bundle, plain, tmp_path, limit=0)


def test_a_pipeline_as_it_is_written_with_opencv(bundle: Bundle, folder: Path) -> None:
    """Five steps are otherwise at once, and OpenCV computes them: it turns by EXIF, gives BGR, antialiases nothing."""
    import cv2

    def prepare(path: Path) -> Any:
        image = cv2.imread(str(path))
        assert image is not None
        height, width = image.shape[:2]
        scale = SIDE / min(height, width)
        image = cv2.resize(image, (round(width * scale), round(height * scale)))
        top, left = (image.shape[0] - CROP) // 2, (image.shape[1] - CROP) // 2
        return image[top : top + CROP, left : left + CROP].transpose(2, 0, 1) / 255

    found = ea.compare_pipelines(bundle, prepare, folder)
    steps = {each.step: each.what for each in found.steps}
    assert list(steps)[:2] == ["decoding", "colour"] and "without antialiasing" in steps["antialias"]
    assert found.explained and found.unexplained < 0.5
