"""The tutorial of the signs says what the committed results say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.test_benchmarks import load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    load("page")
    return load("signs_page")


def figure(worst: float, variant: str = "fp32", eps: str = "8/255") -> dict[str, Any]:
    return {
        "backend": "onnxruntime",
        "variant": variant,
        "eps": eps,
        "n": 1000,
        "clean": 0.9,
        "clean_ci95": [0.88, 0.92],
        "worst_case": worst,
        "worst_case_ci95": [worst - 0.02, worst + 0.02],
        "verdict": "PASS",
    }


ROW = {
    "row": "robust",
    "seed": 0,
    "train_minutes": 40.4,
    "train_minutes_before": 38.0,
    "commands": ["edgeadv train --data gtsrb", "edgeadv evaluate m.edgeadv"],
    "clean": [{"backend": "onnxruntime", "variant": "fp32", "n": 6315, "top1": 0.914, "top1_ci95": [0.907, 0.921]}],
    "results": [figure(0.41), figure(0.66, eps="4/255")],
    "artefacts": [figure(0.4), figure(0.396, "int8-u8s8")],
}


def test_a_table_follows_its_results(page: ModuleType) -> None:
    made = list(page.networks([ROW]))[-1]
    assert made == (
        "|RegNetY-400MF, `n-fgsm`|0|91.4% [90.7%, 92.1%]|66.0% [64.0%, 68.0%] PASS|41.0% [39.0%, 43.0%] PASS|40 + 38|"
    )
    fp32, int8 = list(page.artefacts([ROW]))[2:]
    assert fp32.endswith("PASS||") and int8.startswith("|`int8-u8s8`|") and int8.endswith("|-0.4|")
    assert list(page.commands([ROW], "robust")) == ["```bash", *ROW["commands"], "```"]


def scored(attack: str, top1: float, variant: str = "fp32", budget: str = "5%") -> dict[str, Any]:
    return {"variant": variant, "attack": attack, "budget": budget, "top1": top1}


AREAS = (("2%", 0.5), ("5%", 0.4), ("10%", 0.1))


def test_what_a_camera_meets_is_one_row(page: ModuleType) -> None:
    row = {
        "row": "robust",
        "patches": {"rows": [scored("worst-case", share, budget=area) for area, share in AREAS]},
        "corruptions": {
            "rows": [scored("fog", 0.8), scored("fog", 0.6), scored("fog", 0.1, "int8-u8s8"), scored("snow", 0.2)],
            "means": {"fp32": 0.55, "int8-u8s8": 0.5},
        },
        "tracks": {
            "tracks": [
                {"attack": attack, "rule": rule, "n": 20, "correct": correct}
                for attack, correct in (("clean", 19), ("pgd-track", 7))
                for rule in ("majority", "smoother")
            ]
        },
        "patch-artefacts": {
            "rows": [
                scored(attack, share, variant)
                for variant, shares in (("fp32", (0.9, 0.8, 0.4)), ("int8-u8s8", (0.9, 0.8, 0.5)))
                for attack, share in zip(("clean", "patch-gray", "patch"), shares, strict=True)
            ]
            + [scored("patch@int8-u8s8", 0.3, "int8-u8s8")]
        },
    }  # fmt: skip
    assert list(page.camera([row]))[-1] == "|RegNetY-400MF, `n-fgsm`|50.0%|40.0%|10.0%|70.0%|55.0%|95.0%|35.0%|"
    fp32, int8 = list(page.across([row]))[2:]
    assert fp32.endswith("|`fp32`|90.0%|80.0%|40.0%||") and int8.endswith("|`int8-u8s8`|90.0%|80.0%|50.0%|30.0%|")


@pytest.mark.parametrize(
    ("name", "figures", "parts"),
    [
        ("PAGE", "FIGURES", ["commands_undefended", "commands_robust", "networks", "artefacts"]),
        ("CAMERA_PAGE", "CAMERA_FIGURES", ["camera", "across"]),
    ],
)
def test_the_page_is_that_of_the_committed_results(page: ModuleType, name: str, figures: str, parts: list[str]) -> None:
    text, file = getattr(page, name).read_text(), getattr(page, figures)
    marked = sys.modules["page"].MARKED
    assert [part for _, part, _ in marked.findall(text)] == parts
    if file.exists():
        assert text == page.filled(text, json.loads(file.read_text())["rows"])
    else:
        assert all(f"<!-- table: {part} -->\n<!-- end -->" in text for part in parts)
