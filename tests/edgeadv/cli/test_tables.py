"""Tables fit what shows them: words are folded, figures never cut, and where both do not help rows become text."""

from __future__ import annotations

import re

import pytest

from edgeadv.cli._shared import print_table

HEADINGS = ("artefact", "eps", "late", "strongest attack", "worst-case")
ROWS = [
    ["onnxruntime int8-u8s8", "8/255", "", "83.7% after pgd-smoothed (white-box)", "83.7% [79.5%, 87.2%]"],
    ["torch fp32", "8/255", "", "4.1% pgd-margin (white-box)", "4.0% [2.1%, 7.9%]"],
    [],
    ["onnxruntime fp16"],
]


def shown(width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    if width is not None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(HEADINGS, ROWS, left=2, bold=("worst-case",), title="a title")
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize(("width", "fits"), [(None, 100), (100, 100), (72, 72)])
def test_it_fits_and_cuts_no_figure(width, fits, monkeypatch, capsys) -> None:
    out = shown(width, monkeypatch, capsys)
    assert max(map(len, out.splitlines())) <= fits
    for figure in ("83.7% [79.5%, 87.2%]", "4.0% [2.1%, 7.9%]", "8/255"):
        assert figure in out
    # words are whole
    for word in ("onnxruntime", "int8-u8s8", "pgd-smoothed", "(white-box)"):
        assert word in out
    assert "artefact:" not in out


def test_an_empty_column_is_left_out(monkeypatch, capsys) -> None:
    assert "late" not in shown(None, monkeypatch, capsys)


def test_on_a_narrow_terminal_a_row_is_a_paragraph(monkeypatch, capsys) -> None:
    out = shown(50, monkeypatch, capsys)
    assert max(map(len, out.splitlines())) <= 50
    words = " ".join(out.split())
    assert "artefact: onnxruntime int8-u8s8; eps: 8/255; strongest attack: 83.7% after pgd-smoothed" in words
    assert "worst-case: 83.7% [79.5%, 87.2%]" in words
