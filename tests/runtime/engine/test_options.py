"""What a plan is built for, as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from edgeadv_runtime.engine import BatchProfile, EngineOptions, parse_targets
from edgeadv_runtime.errors import InputError


@pytest.mark.parametrize(
    ("text", "sizes", "shown", "static"),
    [
        ("8", [8, 8, 8], "8", True),
        (" 1 , 8,32 ", [1, 8, 32], "1,8,32", False),
        ("4,4,4", [4, 4, 4], "4", True),
        ("1,1,32", [1, 1, 32], "1,1,32", False),
    ],
)
def test_profiles(text: str, sizes: list[int], shown: str, static: bool) -> None:
    profile = BatchProfile.parse(text)
    assert profile.to_json() == sizes
    assert (str(profile), profile.is_static) == (shown, static)
    assert BatchProfile(*json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1,8", "1,8,32,64", "8,1,32", "1,32,8", "1.5", "a", "1,,8", "٨", "²", "1e3", "0,1,2", "9" * 5000],
)
def test_what_is_no_profile(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a profile: give one size, such as 8, or smallest,usual,largest"):
        BatchProfile.parse(text)


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 3, 2), (True, True, True), (1.0, 2, 3), ("1", "2", "3")])
def test_what_is_no_profile_without_text(sizes: Any) -> None:
    with pytest.raises(InputError, match="is not a profile"):
        BatchProfile(*sizes)


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("sm_86", ("sm_86",)),
        ("sm_89,sm_86", ("sm_86", "sm_89")),
        ("SM86, sm86 ,8.6", ("sm_86",)),
        ("sm_120,sm_86,9.0,12.1", ("sm_86", "sm_90", "sm_120", "sm_121")),
        ("86", ("sm_86",)),
    ],
)
def test_targets(text: str, targets: tuple[str, ...]) -> None:
    assert parse_targets(text) == targets
    assert EngineOptions(targets=targets[::-1]).targets == targets


@pytest.mark.parametrize(
    "text", ["", "sm_", "sm_8", "sm_86a", "sm_1234", "sm_86,", "rtx3060", "8.66", "sm_86 sm_89", "-86", "٨٦"]
)
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(InputError, match="is not a compute capability: write sm_86"):
        parse_targets(text)
    with pytest.raises(InputError, match="is not a compute capability"):
        EngineOptions(targets=(text.rpartition(",")[2],))


@pytest.mark.parametrize("mib", [0, -1, 1.5, True, (1 << 20) + 1, 1 << 70])
def test_what_is_no_workspace(mib: Any) -> None:
    with pytest.raises(InputError, match="MiB is not possible"):
        EngineOptions(workspace_mib=mib)


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(),
        EngineOptions(profile=BatchProfile(1, 8, 32), targets=("sm_89", "sm_86"), tf32=True, workspace_mib=512),
    ],
)
def test_through_json(options: EngineOptions) -> None:
    assert msgspec.convert(json.loads(json.dumps(msgspec.to_builtins(options))), EngineOptions) == options
