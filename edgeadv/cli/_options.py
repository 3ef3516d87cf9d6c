"""Options of a command from its parameters, and from frozen dataclasses of the library: the same group serves both
faces."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from ..workflows.inputs import names
from ._fields import as_options

# more names of the options of some fields
_ALSO = {"arch": ["--model"], "steps": ["--at-steps"], "temperature": ["-T"]}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` an option for each parameter, and for each field of a parameter whose type is a dataclass, which
    it is handed as such.

    Both are written ``epochs: Annotated[int, "Passes over the training images."] = 8``: the text is the option's help.
    A tuple of strings, which has a default, is a comma-separated list on the command line, a tuple of paths an option
    that may be given several times, and a field that is a group itself brings its own options; what is annotated for
    typer is left to it, and any other field is no option. typer reads a command's signature: what must be given comes
    first in the one made here.
    """

    @functools.wraps(command)
    def run(**given: Any) -> None:
        _call(command, given)

    parameters = sorted(_options(command), key=lambda parameter: parameter.default is not parameter.empty)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _call(made: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a command, or the type of a group, makes of its part of what was given."""
    values: dict[str, Any] = {}
    for parameter, kind, _ in _parameters(made):
        name = parameter.name
        if dataclasses.is_dataclass(kind):
            values[name] = _call(kind, given)  # type: ignore[arg-type]
        elif _item(kind) is Path:
            values[name] = tuple(given[name] or ())
        elif _item(kind) is str and given[name] is not None:
            values[name] = names(given[name], field=name)
        else:
            values[name] = given[name]
    return made(**values)


def _parameters(of: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, Sequence[Any]]]:
    """The parameters that are options or groups of them, with their types and what stands beside these."""
    for parameter in inspect.signature(of, eval_str=True).parameters.values():
        kind, *beside = get_args(parameter.annotation) or (parameter.annotation,)
        if get_origin(parameter.annotation) is Annotated or dataclasses.is_dataclass(kind):
            yield parameter, kind, beside


def _options(of: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    for parameter, kind, beside in _parameters(of):
        if dataclasses.is_dataclass(kind):
            yield from _options(kind)  # type: ignore[arg-type]
            continue
        default = parameter.default
        if _item(kind) is Path:
            kind, default = list[Path] | None, None
        elif _item(kind) is str:
            kind, default = (str, ",".join(default)) if default else (str | None, None)
        annotation = parameter.annotation
        if isinstance(help_text := beside[0], str):
            name = parameter.name
            option = typer.Option(as_options(f"`{name}`"), *_ALSO.get(name, ()), help=as_options(help_text))
            annotation = Annotated[kind, option]
        yield parameter.replace(kind=parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _item(hint: Any) -> Any:
    """What a tuple holds, or the tuple of a tuple or None; the first of several kinds; None for any other type."""
    held = next((get_args(part)[0] for part in (hint, *get_args(hint)) if get_origin(part) is tuple), None)
    return (get_args(held) or (held,))[0]
