"""Corruptions through the evaluation: of data and of a pack, resumed, and refused beside attacks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgeadv as ea
from edgeadv.attacks.pack_writer import clean_batches
from edgeadv.data.datasets import open_data
from edgeadv_runtime import Bundle, OnnxRuntimeBackend
from edgeadv_runtime.bundle.preprocess import to_tensor
from edgeadv_runtime.corruptions.kinds import KINDS, corrupt
from tests.edgeadv.conftest import PHOTOS, Cli


def test_rows_count_what_the_artefact_gets_right(tiny_bundle: Bundle, photos: Path) -> None:
    plan = ea.AttackPlan(corruptions="fog,jpeg-low", severities="1,4")
    found = ea.evaluate(tiny_bundle, photos, plan=plan, precisions=["fp32"])
    assert [(row.attack, row.eps) for row in found.rows] == [
        ("clean", "0"),
        *(("fog", "1"), ("jpeg-low", "1"), ("worst-case", "1")),
        *(("fog", "4"), ("jpeg-low", "4"), ("worst-case", "4")),
    ]
    assert found.norm == "severity" and found.rows[1].params.constants == "CIFAR-10-C: 0.2, 3"
    # counted once more, image by image
    images = open_data(str(photos), split="test").relabel(tiny_bundle.classes)
    right = dict.fromkeys(("fog", "jpeg-low"), 0)
    with OnnxRuntimeBackend(tiny_bundle, variant="fp32") as backend:
        for batch in clean_batches(images, tiny_bundle, np.arange(len(images)), unreadable=[]):
            for image, label in zip(to_tensor(batch.pixels), batch.labels, strict=True):
                for kind in right:
                    right[kind] += int(backend.infer(corrupt(image, kind, 4)[None]).argmax() == label)
    counts = {row.attack: row.correct_top1 for row in found.rows if row.eps == "4"}
    assert {kind: counts[kind] for kind in right} == right
    assert counts["worst-case"] <= min(counts["fog"], counts["jpeg-low"])
    assert found.corrupted() == pytest.approx(np.mean([r.top1 for r in found.rows if r.attack in KINDS]))
    assert found.overall_verdict == "UNCHECKED" and all(row.threat is None for row in found.rows)


def test_a_pack_gives_what_its_images_give(cli: Cli, tiny_bundle: Bundle, photos: Path, pack: Path) -> None:
    asked = ["--corruptions", "fog,low-light", "--severities", "3"]
    assert cli("evaluate", tiny_bundle.path, "--data", photos, *asked, "--out", "a.json").status == 0
    outcome = cli("evaluate", tiny_bundle.path, "--pack", pack, *asked, "--out", "b.json")
    assert outcome.status == 0 and "mean over all corruptions" in outcome.out and "low-light" in outcome.out
    first, second = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert first["rows"] == second["rows"] and first["data"]["sha256"] == second["data"]["sha256"]
    assert first["rows"][0]["n"] == PHOTOS and first["comparisons"]


def test_it_goes_on_where_it_was_interrupted(cli: Cli, tiny_bundle: Bundle, photos: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", photos, "--corruptions", "fog", "--severities", "2,3"]
    assert cli(*asked, "--out", "whole.json").status == 0

    def stop(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    plan = ea.AttackPlan(corruptions="fog", severities="2,3")
    with pytest.raises(KeyboardInterrupt):
        ea.evaluate(tiny_bundle, photos, plan=plan, out="part.json", progress=stop)
    assert cli(*asked, "--out", "part.json", "--resume").status == 0
    whole, part = (json.loads(Path(name).read_text())["rows"] for name in ("whole.json", "part.json"))
    assert whole == part


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--corruptions", "smog"], "--corruptions has no 'smog': choose from published, camera, all"),
        (["--corruptions", "fog", "--severities", "6"], "--severity '6' is not a whole number from 1 to 5"),
        (["--corruptions", "fog", "--severities", "3,1"], "not in ascending order"),
        (["--corruptions", "fog", "--eps", "8/255"], "--corruptions has severities and no eps"),
        (["--patch", "5%", "--eps", "8/255"], "--patch has an area and no eps"),
        (["--patch", "5%", "--corruptions", "fog"], "run them one after the other"),
        (["--patch", "0%"], "is not an area between 0% and 100%"),
        (["--patch", "0.05"], "is not an area"),
        (["--patch", "0.01%"], "less than one pixel"),
        (["--patch", "99%", "--patch-shape", "round"], "larger than the picture"),
        (["--patch", "5%", "--patch-shape", "star"], "--patch-shape 'star' is not one of square, round"),
        (["--patch", "5%", "--patch-place", "top"], "--patch-place 'top' is not one of worst, random"),
        (["--eps", "8/255", "--severities", "9"], "--severities are those of --corruptions"),
        (["--eps", "8/255", "--patch-shape", "star"], "--patch-shape and --patch-place are those of --patch"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tiny_bundle: Bundle, photos: Path, options: list[str], says: str) -> None:
    outcome = cli("evaluate", tiny_bundle.path, "--data", photos, *options, "--out", "r.json")
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1 and says in outcome.err
    assert not Path("r.json").exists()


@pytest.mark.parametrize("option", [["--limit", "3"], ["--allow-unreadable"], ["--uint8"]])
def test_what_a_pack_has_settled_is_refused(cli: Cli, tiny_bundle: Bundle, pack: Path, option: list[str]) -> None:
    outcome = cli("evaluate", tiny_bundle.path, "--pack", pack, "--corruptions", "fog", *option, "--out", "r.json")
    assert outcome.status == 2 and "were settled with the pack: leave them out" in outcome.err
    assert not Path("r.json").exists()
