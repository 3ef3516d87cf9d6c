"""Whatever a manifest says, opening it is a success or one sentence, and what opens answers everything that readers ask
of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.errors import BundleError, EdgeAdvError, InputError, SchemaError
from tests.mutations import assert_one_line, mutated, places

MUTATIONS = 2500


def ask(bundle: Bundle) -> None:
    """Everything that is read of an opened bundle."""
    for variant in bundle.manifest.variants:
        _ = (
            bundle.artifact_sha256(variant),
            bundle.float_sha256(variant),
            bundle.tolerance(variant),
            bundle.written_in(variant),
        )
    _ = bundle.preprocess, bundle.classes, bundle.files, bundle.variants, bundle.confidence, bundle.calibration_images
    _ = bundle.id, bundle.weights_sha256, bundle.manifest.to_json()
    for asked in (lambda: bundle.training_images, bundle.golden, lambda: bundle.weights_path):
        try:
            asked()
        except EdgeAdvError as error:
            assert_one_line(error)


@pytest.mark.parametrize("start", range(5))
def test_no_manifest_is_more_than_one_sentence(digits_bundle: Bundle, tmp_path: Path, start: int) -> None:
    copy = tmp_path / "d.edgeadv"
    copy.mkdir()
    for file in digits_bundle.path.iterdir():
        (copy / file.name).hardlink_to(file)
    manifest = copy / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.unlink()
    document["calibration"]["images"] = document["calibration"]["images"][:2]
    every = list(places(document))
    rng = random.Random(start)
    opened = 0
    for number in range(MUTATIONS // 5):
        manifest.write_bytes(
            mutated(document, rng, every[rng.randrange(len(every))], id_of=bundle_id if number % 2 == 0 else None)
        )
        try:
            bundle = Bundle.open(copy)
        except EdgeAdvError as error:
            assert_one_line(error)
            continue
        opened += 1
        ask(bundle)
    # keys that only describe may be anything; most others may not
    assert 10 < opened < MUTATIONS // 10


def test_a_feature_that_is_not_known_is_refused_before_anything_else(rewritten: Callable[..., Path]) -> None:
    assert Bundle.open(rewritten(requires=[])).manifest.requires == ()
    with pytest.raises(
        SchemaError, match=r"manifest\.json requires \['tiles'\], which this edgeadv does not know: update"
    ):
        Bundle.open(rewritten(requires=["tiles"], preprocess="by tiles"))
    with pytest.raises(SchemaError, match="not a complete bundle manifest"):
        Bundle.open(rewritten(requires="tiles"))


def test_two_hashes_of_one_file_are_refused(rewritten: Callable[..., Path], tiny_bundle: Bundle) -> None:
    """Only one of them could be checked."""
    variants = tiny_bundle.manifest.to_json()["variants"]
    variants["fp16"]["file"] = variants["fp32"]["file"]
    with pytest.raises(BundleError, match="a file is named with two hashes"):
        Bundle.open(rewritten(variants=variants))


@pytest.mark.parametrize(
    "change", [{"crop": 0}, {"crop": 2**20}, {"resize": 2}, {"antialias": False}, {"range": [0, 255]}, {"gamma": 2.2}]
)
def test_preprocessing_that_this_version_does_not_know_is_refused(
    rewritten: Callable[..., Path], tiny_bundle: Bundle, change: dict[str, Any]
) -> None:
    with pytest.raises(SchemaError, match=r"\(preprocess.*update edgeadv"):
        Bundle.open(rewritten(preprocess={**tiny_bundle.preprocess.to_json(), **change}))


@pytest.mark.parametrize("change", [{"dtype": "uint8"}, {"layout": "NHWC"}, {"range": [0, 255]}, {"scale": 2}])
def test_an_input_that_this_version_does_not_know_is_refused(
    rewritten: Callable[..., Path], tiny_bundle: Bundle, change: dict[str, Any]
) -> None:
    variants = tiny_bundle.manifest.to_json()["variants"]
    variants["fp32"]["input"] |= change
    with pytest.raises(SchemaError, match=r"\(variants\[...\]\.input"):
        Bundle.open(rewritten(variants=variants))


def test_a_manifest_of_an_older_edgeadv_does_not_list_types(
    rewritten: Callable[..., Path], tiny_bundle: Bundle
) -> None:
    variants = tiny_bundle.manifest.to_json()["variants"]
    for entry in variants.values():
        del entry["compute"]
    bundle = Bundle.open(rewritten(variants=variants))
    assert (bundle.written_in("fp32"), bundle.written_in("fp16")) == ({"Float"}, {"Half"})


def test_golden_frames_that_do_not_fit_the_manifest(rewritten: Callable[..., Path], tiny_bundle: Bundle) -> None:
    preprocess = {**tiny_bundle.preprocess.to_json(), "resize": 16, "crop": 16}
    with pytest.raises(
        BundleError, match=r"golden\.npz does not fit its bundle: 8 frames of 16x16x3 and 10 classes are due"
    ):
        Bundle.open(rewritten(preprocess=preprocess)).golden()
    golden = {**tiny_bundle.manifest.golden.to_json(), "count": 7}
    with pytest.raises(BundleError, match="7 frames of 32x32x3"):
        Bundle.open(rewritten(golden=golden)).golden()


def test_a_bundle_without_weights_says_so(
    rewritten: Callable[..., Path], tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rewritten(requires=["no-weights"])
    manifest = json.loads((folder / "manifest.json").read_text())
    with pytest.raises(SchemaError, match="no-weights, or the other way round"):
        Bundle.open(folder)  # it has them
    del manifest["weights"]
    (folder / "weights.safetensors").unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "bundle_id": bundle_id(manifest)}))
    bundle = Bundle.open(folder)
    ask(bundle)
    assert bundle.manifest.weights is None and "weights.safetensors" not in bundle.files
    assert bundle.weights_sha256 == bundle.artifact_sha256("fp32")
    with pytest.raises(InputError, match="was imported from ONNX and has no PyTorch weights: export the network"):
        _ = bundle.weights_path
    slim = bundle.slim(folder.parent / "slim.edgeadv", variants=["fp32"], weights=True)
    assert (slim.id, slim.variants) == (bundle.id, ("fp32",))
    # a reader of before knows no such feature
    monkeypatch.setattr("edgeadv_runtime.bundle.manifest.FEATURES", frozenset())
    with pytest.raises(SchemaError, match=r"requires \['no-weights'\], which this edgeadv does not know: update"):
        Bundle.open(folder)


def test_weights_that_are_missing_by_mistake(rewritten: Callable[..., Path]) -> None:
    folder = rewritten()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["weights"]
    (folder / "weights.safetensors").unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "bundle_id": bundle_id(manifest)}))
    with pytest.raises(SchemaError, match="lacks no-weights, or the other way round"):
        Bundle.open(folder)


def test_a_graph_of_one_picture_is_asked_once_for_each(rewritten: Callable[..., Path], tiny_bundle: Bundle) -> None:
    variants = tiny_bundle.manifest.to_json()["variants"]
    variants["fp32"]["batch"] = 1
    with pytest.raises(SchemaError, match="fixed-batch"):
        Bundle.open(rewritten(variants=variants))
    with pytest.raises(SchemaError, match="batch"):
        wrong = {**variants, "fp32": {**variants["fp32"], "batch": 2}}
        Bundle.open(rewritten(variants=wrong, requires=["fixed-batch"]))
    bundle = Bundle.open(rewritten(variants=variants, requires=["fixed-batch"]))
    assert bundle.fixed_batch("fp32") and not bundle.fixed_batch("fp16")
    pixels = tiny_bundle.golden().pixels
    asked: list[int] = []
    with OnnxRuntimeBackend(bundle) as single, OnnxRuntimeBackend(tiny_bundle) as free:
        session = single._session

        class Counted:
            def run(self, names: Any, given: Any) -> Any:
                asked.append(len(given["image"]))
                return session.run(names, given)

        single._session = Counted()
        np.testing.assert_allclose(single.infer_pixels(pixels), free.infer_pixels(pixels), rtol=1e-4, atol=1e-5)
    assert asked == [1] * len(pixels)
