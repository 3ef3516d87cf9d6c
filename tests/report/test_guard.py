"""The guard on the page: what gets past it stands before what it flags."""

from __future__ import annotations

import json

import pytest

from edgeadv.report import build_report
from edgeadv_runtime.errors import SchemaError
from edgeadv_runtime.guard_file import CleanRow, GuardFile, GuardRow
from edgeadv_runtime.results import AttackParams

WHO = {
    "variant": "fp32", "artifact_sha256": "ab" * 32, "backend": "onnxruntime", "provider": "a provider", "device": "a <device>",
}  # fmt: skip


def row(attack, succeeded, evaded, *, adaptive=False, eps="8/255"):
    return GuardRow(
        **WHO, attack=attack, eps=eps, eps_value=int(eps.partition("/")[0]) / 255, params=AttackParams(norm="linf"),
        adaptive=adaptive, n=400, succeeded=succeeded, evaded=evaded,
    )  # fmt: skip


@pytest.fixture
def measured() -> GuardFile:
    return GuardFile(
        bundle={"id": "cd" * 32, "name": "net", "title": "<i>net</i>"}, data={"name": "photos", "split": "test", "n": 500},
        environment={"processor": "p"}, guard={"squeezers": ["bits-5"], "false_alarms": 0.05, "n": 1000, "threshold": 1.0},
        clean=(CleanRow(**WHO, n=500, right=400, flagged=30),),
        rows=(
            row("fgsm", 200, 50), row("pgd-margin", 0, 0), row("adaptive", 380, 300, adaptive=True),
            row("worst-case", 390, 320, adaptive=True), row("worst-case", 100, 40, adaptive=True, eps="2/255"),
        ),
        created="2026-02-03T10:11:12+00:00", edgeadv_version="0.1.0",
    )  # fmt: skip


def test_the_page_says_what_gets_past_before_what_is_flagged(report, results, measured):
    page = report(results(), measured)
    told = "attackers who know the guard get a wrong label and no flag on 80.0% [75.8%, 83.6%] of 400 images"
    assert told in page.text
    assert page.text.index(told) < page.text.index("75.0%")
    assert "It is no robustness" in page.text
    assert "6.0% (4.2–8.4%) of 500 clean images flagged, 5.0% stated, set on 1,000 others" in page.text
    assert "adaptive knows the guard 8/255 75.0% 70.5–79.0% 95.0% 21.1% 17.3–25.4% 400" in page.text
    assert "PGD margin 8/255 0.0% 0.0–1.0% 0.0% – 400" in page.text
    assert not page.misplaced and "<i>net" not in page.source and "a <device>" not in page.source


def test_a_guard_file_alone_is_a_page(report, measured):
    page = report(measured)
    assert "Guard report" in page.text and "says nothing about accuracy or robustness" in page.text


def test_the_file_comes_back(tmp_path, measured):
    measured.save(tmp_path / "guard.json")
    assert GuardFile.load(tmp_path / "guard.json") == measured
    value = json.loads((tmp_path / "guard.json").read_text())
    assert value["schema_version"] == 1 and value["kind"] == "guard"
    assert value["rows"][0]["detection_rate"] == 0.75 and value["rows"][1]["detection_rate"] is None
    value["rows"][0]["of tomorrow"] = 1
    (tmp_path / "guard.json").write_text(json.dumps(value))
    assert GuardFile.load(tmp_path / "guard.json") == measured


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("rows", "evaded", 201), ("rows", "succeeded", 401), ("rows", "n", 0), ("rows", "eps_value", 0), ("rows", "n", "400"),
        ("clean", "flagged", -1), ("guard", "false_alarms", 1), ("guard", "n", None),
        ("rows", "params", 5),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_together_is_refused(tmp_path, measured, part, key, value):
    changed = measured.to_json()
    (changed[part] if part == "guard" else changed[part][0])[key] = value
    path = tmp_path / "guard.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(SchemaError, match="guard file"):
        build_report([path], tmp_path / "page.html")
