"""NVIDIA GPUs as their driver's library NVML tells them. Without a driver there are none, and nothing here raises.

What a driver cannot tell is left out: an older one lacks functions, and on a Jetson NVML, where it is there at all,
knows little more than the GPU's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

# what lowers clocks, as NVML names it; pynvml has the bit of each
_REASONS = (
    "GpuIdle",
    "ApplicationsClocksSetting",
    "SwPowerCap",
    "HwSlowdown",
    "SyncBoost",
    "SwThermalSlowdown",
    "HwThermalSlowdown",
    "HwPowerBrakeSlowdown",
    "DisplayClockSetting",
)
# the counters whose field has one number in every driver: those of SwThermalSlowdown and HwThermalSlowdown apart had
# several
_THROTTLED_FIELDS = {
    "SwPowerCap": "NVML_FI_DEV_PERF_POLICY_POWER",
    "ThermalSlowdown": "NVML_FI_DEV_PERF_POLICY_THERMAL",
}


@contextmanager
def nvml() -> Iterator[ModuleType | None]:
    """The module ``pynvml`` with NVML started for the block; None without a driver that starts."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def ask(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """What a function of ``pynvml`` answers; None where the driver does not know it, or this GPU has it not."""
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def read_gpus() -> list[dict[str, Any]]:
    """Each GPU's clocks, power and heat now, and what holds its clocks back.

    Returns:
        For each GPU its ``index``, as NVML counts, and whatever can be read of ``name``, ``sm_mhz``, ``memory_mhz``,
        ``temperature_c``, ``power_w``, ``power_limit_w``, ``throttle_reasons``, the names of the reasons just now, and
        ``throttled_us``, the microseconds that each lasted since the driver was loaded.
    """
    with nvml() as library:
        if library is None:
            return []
        return [_read_gpu(library, index) for index in range(ask(library.nvmlDeviceGetCount) or 0)]


def _read_gpu(library: Any, index: int) -> dict[str, Any]:
    handle = ask(library.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return {"index": index}
    celsius = _first(
        (library.nvmlDeviceGetTemperatureV, library.nvmlDeviceGetTemperature), handle, library.NVML_TEMPERATURE_GPU
    )
    facts = {
        "name": ask(library.nvmlDeviceGetName, handle),
        "sm_mhz": _scaled(ask(library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_SM)),
        "memory_mhz": _scaled(ask(library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_MEM)),
        "temperature_c": _scaled(celsius),
        "power_w": _scaled(ask(library.nvmlDeviceGetPowerUsage, handle), 1000),
        "power_limit_w": _scaled(ask(library.nvmlDeviceGetPowerManagementLimit, handle), 1000),
        "throttle_reasons": _throttle_reasons(library, handle),
        "throttled_us": _throttled(library, handle) or None,
    }
    return {"index": index} | {key: value for key, value in facts.items() if value is not None}


def _throttle_reasons(library: Any, handle: Any) -> list[str] | None:
    """Names of the bits in the mask of reasons; a bit without one stays hex."""
    newer, older = library.nvmlDeviceGetCurrentClocksEventReasons, library.nvmlDeviceGetCurrentClocksThrottleReasons
    mask = _first((newer, older), handle)
    if mask is None:
        return None
    names = {getattr(library, f"nvmlClocksEventReason{name}"): name for name in _REASONS}
    bits = [1 << bit for bit in range(mask.bit_length()) if mask >> bit & 1]
    return [names.get(bit, hex(bit)) for bit in bits]


def _throttled(library: Any, handle: Any) -> dict[str, int]:
    values = ask(
        library.nvmlDeviceGetFieldValues, handle, [getattr(library, name) for name in _THROTTLED_FIELDS.values()]
    )
    return {
        name: value.value.ullVal // 1000  # nanoseconds
        for name, value in zip(_THROTTLED_FIELDS, values or (), strict=False)
        if value.nvmlReturn == library.NVML_SUCCESS
    }


def _first(functions: tuple[Callable[..., Any], ...], *arguments: Any) -> Any | None:
    """The answer of the first function that the driver has."""
    answers = (ask(function, *arguments) for function in functions)
    return next((answer for answer in answers if answer is not None), None)


def _scaled(value: int | None, divisor: int = 1) -> float | None:
    return None if value is None else value / divisor
