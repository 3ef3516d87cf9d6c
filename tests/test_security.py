"""Every row of SECURITY.md names a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\|.*\| `([^`|]+\.py)::(\w+)` \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_row_has_a_test() -> None:
    table = (ROOT / "SECURITY.md").read_text(encoding="utf-8").split("## Who can do what")[1].split("##")[0]
    assert len(ROWS) == len([line for line in table.splitlines() if line.startswith("| ")]) - 1 > 20
    for file, name in ROWS:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"
