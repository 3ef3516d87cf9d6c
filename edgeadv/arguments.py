"""Arguments of another type are refused by name when a function is called, not by a traceback from deep within it."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import numbers
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin

from edgeadv_runtime.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
# names of several types, known to type checkers only; what else they only know are classes
_ALIASES = ("Source", "Report")
_WORDS: Mapping[Any, str] = {
    str: "text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Sequence: "a list",
    Iterable: "a list",
    Mapping: "a dictionary",
    Callable: "a function",
}
# what NumPy has beside Python's own
_AS: Mapping[Any, type] = {int: numbers.Integral, float: numbers.Real}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which compares its arguments with its annotations first.

    Names that are imported for type checkers only are compared with the names of a value's classes: a check loads
    nothing. What is in a list is left to the function.

    Raises:
        InputError: an argument is of another type; the message names it.
    """
    signature = inspect.signature(function)
    known = vars(builtins) | inspect.unwrap(function).__globals__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kinds = list(_kinds(signature.parameters[name].annotation, known))
            if kinds and not any(_is(value, kind) for kind in kinds):
                *words, last = dict.fromkeys(_WORDS.get(kind) or _named(kind) for kind in kinds if kind is not None)
                due = f"{', '.join(words)} or {last}" if words else last
                raise InputError(name, f"is {due}, not {_named(type(value))}")
        return function(*args, **kwargs)

    return call


def _kinds(annotation: Any, known: Mapping[str, Any]) -> Iterator[Any]:
    """The types of an annotation: classes, None, and names that are not known here; none where it may be anything."""
    if not isinstance(annotation, str):
        yield from _of_value(annotation)
        return
    found: list[Any] = []
    for node in _alternatives(ast.parse(annotation, mode="eval").body):
        node = node.value if isinstance(node, ast.Subscript) else node
        text = ast.unparse(node)
        if isinstance(node, ast.Constant):
            found.append(node.value)
        elif text in known:
            of_this = list(_of_value(known[text]))
            if not of_this:
                return
            found += of_this
        elif text in _ALIASES:
            return
        else:
            found.append(text.rpartition(".")[2])
    yield from found


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.BinOp):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    else:
        yield node


def _of_value(hint: Any) -> Iterator[Any]:
    """The same of an object of :mod:`typing`."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [list(_of_value(part)) for part in get_args(hint)]
        if all(parts):
            yield from (kind for part in parts for kind in part)
    elif hint is None or hint is types.NoneType:
        yield None
    elif hint is Any or getattr(hint, "_is_protocol", False):
        return
    elif isinstance(kind := get_origin(hint) or hint, type) or kind is Callable:
        yield kind


def _is(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if isinstance(kind, str):
        return any(each.__name__ == kind for each in type(value).__mro__)
    if kind is Callable:
        return callable(value)
    if kind in (Sequence, Iterable):
        # an array is a list of its rows
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, _AS.get(kind, kind))


def _named(kind: Any) -> str:
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
