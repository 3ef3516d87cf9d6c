"""The machine that a figure belongs to, as files hold it; what could not be read is None, never guessed."""

from __future__ import annotations

import msgspec

from ..decoding import Count


class Environment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What does not change between two measurements, see :func:`~edgeadv_runtime.device.facts.environment`.

    Attributes:
        os: name of the operating system.
        kernel: its version.
        machine: architecture of the processor.
        python: version.
        processor: its name.
        board: its name in the device tree.
        cores: usable by the process.
        memory_mib: of the machine.
        versions: of edgeadv and the libraries that are installed.
    """

    os: str | None = None
    kernel: str | None = None
    machine: str | None = None
    python: str | None = None
    processor: str | None = None
    board: str | None = None
    cores: Count | None = None
    memory_mib: Count | None = None
    versions: dict[str, str] | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU in one moment, see :func:`~edgeadv_runtime.device.nvml.read_gpus`.

    Attributes:
        index: as NVML counts.
        name: of the GPU.
        sm_mhz: clock of its processors.
        memory_mhz: clock of its memory.
        temperature_c: degrees Celsius.
        power_w: what it takes.
        power_limit_w: what it may take.
        throttle_reasons: what holds its clocks back.
        throttled_us: microseconds that each reason lasted since the driver was loaded.
    """

    index: Count
    name: str | None = None
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    throttle_reasons: tuple[str, ...] | None = None
    throttled_us: dict[str, Count] = {}


class JetsonClocks(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``jetson_clocks`` shows.

    Attributes:
        pinned: whether processors and GPU have one frequency only.
        gpu_mhz: clock of the GPU.
        memory_mhz: clock of the memory.
    """

    pinned: bool | None = None
    gpu_mhz: float | None = None
    memory_mhz: float | None = None


class Conditions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of the machine in one moment, see :func:`~edgeadv_runtime.device.facts.conditions`.

    Attributes:
        time: UTC, ISO 8601.
        load_average: over 1, 5 and 15 minutes.
        memory_available_mib: what programs could still have.
        cpu_mhz: clock of each processor.
        cpu_mhz_source: ``"cpufreq"`` or ``"cpuinfo"``.
        cpu_limit_mhz: highest clock allowed, of each processor.
        governors: the distinct ones.
        temperatures_c: degrees Celsius of each thermal zone.
        throttle_counts: how often the machine throttled since it was started, by reason.
        power_mode: of a Jetson.
        power_mode_id: its number.
        jetson_clocks: of a Jetson.
        gpus: of NVIDIA's.
    """

    time: str | None = None
    load_average: tuple[float, ...] = ()
    memory_available_mib: Count | None = None
    cpu_mhz: tuple[float, ...] = ()
    cpu_mhz_source: str | None = None
    cpu_limit_mhz: tuple[float, ...] = ()
    governors: tuple[str, ...] = ()
    temperatures_c: dict[str, float] = {}
    throttle_counts: dict[str, Count] = {}
    power_mode: str | None = None
    power_mode_id: Count | None = None
    jetson_clocks: JetsonClocks | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def pinned(self) -> bool | None:
        """Whether ``jetson_clocks`` holds the clocks; None where that is not known."""
        return None if self.jetson_clocks is None else self.jetson_clocks.pinned
