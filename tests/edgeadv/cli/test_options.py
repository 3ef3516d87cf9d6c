"""A group of the library as options of a command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from edgeadv.cli._options import names, with_options
from edgeadv_runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Annotated[int, "How deep."] = 1


@dataclass(frozen=True, kw_only=True)
class Group:
    data: Annotated[str, "What to read, see `limit`."]
    batch_size: Annotated[int, "Images per step."] = 64
    precisions: Annotated[tuple[str, ...], "Variants."] = ("fp32", "fp16")
    attacks: Annotated[tuple[str, ...] | None, "Attacks."] = None
    others: Annotated[tuple[Path, ...], "May be given several times."] = ()
    resume: Annotated[bool, "Go on."] = False
    inner: Inner = field(default_factory=Inner)


seen: list[tuple[str, Group, int]] = []


@with_options
def command(
    out: Annotated[str, "Where to."],
    group: Group,
    n: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
) -> None:
    seen.append((out, group, n))


def call(*arguments: str, command=command) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def test_what_is_not_given_has_the_groups_default():
    call("--data", "d", "--out", "o")
    assert seen.pop() == ("o", Group(data="d"), 3)


def test_what_is_given_reaches_the_group():
    call(
        "--data",
        "d",
        "--out",
        "o",
        "--batch-size",
        "8",
        "--precision",
        "fp32, int8",
        "--attack",
        "square",
        "--resume",
        "--n",
        "4",
    )
    expected = Group(data="d", batch_size=8, precisions=("fp32", "int8"), attacks=("square",), resume=True)
    assert seen.pop() == ("o", expected, 4)


def test_paths_are_given_again_and_a_group_in_a_group_has_its_own_options():
    call("--data", "d", "--out", "o", "--others", "a", "--others", "b,c", "--depth", "2")
    assert seen.pop() == ("o", Group(data="d", others=(Path("a"), Path("b,c")), inner=Inner(depth=2)), 3)


def test_the_help_is_the_fields_own():
    text = call("--help")
    assert "Images per step." in text and "see --limit." in text and "--no-resume" not in text


@dataclass(frozen=True, kw_only=True)
class Recipe:
    temperature: Annotated[float | None, "Of the softmax."] = None
    image_seed: int = 7


recipes: list[Recipe] = []


@with_options
def trained(recipe: Recipe) -> None:
    recipes.append(recipe)


@pytest.mark.parametrize("option", ["--temperature", "-T"])
def test_an_option_may_have_more_names(option):
    call(option, "40", command=trained)
    assert recipes.pop() == Recipe(temperature=40.0)


def test_a_field_that_is_not_annotated_is_no_option():
    assert "seed" not in call("--help", command=trained)
    call(command=trained)
    assert recipes.pop().image_seed == 7


@pytest.mark.parametrize("text", ["", "a,", "a,,b", "a,a"])
def test_a_list_has_no_gaps_and_no_repetitions(text):
    with pytest.raises(InputError, match=r"`precisions` .* is a comma-separated list without gaps or repetitions"):
        names(text, field="precisions")
