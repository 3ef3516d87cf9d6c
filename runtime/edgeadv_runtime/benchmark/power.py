"""Energy of a series of calls, from whatever counts it on this machine. Where nothing does there is no figure, not a
zero.

Each meter says what it covers, and counts all of it: what idles beside the model draws power too. Meters are read just
before the first timed call and just after the last one; what must sample in between does so in a process of its own.

Not seen running: no machine that this was written on had an NVIDIA driver, a Jetson's ``tegrastats`` or a readable
powercap. :class:`NvmlMeter` uses NVIDIA's own binding of the library, :class:`TegrastatsMeter` follows lines that
others recorded, :class:`RaplMeter` the kernel's documentation.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ..device.cuda import LIBRARY
from ..device.facts import read_number, read_text
from ..device.nvml import ask, nvml
from ..device.processes import end_with_parent

Reading = tuple[int, ...]
POWERCAP = Path("/sys/class/powercap")
TEGRASTATS_INTERVAL_MS = 100
_FIRST_LINE_S = 3.0
_LAST_LINE_S = 2.0
# fewer samples than this are no average
_FEWEST_SAMPLES = 5
# more than any one package takes: a counter that could have wrapped twice at this power tells nothing
_MOST_PACKAGE_W = 500.0
_CUDA: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetPCIBusId": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
}
_PCI_BYTES = 32
# what adds up to all that a module takes, by the rails that its board names; the first set that is there counts
_RAILS = {
    ("VDD_IN",): "the whole module",
    ("POM_5V_IN",): "the whole module",
    ("VIN",): "the whole board",
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"): "the module's three supplies",
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"): "the module's six supplies",
}
_RAIL = re.compile(r"(?<!\S)([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/\d+(?:mW)?(?:/\d+mW)?(?!\S)")


class Meter(AbstractContextManager["Meter"], ABC):
    """What measures energy. Close it; it is its own context manager.

    Attributes:
        source: what measures and what is in its figure, in words.
        covers_cpu: whether the work of the processor is in the figure.
        shortest_s: shorter series would show the steps of the meter more than the energy.
    """

    source: str
    covers_cpu: bool
    shortest_s: float

    @abstractmethod
    def read(self) -> Reading | None:
        """Where the meter stands now; None if it does not tell."""

    def joules(self, first: Reading | None, last: Reading | None, *, wall_s: float) -> float | None:
        """Energy between two readings.

        Args:
            first: reading before the series.
            last: reading after it.
            wall_s: seconds that the series took.

        Returns:
            Joules, above 0; None where the series was too short or the meter failed.
        """
        if first is None or last is None or wall_s < self.shortest_s:
            return None
        joules = self._joules(first, last, wall_s)
        return joules if joules is not None and joules > 0 else None

    @abstractmethod
    def _joules(self, first: Reading, last: Reading, wall_s: float) -> float | None: ...

    def close(self) -> None:  # a counter in a file needs none
        """Let go of what the meter holds. A second call does nothing."""

    def __exit__(self, *error: object) -> None:
        self.close()


class NvmlMeter(Meter):
    """The counter of an NVIDIA GPU's board, in millijoules since its driver was loaded: Volta and later, no Jetson."""

    covers_cpu = False
    # the counter moves in steps of up to 0.1 s
    shortest_s: float = 1.0

    def __init__(self, library: Any, handle: Any, started: ExitStack) -> None:
        """Use :meth:`open`."""
        self._library = library
        self._handle = handle
        self._started = started
        self.source = "NVML energy counter: the whole board of the GPU, not the computer around it"

    @classmethod
    def open(cls, gpu_index: int = 0, *, load: Callable[[str], Any] = ctypes.CDLL) -> NvmlMeter | None:
        """The counter of one GPU.

        Args:
            gpu_index: which one, as CUDA counts them in this process; NVML counts in another order.
            load: opens CUDA's library by its name.

        Returns:
            None without the driver, the GPU or the counter.
        """
        place = _pci_bus_id(gpu_index, load)
        if place is None:
            return None
        started = ExitStack()
        library = started.enter_context(nvml())
        meter = cls(library, library and ask(library.nvmlDeviceGetHandleByPciBusId, place), started)
        if meter.read() is not None:
            return meter
        meter.close()
        return None

    def read(self) -> Reading | None:
        """Millijoules on the counter."""
        if self._handle is None:
            return None
        millijoules = ask(self._library.nvmlDeviceGetTotalEnergyConsumption, self._handle)
        return None if millijoules is None else (millijoules,)

    def _joules(self, first: Reading, last: Reading, wall_s: float) -> float | None:
        return (last[0] - first[0]) / 1000

    def close(self) -> None:
        """Let go of the library."""
        self._handle = None
        self._started.close()


class TegrastatsMeter(Meter):
    """Power of a Jetson, sampled by its own ``tegrastats`` beside the series, times the wall time of the series."""

    covers_cpu = True
    shortest_s: float = 0.0  # samples are counted instead

    def __init__(self, process: subprocess.Popen[bytes], log: int) -> None:
        """Use :meth:`open`."""
        self._process = process
        self._log = log
        self._rails: tuple[str, ...] = ()

    @classmethod
    def open(cls) -> TegrastatsMeter | None:
        """Start sampling; None without the program, or where its lines name no rails that add up to the module."""
        program = shutil.which("tegrastats")
        if program is None:
            return None
        with tempfile.TemporaryFile() as log:
            try:
                process = subprocess.Popen(
                    [program, "--interval", str(TEGRASTATS_INTERVAL_MS)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=end_with_parent,
                )
            except OSError:
                return None
            meter = cls(process, os.dup(log.fileno()))
        if meter._find_rails():
            return meter
        meter.close()
        return None

    def _find_rails(self) -> bool:
        """Wait for the first whole line and choose what of it is the module's power."""
        end = time.monotonic() + _FIRST_LINE_S
        text = ""
        while "\n" not in text and self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            text = os.pread(self._log, 1 << 16, 0).decode(errors="replace")
        named = parse_tegrastats(text.partition("\n")[0])
        for rails, what in _RAILS.items():
            if named.keys() >= set(rails):
                self._rails = rails
                self.source = f"tegrastats every {TEGRASTATS_INTERVAL_MS} ms: {what} ({' + '.join(rails)})"
                return True
        return False

    def read(self) -> Reading | None:
        """Bytes that were printed so far; None once sampling has stopped."""
        return (os.fstat(self._log).st_size,) if self._process.poll() is None else None

    def _joules(self, first: Reading, last: Reading, wall_s: float) -> float | None:
        # from the byte before: what follows the first and precedes the last end of line are whole lines
        text = os.pread(self._log, last[0] - first[0] + 1, max(first[0] - 1, 0)).decode(errors="replace")
        lines = text.partition("\n")[2].rpartition("\n")[0].splitlines()
        sampled = [rails for rails in map(parse_tegrastats, lines) if rails.keys() >= set(self._rails)]
        if len(sampled) < _FEWEST_SAMPLES:
            return None
        return wall_s * sum(rails[rail] for rails in sampled for rail in self._rails) / len(sampled) / 1000

    def close(self) -> None:
        """Stop sampling."""
        if self._log < 0:
            return
        self._process.terminate()
        try:
            self._process.wait(_LAST_LINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._log)
        self._log = -1


class RaplMeter(Meter):
    """Counters of x86 processor packages that the kernel shows below ``powercap``, on most systems to root only."""

    covers_cpu = True
    # the counters move every millisecond
    shortest_s: float = 0.1

    def __init__(self, zones: dict[Path, int]) -> None:
        """Use :meth:`open`."""
        self._zones = zones
        packages = "the processor package" if len(zones) == 1 else f"{len(zones)} processor packages"
        # a counter that came round more than once would show less than there was
        longest_s = min(zones.values(), default=0) / (_MOST_PACKAGE_W * 1e6)
        self.source = (
            f"RAPL: {packages}, without memory, board or any GPU on a card; series of at most {longest_s:.0f} s"
        )

    @classmethod
    def open(cls, folder: Path = POWERCAP) -> RaplMeter | None:
        """All packages, or None where one of them cannot be read: a part would look like the whole."""
        zones = {}
        # a package's parts, and "psys", which counts the packages again, are zones too
        for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
            if (read_text(zone / "name") or "").startswith("package"):
                zones[zone / "energy_uj"] = read_number(zone / "max_energy_range_uj") or 0
        meter = cls(zones)
        return meter if zones and all(zones.values()) and meter.read() is not None else None

    def read(self) -> Reading | None:
        """Microjoules on each counter."""
        counters = [number for path in self._zones if (number := read_number(path)) is not None]
        return tuple(counters) if len(counters) == len(self._zones) else None

    def _joules(self, first: Reading, last: Reading, wall_s: float) -> float | None:
        total = 0
        for start, end, span in zip(first, last, self._zones.values(), strict=True):
            if wall_s * _MOST_PACKAGE_W * 1e6 > span:
                return None
            total += end - start + (span if end < start else 0)
        return total / 1e6


@contextmanager
def metering(
    *, gpu_index: int | None, processor: bool, load: Callable[[str], Any] = ctypes.CDLL, powercap: Path = POWERCAP
) -> Iterator[Meter | None]:
    """Open the meter that covers the work: of the GPU's board, of the Jetson, or of the processor; None without one.

    Args:
        gpu_index: the GPU that the model runs on, as CUDA counts them; None for the processor, and where that is not
            known: the counter of another GPU would show it idle.
        processor: whether the model runs on the processor. What counts that alone would miss most of the energy of a
            GPU.
        load: opens CUDA's library by its name.
        powercap: the kernel's folder of power zones.
    """
    meter: Meter | None = NvmlMeter.open(gpu_index, load=load) if gpu_index is not None else None
    meter = meter or TegrastatsMeter.open()
    if meter is None and processor:
        meter = RaplMeter.open(powercap)
    if meter is None:
        yield None
        return
    with meter:
        yield meter


def parse_tegrastats(line: str) -> dict[str, int]:
    """Milliwatts of each rail just then, from a line of ``tegrastats``; its second number, an average, is not used.

    Not seen running: recorded lines have ``VDD_IN 4998mW/4998mW``, older ones ``POM_5V_IN 1234/1234``.
    """
    return {name: int(milliwatts) for name, milliwatts in _RAIL.findall(line)}


def _pci_bus_id(gpu_index: int, load: Callable[[str], Any]) -> bytes | None:
    """Where the GPU that CUDA counts as this one is, e.g. ``b"0000:65:00.0"``; None without a driver or the GPU."""
    try:
        cuda = load(LIBRARY)
        # declared, so that no address is cut to 32 bits
        for function, types in _CUDA.items():
            getattr(cuda, function).argtypes = types
    except (OSError, AttributeError):
        return None
    device, place = ctypes.c_int(), ctypes.create_string_buffer(_PCI_BYTES)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), gpu_index):
        return None
    return None if cuda.cuDeviceGetPCIBusId(place, _PCI_BYTES, device) else place.value
