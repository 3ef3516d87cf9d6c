"""What the state of a machine means for its figures: sentences about one run, and a refusal for two that do not compare.

What :func:`~edgeadv_runtime.device.facts.conditions` could not read is unknown here, never different.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from ..errors import InputError
from ..records.bench import Bench

# the rest of the reasons are a setting or an idle GPU
_HELD_BACK = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
_THROTTLED = {"core": "processor cores throttled for heat", "package": "the processor throttled for heat"}
# where clocks are pinned they do not move at all; this much is the noise of reading them
_STEADY = 0.95


def run_warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """What changed for the worse during one run, a sentence each: settings, throttling, clocks.

    Args:
        before: what :func:`~edgeadv_runtime.device.facts.conditions` told before all measurements.
        after: the same after them.
    """
    first, last = _settings(before), _settings(after)
    changed = [
        f"{key} changed during the run, from {first[key]} to {last[key]}: the figures mix both, measure again"
        for key in first
        if key in last and first[key] != last[key]
    ]
    return (*changed, *_throttling(before, after), *_fallen_clocks(before, after))


def check_comparable(benches: Sequence[Bench]) -> None:
    """Refuse figures of one device in two states, which would be read as a difference between models.

    Files of different devices may stand beside each other. One device is the same processor and board, and, where both
    files name them, the same GPUs.

    Args:
        benches: bench files that a reader is about to see side by side.

    Raises:
        InputError: two files are of one device in different power modes, with ``jetson_clocks`` in different states, under
            different CPU governors or with different GPU power limits.
    """
    for one, other in combinations(benches, 2):
        if not _same_device(one, other):
            continue
        for moment in ("before", "after"):
            mine, theirs = (_settings(_object(bench.conditions.get(moment))) for bench in (one, other))
            for key in mine:
                if key in theirs and mine[key] != theirs[key]:
                    raise InputError(
                        f"{_name(one)} and {_name(other)} cannot be compared: measured on the same device with {key} "
                        f"{mine[key]} and {theirs[key]}; measure both in one state, or report them apart"
                    )


def _settings(facts: Mapping[str, Any]) -> dict[str, str]:
    """What somebody set, as far as it is known: the same texts mean the same setting."""
    settings = {}
    if mode := facts.get("power_mode"):
        settings["power_mode"] = str(mode)
    if isinstance(pinned := _object(facts.get("jetson_clocks")).get("pinned"), bool):
        settings["jetson_clocks"] = "on" if pinned else "off"
    if isinstance(governors := facts.get("governors"), list) and governors:
        settings["governors"] = ", ".join(map(str, governors))
    for index, gpu in _gpus(facts).items():
        if (limit := gpu.get("power_limit_w")) is not None:
            settings[f"power_limit_w of GPU {index}"] = str(limit)
    return settings


def _same_device(one: Bench, other: Bench) -> bool:
    def machine(bench: Bench) -> tuple[Any, Any]:
        return bench.environment.get("processor"), bench.environment.get("board")

    def gpus(bench: Bench) -> list[str]:
        return sorted(str(gpu.get("name")) for gpu in _gpus(_object(bench.conditions.get("before"))).values())

    if machine(one) != machine(other) or machine(one) == (None, None):
        return False
    return not gpus(one) or not gpus(other) or gpus(one) == gpus(other)


def _throttling(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    counts = before.get("throttle_counts", {}), after.get("throttle_counts", {})
    for key, count in counts[1].items():
        if (first := counts[0].get(key)) is not None and count > first:
            what = _THROTTLED.get(key, f"the module throttled for too high a current or too low a voltage ({key})")
            yield f"{what} during the run, {count - first} times: figures are slower than those of a cool, well fed machine"
    first_gpus = _gpus(before)
    for index, gpu in _gpus(after).items():
        times = _object(first_gpus.get(index, {}).get("throttled_us")), _object(gpu.get("throttled_us"))
        for reason, us in times[1].items():
            if (first := times[0].get(reason)) is not None and us > first:
                yield f"GPU {index} was held back by {reason} for {(us - first) / 1e6:.3g} s of the run"
    for moment, facts in (("before", before), ("after", after)):
        for index, gpu in _gpus(facts).items():
            if reasons := [reason for reason in gpu.get("throttle_reasons", ()) if reason in _HELD_BACK]:
                yield f"GPU {index} was held back by {', '.join(reasons)} just {moment} the run"


def _fallen_clocks(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    limits = zip(before.get("cpu_limit_mhz", ()), after.get("cpu_limit_mhz", ()), strict=False)
    if fallen := [(high, low) for high, low in limits if low < high]:
        high, low = min(fallen, key=lambda pair: pair[1] / pair[0])
        yield f"the highest clock that processors may take fell during the run, from {high:g} to {low:g} MHz"
    if _holds_clocks(before) and _holds_clocks(after):
        high, low = max(before["cpu_mhz"]), max(after["cpu_mhz"])
        if low < _STEADY * high:
            yield f"the clock of the fastest processor fell during the run, from {high:g} to {low:g} MHz"
    first_gpus = _gpus(before)
    for index, gpu in _gpus(after).items():
        high, low = first_gpus.get(index, {}).get("sm_mhz"), gpu.get("sm_mhz")
        # a GPU that idles again lowers its clock by itself; without the reasons nobody knows whether it does
        idles = "GpuIdle" in gpu.get("throttle_reasons", ["GpuIdle"])
        if high is not None and low is not None and not idles and low < _STEADY * high:
            yield f"the clock of GPU {index} fell during the run, from {high:g} to {low:g} MHz"


def _holds_clocks(facts: Mapping[str, Any]) -> bool:
    """Whether no governor lowers the clocks of idle processors, so that a lower one is a finding."""
    held = _object(facts.get("jetson_clocks")).get("pinned") is True or facts.get("governors") == ["performance"]
    return held and facts.get("cpu_mhz_source") == "cpufreq"


def _gpus(facts: Mapping[str, Any]) -> dict[Any, Mapping[str, Any]]:
    listed = facts.get("gpus")
    gpus = listed if isinstance(listed, list) else []
    return {gpu["index"]: gpu for gpu in gpus if isinstance(gpu, dict) and "index" in gpu}


def _object(value: Any) -> Mapping[str, Any]:
    """A file's value if it is an object: a report is asked for by people who did not write the file."""
    return value if isinstance(value, dict) else {}


def _name(bench: Bench) -> str:
    return str(bench.path) if bench.path is not None else f"the bench of {bench.bundle.get('name', 'a bundle')}"
