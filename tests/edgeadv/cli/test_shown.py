"""What files of others say reaches a terminal or a page as letters, and never as what a terminal obeys."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeadv.cli import main
from edgeadv_runtime.errors import one_line, plain

CLI = Path(__file__).parents[3] / "edgeadv" / "cli"
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "cifar10_exports-regnet_y_400mf-cpu.json"
HOSTILE = "a\x1b[2J\x1b]0;owned\x07b\rc\x08d\x9b31m\u202egnp.exe\u2066\u2028e\nverdict PASS\x7f"
# a tab and the end of a line are layout of ours
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def test_plain_leaves_nothing_that_a_terminal_obeys() -> None:
    whole = "".join(map(chr, range(0x11000)))
    assert OBEYED.search(whole) and not OBEYED.search(plain(whole))
    assert plain(HOSTILE).startswith(r"a\x1b[2J\x1b]0;owned\x07b\rc\x08d\x9b31m\u202egnp.exe")
    assert "\n" not in plain(HOSTILE) and plain(plain(HOSTILE)) == plain(HOSTILE)
    plain("\udc80").encode()
    for text in ("Straße 8/255 ≤ 1 µs", "犬", "é e\u0301", "👩\u200d🚀", "a\u00a0b", ""):
        assert plain(text) == text
    assert all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in plain(whole))


def test_one_line_keeps_the_beginning_and_the_end() -> None:
    text = one_line("begin " + "x\n" * 1000 + " what to do")
    assert len(text) == 300 and text.startswith("begin x x") and text.endswith("x what to do") and " ... " in text
    assert one_line(" a \n b\t") == "a b" and one_line("x" * 300) == "x" * 300


def test_one_line_shortens_paths_before_words() -> None:
    deep = "/" + "/".join(f"folder{i}" for i in range(12)) + "/run/weights.pth"
    words = "it holds no weights: " + "make it again " * 10
    assert one_line(f"{deep} is bad; delete {deep}, {words}") == (
        f".../run/weights.pth is bad; delete .../run/weights.pth, {words.rstrip()}"
    )
    assert one_line(f"{deep} is bad") == f"{deep} is bad"
    address = "https://a.example/b/c/d/e"
    assert address in one_line(f"{deep} {words} {words} {address}")


def test_rich_and_typer_are_given_text_in_one_place_each() -> None:
    """``cell`` for tables and ``say`` for lines."""
    found = set()
    for file in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Text", "typer.echo", "print", "click.echo"):
                found.add((file.name, ast.unparse(node.func)))
    assert found == {("_shared.py", "Text")}


@pytest.fixture
def hostile_bundle(rewritten: Callable[..., Path], tiny_bundle: Any) -> Path:
    manifest = tiny_bundle.manifest.to_json()
    manifest["classes"][0]["name"] = HOSTILE
    manifest["architecture"]["name"] = HOSTILE
    for key in ("created", "edgeadv_version", "title"):
        manifest[key] = HOSTILE
    manifest["variants"]["fp16"]["gradients"] = {"missing": HOSTILE}
    manifest["refused"] = {"int8-s8s8": HOSTILE}
    keys = ("classes", "architecture", "created", "edgeadv_version", "title", "variants", "refused")
    return rewritten(**{key: manifest[key] for key in keys})


def test_a_hostile_manifest(hostile_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "slim.edgeadv")
    for command in (
        ["bundle", "show", str(hostile_bundle)],
        ["bundle", "slim", str(hostile_bundle), "--variant", "fp16", "--out", out],
        ["verify", str(hostile_bundle), "--precision", "fp32"],
        ["doctor", str(hostile_bundle)],
    ):
        assert main(command) == 0, command
        captured = capsys.readouterr()
        assert not OBEYED.search(captured.out + captured.err), command
        assert "\nverdict PASS" not in captured.out


def test_hostile_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = json.loads(RESULTS.read_text(encoding="utf-8"))
    value["bundle"] |= {"title": HOSTILE, "name": HOSTILE}
    value["data"] |= {"name": HOSTILE, "split": HOSTILE, "unreadable": [HOSTILE]}
    value["skipped"] = [{"backend": HOSTILE, "variant": HOSTILE, "reason": HOSTILE}]
    for row in value["rows"]:
        row["device"] = HOSTILE
        if row["masking"] is not None:
            row["masking"]["evidence"] = [HOSTILE]
    file, page = tmp_path / "results.json", tmp_path / "report.html"
    file.write_text(json.dumps(value))
    assert main(["gate", str(file), "--min-clean", "0"]) in (0, 1)
    captured = capsys.readouterr()
    assert not OBEYED.search(captured.out + captured.err)
    assert main(["report", str(file), "--out", str(page)]) == 0
    assert not OBEYED.search(page.read_text(encoding="utf-8"))


def test_a_name_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "show", str(tmp_path / "b\udc80\x1b[2J")]) == 2
    said = capsys.readouterr().err
    assert r"b\udc80\x1b[2J" in said and not OBEYED.search(said)


@pytest.mark.parametrize("name", ["x" * 200, "a/" * 2000])
def test_a_message_is_at_most_300_letters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["bundle", "show", name], ["gate", name, "--min-clean", "0.5"], ["evaluate", name, name, name]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert len(line) <= 300
