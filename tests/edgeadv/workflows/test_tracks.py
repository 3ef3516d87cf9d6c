"""Tracks of a folder, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgeadv_runtime import Bundle, Results
from tests.edgeadv.conftest import Cli


@pytest.fixture
def frames(photos: Path, tmp_path: Path) -> Path:
    """The photographs, three of a class to a track."""
    folder = tmp_path / "frames"
    for of_class in sorted(photos.iterdir()):
        for i, file in enumerate(sorted(of_class.iterdir())):
            place = folder / of_class.name / f"{i // 3:05d}_{i % 3:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return folder


def test_tracks_are_scored_beside_frames(cli: Cli, tiny_bundle: Bundle, frames: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", frames, "--precision", "fp32", "--group", "track"]
    outcome = cli(*asked, "--corruptions", "fog", "--severities", "1,5", "--out", "c.json")
    assert outcome.status == 0 and "tracks: decided right" in outcome.out and "last-confident" in outcome.out
    found = Results.load("c.json")
    tracks = {file.parent.name + file.name.partition("_")[0] for file in frames.rglob("*.png")}
    assert {row.n for row in found.tracks} == {len(tracks)}
    assert {(row.attack, row.eps) for row in found.tracks} == {(row.attack, row.eps) for row in found.rows}
    by_rule = {row.rule: row for row in found.tracks if row.attack == "clean"}
    # a track with every frame right is right by every rule; the smoother wants two frames, and some tracks have one
    worst = by_rule["worst-frame"].correct
    assert worst <= by_rule["majority"].correct and worst <= by_rule["last-confident"].correct
    assert worst <= by_rule["smoother"].correct + by_rule["smoother"].undecided
    (clean,) = found.select(attack="clean")
    assert 0 < by_rule["worst-frame"].share < clean.top1 < 1


def test_attacks_and_an_interruption_leave_the_same_tracks(cli: Cli, tiny_bundle: Bundle, frames: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", frames, "--precision", "fp32", "--group", "track"]
    attack = ["--eps", "8/255", "--attack", "fgsm"]
    assert cli(*asked, *attack, "--out", "a.json").status == 0
    assert cli(*asked, *attack, "--out", "b.json").status == 0
    first, second = (json.loads(Path(name).read_text())["tracks"] for name in ("a.json", "b.json"))
    assert first == second and {row["attack"] for row in first} == {"clean", "fgsm", "pgd-track", "worst-case"}


def test_a_track_that_cannot_be_read_is_left_out_and_counted(cli: Cli, tiny_bundle: Bundle, frames: Path) -> None:
    (next(frames.iterdir()) / "00099_00000.png").write_text("no picture")
    asked = ["evaluate", tiny_bundle.path, "--data", frames, "--precision", "fp32", "--group", "track"]
    outcome = cli(*asked, "--eps", "8/255", "--attack", "fgsm", "--allow-unreadable", "--out", "a.json")
    assert outcome.status == 0 and "1 of which a frame was not scored left out" in outcome.out
    assert {row.left_out for row in Results.load("a.json").tracks} == {1}


def test_a_patch_is_shared_by_a_tracks_frames(cli: Cli, tiny_bundle: Bundle, frames: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", frames, "--precision", "fp32", "--group", "track"]
    assert cli(*asked, "--patch", "20%", "--patch-place", "random", "--out", "p.json").status == 0
    found = Results.load("p.json")
    decided = {(row.attack, row.rule): row.correct for row in found.tracks}
    assert {"patch-track", "patch", "patch-gray"} <= {attack for attack, _ in decided}
    assert decided["patch-track", "worst-frame"] <= decided["clean", "worst-frame"]
    assert next(row for row in found.rows if row.attack == "patch-track").params.norm == "area"


def test_a_list_chooses_tracks(cli: Cli, tiny_bundle: Bundle, frames: Path) -> None:
    first = sorted(frames.iterdir())[0].name
    Path("list.txt").write_text(f"# two tracks\n{first}/00000_*\n{first}/00001_*\n")
    asked = ["evaluate", tiny_bundle.path, "--data", frames, "--precision", "fp32", "--images-list", "list.txt"]
    outcome = cli(*asked, "--group", "track", "--corruptions", "fog", "--severities", "1", "--out", "c.json")
    assert outcome.status == 0
    found = Results.load("c.json")
    assert found.data.n == 6 and {row.n for row in found.tracks} == {2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--group", "class"], "--group 'class' is not track"),
        (["--group", "track", "--limit", "5"], "--limit would tear tracks apart"),
        (["--images-list", "list.txt"], "names none of"),
    ],
)
def test_bad_input_is_one_line(cli: Cli, tiny_bundle: Bundle, frames: Path, options: list[str], says: str) -> None:
    Path("list.txt").write_text("nothing/00000_*\n")
    outcome = cli("evaluate", tiny_bundle.path, "--data", frames, "--corruptions", "fog", *options, "--out", "c.json")
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1 and says in outcome.err


def test_names_without_frames_are_refused(cli: Cli, tiny_bundle: Bundle, photos: Path) -> None:
    asked = ["evaluate", tiny_bundle.path, "--data", photos, "--corruptions", "fog", "--group", "track"]
    outcome = cli(*asked, "--out", "c.json")
    assert outcome.status == 2 and "--group finds no frame in the name" in outcome.err
