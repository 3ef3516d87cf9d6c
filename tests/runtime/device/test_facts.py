"""Device facts: parsers on recorded texts, readers on folders made like the kernel's, programs on stand-in scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from edgeadv_runtime.device import facts as device

X86_CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
cpu MHz\t\t: 2299.998
bogomips\t: 4599.99

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor
cpu MHz\t\t: 1800.5
"""
JETSON_CPUINFO = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""
RASPBERRY_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 108.00
CPU implementer\t: 0x41
CPU architecture: 8

Hardware\t: BCM2835
Serial\t\t: 00000000abcdef01
"""
JETSON_BOARD = "NVIDIA Jetson Orin Nano Developer Kit\0"
# what the programs print, as others recorded it on a Jetson
NVPMODEL = "NV Power Mode: MAXN_SUPER\n2\n"
NVPMODEL_FAN = "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n"
NVPMODEL_WITHOUT_ROOT = """\
NV Fan Mode:quiet
NV Power Mode: MODE_15W_DESKTOP
7
NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13
NVPM ERROR: failed to read PARAM EMC: ARG MAX_FREQ: PATH /sys/kernel/nvpmodel_emc_cap/emc_iso_cap
"""
NVPMODEL_VERBOSE = """\
NVPM VERB: parsing done for /etc/nvpmodel.conf
NVPM VERB: Current mode: NV Power Mode: 25W
1
NVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: PATH /sys/devices/system/cpu/cpu0/online: REAL_VAL: 1 CONF_VAL: 1
"""
# jetson_clocks --show of an Orin Nano as it comes, of an AGX Orin and a Thor after jetson_clocks, of a TX1; shortened
CLOCKS_FREE = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-1, Offline CPUs:
cpu0:  Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=960000 IdleStates: WFI=1 c7=1
cpu1:  Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1344000 IdleStates: WFI=1 c7=1
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=665600000
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=60
NV Power Mode: 25W
"""
CLOCKS_PINNED = """\
SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit
Online CPUs: 0-1, Offline CPUs: 2
cpu0:  Online=1 Governor=schedutil MinFreq=2201600 MaxFreq=2201600 CurrentFreq=2201600 IdleStates: WFI=0 c7=0
cpu1:  Online=1 Governor=schedutil MinFreq=2201600 MaxFreq=2201600 CurrentFreq=2201600 IdleStates: WFI=0 c7=0
cpu2:  Online=0 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600 IdleStates: WFI=1 c7=1
GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000
EMC MinFreq=3199000000 MaxFreq=3199000000 CurrentFreq=3199000000
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1600000000 CurrentFreq=1600000000
NV Power Mode: MAXN
"""
CLOCKS_THOR = """\
SOC family:tegra264  Machine:NVIDIA Jetson AGX Thor Developer Kit
cpu0:  Governor=schedutil MinFreq=2601000 MaxFreq=2601000 CurrentFreq=2601000 IdleStates: WFI=0 cc7=0
gpu-gpc-0 MinFreq=1575000000 MaxFreq=1575000000 CurrentFreq=1575000000
gpu-nvd-0 MinFreq=1692000000 MaxFreq=1692000000 CurrentFreq=1692000000
EMC MinFreq=665600000 MaxFreq=4266000000 CurrentFreq=4266000000 FreqOverride=1
"""
CLOCKS_TX1 = """\
SOC family:tegra210  Machine:jetson_tx1
cpu0: Gonvernor=interactive MinFreq=1734000 MaxFreq=1734000 CurrentFreq=1734000
GPU MinFreq=76800000 MaxFreq=998400000 CurrentFreq=998400000
"""
CLOCKS_WITHOUT_ROOT = "Error: Run this script(/usr/bin/jetson_clocks) as a root user\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def install(folder: Path, program: str, script: str) -> None:
    """A stand-in program, found first on the PATH."""
    write(folder / program, f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH that has only what a test installs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def files(monkeypatch):
    """The only files that the system has, by path."""
    texts = {}
    monkeypatch.setattr(device, "read_text", lambda path: texts.get(str(path)))
    return texts


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (X86_CPUINFO, {"name": "Intel(R) Xeon(R) Processor", "mhz": [2299.998, 1800.5]}),
        (JETSON_CPUINFO, {"name": "ARMv8 Processor rev 1 (v8l)"}),
        (RASPBERRY_CPUINFO, {"name": "BCM2835"}),
        ("", {}),
    ],
)
def test_cpuinfo(text, facts):
    assert device.parse_cpuinfo(text) == facts


def test_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert device.read_memory() == {}
    kib = {"MemTotal": 24684096, "MemFree": 21232696, "MemAvailable": 24109496}
    kib |= dict.fromkeys(("Buffers", "Cached", "Shmem", "Active", "Inactive"), 0)
    write(tmp_path / "meminfo", "".join(f"{name}: {value} kB\n" for name, value in kib.items()))
    assert device.read_memory() == {"total_mib": 24105, "available_mib": 23544}


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (NVPMODEL, {"power_mode": "MAXN_SUPER", "power_mode_id": 2}),
        (NVPMODEL_FAN, {"power_mode": "MODE_15W_6CORE", "power_mode_id": 2}),
        (NVPMODEL_WITHOUT_ROOT, {"power_mode": "MODE_15W_DESKTOP", "power_mode_id": 7}),
        (NVPMODEL_VERBOSE, {"power_mode": "25W", "power_mode_id": 1}),
        ("NV Power Mode: MAXN\n0", {"power_mode": "MAXN", "power_mode_id": 0}),
        ("NV Power Mode: MAXN\n", {"power_mode": "MAXN"}),
        ("NV Power Mode:\n", {}),
        ("NVPM ERROR: failed to read /etc/nvpmodel.conf\n", {}),
        ("", {}),
    ],
)
def test_nvpmodel(text, facts):
    assert device.parse_nvpmodel(text) == facts


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (CLOCKS_FREE, {"pinned": False, "gpu_mhz": 306.0, "memory_mhz": 665.6}),
        (CLOCKS_PINNED, {"pinned": True, "gpu_mhz": 1300.5, "memory_mhz": 3199.0}),
        (CLOCKS_THOR, {"pinned": True, "gpu_mhz": 1575.0, "memory_mhz": 4266.0}),
        (CLOCKS_TX1, {"pinned": False, "gpu_mhz": 998.4}),
        (CLOCKS_WITHOUT_ROOT, {}),
        ("", {}),
    ],
)
def test_jetson_clocks(text, facts):
    assert device.parse_jetson_clocks(text) == facts


def test_throttle_counts_are_summed_over_processors_and_alarms(tmp_path):
    for cpu, core, package in ((0, 3, 5), (1, 4, 5)):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "thermal_throttle"
        write(folder / "core_throttle_count", f"{core}\n")
        write(folder / "core_throttle_total_time_ms", "70\n")
        write(folder / "package_throttle_count", f"{package}\n")
    write(tmp_path / "hwmon" / "hwmon3" / "oc1_event_cnt", "0\n")
    write(tmp_path / "hwmon" / "hwmon3" / "oc3_event_cnt", "37\n")
    write(tmp_path / "hwmon" / "hwmon3" / "oc3_throt_en", "1\n")
    counts = device.read_throttle_counts(tmp_path / "cpu", tmp_path / "hwmon")
    assert counts == {"core": 7, "oc1": 0, "oc3": 37, "package": 10}
    assert device.read_throttle_counts(tmp_path / "no", tmp_path / "no") == {}


def test_clocks_come_from_cpufreq_in_the_order_of_the_processors(tmp_path):
    for cpu, (now, limit, governor) in {
        0: (1510400, 1510400, "schedutil"),
        2: (729600, 1510400, "schedutil"),
        10: (729600, 1190400, "performance"),
    }.items():
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "cpufreq"
        write(folder / "scaling_cur_freq", f"{now}\n")
        write(folder / "scaling_max_freq", f"{limit}\n")
        write(folder / "scaling_governor", f"{governor}\n")
    write(tmp_path / "cpu" / "cpufreq" / "policy0" / "scaling_cur_freq", "1\n")
    write(tmp_path / "cpuinfo", X86_CPUINFO)
    assert device.read_cpu_clocks(tmp_path / "cpu", tmp_path / "cpuinfo") == {
        "cpu_mhz": [1510.4, 729.6, 729.6],
        "cpu_mhz_source": "cpufreq",
        "cpu_limit_mhz": [1510.4, 1510.4, 1190.4],
        "governors": ["performance", "schedutil"],
    }


def test_clocks_come_from_cpuinfo_where_there_is_no_cpufreq(tmp_path):
    write(tmp_path / "cpuinfo", X86_CPUINFO)
    facts = {"cpu_mhz": [2299.998, 1800.5], "cpu_mhz_source": "cpuinfo"}
    assert device.read_cpu_clocks(tmp_path / "cpu", tmp_path / "cpuinfo") == facts
    write(tmp_path / "cpuinfo", JETSON_CPUINFO)
    assert device.read_cpu_clocks(tmp_path / "cpu", tmp_path / "cpuinfo") == {}


def test_temperatures_by_type_without_sensors_that_are_off(tmp_path):
    zones = [
        ("cpu-thermal", "46250"),
        ("cv0-thermal", "-256000"),
        ("acpitz", "-500"),
        ("acpitz", "16800"),
        ("broken", "n/a"),
    ]
    for i, (kind, temperature) in enumerate(zones):
        write(tmp_path / f"thermal_zone{i}" / "type", f"{kind}\n")
        write(tmp_path / f"thermal_zone{i}" / "temp", f"{temperature}\n")
    write(tmp_path / "thermal_zone10" / "type", "gpu-thermal\n")  # a sensor that is asleep has no readable temp
    write(tmp_path / "cooling_device0" / "type", "pwm-fan\n")
    assert device.read_temperatures(tmp_path) == {"cpu-thermal": 46.25, "acpitz#2": -0.5, "acpitz#3": 16.8}


@pytest.mark.parametrize(
    ("cpuinfo", "board", "name"),
    [
        (X86_CPUINFO, None, "Intel(R) Xeon(R) Processor"),
        (JETSON_CPUINFO, JETSON_BOARD, "NVIDIA Jetson Orin Nano Developer Kit (ARMv8 Processor rev 1 (v8l))"),
        ("processor\t: 0\n", JETSON_BOARD, "NVIDIA Jetson Orin Nano Developer Kit"),
    ],
)
def test_processor_name_tells_one_board_from_another(files, cpuinfo, board, name):
    files["/proc/cpuinfo"] = cpuinfo
    if board is not None:
        files["/proc/device-tree/model"] = board
    assert device.processor_name() == name
    assert device.environment().get("board") == (board.strip("\0") if board else None)


def test_conditions_ask_the_programs_that_are_installed(programs):
    install(programs, "nvpmodel", f"[ \"$1\" = -q ] && printf '{NVPMODEL_WITHOUT_ROOT}'; exit 13")
    facts = device.conditions()
    assert (facts["power_mode"], facts["power_mode_id"]) == ("MODE_15W_DESKTOP", 7)


def test_conditions_of_a_jetson_that_runs_as_root(programs):
    install(programs, "jetson_clocks", f"[ \"$1\" = --show ] && printf '{CLOCKS_PINNED}'")
    assert device.conditions()["jetson_clocks"] == {"pinned": True, "gpu_mhz": 1300.5, "memory_mhz": 3199.0}
    install(programs, "jetson_clocks", f"printf '{CLOCKS_WITHOUT_ROOT}'; exit 1")
    assert "jetson_clocks" not in device.conditions()


@pytest.mark.parametrize("script", ["exit 9", "echo garbage", "while :; do :; done"])
def test_programs_that_fail_or_hang_leave_their_facts_out(programs, monkeypatch, script):
    monkeypatch.setattr(device, "_PROGRAM_TIMEOUT_S", 0.2)
    for program in ("nvpmodel", "jetson_clocks"):
        install(programs, program, script)
    assert not {"power_mode", "power_mode_id", "jetson_clocks"} & device.conditions().keys()


def test_a_program_that_cannot_start_leaves_its_facts_out(programs):
    write(programs / "nvpmodel", "\x7fELF of another machine")
    (programs / "nvpmodel").chmod(0o755)
    assert "power_mode" not in device.conditions()


def test_a_system_that_tells_nothing_gives_nothing_that_is_guessed(files, programs, no_nvml_driver, monkeypatch):
    monkeypatch.setattr(device, "read_cpu_clocks", lambda: {})
    monkeypatch.setattr(device, "read_temperatures", lambda: {})
    monkeypatch.setattr(device, "read_throttle_counts", lambda: {})
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nowhere")

    def no_load():
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr("os.getloadavg", no_load)
    assert device.conditions().keys() == {"time"}
    assert not {"memory_mib", "board"} & device.environment().keys()


CONTAINER = "0::/\n"
V2 = "0::/system.slice/job.scope\n"
V1 = "5:cpuset:/\n4:cpu,cpuacct:/docker/0123\n3:memory:/docker/0123\n"
HYBRID = "4:cpu,cpuacct:/job\n0::/job\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        (CONTAINER, {"cpu.max": "150000 100000"}, 1.5),
        (CONTAINER, {"cpu.max": "max 100000"}, None),
        (CONTAINER, {}, None),
        # the smallest on the way up, and none of a group beside it
        (V2, {"system.slice/cpu.max": "50000 100000", "system.slice/job.scope/cpu.max": "200000 100000"}, 0.5),
        (V2, {"system.slice/cpu.max": "max 100000", "system.slice/job.scope/cpu.max": "200000 50000"}, 4.0),
        (V2, {"other.slice/cpu.max": "50000 100000", "system.slice/other/cpu.max": "50000 100000"}, None),
        # the host's path, in a container that sees its own group alone
        (V2, {"cpu.max": "300000 100000"}, 3.0),
        ("0::/../../elsewhere\n", {"cpu.max": "300000 100000"}, 3.0),
        (V2, {"cpu.max": "nonsense", "system.slice/cpu.max": "0 0"}, None),
        (
            V1,
            {f"cpu,cpuacct/docker/0123/cpu.cfs_{key}_us": text for key, text in (("quota", "-1"), ("period", "1"))},
            None,
        ),
        (
            V1,
            {f"cpu,cpuacct/docker/0123/cpu.cfs_{key}_us": text for key, text in (("quota", "25"), ("period", "10"))},
            2.5,
        ),
        (V1, {f"cpu/docker/cpu.cfs_{key}_us": text for key, text in (("quota", "25"), ("period", "10"))}, 2.5),
        (HYBRID, {"cpu/cpu.cfs_quota_us": "40", "cpu/cpu.cfs_period_us": "10", "unified/job/cpu.max": "30 10"}, 3.0),
        ("", {"cpu.max": "150000 100000"}, None),
        ("what is this\n", {"cpu.max": "150000 100000"}, None),
    ],
)
def test_the_quota_of_a_container_is_the_smallest_of_its_groups(own, files, cores, tmp_path):
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(own)
    assert device.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == cores


@pytest.mark.parametrize(
    ("quota", "allowed", "cores", "fewer"),
    [(None, 4, 4, None), (0.5, 4, 1, 1), (1.5, 4, 2, 2), (3.2, 4, 4, None), (4.0, 4, 4, None), (9.0, 4, 4, None)],
)
def test_a_quota_counts_as_cores_where_it_leaves_fewer(monkeypatch, quota, allowed, cores, fewer):
    monkeypatch.setattr(device, "cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(allowed)))
    assert device.usable_cores() == device.environment()["cores"] == cores
    assert device.quota_cores() == fewer


@pytest.mark.parametrize(("quota", "allowed", "limit"), [(None, 8, None), (None, 3, 3), (1.5, 8, 2), (9.0, 4, 4)])
def test_what_leaves_fewer_cores_than_the_machine_has(monkeypatch, quota, allowed, limit):
    monkeypatch.setattr(device, "cpu_quota", lambda: quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(allowed)))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert device.limited_cores() == limit


def test_facts_of_this_machine_are_json_and_agree_with_the_system():
    facts = device.environment()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["cores"] == device.usable_cores() <= len(__import__("os").sched_getaffinity(0))
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["versions"]["numpy"] == __import__("numpy").__version__
    assert None not in facts.values()
    state = device.conditions()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    assert len(state["load_average"]) == 3


def test_facts_are_read_without_importing_what_they_are_about():
    code = (
        "import sys, json; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from edgeadv_runtime.device.facts import environment; facts = environment()\n"
        "assert facts['versions']['onnxruntime'], facts\n"
        "assert not {'onnxruntime', 'torch', 'tensorrt'} & sys.modules.keys()"
    )
    path = json.dumps([entry for entry in sys.path if entry])
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
