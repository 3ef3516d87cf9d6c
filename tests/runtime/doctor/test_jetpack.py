"""JetPack: releases as recorded on devices, and which TensorRT belongs to which."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeadv_runtime.doctor.jetpack import Jetpack, check_jetpack, parse_tegra_release, refusal

FILE = Path("/etc/nv_tegra_release")
ORIN_NANO, AGX_ORIN = "NVIDIA Jetson Orin Nano Developer Kit", "NVIDIA Jetson AGX Orin Developer Kit"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"
# from forum posts, bug reports and tutorials, as cat printed them there
R35 = (
    "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC "
    "2023\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
R36 = (
    "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 04:36:44 UTC "
    "2024\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
)
R38 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64\n"
R39 = (
    "# R39 (release), REVISION: 2.1, GCID: 46758480, BOARD: generic, EABI: aarch64, DATE: Fri Aug 7 05:54:22 AM "
    "UTC 2026\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
)


@pytest.mark.parametrize(
    ("text", "l4t", "version", "brings"),
    [
        (R35, "35.4.1", "5.1.2", "8.5"),
        ("# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref, EABI: aarch64", "35.3.1", "5.1.1", "8.5"),
        (R36, "36.4", "6.1", "10.3"),
        (R36.replace("4.0", "4.3"), "36.4.3", "6.2", "10.3"),
        (R36.replace("4.0", "3.0"), "36.3", "6.0", "8.6"),
        (R38, "38.2", "7.0", "10.13"),
        (R38.replace("2.0", "4.0"), "38.4", "7.1", "10.13"),
        (R39, "39.2.1", "7.2.1", "10.16"),
        (R39.replace("2.1", "9.0"), "39.9", "7.x", None),
        (R36.replace("4.0", "9.9"), "36.9.9", "6.x", None),
        ("# R32 (release), REVISION: 7.1, GCID: 29689809, BOARD: t186ref", "32.7.1", "4.x", "8.2"),
        ("# R99 (release), REVISION: 1.0", "99.1", None, None),
    ],
)
def test_releases(text: str, l4t: str, version: str | None, brings: str | None) -> None:
    jetpack = parse_tegra_release(text)
    assert jetpack == Jetpack(l4t, version)
    assert jetpack is not None and jetpack.brings == brings


@pytest.mark.parametrize("text", ["", "\n", "garbage", "# R36", "# R (release), REVISION: 4.0", "NAME=Ubuntu\n"])
def test_what_is_no_release(text: str) -> None:
    assert parse_tegra_release(text) is None


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        (R35, "problem", "JetPack 5.1.2, from L4T 35.4.1 after NVIDIA's release notes: its TensorRT 8.5 is too old"),
        (R36.replace("4.0", "3.0"), "problem", "JetPack 6.0"),
        (
            R36,
            "ok",
            "JetPack 6.1, from L4T 36.4 after NVIDIA's release notes; it brings TensorRT 10.3; only TensorRT 10.x",
        ),
        (
            R38,
            "ok",
            "JetPack 7.0, from L4T 38.2 after NVIDIA's release notes; it brings TensorRT 10.13; only TensorRT 10.x",
        ),
        (
            R39,
            "ok",
            "it brings TensorRT 10.16; only TensorRT 10.x may be used: NVIDIA supports 11 from JetPack 7.2.2 on",
        ),
        (
            R39.replace("2.1", "9.0"),
            "ok",
            "JetPack 7.x, from L4T 39.9 after NVIDIA's release notes; TensorRT 10.x may be used",
        ),
        ("# R99 (release), REVISION: 1.0", "ok", "JetPack of unknown version"),
    ],
)
def test_what_a_release_means(text: str, status: str, says: str) -> None:
    check = check_jetpack(parse_tegra_release(text), board=ORIN_NANO, path=FILE)
    assert check is not None and check.status == status
    assert says in check.detail


def test_a_release_after_11_was_supported() -> None:
    check = check_jetpack(Jetpack("39.3", "7.2.2"), board=THOR, path=FILE)
    assert check is not None and "11.4.1 and newer too" in check.detail


def test_no_jetson_and_a_jetson_in_a_container() -> None:
    assert check_jetpack(None, board=None, path=FILE) is None
    assert check_jetpack(None, board="Raspberry Pi 5 Model B Rev 1.0", path=FILE) is None
    check = check_jetpack(None, board=ORIN_NANO, path=FILE)
    assert check is not None and check.status == "missing"
    assert f"--volume {FILE}:{FILE}:ro" in str(check.hint)


@pytest.mark.parametrize(
    ("jetpack", "tensorrt", "board", "says"),
    [
        (None, "10.3.0", None, None),
        (None, "11.4.1", None, None),
        (None, "8.6.2", None, "TensorRT 8.6.2 is too old: edgeadv builds with 10.3 or newer"),
        ("6.2", "8.6.2", AGX_ORIN, "too old"),
        ("6.2", "10.3.0", AGX_ORIN, None),
        ("6.2", "10.13.2", AGX_ORIN, None),
        ("6.2", "11.4.1", AGX_ORIN, "on JetPack 6.2: stay with the 10.x that it brings, or update to JetPack 7.2.2"),
        ("6.x", "11.4.1", AGX_ORIN, "on JetPack 6.x"),
        ("7.0", "11.0.0", THOR, "on JetPack 7.0"),
        ("7.2.1", "11.4.1", THOR, "on JetPack 7.2.1"),
        ("7.2.2", "11.4.1", THOR, None),
        ("7.2.2", "11.4.1", AGX_ORIN, None),
        ("7.2.2", "11.4.1", None, None),
        ("7.2.2", "11.4.0", AGX_ORIN, "of the 11.x only 11.4.1 and newer"),
        ("7.2.2", "11.4.1", ORIN_NANO, "on AGX Orin and Thor"),
        ("7.2.2", "10.16.2", ORIN_NANO, None),
        ("7.x", "11.4.1", THOR, None),
        (None, "11.4.1", ORIN_NANO, None),
    ],
)
def test_which_tensorrt_is_not_for_this_machine(
    jetpack: str | None, tensorrt: str, board: str | None, says: str | None
) -> None:
    found = refusal(None if jetpack is None else Jetpack("0", jetpack), tensorrt, board=board)
    assert (found is None) == (says is None)
    assert says is None or (found is not None and says in found)
