"""The pages of the site that code knows better than a writer: every command with its options, and the Python API.

MkDocs calls :func:`on_files` when it builds the site. Nothing is written into ``docs/``.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in (".", "export", "runtime")]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, text in (("reference/commands.md", commands()), ("reference/api.md", api())):
        files.append(File.generated(config, name, content=text))
    return files


def commands() -> str:
    """Every command by what one wants to do, with its options."""
    from edgeadv.cli import _PANELS, subcommand

    parts = ["# Commands", "Made from the commands' own help. `edgeadv COMMAND --help` prints the same."]
    for panel, names in _PANELS.items():
        parts.append(f"## {panel}")
        for name in names:
            parts += command(f"edgeadv {name}", subcommand(name))
    return "\n\n".join(parts) + "\n"


def command(name: str, entry: Any) -> list[str]:
    """One command, or each of a group's."""
    if hasattr(entry, "commands"):
        return [part for each, found in entry.commands.items() for part in command(f"{name} {each}", found)]
    context = click.Context(entry, info_name=name)
    arguments = " ".join(piece for piece in entry.collect_usage_pieces(context))
    rows = ["| option | what it does |", "|---|---|"]
    for parameter in entry.params:
        names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
        rows.append(f"| {names} | {cell(parameter, context)} |")
    return [f"### {name}", f"```text\n{name} {arguments}\n```", text(entry.help or ""), "\n".join(rows)]


def cell(parameter: Any, context: click.Context) -> str:
    """What an option's help says, with its default."""
    said = text(getattr(parameter, "help", None) or "").replace("\n", " ").replace("|", "\\|")
    default = parameter.get_default(context)
    shown = default not in (None, False, (), [], "") and not callable(default) and "default" not in said.lower()
    return f"{said} Default: `{default}`." if shown else said


def text(help_text: str) -> str:
    """Help as Markdown: what looks like an HTML tag is text."""
    return help_text.replace("\b", "").replace("<", "&lt;").strip()


def api() -> str:
    """Every public name of the two packages; it is read, not imported, so that PyTorch need not be there."""
    parts = [
        "# Python API",
        "`import edgeadv as ea` is one call for each command. `edgeadv_runtime` is the device's side and needs no "
        "PyTorch. A name that both have is described once.",
    ]
    described: set[str] = set()
    for package, folder in (("edgeadv", "."), ("edgeadv_runtime", "runtime")):
        parts.append(f"## {package}")
        for name in public_names(ROOT / folder / package / "__init__.py"):
            if name not in described and not name.startswith("__"):
                described.add(name)
                parts.append(f"::: {package}.{name}")
    return "\n\n".join(parts) + "\n"


def public_names(module: Path) -> list[str]:
    """What ``__all__`` of a file says."""
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{module}: no __all__")
