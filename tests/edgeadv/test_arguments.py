"""Every public function, with an argument of another type in every place: one line that names it."""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeadv
from edgeadv.arguments import _is, _kinds, checked
from edgeadv_runtime.errors import InputError


class Stranger:
    """What no function asks for."""


def places() -> Iterator[tuple[str, str]]:
    for name in edgeadv.__all__:
        function = getattr(edgeadv, name)
        if inspect.isfunction(function):
            yield from ((name, parameter) for parameter in inspect.signature(function).parameters)


# own images, networks and pipelines are objects of any class; what they cannot do is said where they are used
ANYTHING = {("train", "arch"), ("distill", "arch"), ("export", "source")}
DATA = {("train", "data"), ("distill", "data"), ("load_data", "data"), ("load_data", "test")}


@pytest.mark.parametrize(("name", "parameter"), [each for each in places() if each not in ANYTHING | DATA])
def test_an_argument_of_another_type_is_refused_by_name(name: str, parameter: str) -> None:
    function = getattr(edgeadv, name)
    given = {
        key: None if each.default is inspect.Parameter.empty else each.default
        for key, each in inspect.signature(function).parameters.items()
    }
    with pytest.raises(InputError, match=r"^`\w+` (is|takes|must) .*not "):
        function(**given | {parameter: Stranger()})


def test_what_type_checkers_alone_know_are_classes_or_known_aliases() -> None:
    """A name of several types would be compared with the names of classes, and nothing would be one."""
    import torch

    for name, parameter in places():
        function = inspect.unwrap(getattr(edgeadv, name))
        for kind in _kinds(
            inspect.signature(function).parameters[parameter].annotation, vars(builtins) | function.__globals__
        ):
            if isinstance(kind, str):
                modules = [module for module in list(sys.modules.values()) if module.__name__.startswith("edgeadv")]
                found = [vars(module)[kind] for module in modules if kind in vars(module)]
                found += [torch.nn.Module] if kind == "Module" else []
                assert found and all(isinstance(each, type) for each in found), f"{name}({parameter}): {kind}"


VALUES = {
    "data": ["mnist5k", Path("photos")],
    "attacks": ["fgsm", ["fgsm"], {"fgsm": 1}, None],
    "eps": ["8/255", ["1/255", "8/255"], edgeadv.Eps.parse("8/255")],
    "progress": [print, None],
    "backends": ["onnxruntime", ["torch"]],
    "precisions": ["fp32", ("fp32", "fp16")],
    "bundle": ["x.edgeadv", Path("x.edgeadv")],
    "out": ["x", Path("x")],
    "limit": [8, np.int64(8)],
    "classes": ["10", ["a", "b"], [{"id": "a", "name": "b"}]],
    "frames": ["photos", [np.zeros((8, 8, 3), np.uint8)], np.zeros((2, 8, 8, 3), np.uint8)],
    "normalize": ["imagenet", ((0.5,), (0.5,))],
    "batches": [[1, 8]],
    "batch": ["1", 4],
}


@pytest.mark.parametrize(("name", "parameter"), [each for each in places() if each[1] in VALUES])
def test_what_is_documented_is_taken(name: str, parameter: str) -> None:
    function = inspect.unwrap(getattr(edgeadv, name))
    kinds = list(
        _kinds(inspect.signature(function).parameters[parameter].annotation, vars(builtins) | function.__globals__)
    )
    optional = [value for value in VALUES[parameter] if value is not None or None in kinds]
    taken = [value for value in optional if not kinds or any(_is(value, kind) for kind in kinds)]
    # a batch is a number here and a text there
    assert taken == optional or (parameter in ("batch", "eps", "precisions", "limit") and taken)


def test_the_list_of_places_is_not_empty() -> None:
    assert len(list(places())) > 100


def example(
    path: str | Path,
    count: int = 1,
    share: float | None = None,
    frames: list[Any] | None = None,
    progress: Callable[[int], None] | None = None,
    other: Absent | None = None,  # type: ignore[name-defined]  # noqa: F821
    anything: Any = None,
) -> tuple[Any, ...]:
    return path, count, share, frames, progress, other, anything


# as the annotation is called, which nothing here imports
UNKNOWN = type("Absent", (), {})


def test_what_fits_is_handed_on() -> None:
    function = checked(example)
    assert function("a", np.int64(3), share=np.float32(2), frames=[1], progress=print, other=UNKNOWN())[1] == 3
    assert function(Path("a"), share=1, anything=Stranger())[2] == 1
    assert inspect.signature(function) == inspect.signature(example)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"path": 3}, "`path` is text or a path, not an int"),
        ({"path": "a", "count": 1.5}, "`count` is a whole number, not a float"),
        ({"path": "a", "count": True}, "`count` is a whole number, not a bool"),
        ({"path": "a", "frames": "photos"}, "`frames` is a list, not a str"),
        ({"path": "a", "progress": 3}, "`progress` is a function, not an int"),
        ({"path": "a", "other": Stranger()}, "`other` is an Absent, not a Stranger"),
    ],
)
def test_what_does_not_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        checked(example)(**given)
    assert str(caught.value) == says
