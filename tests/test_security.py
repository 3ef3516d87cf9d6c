"""Every row of SECURITY.md names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\|.*\| `([^`|]+\.py)::(\w+)` \|$", PAGE, re.MULTILINE)


def test_every_row_has_a_test() -> None:
    table = PAGE.split("## Who can do what")[1].split("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(ROWS) == len(rows) > 20
    for file, name in ROWS:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
