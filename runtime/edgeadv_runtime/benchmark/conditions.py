"""What the state of a machine means for its figures: sentences about one run, and a refusal for two that do not
compare.

What :func:`~edgeadv_runtime.device.facts.conditions` could not read is unknown here, never different.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from ..errors import InputError
from ..records.bench import Bench
from ..records.machine import Conditions, Gpu

# the rest of the reasons are a setting or an idle GPU
_HELD_BACK = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
_THROTTLED = {"core": "processor cores throttled for heat", "package": "the processor throttled for heat"}
# where clocks are pinned they do not move at all; this much is the noise of reading them
_STEADY = 0.95


def run_warnings(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """What changed for the worse during one run, a sentence each: settings, throttling, clocks.

    Args:
        before: the machine before all measurements.
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
        InputError: two files are of one device in different power modes, with ``jetson_clocks`` in different states,
            under different CPU governors or with different GPU power limits.
    """
    for one, other in combinations(benches, 2):
        if not _same_device(one, other):
            continue
        for moment in ("before", "after"):
            mine, theirs = (_settings(bench.conditions.get(moment, Conditions())) for bench in (one, other))
            for key in mine:
                if key in theirs and mine[key] != theirs[key]:
                    raise InputError(
                        f"{one.name} and {other.name} cannot be compared: measured on the same device with {key} "
                        f"{mine[key]} and {theirs[key]}; measure both in one state, or report them apart"
                    )


def _settings(facts: Conditions) -> dict[str, str]:
    """What somebody set, as far as it is known: the same texts mean the same setting."""
    settings = {}
    if facts.power_mode:
        settings["power_mode"] = facts.power_mode
    if facts.pinned is not None:
        settings["jetson_clocks"] = "on" if facts.pinned else "off"
    if facts.governors:
        settings["governors"] = ", ".join(facts.governors)
    for gpu in facts.gpus:
        if gpu.power_limit_w is not None:
            settings[f"power_limit_w of GPU {gpu.index}"] = str(gpu.power_limit_w)
    return settings


def _same_device(one: Bench, other: Bench) -> bool:
    def machine(bench: Bench) -> tuple[str | None, str | None]:
        return bench.environment.processor, bench.environment.board

    def gpus(bench: Bench) -> list[str]:
        return sorted(str(gpu.name) for gpu in bench.conditions.get("before", Conditions()).gpus)

    if machine(one) != machine(other) or machine(one) == (None, None):
        return False
    return not gpus(one) or not gpus(other) or gpus(one) == gpus(other)


def _throttling(before: Conditions, after: Conditions) -> Iterator[str]:
    for key, count in after.throttle_counts.items():
        if (first := before.throttle_counts.get(key)) is not None and count > first:
            what = _THROTTLED.get(key, f"the module throttled for too high a current or too low a voltage ({key})")
            yield (
                f"{what} during the run, {count - first} times: figures are slower than those of a cool, well "
                "fed machine"
            )
    for gpu, earlier in _gpus(before, after):
        for reason, us in gpu.throttled_us.items():
            if (first := earlier.throttled_us.get(reason)) is not None and us > first:
                yield f"GPU {gpu.index} was held back by {reason} for {(us - first) / 1e6:.3g} s of the run"
    for moment, facts in (("before", before), ("after", after)):
        for gpu in facts.gpus:
            if reasons := [reason for reason in gpu.throttle_reasons or () if reason in _HELD_BACK]:
                yield f"GPU {gpu.index} was held back by {', '.join(reasons)} just {moment} the run"


def _fallen_clocks(before: Conditions, after: Conditions) -> Iterator[str]:
    limits = zip(before.cpu_limit_mhz, after.cpu_limit_mhz, strict=False)
    if fallen := [(high, low) for high, low in limits if low < high]:
        high, low = min(fallen, key=lambda pair: pair[1] / pair[0])
        yield f"the highest clock that processors may take fell during the run, from {high:g} to {low:g} MHz"
    if _holds_clocks(before) and _holds_clocks(after):
        high, low = max(before.cpu_mhz), max(after.cpu_mhz)
        if low < _STEADY * high:
            yield f"the clock of the fastest processor fell during the run, from {high:g} to {low:g} MHz"
    for gpu, earlier in _gpus(before, after):
        # a GPU that idles again lowers its clock by itself; without the reasons nobody knows whether it does
        idles = gpu.throttle_reasons is None or "GpuIdle" in gpu.throttle_reasons
        if (
            earlier.sm_mhz is not None
            and gpu.sm_mhz is not None
            and not idles
            and gpu.sm_mhz < _STEADY * earlier.sm_mhz
        ):
            yield f"the clock of GPU {gpu.index} fell during the run, from {earlier.sm_mhz:g} to {gpu.sm_mhz:g} MHz"


def _holds_clocks(facts: Conditions) -> bool:
    """Whether no governor lowers the clocks of idle processors, so that a lower one is a finding."""
    held = facts.pinned is True or facts.governors == ("performance",)
    return held and facts.cpu_mhz_source == "cpufreq" and bool(facts.cpu_mhz)


def _gpus(before: Conditions, after: Conditions) -> Iterator[tuple[Gpu, Gpu]]:
    """The GPUs that are known at both moments, as they are after and before."""
    earlier = {gpu.index: gpu for gpu in before.gpus}
    return ((gpu, earlier[gpu.index]) for gpu in after.gpus if gpu.index in earlier)
