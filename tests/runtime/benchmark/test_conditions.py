"""What the state of the machine means: warnings about one run, refusals of two that do not compare."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeadv_runtime.benchmark.conditions import check_comparable, run_warnings
from edgeadv_runtime.decoding import convert
from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.about import Subject
from edgeadv_runtime.records.bench import Bench
from edgeadv_runtime.records.machine import Conditions, Environment


def state(facts):
    return convert(facts, Conditions, what="state of a machine")


def gpu(**changes):
    return {"gpus": [{"index": 0, "name": "NVIDIA RTX A2000", "power_limit_w": 70.0} | changes]}


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ({"power_mode": "15W"}, {"power_mode": "MAXN"}, "power_mode changed during the run, from 15W to MAXN"),
        (
            {"jetson_clocks": {"pinned": True}},
            {"jetson_clocks": {"pinned": False}},
            "jetson_clocks changed .* on to off",
        ),
        ({"governors": ["performance"]}, {"governors": ["powersave", "schedutil"]}, "to powersave, schedutil"),
        (gpu(), gpu(power_limit_w=50.0), "power_limit_w of GPU 0 changed during the run, from 70.0 to 50.0"),
        ({"throttle_counts": {"core": 3}}, {"throttle_counts": {"core": 10}}, "cores throttled for heat .* 7 times"),
        ({"throttle_counts": {"package": 0}}, {"throttle_counts": {"package": 1}}, "processor throttled for heat"),
        (
            {"throttle_counts": {"oc3": 37}},
            {"throttle_counts": {"oc3": 40}},
            r"current .* \(oc3\) during the run, 3 times",
        ),
        (
            gpu(throttled_us={"SwPowerCap": 1_000}),
            gpu(throttled_us={"SwPowerCap": 2_501_000}),
            "GPU 0 was held back by SwPowerCap for 2.5 s of the run",
        ),
        (
            gpu(),
            gpu(throttle_reasons=["HwSlowdown", "HwThermalSlowdown"]),
            "HwSlowdown, HwThermalSlowdown just after the run",
        ),
        (gpu(throttle_reasons=["SwPowerCap"]), gpu(), "GPU 0 was held back by SwPowerCap just before the run"),
        (
            {"cpu_limit_mhz": [2000.0, 1510.4]},
            {"cpu_limit_mhz": [2000.0, 1190.4]},
            "fell during the run, from 1510.4 to 1190",
        ),
        (
            {"governors": ["performance"], "cpu_mhz": [900.0, 1500.0], "cpu_mhz_source": "cpufreq"},
            {"governors": ["performance"], "cpu_mhz": [1200.0, 900.0], "cpu_mhz_source": "cpufreq"},
            "fastest processor fell during the run, from 1500 to 1200 MHz",
        ),
        (
            gpu(sm_mhz=1980.0),
            gpu(sm_mhz=1200.0, throttle_reasons=["ApplicationsClocksSetting"]),
            "clock of GPU 0 fell during the run, from 1980 to 1200 MHz",
        ),
    ],
)
def test_one_sentence_for_what_happened_during_the_run(before, after, sentence):
    (warning,) = run_warnings(state(before), state(after))
    assert re.search(sentence, warning), warning


ON_DEMAND = {"governors": ["schedutil"], "cpu_mhz_source": "cpufreq"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {}),
        ({"power_mode": "15W"}, {}),
        ({}, {"power_mode": "MAXN", "governors": ["performance"], "throttle_counts": {"core": 10}}),
        ({"throttle_counts": {"core": 10, "oc1": 2}}, {"throttle_counts": {"core": 10, "oc1": 2}}),
        (
            gpu(throttle_reasons=["GpuIdle"]),
            gpu(throttle_reasons=["GpuIdle", "SyncBoost", "ApplicationsClocksSetting"]),
        ),
        # the governor lowers the clock of an idle machine by itself
        (ON_DEMAND | {"cpu_mhz": [1500.0]}, ON_DEMAND | {"cpu_mhz": [700.0]}),
        # a virtual machine's nominal clock
        ({"governors": ["performance"], "cpu_mhz": [2300.0], "cpu_mhz_source": "cpuinfo"}, {"cpu_mhz": [2000.0]}),
        # a GPU that idles again, and one of which nobody knows whether it does
        (gpu(sm_mhz=1980.0), gpu(sm_mhz=210.0, throttle_reasons=["GpuIdle"])),
        (gpu(sm_mhz=1980.0), gpu(sm_mhz=210.0)),
        (gpu(sm_mhz=210.0), gpu(sm_mhz=1980.0, throttle_reasons=[])),
        (gpu(throttled_us={"SwPowerCap": 7}), gpu(throttled_us={"SwPowerCap": 7, "HwThermalSlowdown": 3})),
    ],
)
def test_nothing_to_say_where_nothing_happened_or_nobody_knows(before, after):
    assert run_warnings(state(before), state(after)) == ()


ORIN = {"processor": "ARMv8 Processor rev 1 (v8l)", "board": "NVIDIA Jetson Orin Nano Developer Kit"}


def bench(name, environment=ORIN, before=None, after=None):
    conditions = {"before": state(before or {}), "after": state(after if after is not None else before or {})}
    return Bench(
        bundle=Subject(name="regnet"),
        environment=Environment(**environment),
        conditions=conditions,
        rows=(),
        path=Path(name),
    )


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"power_mode": "MAXN"}, {"power_mode": "15W"}, "power_mode MAXN and 15W"),
        ({"jetson_clocks": {"pinned": True}}, {"jetson_clocks": {"pinned": False}}, "jetson_clocks on and off"),
        ({"governors": ["performance"]}, {"governors": ["schedutil"]}, "governors performance and schedutil"),
        (gpu(), gpu(power_limit_w=50.0), "power_limit_w of GPU 0 70.0 and 50.0"),
    ],
)
def test_two_states_of_one_device_are_refused_by_name(one, other, words):
    with pytest.raises(InputError, match=r"a\.json and b\.json cannot be compared") as error:
        check_comparable([bench("a.json", before=one), bench("b.json", before=other)])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_state_that_changed_during_one_of_the_runs_is_refused():
    steady, changed = {"power_mode": "15W"}, {"power_mode": "MAXN"}
    with pytest.raises(InputError, match="power_mode 15W and MAXN"):
        check_comparable([bench("a.json", before=steady), bench("b.json", before=steady, after=changed)])


def test_every_pair_is_looked_at():
    files = [bench("a.json", {"processor": "x"}, {"power_mode": "1"}), bench("b.json"), bench("c.json")]
    check_comparable(files)
    with pytest.raises(InputError, match=r"a\.json and d\.json"):
        check_comparable([*files, bench("d.json", {"processor": "x"}, {"power_mode": "2"})])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # another board, another processor, another GPU: devices beside each other
        (bench("a", before={"power_mode": "1"}), bench("b", ORIN | {"board": "Orin NX"}, {"power_mode": "2"})),
        (bench("a", before={"power_mode": "1"}), bench("b", ORIN | {"processor": "ARMv9"}, {"power_mode": "2"})),
        (bench("a", before=gpu()), bench("b", before=gpu(name="NVIDIA H100", power_limit_w=700.0))),
        # a device that does not tell what it is
        (bench("a", {}, {"power_mode": "1"}), bench("b", {}, {"power_mode": "2"})),
        # unknown is not different
        (bench("a", before={"power_mode": "1"}), bench("b", before={})),
        (bench("a", before={"governors": ["performance"]}), bench("b", before={"governors": []})),
        (bench("a", before=gpu()), bench("b", before=gpu(power_limit_w=None))),
        (bench("a", before={"power_mode": "1"}), bench("b", before={"power_mode": "1"})),
    ],
)
def test_other_devices_and_unknown_states_may_stand_beside_each_other(one, other):
    check_comparable([one, other])
    check_comparable([other, one])


def test_a_gpu_that_one_file_does_not_name_does_not_make_another_device():
    with pytest.raises(InputError, match="governors"):
        check_comparable(
            [bench("a", before=gpu() | {"governors": ["performance"]}), bench("b", before={"governors": ["powersave"]})]
        )


def test_benches_that_were_not_read_from_files_have_the_name_of_their_bundle():
    files = [
        Bench(
            bundle=Subject(name=name),
            environment=Environment(**ORIN),
            conditions={"before": Conditions(power_mode=name)},
            rows=(),
        )
        for name in ("first", "second")
    ]
    with pytest.raises(InputError, match="the bench of first and the bench of second"):
        check_comparable(files)
