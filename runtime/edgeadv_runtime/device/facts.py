"""Facts about the machine that a figure belongs to. Whatever cannot be read is left out, never guessed.

:func:`environment` tells what the machine is, :func:`conditions` in what state it is just now. Parsers take the text
and touch nothing. Those of ``nvpmodel`` and ``jetson_clocks`` were written from outputs that others recorded: these
programs have not been seen running under this code on a device that has them.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._version import __version__
from .nvml import read_gpus

LIBRARIES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx")
VERSION_FILE = Path("/proc/driver/nvidia/version")
_PROGRAM_TIMEOUT_S = 10.0
_DECIMAL = re.compile(r"-?\d+(\.\d+)?")
_FREQUENCIES = re.compile(r"^\s*(\S+?):?[ \t].*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
# the kernel of a Jetson gives about -256 degrees for a sensor whose rail is switched off
_COLDEST_C = -100.0


def processor_name() -> str:
    """The processor's own name with its board, or the machine architecture where the system tells neither.

    On a Jetson the processor calls itself "ARMv8 Processor rev 1 (v8l)", whatever the model: the board tells which.
    """
    processor = parse_cpuinfo(read_text(Path("/proc/cpuinfo")) or "").get("name")
    board = board_name()
    if board and processor:
        return f"{board} ({processor})"
    return board or processor or platform.processor() or platform.machine()


def board_name() -> str | None:
    """The board's name in the device tree, e.g. "NVIDIA Jetson Orin Nano Developer Kit"; None without such a tree."""
    text = read_text(Path("/proc/device-tree/model"))
    return (text.strip("\0\n ") or None) if text else None


def driver_version(path: Path = VERSION_FILE) -> str | None:
    """Version of the NVIDIA driver's kernel module, e.g. ``"550.54.14"``; None where the system does not tell."""
    match = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", read_text(path) or "")
    return match[1] if match else None


def usable_cores() -> int | None:
    """Cores that this process can keep busy: those that it may run on, or fewer by :func:`quota_cores`; None where the
    system does not tell."""
    return quota_cores() or _allowed_cores()


def quota_cores() -> int | None:
    """Cores of a container's quota where these are fewer than those that this process may run on, which is all that
    libraries count; None elsewhere. A part of a core counts as one."""
    quota, allowed = cpu_quota(), _allowed_cores()
    if quota is None or allowed is None or math.ceil(quota) >= allowed:
        return None
    return math.ceil(quota)


def limited_cores() -> int | None:
    """:func:`usable_cores` where these are fewer than the machine has, by a quota or by the cores that this process may
    run on; None elsewhere. ONNX Runtime counts the machine's, and binds its threads to them."""
    cores = usable_cores()
    return cores if cores is not None and cores < (os.cpu_count() or cores) else None


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor time that control groups leave this process, in cores, e.g. 1.5; None for no limit.

    A limit of a group holds for all below it, so the smallest on the way up is it.

    Args:
        root: where control groups are mounted. In a container that is often the process's own group, whatever the
            path that the system gives it.
        own: the groups of this process: version 2 on the line that begins with ``0::``, version 1 on that of ``cpu``.
    """
    quotas = []
    for line in (read_text(own) or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            mounts, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / controllers, root / "cpu"], _quota_v1
        else:
            continue
        for mount in mounts:
            below = mount / path.strip("/")
            groups = [below, *below.parents][: len(below.relative_to(mount).parts) + 1]
            quotas += [quota for group in groups if (quota := read(group)) is not None]
    return min(quotas, default=None)


def running_threads(stat: Path = Path("/proc/stat")) -> int | None:
    """Threads of all programs of the machine that run or wait for a core at this moment, the caller's included; None
    where the system does not tell."""
    match = re.search(r"^procs_running (\d+)$", read_text(stat) or "", re.MULTILINE)
    return int(match[1]) if match else None


def _allowed_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _quota_v2(group: Path) -> float | None:
    match = re.fullmatch(r"(\d+) (\d+)", (read_text(group / "cpu.max") or "").strip())
    return int(match[1]) / int(match[2]) if match and int(match[1]) and int(match[2]) else None


def _quota_v1(group: Path) -> float | None:
    quota, period = (read_number(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota and period and quota > 0 else None


def library_versions(distributions: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of those ``distributions`` that are installed, read without importing them."""
    # a hundredth of a second, which whoever only opens a bundle does not need
    import importlib.metadata

    versions = {}
    for name in distributions:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def environment() -> dict[str, Any]:
    """What does not change between two measurements on the same machine.

    Returns:
        A JSON object: ``os``, ``kernel``, ``machine``, ``python``, ``processor``, ``board``, ``cores`` (see
        :func:`usable_cores`), ``memory_mib`` and ``versions`` of edgeadv and the libraries that are installed.
    """
    facts = {
        "os": _os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "board": board_name(),
        "cores": usable_cores(),
        "memory_mib": read_memory().get("total_mib"),
        "versions": {"edgeadv": __version__, **library_versions()},
    }
    return _told(facts)


def conditions() -> dict[str, Any]:
    """What does change, and changes latencies: clocks, load, temperatures, power. Takes up to a second or two.

    Returns:
        A JSON object: ``time`` (UTC) and whatever can be read of ``load_average``, ``memory_available_mib``, the keys
        of :func:`read_cpu_clocks`, ``temperatures_c``, ``throttle_counts``, ``power_mode``, ``power_mode_id`` and
        ``jetson_clocks`` (Jetson) and ``gpus``.
    """
    facts: dict[str, Any] = {"time": now()}
    with suppress(OSError):
        facts["load_average"] = [round(load, 2) for load in os.getloadavg()]
    facts |= {
        "memory_available_mib": read_memory().get("available_mib"),
        **read_cpu_clocks(),
        "temperatures_c": read_temperatures(),
        "throttle_counts": read_throttle_counts(),
        **parse_nvpmodel(_output("nvpmodel", "-q")),
        "jetson_clocks": parse_jetson_clocks(_output("jetson_clocks", "--show")),
        "gpus": read_gpus(),
    }
    return _told(facts)


def now() -> str:
    """The time in UTC, to the second, by ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_memory() -> dict[str, int]:
    """``total_mib`` of this machine, and ``available_mib``, what programs can still have; empty where it is not
    told."""
    import psutil

    try:
        memory = psutil.virtual_memory()
    except OSError:
        return {}
    return {"total_mib": memory.total >> 20, "available_mib": memory.available >> 20}


def read_cpu_clocks(
    folder: Path = Path("/sys/devices/system/cpu"), cpuinfo: Path = Path("/proc/cpuinfo")
) -> dict[str, Any]:
    """The clock of each processor now.

    Args:
        folder: the kernel's folder of processors.
        cpuinfo: what to read where the kernel has no cpufreq, as in most virtual machines.

    Returns:
        ``cpu_mhz`` in the order of the processors; ``cpu_mhz_source``, ``"cpufreq"`` or ``"cpuinfo"`` (which in a
        virtual machine is often the nominal clock); with cpufreq also ``cpu_limit_mhz``, the highest clock allowed now,
        and ``governors``, the distinct ones.
    """
    policies = sorted(folder.glob("cpu[0-9]*/cpufreq"), key=lambda policy: int(policy.parent.name[3:]))
    clocks, limits = (
        [khz / 1000 for policy in policies if (khz := read_number(policy / name)) is not None]
        for name in ("scaling_cur_freq", "scaling_max_freq")
    )
    governors = {(read_text(policy / "scaling_governor") or "").strip() for policy in policies} - {""}
    source = "cpufreq"
    if not clocks:
        clocks, source = parse_cpuinfo(read_text(cpuinfo) or "").get("mhz", []), "cpuinfo"
    facts = {"cpu_mhz": clocks, "cpu_limit_mhz": limits, "governors": sorted(governors)}
    return _told(facts | {"cpu_mhz_source": source if clocks else None})


def read_temperatures(folder: Path = Path("/sys/class/thermal")) -> dict[str, float]:
    """Degrees Celsius of each thermal zone by its type; zones of the same type get their number, as ``"acpitz#1"``."""
    zones = []
    for zone in sorted(folder.glob("thermal_zone[0-9]*"), key=lambda zone: int(zone.name[12:])):
        millidegrees = read_number(zone / "temp")
        if millidegrees is not None and millidegrees / 1000 > _COLDEST_C:
            zones.append((zone.name[12:], (read_text(zone / "type") or "").strip() or "zone", millidegrees / 1000))
    count = Counter(kind for _, kind, _ in zones)
    return {kind if count[kind] == 1 else f"{kind}#{number}": celsius for number, kind, celsius in zones}


def read_throttle_counts(
    cpus: Path = Path("/sys/devices/system/cpu"), hwmon: Path = Path("/sys/class/hwmon")
) -> dict[str, int]:
    """How often the machine throttled since it was started; only growth between two readings means something.

    Args:
        cpus: the kernel's folder of processors: x86 counts heat there, for each core and each package.
        hwmon: the kernel's folder of sensors: a Jetson counts too high a current and too low a voltage there.

    Returns:
        ``core`` and ``package``, summed over the processors, and ``oc1``, ``oc2``, ... as the Jetson numbers its
        alarms.
    """
    counts: Counter[str] = Counter()
    for path in (*cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"), *hwmon.glob("hwmon*/oc[0-9]*_event_cnt")):
        if (count := read_number(path)) is not None:
            counts[path.name.removesuffix("_throttle_count").removesuffix("_event_cnt")] += count
    return dict(sorted(counts.items()))


def read_text(path: Path) -> str | None:
    """The text at ``path``, or None: files below /proc and /sys are absent, or refuse, on many a machine."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def read_number(path: Path) -> int | None:
    """The whole number that is all of the text at ``path``, or None."""
    text = (read_text(path) or "").strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Read ``/proc/cpuinfo``: the ``name`` and, in the order of the processors, ``mhz``, each if it is there."""
    facts: dict[str, Any] = {}
    clocks = []
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key.lower() in ("model name", "hardware") and value:
            facts.setdefault("name", value)
        elif key == "cpu MHz" and _DECIMAL.fullmatch(value):
            clocks.append(float(value))
    return facts | ({"mhz": clocks} if clocks else {})


def parse_nvpmodel(text: str) -> dict[str, Any]:
    """Read the answer of ``nvpmodel -q``: ``power_mode`` and, from the line after it, ``power_mode_id``.

    Not seen running on a device: recorded answers have the name of the mode, then its number, between lines about the
    fan and, without root, about parameters that could not be read.
    """
    match = re.search(r"^.*NV Power Mode:[ \t]*(\S.*?)[ \t]*$(?:\n[ \t]*(\d+)[ \t]*$)?", text, re.MULTILINE)
    if match is None:
        return {}
    return {"power_mode": match[1]} | ({"power_mode_id": int(match[2])} if match[2] else {})


def parse_jetson_clocks(text: str) -> dict[str, Any]:
    """Read the answer of ``jetson_clocks --show``, which it gives to root only.

    Not seen running on a device: recorded answers have ``MinFreq``, ``MaxFreq`` and ``CurrentFreq`` of each processor
    in kHz and of the GPU and the memory (``EMC``) in Hz, each on a line of its own.

    Returns:
        ``pinned``, whether the processors that are online and the GPU have one frequency only; ``gpu_mhz`` and
        ``memory_mhz`` just now. Nothing where nothing was told.
    """
    online = [match for match in _FREQUENCIES.finditer(text) if "Online=0" not in match[0]]
    cpus = [match for match in online if re.fullmatch(r"cpu\d+", match[1])]
    # Thor has "gpu-gpc-0" and, for video, "gpu-nvd-0"
    gpus = [match for match in online if match[1].lower().startswith("gpu")]
    memory = [match for match in online if match[1] == "EMC"]
    if not cpus:
        return {}
    facts: dict[str, Any] = {"pinned": all(match[2] == match[3] for match in (*cpus, *gpus))}
    facts |= {"gpu_mhz": int(gpus[0][4]) / 1e6} if gpus else {}
    return facts | ({"memory_mhz": int(memory[0][4]) / 1e6} if memory else {})


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value not in (None, "", [], {})}


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _output(program: str, argument: str) -> str:
    """What ``program`` prints, whatever its exit status; nothing where it is not installed, cannot start or hangs."""
    try:
        done = subprocess.run(
            [program, argument],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PROGRAM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
