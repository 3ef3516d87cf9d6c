"""``docs/reference/preprocessing.md``: its code runs, its texts are read, and they make the fields beside them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeadv_runtime import Preprocess
from edgeadv_runtime.bundle.preprocess_text import _PARTS, _RESIZES

PAGE = (Path(__file__).resolve().parents[3] / "docs/reference/preprocessing.md").read_text(encoding="utf-8")
TABLE = re.search(r"\| step \| text \| field.*?\n\n", PAGE, re.DOTALL)
assert TABLE is not None
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE[0].strip().splitlines()[2:]]


def test_the_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "docs/reference/preprocessing.md", "exec"), {})


@pytest.mark.parametrize(("text", "field"), [(row[1], row[2]) for row in ROWS])
def test_a_text_makes_the_field_beside_it(text: str, field: str) -> None:
    written = re.findall(r"`([^`]*)`", text)
    if "…" in field or "LEFT" in text:
        return
    needed = "" if re.match("size|letterbox|crop", written[0]) else ",crop=32"
    read = Preprocess.parse(written[0] + needed)
    values = eval(f"dict({field.split('`')[1]})")
    for name, value in values.items():
        assert getattr(read, name) == value or list(getattr(read, name)) == [value, value]


def test_every_part_stands_on_the_page() -> None:
    assert TABLE is not None
    for part in [*_PARTS, *_RESIZES]:
        assert f"`{part}=" in TABLE[0], part
    texts = [text for text in re.findall(r'"([a-z_]+=[^"…]*)"', PAGE) if "=" in text]
    assert len(texts) >= 4
    for text in texts:
        Preprocess.parse(text)
