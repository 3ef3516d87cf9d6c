"""Patches and corruptions on the page, each in a section of its own."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

import edgeadv as ea
from edgeadv_runtime import Bundle, Results
from tests.edgeadv.conftest import Cli


@pytest.fixture
def measured(cli: Cli, tiny_bundle: Bundle, photos: Path) -> tuple[Results, Results]:
    asked = ["evaluate", tiny_bundle.path, "--data", photos, "--limit", "24"]
    corrupted = ["--corruptions", "fog,jpeg-low", "--severities", "1,5"]
    assert cli(*asked, *corrupted, "--out", "c.json").status == 0
    assert cli(*asked, "--patch", "5%,20%", "--precision", "fp32", "--out", "p.json").status == 0
    assert cli(*asked, "--eps", "8/255", "--attack", "fgsm", "--out", "a.json").status == 0
    return Results.load("c.json"), Results.load("p.json")


def test_both_stand_beside_attacks_with_the_figures_of_their_files(cli: Cli, measured: tuple[Results, Results]) -> None:
    corrupted, patched = measured
    assert cli("report", "a.json", "c.json", "p.json", "--out", "r.html").status == 0
    page = Path("r.html").read_text()
    section = page[page.index('<section id="corruptions">') :]
    section = section[: section.index("</section>")]
    for row in corrupted.rows:
        if row.attack in ("fog", "jpeg-low"):
            assert f">{row.top1:.1%}<" in section
    for artefact in corrupted.artefacts:
        mean = corrupted.corrupted(variant=artefact.variant, backend=artefact.backend)
        assert f"mean {mean:.1%}" in section
    assert "points below fp32" in section
    curves = page[page.index('<section id="patches">') : page.index('<section id="corruptions">')]
    for name in ("patch", "patch-gray", "patch-noise"):
        (row,) = patched.select(attack=name, eps="20%")
        assert re.search(rf"{name} {row.top1:.1%}<", curves)
    assert "area of the patch" in curves and "eps" not in re.sub(r"<[^>]*>", "", curves)
    # a model keeps its name, whatever was done to it
    assert "(c.json)" not in page and "(p.json)" not in page


def test_a_patchs_verdict_and_what_was_left_out_are_said(cli: Cli, measured: tuple[Results, Results]) -> None:
    _, patched = measured
    written = json.loads(Path("p.json").read_text())
    written["data"]["calibration_left_out"] = 7
    Path("p.json").write_text(json.dumps(written))
    assert cli("report", "p.json", "--out", "r.html").status == 0
    page = Path("r.html").read_text()
    verdict = page[page.index('<section id="verdict">') :]
    assert "under a patch" in verdict and patched.masking.verdict in verdict
    said = html.unescape(verdict)
    assert all(item.text in said for item in patched.masking.evidence if item.matters)
    assert "7 images that int8 was calibrated on were left out" in page
    # of corruptions nobody gives a verdict
    assert cli("report", "c.json", "--out", "r.html").status == 0 and 'id="verdict"' not in Path("r.html").read_text()


def test_alone_they_make_a_page_too(cli: Cli, measured: tuple[Results, Results]) -> None:
    assert cli("report", "c.json", "--out", "r.html").status == 0
    page = Path("r.html").read_text()
    assert "Robustness report" in page and "says nothing about" not in page and 'id="patches"' not in page


def test_a_card_has_them_with_their_verdict_beside_attacks(
    cli: Cli, tiny_bundle: Bundle, measured: tuple[Results, Results]
) -> None:
    corrupted, patched = measured
    asked = ["card", "a.json", "c.json", "p.json", "--bundle", tiny_bundle.path, "--out"]
    for name in ("card.json", "card.html", "card.md"):
        assert cli(*asked, name).status == 0
    card = ea.Card.load("card.json")
    of_corruptions, of_patches = card.shifts
    means = {row.variant: row.share for row in of_corruptions.rows if "fog, jpeg-low" in row.case}
    for artefact in corrupted.artefacts:
        assert means[artefact.variant] == corrupted.corrupted(variant=artefact.variant, backend=artefact.backend)
    assert {row.case for row in of_corruptions.rows} >= {"mean over fog at severities 1, 5"}
    for row in patched.select(attack="worst-case"):
        (there,) = [
            each for each in of_patches.rows if each.case.endswith(f" {row.eps}") and str(each) == str(row.artefact)
        ]
        assert (there.share, there.verdict, there.n) == (row.top1, "UNCHECKED", row.n)
        assert f"≤ {row.top1:.1%}" in Path("card.html").read_text()
    assert of_patches.source.name == "p.json" and {each.name for each in card.sources} >= {"a.json", "c.json", "p.json"}
    assert "## Patches and corruptions" in Path("card.md").read_text()
    lines = [line for said in card.commands for line in said.lines]
    assert any("--corruptions fog,jpeg-low --severities 1,5 --limit 24" in line for line in lines)
    assert any("--patch 5%,20%" in line and "patch-file not recorded" in line for line in lines)
    # the headline stays that of attacks within eps
    assert card.headline.source.name == "a.json"
    outcome = cli("card", "p.json", "--bundle", tiny_bundle.path, "--out", "alone.json")
    assert outcome.status == 2 and "at least one results file of attacks within eps" in outcome.err


def test_tracks_have_a_table(cli: Cli, tiny_bundle: Bundle, photos: Path) -> None:
    for of_class in sorted(photos.iterdir()):
        for i, file in enumerate(sorted(of_class.iterdir())):
            place = Path("frames") / of_class.name / f"{i // 3:05d}_{i % 3:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    asked = ["--data", "frames", "--group", "track", "--corruptions", "fog", "--severities", "5", "--precision", "fp32"]
    assert cli("evaluate", tiny_bundle.path, *asked, "--out", "t.json").status == 0
    assert cli("report", "t.json", "--out", "r.html").status == 0
    page = Path("r.html").read_text()
    section = page[page.index('<section id="tracks">') :]
    section = section[: section.index("</section>")]
    found = Results.load("t.json")
    assert f"{found.tracks[0].n} tracks" in section
    for row in found.tracks:
        assert f'data-label="{row.rule}">{row.share:.1%}' in section
    # a strip: frames of one track one after another, those too that are wrong from the start
    assert 1 < len(found.examples) == section.count("as it is") and len({each.label for each in found.examples}) == 1
    assert [each.index for each in found.examples] == sorted(each.index for each in found.examples)
    assert found.examples[0].clean_png in section and 'id="examples"' not in page
