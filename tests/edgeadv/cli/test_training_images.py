"""A network is not evaluated on what it was trained on, whatever the folder is called, unless one insists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeadv.data.datasets import ImageSet, batches
from edgeadv_runtime.attacks.pack import AttackPack
from edgeadv_runtime.bundle.bundle import Bundle
from edgeadv_runtime.bundle.manifest import bundle_id
from edgeadv_runtime.bundle.training_images import TRAINING_FILE
from edgeadv_runtime.files import sha256_bytes
from edgeadv_runtime.records.results import Results

NETWORK = ("--arch", "timm/test_resnet")
CRAFT = ("--eps", "8/255", "--attack", "fgsm")
TRAINED_ON = 256
Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def run_on_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 256 of the embedded digits, made by the command. Shared."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("runs") / "run"
    options = ["--limit", str(TRAINED_ON), "--epochs", "1", "--out", str(out)]
    assert main(["train", "--data", "mnist5k", *NETWORK, *options]) == 0
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run_on_digits: Path) -> Path:
    """The run, exported. Shared."""
    from edgeadv.cli import main

    out = tmp_path_factory.mktemp("bundle") / "digits.edgeadv"
    assert main(["export", str(run_on_digits), "--precision", "fp32", "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(tmp_path: Path, bundle: Path, digits_train: ImageSet, digits_test: ImageSet) -> Folder:
    """Makes class folders of PNGs: so many that the network was trained on, and so many of the test part."""
    known = Bundle.open(bundle).training_images
    assert known is not None
    (every,) = batches(digits_train, digits_train.preprocess, batch_size=len(digits_train))
    trained_on = [i for i, pixels in enumerate(every.pixels) if known.count([sha256_bytes(pixels.tobytes())])]
    assert len(trained_on) == TRAINED_ON

    def make(name: str, *, train: int = 0, test: int = 0) -> Path:
        rng = np.random.default_rng(0)
        chosen = [(digits_train, i) for i in rng.permutation(trained_on)[:train]]
        chosen += [(digits_test, i) for i in rng.permutation(len(digits_test))[:test]]
        for number, (images, i) in enumerate(chosen):
            home = tmp_path / name / str(images.labels[i])
            home.mkdir(parents=True, exist_ok=True)
            images.image(int(i)).save(home / f"IMG_{number:04d}.png")
        return tmp_path / name

    return make


def refusal(err: str) -> str:
    *_, line = err.splitlines()  # what was found of pictures may stand before it
    return line


def without_list(bundle: Path, out: Path) -> Path:
    """The bundle as an edgeadv made it that kept no list."""
    shutil.copytree(bundle, out)
    (out / TRAINING_FILE).unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["training_images"]
    (out / "manifest.json").write_text(json.dumps({**manifest, "bundle_id": bundle_id(manifest)}))
    return out


def test_export_hands_the_list_on(bundle: Path, cli: Any) -> None:
    opened = Bundle.open(bundle)
    assert opened.manifest.training_images.count == TRAINED_ON
    assert (bundle / TRAINING_FILE).stat().st_size == TRAINED_ON * 8 + 128
    shown = cli("bundle", "show", bundle)
    assert "training images    256, known by hash" in shown.out


def test_training_images_under_another_name_are_refused(cli: Any, bundle: Path, folder: Folder, tmp_path: Path) -> None:
    data = folder("holiday", train=80, test=20)
    before = sorted(tmp_path.iterdir())
    evaluated = cli("evaluate", bundle, "--data", data, *CRAFT, "--out", "r.json")
    assert (evaluated.status, evaluated.out) == (2, "")
    assert "holiday: 80 of 100 images were trained on" in refusal(evaluated.err)
    assert "--allow-training-images" in evaluated.err
    attacked = cli("attack", bundle, "--data", data, *CRAFT, "--out", "p")
    assert (attacked.status, attacked.out) == (2, "")
    assert "holiday: 80 of 100 images were trained on" in refusal(attacked.err)
    assert sorted(tmp_path.iterdir()) == before


def test_the_training_part_of_a_data_set_is_refused_by_its_images(cli: Any, bundle: Path, folder: Folder) -> None:
    """As ``--data digits/train`` names it; of a limit of images only these are looked at."""
    data = folder("digits/train", train=50, test=50)
    refused = cli("evaluate", bundle, "--data", data, "--limit", "40", *CRAFT, "--out", "r.json")
    assert refused.status == 2 and " of 40 images were trained on" in refusal(refused.err)


def test_with_the_option_every_row_is_marked(cli: Any, bundle: Path, folder: Folder) -> None:
    data = folder("holiday", train=80, test=20)
    outcome = cli(
        "evaluate", bundle, "--data", data, *CRAFT, "--backend", "all", "--out", "r.json", "--allow-training-images"
    )
    assert outcome.status == 0, outcome.err
    assert "80 of 100 images were trained on: these figures flatter" in outcome.out.splitlines()
    results = Results.load("r.json")
    assert results.data.training_images == 80 and results.data.allow_training_images is True
    assert len(results.rows) == 6 and {row.training_images for row in results.rows} == {80}
    assert {row["training_images"] for row in json.loads(Path("r.json").read_text())["rows"]} == {80}


def test_test_images_pass_and_the_count_is_none(cli: Any, bundle: Path) -> None:
    outcome = cli("evaluate", bundle, "--data", "mnist5k", "--limit", "100", *CRAFT, "--out", "r.json")
    assert outcome.status == 0, outcome.err
    assert "trained on" not in outcome.out
    results = Results.load("r.json")
    assert (results.data.training_images, results.data.allow_training_images) == (0, False)
    assert {row.training_images for row in results.rows} == {0}


def test_one_in_a_hundred_passes_and_is_counted(cli: Any, bundle: Path, folder: Folder) -> None:
    passed = cli("evaluate", bundle, "--data", folder("a", train=1, test=99), *CRAFT, "--out", "r.json")
    assert passed.status == 0, passed.err
    assert "1 of 100 images were trained on" in passed.out.splitlines() and "flatter" not in passed.out
    assert Results.load("r.json").data.training_images == 1
    above = cli("evaluate", bundle, "--data", folder("b", train=2, test=197), *CRAFT, "--out", "s.json")
    assert above.status == 2 and "2 of 199 images were trained on" in refusal(above.err)


def test_images_that_cannot_be_read_are_no_excuse(cli: Any, bundle: Path, folder: Folder) -> None:
    data = folder("holiday", train=3, test=97)
    (next(data.rglob("*.png")).parent / "broken.png").write_bytes(b"no picture")
    refused = cli("evaluate", bundle, "--data", data, *CRAFT, "--out", "r.json", "--workers", "1")
    assert refused.status == 2 and "3 of 100 images were trained on" in refusal(refused.err)


# packs


def test_a_pack_says_what_it_was_allowed_and_evaluation_takes_it_over(cli: Any, bundle: Path, folder: Folder) -> None:
    data = folder("holiday", train=80, test=20)
    made = cli("attack", bundle, "--data", data, *CRAFT, "--out", "p", "--allow-training-images")
    assert made.status == 0, made.err
    assert "80 of 100 images were trained on: these figures flatter" in made.out.splitlines()
    told = json.loads(Path("p/pack.json").read_text())["data"]
    assert (told["training_images"], told["allow_training_images"]) == (80, True)
    scored = cli("evaluate", bundle, "--pack", "p", "--out", "r.json")
    assert scored.status == 0, scored.err
    assert "80 of 100 images were trained on: these figures flatter" in scored.out.splitlines()
    assert {row.training_images for row in Results.load("r.json").rows} == {80}
    # a copy of the bundle that does not know believes the pack
    old = without_list(bundle, Path("old.edgeadv"))
    believed = cli("evaluate", old, "--pack", "p", "--out", "s.json")
    assert believed.status == 0, believed.err
    assert {row.training_images for row in Results.load("s.json").rows} == {80}


def test_the_pixels_of_a_pack_are_looked_at_whatever_it_says(cli: Any, bundle: Path, folder: Folder) -> None:
    old = without_list(bundle, Path("old.edgeadv"))
    made = cli("attack", old, "--data", folder("holiday", train=80, test=20), *CRAFT, "--out", "p")
    assert made.status == 0, made.err
    assert json.loads(Path("p/pack.json").read_text())["data"]["training_images"] is None
    before = {file.name: file.read_bytes() for file in Path("p").iterdir()}
    refused = cli("evaluate", bundle, "--pack", "p", "--out", "r.json")
    assert refused.status == 2 and "p: 80 of 100 images were trained on" in refusal(refused.err)
    assert not Path("r.json").exists() and not Path("r.json.partial").exists()
    assert {file.name: file.read_bytes() for file in Path("p").iterdir()} == before
    allowed = cli("evaluate", bundle, "--pack", "p", "--out", "r.json", "--allow-training-images")
    assert allowed.status == 0, allowed.err
    assert {row.training_images for row in Results.load("r.json").rows} == {80}


def test_a_pack_of_an_older_edgeadv_opens(cli: Any, bundle: Path) -> None:
    assert cli("attack", bundle, "--data", "mnist5k", "--limit", "100", *CRAFT, "--out", "p").status == 0
    manifest = json.loads(Path("p/pack.json").read_text())
    assert manifest["data"]["training_images"] == 0
    manifest["data"]["training_images"] = "many"
    Path("p/pack.json").write_text(json.dumps(manifest))
    damaged = cli("evaluate", bundle, "--pack", "p", "--out", "r.json")
    assert damaged.status == 2 and "pack.json is not a complete attack pack (data.training_images" in refusal(
        damaged.err
    )
    for key in ("training_images", "allow_training_images"):
        del manifest["data"][key]
    Path("p/pack.json").write_text(json.dumps(manifest))
    opened = AttackPack.open("p", bundle=Bundle.open(bundle))
    assert (opened.data.training_images, opened.data.allow_training_images) == (None, False)
    assert cli("evaluate", bundle, "--pack", "p", "--out", "r.json").status == 0
    assert Results.load("r.json").data.training_images == 0


def test_a_slim_copy_knows_too(cli: Any, bundle: Path, folder: Folder) -> None:
    data = folder("holiday", train=80, test=20)
    assert cli("attack", bundle, "--data", data, *CRAFT, "--out", "p", "--allow-training-images").status == 0
    manifest = json.loads(Path("p/pack.json").read_text())
    manifest["data"] |= {"training_images": 0, "allow_training_images": False}
    Path("p/pack.json").write_text(json.dumps(manifest))
    assert cli("bundle", "slim", bundle, "--variant", "fp32", "--out", "slim.edgeadv").status == 0
    refused = cli("evaluate", "slim.edgeadv", "--pack", "p", "--out", "r.json")
    assert refused.status == 2 and "80 of 100 images were trained on" in refusal(refused.err)


# what is interrupted, and what is not known


def test_an_evaluation_goes_on_only_with_the_permission_that_it_began_with(
    cli: Any, bundle: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeadv_runtime.evaluation.outcomes import OutcomeStore

    data = folder("holiday", train=100, test=50)
    command = ("evaluate", bundle, "--data", data, *CRAFT, "--out")
    assert cli(*command, "whole.json", "--allow-training-images").status == 0
    put = OutcomeStore.put

    def one_only(self: OutcomeStore, number: int, outcome: object) -> None:
        if number == 1:
            raise KeyboardInterrupt
        put(self, number, outcome)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(OutcomeStore, "put", one_only)
        assert cli(*command, "r.json", "--allow-training-images").status == 130
    kept = {file.name: file.read_bytes() for file in Path("r.json.partial").iterdir()}
    assert "batch-000000.npz" in kept
    refused = cli(*command, "r.json", "--resume")
    assert refused.status == 2 and "100 of 150 images were trained on" in refusal(refused.err)
    assert {file.name: file.read_bytes() for file in Path("r.json.partial").iterdir()} == kept
    resumed = cli(*command, "r.json", "--resume", "--allow-training-images")
    assert resumed.status == 0, resumed.err
    whole, ours = Results.load("whole.json"), Results.load("r.json")
    assert whole.rows == ours.rows and whole.data == ours.data


def test_an_older_bundle_does_not_know_and_says_so(cli: Any, bundle: Path, folder: Folder) -> None:
    old = without_list(bundle, Path("old.edgeadv"))
    outcome = cli("evaluate", old, "--data", folder("holiday", train=80, test=20), *CRAFT, "--out", "r.json")
    assert outcome.status == 0, outcome.err
    assert "whether the images were trained on is not known" in outcome.out
    results = Results.load("r.json")
    assert results.data.training_images is None and {row.training_images for row in results.rows} == {None}
    assert "training images    not known" in cli("bundle", "show", old).out


def test_a_network_without_a_run_is_told(cli: Any, run_on_digits: Path, folder: Folder, tmp_path: Path) -> None:
    data = folder("seen", train=80)
    (tmp_path / "classes.tsv").write_text("".join(f"{i}\t{i}\n" for i in range(10)))
    export = (
        "export",
        *NETWORK,
        "--weights",
        run_on_digits / "weights.safetensors",
        "--classes",
        "classes.tsv",
        "--preprocess",
        "resize=32,crop=32",
        "--golden",
        data,
        "--precision",
        "fp32",
        "--out",
    )
    untold = cli(*export, "a.edgeadv")
    assert untold.status == 0, untold.err
    assert "training images    not known, so evaluate cannot tell them: see export --training-data" in untold.out
    told = cli(*export, "b.edgeadv", "--training-data", data)
    assert told.status == 0, told.err
    assert "training images    80, known by hash" in told.out
    refused = cli("evaluate", "b.edgeadv", "--data", data, *CRAFT, "--out", "r.json")
    assert refused.status == 2 and "80 of 80 images were trained on" in refusal(refused.err)
    for spec, said in (("nowhere", "neither a folder nor one of"), ("classes.tsv", "neither a folder nor one of")):
        wrong = cli(*export, "c.edgeadv", "--training-data", spec)
        assert wrong.status == 2 and said in refusal(wrong.err)
    assert not Path("c.edgeadv").exists()


def test_more_can_be_told_than_the_run_knows(cli: Any, run_on_digits: Path, folder: Folder) -> None:
    export = ("export", run_on_digits, "--precision", "fp32", "--training-data", folder("more", train=5, test=20))
    outcome = cli(*export, "--out", "x.edgeadv")
    assert outcome.status == 0, outcome.err
    assert Bundle.open("x.edgeadv").manifest.training_images.count == TRAINED_ON + 20
