"""The figures of ``docs/tutorials/signs.md`` and ``docs/how-to/patches-and-corruptions.md``, from
``results/signs-cpu.json`` and ``results/signs-camera-cpu.json``.

    python benchmarks/signs_page.py      # writes them

A part stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; :data:`PARTS` makes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from page import MARKED, RESULTS, table

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, CAMERA_PAGE = DOCS / "tutorials" / "signs.md", DOCS / "how-to" / "patches-and-corruptions.md"
FIGURES, CAMERA_FIGURES = RESULTS / "signs-cpu.json", RESULTS / "signs-camera-cpu.json"
NAMES = {
    "undefended": "RegNetY-400MF, undefended",
    "papernot": "RegNetY-400MF, `papernot` T = 40",
    "soft-label": "RegNetY-400MF, `soft-label`",
    "robust": "RegNetY-400MF, `n-fgsm`",
    "small": "ShuffleNetV2 x1.0, undefended",
    "small-robust": "ShuffleNetV2 x1.0, `n-fgsm`",
}
Row = dict[str, Any]


def share(value: float, interval: list[float]) -> str:
    """A share with its interval, in percent."""
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def before(minutes: float | None) -> str:
    """Minutes of what a training began with."""
    return " + not kept" if minutes is None else f" + {minutes:.0f}" if minutes else ""


def networks(rows: list[Row]) -> Iterator[str]:
    """Each network as fp32 in ONNX Runtime: clean on every test frame, and its worst cases."""
    shown = []
    for row in rows:
        clean = next(each for each in row["clean"] if each["variant"] == "fp32")
        worst = {each["eps"]: each for each in row["results"]}
        budgets = [worst[eps] for eps in sorted(worst, key=lambda eps: int(eps.partition("/")[0]))]
        shown.append(
            [
                NAMES[row["row"]],
                str(row["seed"]),
                share(clean["top1"], clean["top1_ci95"]),
                *(f"{share(each['worst_case'], each['worst_case_ci95'])} {each['verdict']}" for each in budgets),
                f"{row['train_minutes']:.0f}" + before(row["train_minutes_before"]),
            ]
        )
    yield from table("network|seed|clean|worst case at 4/255|worst case at 8/255|minutes of training", shown)


def artefacts(rows: list[Row]) -> Iterator[str]:
    """Each artefact of a network by its own gradients, beside its fp32 on the same frames."""
    shown = []
    for row in rows:
        # a variant's name is fp32, fp16, int8-u8s8 or int8-s8s8
        found = {each["variant"]: each for each in row.get("artefacts", [])}
        for variant, each in found.items():
            less = 100 * (each["worst_case"] - found["fp32"]["worst_case"])
            shown.append(
                [
                    f"`{variant}`",
                    share(each["clean"], each["clean_ci95"]),
                    f"{share(each['worst_case'], each['worst_case_ci95'])} {each['verdict']}",
                    "" if variant == "fp32" else f"{less:+.1f}",
                ]
            )
    if not shown:
        yield "Not measured yet."
        return
    yield from table("artefact|clean|worst case at 8/255|points over fp32", shown)


def commands(rows: list[Row], name: str) -> Iterator[str]:
    """What made a row, as it was typed."""
    row = next((each for each in rows if (each["row"], each["seed"]) == (name, 0)), None)
    if row is None:
        yield "Not measured yet."
        return
    yield "```bash"
    yield from row["commands"]
    yield "```"


def camera(rows: list[Row]) -> Iterator[str]:
    """Each network as fp32 against what a camera meets; the mean is over 25 kinds and 5 severities."""
    shown = []
    for row in rows:
        patches, corruptions = row["patches"]["rows"], row["corruptions"]["rows"]
        fog = [each["top1"] for each in corruptions if (each["variant"], each["attack"]) == ("fp32", "fog")]
        tracks = {(each["attack"], each["rule"]): each["correct"] / each["n"] for each in row["tracks"]["tracks"]}
        shown.append(
            [
                NAMES[row["row"]],
                *(f"{worst(patches, area):.1%}" for area in ("2%", "5%", "10%")),
                f"{sum(fog) / len(fog):.1%}",
                f"{row['corruptions']['means']['fp32']:.1%}",
                *(f"{tracks[attack, 'smoother']:.1%}" for attack in ("clean", "pgd-track")),
            ]
        )
    heads = "network|patch of 2%|of 5%|of 10%|fog|all corruptions|tracks|tracks, 8/255 shared by their frames"
    yield from table(heads, shown)


def worst(rows: list[Row], area: str) -> float:
    """What stands all patches of an area."""
    found: float = next(each["top1"] for each in rows if (each["attack"], each["budget"]) == ("worst-case", area))
    return found


def across(rows: list[Row]) -> Iterator[str]:
    """Patches of 5%: made by the graph of fp32 or by the artefact's own, scored on each artefact."""
    shown = []
    for row in rows:
        for variant in dict.fromkeys(each["variant"] for each in row["patch-artefacts"]["rows"]):
            of = {each["attack"]: each["top1"] for each in row["patch-artefacts"]["rows"] if each["variant"] == variant}
            own = of.get(f"patch@{variant}")
            shown.append(
                [
                    NAMES[row["row"]],
                    f"`{variant}`",
                    f"{of['clean']:.1%}",
                    f"{of['patch-gray']:.1%}",
                    f"{of['patch']:.1%}",
                    "" if own is None else f"{own:.1%}",
                ]
            )
    yield from table("network|artefact|clean|grey patch|patch made for fp32|made by its own graph", shown)


PARTS: dict[str, Callable[[list[Row]], Iterator[str]]] = {
    "camera": camera,
    "across": across,
    "networks": networks,
    "artefacts": artefacts,
    "commands_undefended": lambda rows: commands(rows, "undefended"),
    "commands_robust": lambda rows: commands(rows, "robust"),
}


def filled(text: str, rows: list[Row]) -> str:
    """A page with its parts as the results have them."""
    return MARKED.sub(lambda match: match[1] + "\n".join(PARTS[match[2]](rows)) + "\n" + match[3], text)


if __name__ == "__main__":
    for page, figures in ((PAGE, FIGURES), (CAMERA_PAGE, CAMERA_FIGURES)):
        if figures.exists():
            page.write_text(filled(page.read_text(), json.loads(figures.read_text())["rows"]))
