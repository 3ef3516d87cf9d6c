"""The geometry of the charts."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
from msgspec.structs import replace

from edgeadv.reporting import charts
from edgeadv_runtime.records.rows import WORST_CASE


def test_labels_are_spread_just_enough_and_stay_in_order():
    moved = charts.spread([10.0, 12.0, 100.0, 281.0, 284.0, 284.0], 284.0)
    assert moved == sorted(moved) and moved[-1] == 284.0
    assert moved[0] == 10.0 and moved[2] == 100.0
    assert all(b - a >= 17.0 - 1e-9 for a, b in pairwise(moved))
    assert charts.spread([], 284.0) == []


@pytest.mark.parametrize("slowest", [0.9, 3.2, 31.4, 99.0, 400.0, 2500.0])
def test_latency_scale_cuts_nothing_off(bench, slowest):
    rows = [replace(row, p50_ms=0.8, p90_ms=0.85, p99_ms=None, max_ms=slowest) for row in bench().rows]
    scale = charts.LatencyScale.covering(rows)
    assert 0 <= scale.place(0.8) < scale.place(slowest) <= 1
    assert scale.logarithmic == (slowest / 0.8 > 60)
    assert 2 <= len(scale.ticks) <= 6 or scale.logarithmic
    assert all(-1e-9 <= scale.place(tick) <= 1 + 1e-9 for tick in scale.ticks)
    assert scale.ticks == sorted(scale.ticks)


def test_latency_of_nothing_is_still_a_scale(report, bench):
    rows = [replace(row, p50_ms=0.0, p90_ms=0.0, p99_ms=None, max_ms=0.0) for row in bench().rows]
    scale = charts.LatencyScale.covering(rows)
    assert scale.place(0.0) == 0.0
    measured = dataclasses.replace(bench(), rows=tuple(rows))
    assert report(measured).all("circle", class_="median", cx="0.00%")


def test_strip_stands_where_the_share_is(report, results):
    page = report(results({("fgsm", "8/255"): 250, (WORST_CASE, "8/255"): 250}))
    (dot,), (interval,) = page.all("circle", class_="dot a-fgsm"), page.all("line", class_="range a-fgsm")
    assert dot["cx"] == "25.00%"
    assert float(interval["x1"][:-1]) == pytest.approx(22.41, abs=0.02)
    assert float(interval["x2"][:-1]) == pytest.approx(27.78, abs=0.02)


def test_classes_are_the_same_for_the_same_attacks_in_any_order():
    first = charts.attack_classes(["b", "a", "fgsm", "c", "d"])
    assert first == charts.attack_classes(["d", "c", "fgsm", "b", "a"])
    assert first["fgsm"] == "a-fgsm" and first["a"] == first["d"] == "a-other-0"


def test_an_attack_bound_to_an_artefact_has_the_colour_of_the_attack():
    classes = charts.attack_classes(["square@onnxruntime-int8-u8s8", "pgd-margin@int8-s8s8", "odd@int8-s8s8"])
    assert classes["square@onnxruntime-int8-u8s8"] == "a-square" and classes["pgd-margin@int8-s8s8"] == "a-pgd-margin"
    assert classes["odd@int8-s8s8"] == "a-other-0"
