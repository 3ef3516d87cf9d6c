"""NVIDIA GPUs by NVML: the real binding, on a stand-in for the driver's library."""

from __future__ import annotations

import pytest

from edgeadv_runtime.device import facts as device
from edgeadv_runtime.device.nvml import ask, nvml, read_gpus

IDLE = {
    "index": 0,
    "name": "NVIDIA B200",
    "sm_mhz": 120.0,
    "memory_mhz": 3996.0,
    "temperature_c": 33.0,
    "power_w": 187.8,
    "power_limit_w": 1000.0,
    "throttle_reasons": ["GpuIdle"],
    "throttled_us": {"SwPowerCap": 0, "ThermalSlowdown": 0},
}
BUSY = IDLE | {
    "index": 1,
    "sm_mhz": 1965.0,
    "temperature_c": 62.0,
    "power_w": 905.3,
    "throttle_reasons": ["SwPowerCap", "SwThermalSlowdown"],
    "throttled_us": {"SwPowerCap": 9, "ThermalSlowdown": 0},
}


def test_gpus_of_a_data_centre(nvml_driver):
    assert read_gpus() == [IDLE, BUSY]
    assert device.conditions()["gpus"] == [IDLE, BUSY]
    assert nvml_driver.started == 0


def test_an_older_driver_is_asked_by_the_older_names(nvml_driver):
    nvml_driver.lacking |= {"nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTemperatureV"}
    assert read_gpus() == [IDLE, BUSY]


def test_what_a_driver_does_not_know_is_left_out(nvml_driver):
    nvml_driver.lacking |= {"nvmlDeviceGetFieldValues", "nvmlDeviceGetCurrentClocksEventReasons"}
    nvml_driver.lacking |= {"nvmlDeviceGetCurrentClocksThrottleReasons"}
    nvml_driver.gpus = [{"Name": b"Orin (nvgpu)"}, {("ClockInfo", 2): 5001}]
    assert read_gpus() == [{"index": 0, "name": "Orin (nvgpu)"}, {"index": 1, "memory_mhz": 5001.0}]


def test_a_counter_that_one_gpu_has_not_is_left_out(nvml_driver):
    del nvml_driver.gpus[0]["FieldValues", 74]
    nvml_driver.gpus[1] = {}
    assert [gpu.get("throttled_us") for gpu in read_gpus()] == [{"ThermalSlowdown": 0}, None]


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0, []),
        (
            0x1FF,
            [
                "GpuIdle",
                "ApplicationsClocksSetting",
                "SwPowerCap",
                "HwSlowdown",
                "SyncBoost",
                "SwThermalSlowdown",
                "HwThermalSlowdown",
                "HwPowerBrakeSlowdown",
                "DisplayClockSetting",
            ],
        ),
        (1 << 40 | 4, ["SwPowerCap", "0x10000000000"]),
    ],
)
def test_throttle_reasons(nvml_driver, mask, reasons):
    nvml_driver.gpus[0]["CurrentClocksEventReasons"] = mask
    assert read_gpus()[0]["throttle_reasons"] == reasons


def test_without_a_driver_there_are_no_gpus(no_nvml_driver):
    assert read_gpus() == []
    with nvml() as library:
        assert library is None


def test_a_driver_that_does_not_start_has_no_gpus(nvml_driver):
    nvml_driver.lacking.add("nvmlInitWithFlags")
    assert read_gpus() == []


def test_a_gpu_that_is_lost_keeps_its_place(nvml_driver):
    nvml_driver.lacking.add("nvmlDeviceGetHandleByIndex_v2")
    assert read_gpus() == [{"index": 0}, {"index": 1}]


def test_a_question_without_an_answer(nvml_driver):
    with nvml() as library:
        handle = library.nvmlDeviceGetHandleByIndex(1)
        assert ask(library.nvmlDeviceGetPowerUsage, handle) == 905_300
        assert ask(library.nvmlDeviceGetSerial, handle) is None
