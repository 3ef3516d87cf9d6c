"""``edgeadv guard`` as typed, from the export to the page."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from edgeadv.guard_attack import AdaptiveAttack
from edgeadv.runs import write_run
from edgeadv_runtime.bundle import Bundle
from edgeadv_runtime.guard_file import GuardFile


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, digits_model, digits_test) -> Path:
    """A run of the digits, exported with a guard by the command."""
    from edgeadv.cli import main

    folder = tmp_path_factory.mktemp("guard")
    run = write_run(
        folder / "run", digits_model,
        {
            "architecture": digits_model.architecture.to_json(), "preprocess": digits_test.preprocess.to_json(),
            "classes": digits_test.classes.to_json(), "data": {"spec": "mnist5k"}, "title": "digits",
            "recipe": {"recipe": "undefended"},
        },
    )  # fmt: skip
    out = folder / "digits.edgeadv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeadv.runs.Run.load_model", lambda self: digits_model)
        options = ["--confidence-data", "test", "--guard-false-alarms", "0.1", "--guard-squeezers", "bits-1,median-2"]
        assert main(["export", str(run.path), "--precision", "fp32", "--out", str(out), *options]) == 0
    return out


@pytest.fixture
def with_weights(monkeypatch, digits_model):
    """The digits' network is none that a bundle's architecture builds."""
    monkeypatch.setattr("edgeadv.torch_backend.load_model", lambda bundle, device=None: digits_model)
    torch.set_num_threads(1)


def test_a_camera_under_guard_with_a_vote(cli, bundle, digits_test, tmp_path):
    """Digits are recognised; noise, of which the network is not sure, is flagged or unknown."""
    import json

    import numpy as np
    from PIL import Image

    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(8):
        digits_test.image(500).convert("RGB").save(folder / f"a{i}.png")
    options = ("--fps", "200", "--policy", "every", "--guard", "--smooth", "5")
    outcome = cli("camera", bundle, "--source", folder, *options)
    assert outcome.status == 0, outcome.err
    assert "8 frames captured = 8 classified + 0 dropped" in outcome.out
    opened = Bundle.open(bundle)
    from edgeadv_runtime import Classifier, Guard, Smoother
    from edgeadv_runtime.camera import Frame
    from edgeadv_runtime.camera.recognizer import Recognizer

    rng = np.random.default_rng(0)
    threshold = opened.confidence.threshold
    with Classifier.open(bundle) as classifier:
        recognizer = Recognizer(classifier, guard=Guard.of(opened), smoother=Smoother.of(opened, window=5))
        picture = np.asarray(Image.open(folder / "a0.png"))
        seen = [recognizer(Frame(picture, "rgb", 0.0, i)) for i in range(4)]
        assert [one.label is None for one in seen] == [True, False, False, False]
        assert seen[-1].label is not None and seen[-1].label.name == "5" and seen[-1].flagged is False
        noise = [recognizer(Frame(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), "rgb", 0.0, i)) for i in range(6)]
        votes = [one.flagged or one.labels[0].probability < threshold for one in noise]
        assert all(votes), "of noise the network is unsure, or it is flagged"
        # 4 for the digit and 1, 2, 3 against it: then unknown leads by two
        assert [one.label is None for one in noise] == [False, False, False, True, True, True]
        # after an outage nothing of what was before it is shown
        recognizer.restart()
        assert recognizer(Frame(picture, "rgb", 0.0, 0)).smoothed.frames == 1
    without = json.loads((opened.path / "manifest.json").read_text())
    assert "guard" in without and "confidence" in without


@pytest.mark.usefixtures("with_weights")
def test_from_the_bundle_to_the_page(cli, bundle, tmp_path, monkeypatch):
    # what it finds is for other tests: here it only has to run
    monkeypatch.setattr("edgeadv.guard_attack.AdaptiveAttack", partial(AdaptiveAttack, steps=5, restarts=1))
    outcome = cli(
        "guard", bundle, "--data", "mnist5k", "--eps", "0.2", "--limit", 220, "--threads", 1, "--out", "g.json"
    )
    assert outcome.status == 0, outcome.err
    measured = GuardFile.load(tmp_path / "g.json")
    assert [row.attack for row in measured.rows] == ["fgsm", "pgd-ce", "pgd-margin", "adaptive", "worst-case"]
    assert measured.guard == Bundle.open(bundle).manifest["guard"]
    for sentence in (*measured.sentences, "A guard is no robustness"):
        assert sentence in " ".join(outcome.out.split())
    assert "knows the guard" in outcome.out and "10.0% stated" in outcome.out
    # what gets past stands before what is flagged
    assert outcome.out.index("attackers who know the guard") < outcome.out.index("clean images flagged")
    assert cli("report", "g.json", "--out", "page.html").status == 0
    assert measured.sentences[0] in " ".join((tmp_path / "page.html").read_text().split())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--data", "mnist5k", "--eps", "8", "--out", "g.json"], "did you mean 8/255?"),
        (["--data", "mnist5k", "--eps", "0.001", "--out", "g.json"], "less than one grey level"),
        (["--data", "mnist5k", "--eps", "0.1", "--out", "g.json"], "25.5 grey levels"),
        (["--data", "nowhere", "--eps", "26/255", "--out", "g.json"], "neither a folder nor"),
        (["--data", "mnist5k", "--eps", "26/255", "--out", "."], "is a folder"),
        (["--data", "mnist5k", "--eps", "26/255", "--out", "g.json", "--limit", "20"], "100 are"),
        (["--data", "mnist5k", "--eps", "26/255", "--out", "g.json", "--precision", "fp16"], "fp16"),
    ],
)
@pytest.mark.usefixtures("with_weights")
def test_bad_input_is_one_line(cli, bundle, tmp_path, options, text, monkeypatch):
    # before any image is attacked
    monkeypatch.setattr("edgeadv.attacks.suite.GradientAttack.craft", None)
    outcome = cli("guard", bundle, *options)
    assert outcome.status == 2 and text in outcome.err and len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "g.json").exists()


def test_a_bundle_without_a_guard_and_options_without_images(cli, tiny_bundle, tmp_path):
    outcome = cli("guard", tiny_bundle.path, "--data", "mnist5k", "--eps", "26/255", "--out", "g.json")
    assert outcome.status == 2 and "has no guard: export it with --confidence-data" in outcome.err
    export = ("export", tmp_path, "--out", "x.edgeadv")
    # before the run is even opened
    for options, text in (
        (("--guard-squeezers", "bits-5"), "--guard-squeezers needs --confidence-data"),
        (("--guard-false-alarms", "0.05"), "--guard-false-alarms needs --confidence-data"),
    ):
        outcome = cli(*export, *options)
        assert outcome.status == 2 and text in outcome.err
    for options, text in (
        (("--guard-squeezers", "bits-5"), "--guard-squeezers needs --guard-false-alarms"),
        (("--guard-false-alarms", "5"), "--guard-false-alarms is a share of the frames"),
        (("--guard-false-alarms", "0.05", "--guard-squeezers", "blur"), "squeezers are one or more of bits-1"),
    ):
        outcome = cli(*export, "--confidence-data", "test", *options)
        assert outcome.status == 2 and text in outcome.err
