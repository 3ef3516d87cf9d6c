"""Options of a command that come from a frozen dataclass of the library: the same group serves both faces."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from ..workflows.inputs import names
from ._fields import as_options


def with_groups(
    command: Callable[..., None], *, also: Mapping[str, Sequence[str]] | None = None
) -> Callable[..., None]:
    """Give ``command`` an option for each field of every parameter whose type is a dataclass, and hand it the group
    back.

    A field is written ``epochs: Annotated[int, "Passes over the training images."] = 8``: the text is the option's
    help. A tuple of strings is a comma-separated list on the command line, a tuple of paths an option that may be given
    several times, and a field that is a group itself brings its own options; any other field is no option. typer reads
    a command's signature: what must be given comes first in the one made here.

    Args:
        command: the function.
        also: more names of the options of some fields, e.g. ``{"temperature": ["-T"]}``.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {name: _made(kind, given) for name, kind in groups.items()}
        command(**given, **made)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += list(_parameters(groups[name], also or {}))
        else:
            parameters.append(parameter.replace(kind=keyword, annotation=hints[name]))
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _made(group: type, given: dict[str, Any]) -> Any:
    """The group of what was given, which is taken out of ``given``."""
    values: dict[str, Any] = {}
    for field, hint in _fields(group):
        kind, _ = _parts(hint)
        if dataclasses.is_dataclass(kind):
            values[field.name] = _made(kind, given)  # type: ignore[arg-type]
            continue
        value = given.pop(field.name)
        if isinstance(value, list) or (value is None and _is_list(kind, Path)):
            value = tuple(value or ())
        is_text = isinstance(value, str) and _is_list(kind)
        values[field.name] = names(value, field=field.name) if is_text else value
    return group(**values)


def _fields(group: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that are options or groups of them, with their types."""
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        hint = hints[field.name]
        if get_origin(hint) is Annotated or dataclasses.is_dataclass(hint):
            yield field, hint


def _parameters(group: type, also: Mapping[str, Sequence[str]]) -> Iterator[inspect.Parameter]:
    for field, hint in _fields(group):
        kind, text = _parts(hint)
        if dataclasses.is_dataclass(kind):
            yield from _parameters(kind, also)  # type: ignore[arg-type]
            continue
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if _is_list(kind, Path):
            kind, default = list[Path] | None, None
        elif _is_list(kind):
            optional = default in (None, ())
            kind = str | None if optional else str
            default = None if optional else default if default is dataclasses.MISSING else ",".join(default)
        option = typer.Option(as_options(f"`{field.name}`"), *also.get(field.name, ()), help=as_options(text))
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[kind, option],
            default=inspect.Parameter.empty if default is dataclasses.MISSING else default,
        )


def _parts(hint: Any) -> tuple[Any, str]:
    """The type of a field, and its help."""
    if get_origin(hint) is not Annotated:
        return hint, ""
    kind, *extra = get_args(hint)
    return kind, next((each for each in extra if isinstance(each, str)), "")


def _is_list(hint: Any, of: type = str) -> bool:
    """Whether ``hint`` is a tuple of these, or that or None."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_list(part, of) for part in get_args(hint))
    # of several kinds the command line can name one
    return get_origin(hint) is tuple and of in (get_args(hint)[0], *get_args(get_args(hint)[0]))
