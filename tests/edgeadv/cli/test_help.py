"""The list of subcommands, which is read without importing them."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest
import typer

import edgeadv.cli
from edgeadv.cli import _PANELS, _SUMMARIES, app, main, subcommand

NAMES = list(_SUMMARIES)


@pytest.mark.parametrize("name", NAMES)
def test_the_summary_is_the_first_sentence_of_the_command_s_own_help(name):
    command = subcommand(name)
    assert " ".join(command.help.split("\n\n")[0].split()) == _SUMMARIES[name]


def test_every_public_command_is_listed():
    modules = {module.name for module in pkgutil.iter_modules(edgeadv.cli.__path__) if not module.name.startswith("_")}
    # "import" is a word of Python's, and no module's name
    assert modules - {"importing"} | {"distill", "import"} == set(NAMES)


def test_what_is_listed_is_in_the_help(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in NAMES if f"│ {name} " not in shown] == []
    assert sorted(typer.main.get_command(app).commands) == sorted(NAMES)
    # each stands once, under what one wants to do
    assert sorted(name for names in _PANELS.values() for name in names) == sorted(NAMES)
    assert all(f"─ {panel} ─" in shown for panel in _PANELS)


def test_a_command_that_was_mistyped_is_suggested(capsys):
    assert main(["distll"]) == 2
    assert "Did you mean 'distill'?" in capsys.readouterr().err


def test_a_group_offers_no_shell_completion(capsys):
    assert main(["bundle", "--help"]) == 0
    assert "completion" not in capsys.readouterr().out


def test_the_help_imports_no_subcommand():
    code = (
        "import sys; from edgeadv.cli import main; assert main(['--help']) == 0; "
        "own = sorted(m for m in sys.modules if m.startswith('edgeadv.')); "
        "print(own, sorted({'numpy', 'msgspec', 'PIL', 'pydantic', 'torch', 'onnxruntime'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed = ["cli", "cli._fields", "cli._streams", "workflows", "workflows.processes"]
    assert done.stdout.splitlines()[-1] == f"{[f'edgeadv.{name}' for name in listed]} []"


def test_other_systems_than_linux_get_one_line(monkeypatch, capsys):
    assert main(["--version"]) == 0
    assert "Linux" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["--version"]) == 0
    assert capsys.readouterr().err == "edgeadv is made for Linux, and was not tried on darwin\n"
