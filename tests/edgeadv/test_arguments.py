"""Every public function, with an argument of another type in every place: one line that names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeadv
from edgeadv.arguments import checked
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
