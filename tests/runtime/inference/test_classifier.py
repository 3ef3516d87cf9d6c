"""What an application gets from a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeadv_runtime.backends import OnnxRuntimeBackend
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.variants import S8S8, U8S8, int8_variant
from edgeadv_runtime.errors import BackendError, BundleError, InputError, IntegrityError
from edgeadv_runtime.files import sha256_file
from edgeadv_runtime.inference.classifier import Classifier, Label

Frames = list[NDArray[np.uint8]]


@pytest.fixture
def classifier(tiny_bundle: Bundle) -> Classifier:
    return Classifier.open(tiny_bundle.path, variant="fp32", threads=1)


def expected(bundle: Bundle, frame: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ranked classes and probabilities straight from ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(bundle.onnx_path("fp32")), providers=["CPUExecutionProvider"])
    image = Image.fromarray(frame)
    short = min(image.size)
    image = image.resize(
        tuple(32 if s == short else int(32 * s / short) for s in image.size), Image.Resampling.BILINEAR
    )
    left, top = round((image.width - 32) / 2), round((image.height - 32) / 2)
    x = np.asarray(image.crop((left, top, left + 32, top + 32)), dtype=np.float32).transpose(2, 0, 1)[None] / 255
    logits = session.run(["logits"], {"image": x})[0][0].astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order: NDArray[np.int64] = np.argsort(-probabilities)
    return order, probabilities[order]


def test_labels_are_those_of_the_onnx_file(classifier: Classifier, tiny_bundle: Bundle, photographs: Frames) -> None:
    for frame in photographs[:4]:
        order, probabilities = expected(tiny_bundle, frame)
        labels = classifier.classify(frame, color_order="rgb")
        assert [label.index for label in labels] == order[:5].tolist()
        np.testing.assert_allclose([label.probability for label in labels], probabilities[:5], rtol=1e-3)


def test_a_label_has_its_classs_id_and_name(classifier: Classifier, photographs: Frames) -> None:
    labels = classifier.classify(photographs[0], color_order="rgb", top=10)
    assert sorted(label.index for label in labels) == list(range(10))
    for label in labels:
        assert label == Label(label.index, f"n{label.index:04d}", f"class {label.index}", label.probability)
    assert sum(label.probability for label in labels) == pytest.approx(1)
    assert [label.probability for label in labels] == sorted((label.probability for label in labels), reverse=True)


@pytest.mark.parametrize(("top", "given"), [(1, 1), (3, 3), (10, 10), (1000, 10)])
def test_as_many_labels_as_asked_for(classifier: Classifier, photographs: Frames, top: int, given: int) -> None:
    assert len(classifier.classify(photographs[0], color_order="rgb", top=top)) == given


@pytest.mark.parametrize("top", [1, 5, 16, 17, 40, 100])
def test_labels_come_in_the_order_of_a_stable_sort(
    rewritten: Callable[..., Path], tiny_bundle: Bundle, top: int
) -> None:
    names = [str(i) for i in range(40)]
    architecture = tiny_bundle.manifest.to_json()["architecture"] | {"num_classes": 40}
    classes = [{"id": name, "name": name} for name in names]
    bundle = Bundle.open(rewritten(classes=classes, architecture=architecture))
    rng = np.random.default_rng(top)
    with OnnxRuntimeBackend(bundle, threads=1) as backend:
        for _ in range(20):
            logits = rng.integers(-6, 6, 40).astype(np.float32)  # with many ties
            before = logits.copy()
            found = [label.index for label in Classifier(bundle, backend).rank(logits, top=top)]
            assert found == np.argsort(-logits, kind="stable")[:top].tolist()
            assert np.array_equal(logits, before)


def test_at_least_one_label(classifier: Classifier, photographs: Frames) -> None:
    for top in (0, -1):
        with pytest.raises(InputError, match="top must be at least 1"):
            classifier.classify(photographs[0], color_order="rgb", top=top)


def test_colour_order_is_heeded(classifier: Classifier, photographs: Frames) -> None:
    frame = photographs[1]
    rgb = classifier.classify(frame, color_order="rgb", top=10)
    assert classifier.classify(np.ascontiguousarray(frame[..., ::-1]), color_order="bgr", top=10) == rgb
    assert classifier.classify(Image.fromarray(frame), top=10) == rgb
    # the pictures are not grey: the wrong order is another picture
    assert classifier.classify(frame, color_order="bgr", top=10) != rgb


def test_colour_order_must_be_stated(classifier: Classifier, photographs: Frames) -> None:
    with pytest.raises(InputError, match="state the colour order"):
        classifier.classify(photographs[0])


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((40, 40), np.uint8),
        np.zeros((40, 40, 4), np.uint8),
        np.zeros((40, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(classifier: Classifier, frame: NDArray[np.uint8]) -> None:
    with pytest.raises(InputError, match="frame array is uint8"):
        classifier.classify(frame, color_order="rgb")


def test_the_frame_is_left_as_it_is(classifier: Classifier, photographs: Frames) -> None:
    frame = photographs[2].copy()
    frame.flags.writeable = False
    classifier.classify(frame, color_order="bgr")
    np.testing.assert_array_equal(frame, photographs[2])


def test_many_threads_get_their_own_answers(classifier: Classifier, photographs: Frames) -> None:
    alone = [classifier.classify(frame, color_order="rgb", top=10) for frame in photographs]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda i: classifier.classify(photographs[i % 12], color_order="rgb", top=10), range(48))
        )
    for i, labels in enumerate(together):
        assert labels == alone[i % 12]


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_ten_thousand_frames_from_four_threads(tiny_bundle: Bundle, photographs: Frames, shared: bool) -> None:
    """With one classifier for all, and with one for each."""
    classifiers = [Classifier.open(tiny_bundle.path, threads=1) for _ in range(1 if shared else 4)]
    alone = [[label.index for label in classifiers[0].classify(frame, color_order="rgb")] for frame in photographs]

    def work(number: int) -> list[int]:
        own = classifiers[number % len(classifiers)]
        wrong = []
        for i in range(number, 10_000, 4):
            labels = own.classify(photographs[i % 12], color_order="rgb")
            if [label.index for label in labels] != alone[i % 12]:
                wrong.append(i)
        return wrong

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[], [], [], []]
    for classifier in classifiers:
        classifier.close()


def test_preprocessed_pixels_give_the_same_labels(classifier: Classifier, photographs: Frames) -> None:
    for frame in photographs:
        pixels = classifier.bundle.preprocess(frame, color_order="rgb")
        assert classifier.classify_pixels(pixels) == classifier.classify(frame, color_order="rgb")
    for wrong in (photographs[0], pixels.astype(np.float32), pixels[:31], pixels[None]):
        with pytest.raises(InputError, match="a batch is uint8 of shape"):
            classifier.classify_pixels(wrong)


def test_the_first_variant_is_taken_where_none_is_named(tiny_bundle: Bundle) -> None:
    with Classifier.open(tiny_bundle.path) as classifier:
        assert classifier.backend.variant == "fp32"
        assert classifier.bundle.id == tiny_bundle.id


def test_threads_sleep_between_frames_unless_told_otherwise(tiny_bundle):
    with (
        Classifier.open(tiny_bundle.path, variant="fp32", threads=2) as sleeping,
        Classifier.open(tiny_bundle.path, variant="fp32", threads=2, spin=True) as spinning,
    ):
        assert (sleeping.backend.spin, spinning.backend.spin) == (False, True)


def test_a_slim_bundle_without_fp32_runs_what_it_has(tiny_bundle: Bundle, tmp_path: Path, photographs: Frames) -> None:
    slim = tiny_bundle.slim(tmp_path / "slim.edgeadv", variants=["fp16"], weights=False)
    with Classifier.open(slim.path) as classifier, Classifier.open(tiny_bundle.path, variant="fp16") as full:
        assert classifier.backend.variant == "fp16"
        assert classifier.classify(photographs[0], color_order="rgb") == full.classify(
            photographs[0], color_order="rgb"
        )
    with pytest.raises(InputError, match="no variant 'fp32'"):
        Classifier.open(slim.path, variant="fp32")


def test_int8_is_the_variant_that_is_right_here(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no variant '{int8_variant('onnxruntime')}'"):
        Classifier.open(tiny_bundle.path, variant="int8")
    folder = Path(shutil.copytree(tiny_bundle.path, tmp_path / "int8.edgeadv"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for variant in (S8S8, U8S8):  # which file is opened is asked here, not what is in it
        name = f"model.{variant}.onnx"
        shutil.copyfile(folder / "model.fp32.onnx", folder / name)
        manifest["variants"][variant] = manifest["variants"]["fp32"] | {"file": name}
    manifest["bundle_id"] = bundle_id(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with Classifier.open(folder, variant="int8", threads=1) as classifier:
        assert classifier.backend.variant == int8_variant("onnxruntime", provider="cpu")


def test_the_signature_is_checked(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no public key there"):
        Classifier.open(tiny_bundle.path, public_key=tmp_path / "missing.pem")


def test_the_expected_manifest_is_checked(tiny_bundle: Bundle) -> None:
    digest = sha256_file(tiny_bundle.path / "manifest.json")
    Classifier.open(tiny_bundle.path, expected_sha256=digest).close()
    with pytest.raises(IntegrityError):
        Classifier.open(tiny_bundle.path, expected_sha256="0" * 64)


def test_there_must_be_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Classifier.open(tmp_path / "nothing")


def test_closing_closes_the_backend(tiny_bundle: Bundle, photographs: Frames) -> None:
    backend = OnnxRuntimeBackend(tiny_bundle, variant="fp32", threads=1)
    with Classifier(tiny_bundle, backend) as classifier:
        assert len(classifier.classify(photographs[0], color_order="rgb")) == 5
    classifier.close()
    with pytest.raises(BackendError, match="closed"):
        classifier.classify(photographs[0], color_order="rgb")
    with pytest.raises(BackendError, match="closed"):
        backend.infer(np.zeros((1, 3, 32, 32), np.float32))


# ---- with pixels


def test_no_float_tensor_is_made_of_pixels(digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = digits_bundle.golden().frames[0]
    with Classifier.open(digits_bundle.path, variant="fp32", threads=1) as floats:
        expected = floats.classify(frame, color_order="rgb", top=10)
    seen: list[NDArray[np.uint8]] = []
    infer = OnnxRuntimeBackend._infer
    monkeypatch.setattr(OnnxRuntimeBackend, "_infer", lambda self, x: (seen.append(x), infer(self, x))[1])
    monkeypatch.setattr("edgeadv_runtime.backends.base.to_tensor", None)  # whoever calls it fails
    monkeypatch.setattr("edgeadv_runtime.backends.base.to_pixels", None)
    with Classifier.open(digits_bundle.path, variant="fp32-u8in", threads=1) as classifier:
        assert classifier.classify(frame, color_order="rgb", top=10) == expected
    (pixels,) = seen
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 32, 32, 3)


def test_int8_with_pixels_is_the_one_for_this_processor(digits_bundle: Bundle) -> None:
    right = int8_variant("onnxruntime")
    with Classifier.open(digits_bundle.path, variant="int8-u8in", threads=1) as classifier:
        assert classifier.backend.variant == f"{right}-u8in"


@pytest.mark.parametrize(
    ("variants", "opened"),
    [
        (["fp32-u8in"], "fp32-u8in"),
        (["int8-s8s8-u8in", "int8-u8s8-u8in"], f"{int8_variant('onnxruntime')}-u8in"),
        (["int8-s8s8", "int8-u8s8-u8in"], "int8-s8s8"),
        (["int8-u8s8-u8in"], "int8-u8s8-u8in"),
    ],
)
def test_without_a_name_it_is_one_that_is_there(
    digits_bundle: Bundle, tmp_path: Path, variants: list[str], opened: str
) -> None:
    slim = digits_bundle.slim(tmp_path / "slim", variants=variants, weights=False)
    with Classifier.open(slim.path, threads=1) as classifier:
        assert classifier.backend.variant == opened
