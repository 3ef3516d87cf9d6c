"""Options of a command that come from a frozen dataclass of the library: the same group serves both faces."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from edgeadv_runtime.errors import InputError

from ._fields import as_options


def names(text: str, *, field: str) -> tuple[str, ...]:
    """Read a comma-separated list.

    Raises:
        InputError: it has gaps or repetitions; ``field`` names it.
    """
    found = tuple(part.strip() for part in text.split(","))
    if "" in found or len(set(found)) != len(found):
        raise InputError(field, f"{text!r} is a comma-separated list without gaps or repetitions")
    return found


def with_groups(
    command: Callable[..., None], *, also: Mapping[str, Sequence[str]] | None = None
) -> Callable[..., None]:
    """Give ``command`` an option for each field of every parameter whose type is a dataclass, and hand it the group back.

    A field is written ``epochs: Annotated[int, "Passes over the training images."] = 8``: the text is the option's help. A tuple of
    strings is a comma-separated list on the command line. A field that is not Annotated is no option. typer reads a command's
    signature: what must be given comes first in the one made here.

    Args:
        command: the function.
        also: more names of the options of some fields, e.g. ``{"temperature": ["-T"]}``.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}  # type: ignore[misc]
    fields = {name: [field.name for field in _fields(kind)] for name, kind in groups.items()}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {}
        for name, kind in groups.items():
            values = {field: given.pop(field) for field in fields[name]}
            lists = {field for field, hint in get_type_hints(kind).items() if _is_list(hint)}
            made[name] = kind(
                **{
                    field: names(value, field=field) if field in lists and isinstance(value, str) else value
                    for field, value in values.items()
                }
            )
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


def _fields(group: type) -> list[dataclasses.Field[Any]]:
    """The fields that are options."""
    hints = get_type_hints(group, include_extras=True)
    return [field for field in dataclasses.fields(group) if get_origin(hints[field.name]) is Annotated]


def _parameters(group: type, also: Mapping[str, Sequence[str]]) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in _fields(group):
        kind, text = _parts(hints[field.name])
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if _is_list(kind):
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
    kind, *extra = get_args(hint)
    return kind, next((each for each in extra if isinstance(each, str)), "")


def _is_list(hint: Any) -> bool:
    """Whether ``hint`` is a tuple of strings, or that or None."""
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_list(part) for part in get_args(hint))
    return get_origin(hint) is tuple and get_args(hint)[0] is str
