"""The benchmarks' own arithmetic, and that the tables say what the committed results say. Nothing is timed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run() -> ModuleType:
    return load("run")


def test_every_call_is_in_every_round_and_ratios_are_of_pairs() -> None:
    paired = load("paired")
    seen: list[tuple[str, int]] = []
    calls = {name: lambda i, name=name: seen.append((name, i)) for name in "abc"}
    seconds = paired.in_turn(calls, rounds=5, warm_up=2)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 5, "b": 5, "c": 5}
    assert [i for _, i in seen] == [i for i in range(-2, 5) for _ in "abc"]
    assert {tuple(sorted(name for name, j in seen if j == i)) for i in range(-2, 5)} == {("a", "b", "c")}
    # not the ratio of the medians, which is 1
    assert paired.ratio([1, 2, 8], [2, 1, 8]) == {"median": 1.0, "quartiles": [0.5, 2.0]}
    assert paired.ratio([3, 3, 3, 3], [1, 2, 3, 6])["median"] == 1.25


@pytest.mark.parametrize(
    ("new", "old", "moves"),
    [
        ((2.0, [1.9, 2.1]), (1.0, [0.9, 1.1]), True),
        ((1.05, [1.0, 1.1]), (1.0, [0.9, 1.1]), False),
        ((2.0, [0.5, 2.1]), (1.0, [0.9, 1.1]), False),  # the new ones spread over the old
        ((2.0, [1.9, 2.1]), (1.0, [0.5, 2.5]), False),
        ((1.0, [1.0, 1.0]), (1.0, [1.0, 1.0]), False),
    ],
)
def test_a_ratio_has_moved_where_each_median_is_outside_the_others_quartiles(
    run: ModuleType, new: tuple[float, list[float]], old: tuple[float, list[float]], moves: bool
) -> None:
    def content(value: tuple[float, list[float]]) -> dict[str, object]:
        entries = [{"library": "peer", "speedup": {"median": value[0], "quartiles": value[1]}}]
        return {"rows": [{"architecture": "net", "attack": "fgsm", "libraries": entries}]}

    lines = run.moved("crafting", content(new), content(old))
    assert bool(lines) == moves
    assert not lines or "net, fgsm, peer" in lines[0]
    assert run.moved("crafting", content(new), {"rows": []}) == []


def test_ratios_of_one_result_have_names_of_their_own(run: ModuleType) -> None:
    import json

    for file in (BENCHMARKS / "results").glob("*.json"):
        rows = json.loads(file.read_text()).get("rows", [])
        names = [name for name, _ in run.ratios(rows)]
        assert len(set(names)) == len(names), file.name


def test_the_tables_are_those_of_the_committed_results(run: ModuleType) -> None:
    text = (BENCHMARKS / "README.md").read_text()
    assert text.split(run.BEGIN)[1].split(run.END)[0].strip() == "\n".join(run.tables()).strip()
