"""Without a terminal long work says a line every ten seconds, and short work none."""

from __future__ import annotations

import pytest

from edgeadv.cli import _shared
from edgeadv.cli._shared import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_shared.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        for second in range(25):
            clock[0] = 100.0 + second
            progress(second, 25, "attacking fp32")
    assert capsys.readouterr().err.splitlines() == ["attacking fp32: 10 of 25", "attacking fp32: 20 of 25"]


def test_what_is_short_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(1, 2, "attacking")
    assert capsys.readouterr().err == ""
