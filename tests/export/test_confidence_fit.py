"""Temperature and threshold at export, with a network that has learned digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeadv.cli import main
from edgeadv.data.datasets import balanced_subset, batches
from edgeadv.training.runs import write_run
from edgeadv_export import ConfidencePlan, Origin, confidence_images, data_frames, export_bundle
from edgeadv_runtime.bundle.bundle import Bundle, Classes
from edgeadv_runtime.bundle.confidence import ece, first_is_right, nll, reliability, softmax
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.camera import Frame
from edgeadv_runtime.camera.recognizer import Recognizer
from edgeadv_runtime.errors import DataError, InputError
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.inference.classifier import Classifier
from edgeadv_runtime.inference.smoothing import Smoother


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, digits_model, digits_test) -> Bundle:
    """The digits with a temperature of all their test images."""
    images, order = confidence_images("mnist5k", digits_test.classes)
    return export_bundle(
        digits_model,
        tmp_path_factory.mktemp("calibrated") / "digits.edgeadv",
        classes=digits_test.classes,
        preprocess=digits_test.preprocess,
        frames=data_frames(digits_test),
        variants=["fp32"],
        origin=Origin(title="digits", provenance={}),
        confidence=ConfidencePlan(images=images, order=order, coverage=0.9),
    )


def test_half_is_fitted_on_and_the_other_half_measured(calibrated, digits_model, digits_test):
    entry = calibrated.manifest.confidence.to_json()
    everything = next(batches(digits_test, digits_test.preprocess, batch_size=1000))
    hashes = [sha256_bytes(pixels.tobytes()) for pixels in everything.pixels]
    fitted = np.array([h in set(entry["images"]) for h in hashes])
    assert entry["n"] == fitted.sum() == 500 and entry["n_held_out"] == 500
    # blindly halved: within five standard deviations of 50 of each 100
    assert np.abs(np.bincount(everything.labels[fitted]) - 50).max() < 25
    with torch.no_grad():
        logits = digits_model(torch.from_numpy(to_tensor(everything.pixels))).numpy()
    t, labels = entry["temperature"], everything.labels
    for beside in (0.98, 1.02):
        assert nll(logits[fitted], labels[fitted], temperature=t) < nll(
            logits[fitted], labels[fitted], temperature=t * beside
        )
    other, right = logits[~fitted], first_is_right(logits[~fitted], labels[~fitted])
    for when, at in (("before", 1.0), ("after", t)):
        said = softmax(other, temperature=at).max(axis=1)
        assert entry[f"ece_{when}"] == pytest.approx(ece(reliability(said, right)), abs=1e-4)
        assert entry[f"nll_{when}"] == pytest.approx(nll(other, labels[~fitted], temperature=at), abs=1e-4)
    rejection = entry["rejection"]
    answered = softmax(other, temperature=t).max(axis=1) >= rejection["threshold"]
    assert rejection["answered"] == pytest.approx(answered.sum(), abs=1) and rejection["coverage"] == 0.9
    assert rejection["wrong"] == (~right).sum() and rejection["wrong_answered"] <= rejection["wrong"]
    # on other images of the same kind the coverage is what it was set for, within four standard errors of both halves
    assert abs(rejection["answered"] / 500 - 0.9) < 4 * (0.9 * 0.1 * (1 / 500 + 1 / 500)) ** 0.5


def test_the_command_says_it_and_needs_images_for_it(tmp_path, digits_model, digits_test, cli_run, capsys):
    out = tmp_path / "x.edgeadv"
    arguments = ["export", str(cli_run), "--precision", "fp32", "--out", str(out)]
    assert main([*arguments, "--confidence-data", "test", "--confidence-limit", "400", "--coverage", "0.8"]) == 0
    told = capsys.readouterr()
    assert "confidence         temperature" in told.out and "half of 400 images of mnist5k" in told.err
    entry = Bundle.open(out).manifest.confidence.to_json()
    assert (entry["n"], entry["n_held_out"], entry["rejection"]["coverage"]) == (200, 200, 0.8)
    assert entry["data"]["name"] == "mnist5k" and entry["data"]["split"] == "test"
    # not those that --limit takes by itself
    limited = set(balanced_subset(digits_test.labels, 400).tolist())
    assert set(confidence_images("mnist5k", digits_test.classes, limit=400)[1].tolist()) != limited
    for wrong, text in (
        (["--coverage", "0.8"], "--coverage needs --confidence-data"),
        (["--confidence-data", "test", "--coverage", "1.5"], "--coverage is a share"),
        (["--confidence-data", "test", "--confidence-limit", "0"], "--confidence-limit must be at least 1"),
        (["--confidence-data", "test", "--confidence-limit", "150"], "150 labelled images are too few"),
        (["--confidence-data", "nowhere"], "neither a folder nor"),
    ):
        before = (out / "manifest.json").read_bytes()
        assert main([*arguments[:-1], str(tmp_path / "y.edgeadv"), *wrong]) == 2
        err = capsys.readouterr().err.strip()
        assert text in err.splitlines()[-1] and not (tmp_path / "y.edgeadv").exists()
        assert (out / "manifest.json").read_bytes() == before


def test_a_rare_class_is_fitted_on_and_measured(digits_model, digits_test):
    """Half of it each, as of the others."""
    rare = np.flatnonzero(digits_test.labels == 8)[:24]
    order = np.sort(np.concatenate([rare, np.flatnonzero(digits_test.labels < 5)]))
    fit, held_out, unreadable = ConfidencePlan(images=digits_test, order=order)._halves(digits_test.preprocess)
    assert not unreadable and len(fit.labels) + len(held_out.labels) == len(order)
    assert 3 <= (fit.labels == 8).sum() <= 21 and (fit.labels == 8).sum() + (held_out.labels == 8).sum() == 24


@pytest.fixture
def cli_run(tmp_path, digits_model, digits_test, monkeypatch):
    """A run whose model is the digits'; its class is not one that a run's architecture builds."""
    run = write_run(
        tmp_path / "run",
        digits_model,
        {
            "architecture": digits_model.architecture.to_json() | {"name": "test_resnet"},
            "preprocess": digits_test.preprocess.to_json(),
            "classes": digits_test.classes.to_json(),
            "data": {"spec": "mnist5k"},
            "title": "digits",
            "recipe": {"recipe": "undefended"},
            "stages": [
                {
                    "epochs": [{"loss": 0.5}],
                    "test_accuracy": 0.5,
                    "test_accuracy_ci95": [0.4, 0.6],
                    "test_images": 100,
                    "unreadable": [],
                }
            ],
        },
    )
    monkeypatch.setattr("edgeadv.training.runs.Run.load_model", lambda self: digits_model)
    return run.path


def test_a_camera_votes_and_forgets_after_an_outage(calibrated, digits_test):
    five, nought = (np.asarray(digits_test.image(i).convert("RGB")) for i in (500, 0))
    with Classifier.open(calibrated.path) as classifier:
        recognizer = Recognizer(classifier, smoother=Smoother.of(calibrated, window=5))

        def shown(pixels: np.ndarray) -> str | None:
            label = recognizer(Frame(pixels, "rgb", 0.0, 0)).label
            return None if label is None else label.name

        # two votes more than any other answer
        assert [shown(five) for _ in range(4)] == [None, "5", "5", "5"]
        assert [shown(nought) for _ in range(4)] == ["5", "5", "5", "0"]
        recognizer.restart()
        assert [shown(five) for _ in range(2)] == [None, "5"]


def test_the_camera_command_votes(calibrated, digits_test, tmp_path, capsys):
    for i in range(8):
        digits_test.image(500).convert("RGB").save(tmp_path / f"{i}.png")
    assert main(["camera", str(calibrated.path), "--source", str(tmp_path), "--policy", "every", "--smooth", "5"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("last: 5 ") and "8 frames captured = 8 classified + 0 dropped" in told


def test_training_images_and_a_missing_run_are_refused(tmp_path, digits_test):
    with pytest.raises(InputError, match="test images of a run, and there is none"):
        confidence_images("test", digits_test.classes)
    for class_id in "01":
        (tmp_path / "train" / class_id).mkdir(parents=True)
        digits_test.image(0).save(tmp_path / "train" / class_id / "0.png")
    with pytest.raises(InputError, match="holds training images"):
        confidence_images(str(tmp_path / "train"), digits_test.classes)
    with pytest.raises(DataError, match="does not know"):
        confidence_images("mnist5k", Classes(("a", "b"), ("a", "b")))
