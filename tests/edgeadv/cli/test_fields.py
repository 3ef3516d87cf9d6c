"""Only the command line names its options: the library speaks of fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edgeadv.cli._fields import as_options
from edgeadv_runtime.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[3]
PACKAGES = ("edgeadv", "runtime/edgeadv_runtime", "export/edgeadv_export")
# options of other programs that a message tells how to call
FOREIGN = {
    "--system-site-packages",
    "--force-reinstall",
    "--upgrade",
    "--volume",
    "--gpus",
    "--runtime",
    "--interval",
    "--target",
    "--show",
}


def options_named(source: str) -> list[str]:
    """Options in the strings of ``source``, docstrings left out."""
    tree = ast.parse(source)
    documented = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        found
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
        for found in re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value)
        if found not in FOREIGN
    ]


def test_no_message_of_the_library_names_an_option():
    files = [file for package in PACKAGES for file in (CHECKOUT / package).rglob("*.py")]
    library = [file for file in files if (CHECKOUT / "edgeadv" / "cli") not in file.parents]
    assert len(library) > 100
    found = {str(file.relative_to(CHECKOUT)): options_named(file.read_text(encoding="utf-8")) for file in library}
    assert {file: names for file, names in found.items() if names} == {}
    assert options_named('f"lower --limit, {n}"') == ["--limit"]
    assert options_named('def f():\n    "read --limit"') == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`eps` must be above 0", "--eps must be above 0"),
        ("leave `allow_training_images` out", "leave --allow-training-images out"),
        ("`precisions` fp32, `backends` torch, `attacks` square", "--precision fp32, --backend torch, --attack square"),
        ("see `edgeadv evaluate`, a command", "see `edgeadv evaluate`, a command"),
    ],
)
def test_a_field_becomes_the_option_that_sets_it(text, expected):
    assert as_options(text) == expected


def test_an_error_knows_the_field_it_begins_with():
    assert str(InputError("eps", "must be above 0, not -1")) == "`eps` must be above 0, not -1"
    assert InputError("eps", "must be above 0").field == "eps"
    assert InputError("`limit` must be at least 1").field == "limit"
    assert InputError("the frame is empty, see `limit`").field is None
