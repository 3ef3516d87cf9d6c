"""Energy: counters in folders made like the kernel's, a stand-in tegrastats, and stand-ins for NVIDIA's libraries.

The libraries are called through ctypes, as the real ones are, NVML's by the real binding; the programs are started, as
the real one is.
"""

from __future__ import annotations

import ctypes
import time

import pytest

from edgeadv_runtime.benchmark import power
from edgeadv_runtime.benchmark.power import NvmlMeter, RaplMeter, TegrastatsMeter, metering, parse_tegrastats

# lines of tegrastats as others recorded them, shortened
ORIN_NANO = (
    "04-27-2026 15:00:54 RAM 779/7620MB (lfb 2x4MB) SWAP 0/3810MB (cached 0MB) CPU [0%@1344,0%@1344,off] GR3D_FREQ 0% "
    "cpu@50.125C soc2@49.125C gpu@50.562C tj@50.562C VDD_IN 6626mW/6625mW VDD_CPU_GPU_CV 1228mW/1230mW VDD_SOC "
    "2380mW/2380mW"
)
NANO = (
    "RAM 613/3964MB (lfb 634x4MB) SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [2%@102,1%@102] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@39C CPU@40.5C PMIC@100C thermal@41C POM_5V_IN 900/943 POM_5V_GPU 0/0 POM_5V_CPU 123/123"
)
XAVIER = (
    "RAM 2000/31918MB CPU [17%@1190,17%@1190] EMC_FREQ 55%@2133 GR3D_FREQ 95%@1377 APE 150 MTS fg 0% bg 10% AO@48C "
    "GPU@54.5C GPU 18401/18525 CPU 2301/2330 SOC 4602/4602 CV 0/0 VDDRQ 2914/2911 SYS5V 4632/4620"
)
AGX_ORIN = (
    "RAM 3162/30536MB EMC_FREQ 0%@2133 tj@47.9C VDD_GPU_SOC 3175mW/3175mW VDD_CPU_CV 794mW/794mW VIN_SYS_5V0 "
    "4032mW/4032mW"
)
THOR = (
    "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,off] tj@39.906C VDD_GPU 3561mW/3561mW/4000mW "
    "VDD_CPU_SOC_MSS 7910mW/7910mW/8000mW VIN_SYS_5V0 7620mW/7620mW/7700mW VIN 26686mW/26686mW/30000mW"
)
SLEEP = "while :; do /bin/sleep 0.02; done"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH that has only what a test installs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def tegrastats(folder, script):
    (folder / "tegrastats").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tegrastats").chmod(0o755)


def wait_for(path):
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("line", "rails"),
    [
        (ORIN_NANO, {"VDD_IN": 6626, "VDD_CPU_GPU_CV": 1228, "VDD_SOC": 2380}),
        (NANO, {"POM_5V_IN": 900, "POM_5V_GPU": 0, "POM_5V_CPU": 123}),
        (XAVIER, {"GPU": 18401, "CPU": 2301, "SOC": 4602, "CV": 0, "VDDRQ": 2914, "SYS5V": 4632}),
        (AGX_ORIN, {"VDD_GPU_SOC": 3175, "VDD_CPU_CV": 794, "VIN_SYS_5V0": 4032}),
        (THOR, {"VDD_GPU": 3561, "VDD_CPU_SOC_MSS": 7910, "VIN_SYS_5V0": 7620, "VIN": 26686}),
        ("RAM 779/7620MB SWAP 0/3810MB", {}),
        ("", {}),
    ],
)
def test_tegrastats_rails(line, rails):
    assert parse_tegrastats(line) == rails


@pytest.mark.parametrize(
    ("line", "source"),
    [
        (ORIN_NANO, "the whole module (VDD_IN)"),
        (NANO, "the whole module (POM_5V_IN)"),
        (XAVIER, "the module's six supplies (GPU + CPU + SOC + CV + VDDRQ + SYS5V)"),
        (AGX_ORIN, "the module's three supplies (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)"),
        (THOR, "the whole board (VIN)"),
    ],
)
def test_tegrastats_says_what_its_rails_cover(programs, line, source):
    tegrastats(programs, f"[ \"$1 $2\" = '--interval 100' ] && echo '{line}'; {SLEEP}")
    with TegrastatsMeter.open() as meter:
        assert meter.source == f"tegrastats every 100 ms: {source}"
        assert meter.covers_cpu


def sampled(programs, tmp_path, *, before="", after=""):
    """A meter whose readings lie around what ``before`` and ``after`` print, the start of a line being out already."""
    script = f"""
        echo '{ORIN_NANO}'
        printf '{before}'
        : > {tmp_path}/started
        until [ -e {tmp_path}/go ]; do /bin/sleep 0.01; done
        printf '{after}'
        : > {tmp_path}/done
        {SLEEP}"""
    tegrastats(programs, script)
    meter = TegrastatsMeter.open()
    assert meter is not None
    wait_for(tmp_path / "started")
    first = meter.read()
    (tmp_path / "go").touch()
    wait_for(tmp_path / "done")
    return meter, first, meter.read()


def test_tegrastats_energy_is_mean_power_times_the_time_of_the_series(programs, tmp_path):
    lines = "".join(f"VDD_IN {milliwatts}mW/1mW VDD_SOC 1mW/1mW\\n" for milliwatts in (5000, 6000) * 3)
    meter, first, last = sampled(programs, tmp_path, after=lines)
    with meter:
        assert meter.joules(first, last, wall_s=2.0) == pytest.approx(11.0)
        assert meter.joules(first, None, wall_s=2.0) is None


def test_tegrastats_sums_the_rails_of_a_board_without_one_for_all(programs, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ORIN_NANO", AGX_ORIN)
    line = "VDD_GPU_SOC 3000mW/1mW VDD_CPU_CV 2000mW/1mW VIN_SYS_5V0 1000mW/1mW VDDQ_VDD2_1V8AO 500mW/1mW\\n"
    meter, first, last = sampled(programs, tmp_path, after=line * 5)
    with meter:
        assert meter.joules(first, last, wall_s=1.0) == pytest.approx(6.0)


def test_tegrastats_lines_cut_by_the_edges_of_the_series_do_not_count(programs, tmp_path):
    after = "000mW/1mW\\n" + "VDD_IN 5000mW/1mW\\n" * 5 + "VDD_IN 90000mW/1mW"
    meter, first, last = sampled(programs, tmp_path, before="VDD_IN 90", after=after)
    with meter:
        assert meter.joules(first, last, wall_s=1.0) == pytest.approx(5.0)


def test_tegrastats_with_too_few_samples_gives_no_energy(programs, tmp_path):
    meter, first, last = sampled(programs, tmp_path, after="VDD_IN 5000mW/1mW\\n" * 4)
    with meter:
        assert meter.joules(first, last, wall_s=1.0) is None


def test_tegrastats_that_stops_gives_no_energy(programs):
    tegrastats(programs, f"echo '{ORIN_NANO}'; /bin/sleep 0.3; exit 1")
    with TegrastatsMeter.open() as meter:
        first = meter.read()
        meter._process.wait(20)
        assert meter.read() is None
        assert meter.joules(first, meter.read(), wall_s=1.0) is None


def test_tegrastats_is_ended_even_if_it_will_not(programs, monkeypatch):
    monkeypatch.setattr(power, "_LAST_LINE_S", 0.2)
    tegrastats(programs, f"trap '' TERM; echo '{ORIN_NANO}'; {SLEEP}")
    meter = TegrastatsMeter.open()
    meter.close()
    meter.close()
    assert meter._process.poll() is not None


@pytest.mark.parametrize("script", ["exit 1", "echo 'RAM 1/2MB'; exec /bin/sleep 9", "exec /bin/sleep 9", "echo; exit"])
def test_tegrastats_without_power_is_no_meter(programs, monkeypatch, script):
    monkeypatch.setattr(power, "_FIRST_LINE_S", 0.3)
    tegrastats(programs, script)
    assert TegrastatsMeter.open() is None


def test_tegrastats_that_is_not_there_or_cannot_start_is_no_meter(programs):
    assert TegrastatsMeter.open() is None
    (programs / "tegrastats").write_text("\x7fELF of another machine")
    (programs / "tegrastats").chmod(0o755)
    assert TegrastatsMeter.open() is None


def rapl(folder, **zones):
    """Zones as the kernel shows them in one flat folder: name, microjoules and the range of the counter."""
    for zone, (name, microjoules, span) in zones.items():
        path = folder / zone.replace("_", ":").replace("rapl", "intel-rapl", 1)
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{microjoules}\n")
        (path / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


SPAN = 262_143_328_850


def test_rapl_counts_packages_only_and_says_so(tmp_path):
    rapl(
        tmp_path,
        rapl_0=("package-0", 1_000_000, SPAN),
        rapl_0_0=("core", 1, SPAN),
        rapl_1=("psys", 1, SPAN),
        rapl_2=("package-1", 5_000_000, SPAN),
        rapl_2_0=("dram", 1, SPAN),
    )
    meter = RaplMeter.open(tmp_path)
    assert meter.source.startswith("RAPL: 2 processor packages, without memory")
    first = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("3500000\n")
    (tmp_path / "intel-rapl:2" / "energy_uj").write_text("5250000\n")
    assert meter.joules(first, meter.read(), wall_s=1.0) == pytest.approx(2.75)


def test_rapl_counter_that_wrapped(tmp_path):
    meter = RaplMeter.open(rapl(tmp_path, rapl_0=("package-0", SPAN - 1_000_000, SPAN)))
    assert meter.source.startswith("RAPL: the processor package,")
    first = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    assert meter.joules(first, meter.read(), wall_s=1.0) == pytest.approx(1.5)


def test_rapl_gives_nothing_where_it_could_not_tell(tmp_path):
    meter = RaplMeter.open(rapl(tmp_path, rapl_0=("package-0", 1_000_000, SPAN)))
    first = meter.read()
    assert meter.joules(first, first, wall_s=1.0) is None  # a counter that does not move measures nothing
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2000000\n")
    last = meter.read()
    assert meter.joules(first, last, wall_s=1.0) == pytest.approx(1.0)
    assert meter.joules(first, last, wall_s=0.05) is None  # shorter than the counter's steps allow
    assert meter.joules(first, last, wall_s=600.0) is None  # it may have gone round more than once
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.read() is None


def test_rapl_with_a_package_that_only_root_may_read_is_no_meter(tmp_path):
    rapl(tmp_path, rapl_0=("package-0", 1, SPAN), rapl_1=("package-1", 1, SPAN))
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    (tmp_path / "intel-rapl:1" / "energy_uj").mkdir()  # cannot be read, whoever asks
    assert RaplMeter.open(tmp_path) is None
    assert RaplMeter.open(tmp_path / "nothing") is None


class Cuda:
    """A stand-in for libcuda, called through ctypes: the two GPUs of NVML's, which CUDA counts the other way round."""

    PLACES = (b"0000:65:00.0", b"0000:01:00.0")

    def __init__(self):
        def device_get(device, index):
            device[0] = index
            return 0 if index < len(self.PLACES) else 101

        def pci_bus_id(text, size, device):
            ctypes.memmove(text, self.PLACES[device] + b"\0", len(self.PLACES[device]) + 1)
            return 0

        c = ctypes.CFUNCTYPE
        self.cuInit = c(ctypes.c_int, ctypes.c_uint)(lambda flags: 0)
        self.cuDeviceGet = c(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int)(device_get)
        self.cuDeviceGetPCIBusId = c(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)(pci_bus_id)

    @classmethod
    def load(cls, name):
        assert name == "libcuda.so.1"
        return cls()


@pytest.mark.parametrize(("gpu_index", "by_nvml"), [(0, 1), (1, 0)])
def test_nvml_reads_the_gpu_that_cuda_means(nvml_driver, gpu_index, by_nvml):
    gpu = nvml_driver.gpus[by_nvml]
    with NvmlMeter.open(gpu_index, load=Cuda.load) as meter:
        first = meter.read()
        assert first == (gpu["TotalEnergyConsumption"],)
        gpu["TotalEnergyConsumption"] += 2_500
        assert meter.joules(first, meter.read(), wall_s=2.0) == pytest.approx(2.5)
        assert meter.joules(first, meter.read(), wall_s=0.5) is None  # the counter moves too rarely for that
        assert not meter.covers_cpu and "board of the GPU" in meter.source
        assert nvml_driver.started == 1
    meter.close()
    assert nvml_driver.started == 0
    assert meter.read() is None


def test_nvml_without_a_counter_is_no_meter(nvml_driver):
    assert NvmlMeter.open(load=none) is None
    assert NvmlMeter.open(7, load=Cuda.load) is None
    for gpu in nvml_driver.gpus:  # a GPU before Volta, a Jetson, a part of a GPU
        del gpu["TotalEnergyConsumption"]
    assert NvmlMeter.open(load=Cuda.load) is None
    nvml_driver.lacking.add("nvmlDeviceGetTotalEnergyConsumption")
    assert NvmlMeter.open(load=Cuda.load) is None
    assert nvml_driver.started == 0


def test_cuda_without_nvml_is_no_meter(no_nvml_driver):
    assert NvmlMeter.open(load=Cuda.load) is None


def none(name):
    raise OSError(name)


def test_the_meter_that_covers_the_work_is_chosen(programs, nvml_driver, tmp_path):
    zones = rapl(tmp_path / "powercap", rapl_0=("package-0", 1, SPAN))
    nothing = tmp_path / "nothing"
    with metering(gpu_index=0, processor=False, load=Cuda.load, powercap=zones) as meter:
        assert isinstance(meter, NvmlMeter)
    with metering(gpu_index=None, processor=True, load=Cuda.load, powercap=zones) as meter:
        assert isinstance(meter, RaplMeter)
    with metering(gpu_index=0, processor=False, load=none, powercap=zones) as meter:
        assert meter is None
    # on some GPU: neither the first, which may be idle, nor the processor, which does not do the work
    with metering(gpu_index=None, processor=False, load=Cuda.load, powercap=zones) as meter:
        assert meter is None
    with metering(gpu_index=None, processor=True, load=none, powercap=nothing) as meter:
        assert meter is None
    tegrastats(programs, f"echo '{ORIN_NANO}'; {SLEEP}")
    for gpu_index, processor in ((0, False), (None, False), (None, True)):
        with metering(gpu_index=gpu_index, processor=processor, load=none, powercap=zones) as meter:
            assert isinstance(meter, TegrastatsMeter)
            assert meter._process.poll() is None
        assert meter._process.poll() is not None
