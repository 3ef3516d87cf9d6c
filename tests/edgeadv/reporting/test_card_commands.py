"""The commands of a card: they take what was recorded, and do again what was done."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from edgeadv.cli import subcommand
from edgeadv.reporting.card_commands import OPTIONS
from edgeadv.training.recipes import DEFAULTS, _student_objective
from edgeadv.workflows.reporting import card
from edgeadv.workflows.training import DISTILL_RECIPES, TRAIN_RECIPES, RecipeOptions, TrainConfig, _defence
from edgeadv_runtime import Bundle, Eps
from edgeadv_runtime.records.card import Card
from tests.edgeadv.reporting.cards import Measured, command, measure

NEW = {"schedule": "cosine", "ema": 0.99, "no_mirror": True, "holdout_list": "tracks.txt", "lr": 0.1, "seed": 3}


def lines(made: Card) -> dict[str, str]:
    """The commands of a card by name."""
    return {line.split()[1]: line for each in made.commands for line in each.lines}


def parsed(line: str) -> dict[str, Any]:
    """What the command line takes of a command."""
    _, name, *words = shlex.split(line, comments=True)
    found: dict[str, Any] = subcommand(name).make_context(name, words).params
    return found


def settings(recipe: str) -> dict[str, Any]:
    """What a run keeps of a recipe that was given other settings than its own."""
    if recipe in DISTILL_RECIPES:
        of_eps = Eps.parse("6/255") if recipe in ("ard", "rslad") else None
        alpha = None if DEFAULTS[recipe][1] is None else 0.25
        objective = _student_objective(recipe, 7.0, alpha, of_eps, 3)  # type: ignore[arg-type]
        return {"recipe": recipe, **objective(nn.Identity()).to_json()}
    taken = {"steps": 3, "beta": 2.5, "label_smoothing": 0.1}
    options = RecipeOptions(**{name: value for name, value in taken.items() if name in OPTIONS[recipe]})
    defence = _defence(recipe, None if recipe == "undefended" else "6/255", options)
    return {"recipe": recipe, **({} if defence is None else defence.to_json())}


def test_every_recipe_is_known() -> None:
    assert OPTIONS.keys() == {*TRAIN_RECIPES, *DISTILL_RECIPES}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, photos: Path) -> Measured:
    options = ("--eps", "8/255", "--attack", "fgsm", "--limit", "20", "--precision", "fp32")
    return measure(tiny_bundle.path, tmp_path_factory.mktemp("tiny"), "--data", photos, *options)


def card_of(bundle: Path, tiny: Measured, folder: Path) -> Card:
    """The card of a bundle with the files of ``tiny`` whose manifest says something else."""
    value = json.loads(tiny.results.read_text(encoding="utf-8"))
    value["bundle"]["id"] = Bundle.open(bundle).id
    (folder / "results.json").write_text(json.dumps(value))
    return card(folder / "results.json", bundle)


@pytest.mark.parametrize("recipe", [*TRAIN_RECIPES, *DISTILL_RECIPES])
def test_the_training_of_every_recipe_is_repeated(
    recipe: str, rewritten: Callable[..., Path], tiny: Measured, tmp_path: Path
) -> None:
    about = settings(recipe)
    if recipe in TRAIN_RECIPES:
        about |= {"start_weights": "weights.safetensors", "weights_map": "by-name"}
    config = {**vars(TrainConfig()), **NEW}
    stage = {"holdout_list": {"name": "tracks.txt", "sha256": "ab" * 32}}
    bundle = rewritten(provenance={"recipe": about, "config": config, "data": {"spec": "/secret"}, "stages": [stage]})
    said = lines(card_of(bundle, tiny, tmp_path))
    name = "distill" if recipe in DISTILL_RECIPES else "train"
    assert list(said)[:2] == [name, "export"] and "RUN" in said["export"]
    taken = parsed(said[name])
    assert taken["holdout_list"] == "TRACKS" and taken.get("weights", "WEIGHTS") == "WEIGHTS"
    for key, each in {**config, "holdout_list": "TRACKS"}.items():
        if key not in ("limit_seed", "workers", "compile"):
            assert taken[key] == each, key
    given = {key: taken[key] for key in OPTIONS[recipe]}
    if name == "distill":
        assert given == {key: about[key] for key in OPTIONS[recipe]} and str(taken["teacher"]) == "TEACHER"
        return
    eps = given.pop("eps", None)
    again = _defence(recipe, eps, RecipeOptions(**given))
    assert {"recipe": recipe, **({} if again is None else again.to_json())} == settings(recipe)


def test_the_export_of_int8_says_what_it_was_held_to(run: Path, split: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "run.edgeadv"
    held = ("--calibration-count", "32", "--max-drop", "60")
    assert command("export", run, "--precision", "fp32,int8-u8s8", *held, "--out", bundle) == 0
    test = ("--data", split / "test", "--attack", "fgsm", "--eps", "8/255", "--precision", "fp32")
    of = measure(bundle, tmp_path, *test)
    said = lines(card(of.files, bundle))["export"]
    taken = parsed(said)
    assert (taken["calibration_count"], taken["max_drop"], taken["gate_eps"]) == (32, 60, None)
    assert taken["gate_limit"] == Bundle.open(bundle).manifest.variants["int8-u8s8"].gate.data.n  # type: ignore[union-attr]
    assert said.endswith(" # partial: calibration-list not recorded")


def test_an_evaluation_says_its_target_and_what_could_not_be_read(tiny: Measured, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    first = next(iter(sorted((tmp_path / "photos").rglob("*.*"))))
    first.write_bytes(b"no picture")
    class_id = Bundle.open(tiny.bundle).classes.ids[1]
    options = ("--eps", "8/255", "--attack", "fgsm", "--target", class_id, "--precision", "fp32", "--allow-unreadable")
    made = measure(tiny.bundle, tmp_path, "--data", tmp_path / "photos", *options)
    said = lines(card(made.files, tiny.bundle))["evaluate"]
    taken = parsed(said)
    assert taken["target"] == class_id and taken["allow_unreadable"] is True and taken["limit"] is None
    assert said.endswith(" # partial: limit not recorded")
    assert str(tmp_path) not in made.write(tmp_path / "card.json")
    plain = parsed(lines(card(tiny.files, tiny.bundle))["evaluate"])
    assert plain["target"] is None and plain["allow_unreadable"] is False and plain["limit"] == 20


def test_a_network_without_a_run_has_no_training_and_an_export(
    rewritten: Callable[..., Path], tiny: Measured, tmp_path: Path
) -> None:
    said = lines(card_of(rewritten(provenance={"weights": {"name": "net.pth"}}), tiny, tmp_path))
    assert "train" not in said and parsed(said["export"])["weights"] == "WEIGHTS"
    assert parsed(said["export"])["arch"] == "timm/test_resnet"
    teacher = {"recipe": {"recipe": "teacher", "temperature": 40.0}, "config": vars(TrainConfig())}
    said = lines(card_of(rewritten(provenance=teacher), tiny, tmp_path))
    assert "train" not in said and parsed(said["export"])["run"] == Path("RUN")
