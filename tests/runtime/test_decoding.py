"""JSON from outside: finite numbers in range, and one sentence with the place of what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeadv_runtime.decoding import Count, Options, Sha256, Share, convert, decode
from edgeadv_runtime.errors import BundleError, InputError, SchemaError

HASH = "a" * 64


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    n: Count


class Outer(msgspec.Struct, frozen=True):
    share: Share
    hashes: dict[str, Sha256] = {}
    inner: tuple[Inner, ...] = ()


def read(text: str | bytes) -> Outer:
    data = text.encode() if isinstance(text, str) else text
    return decode(data, Outer, what="results file", path=Path("r.json"), mend="measure again")


def test_what_is_right_is_read_and_keys_that_only_describe_are_ignored():
    assert read(f'{{"share": 1, "hashes": {{"f": "{HASH}"}}, "inner": [{{"n": 3}}], "new": 1}}') == Outer(
        1.0, {"f": HASH}, (Inner(3),)
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{}", "share"),
        ('{"share": 1.7}', "share: "),
        ('{"share": -0.1}', "share: "),
        ('{"share": 1e999}', "share: "),
        ('{"share": "1"}', "share: "),
        ('{"share": 1, "hashes": {"f": "A"}}', "hashes[...]: "),
        ('{"share": 1, "inner": [{"n": 1}, {"n": -1}]}', "inner[1].n: "),
        ('{"share": 1, "inner": [{"n": true}]}', "inner[0].n: "),
        ('{"share": 1, "inner": [{"n": 123456789012345678901}]}', "inner[0].n: "),
        ('{"share": 1, "inner": [{"n": 1, "requires": 2}]}', "inner[0]: "),
        ("[]", "object"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_place(text, place):
    with pytest.raises(SchemaError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith("r.json is not a complete results file (") and message.endswith("; measure again")
    assert place in message


@pytest.mark.parametrize("data", [b"", b"{", b'{"share": NaN}', b"\xff", b'{"share": 1}}', b'{"a":' * 100_000])
def test_what_is_no_json_is_one_sentence(data):
    with pytest.raises(BundleError, match=r"r\.json is not a readable results file"):
        read(data)


def test_a_value_that_was_read_before_is_held_to_the_same():
    assert convert({"share": 0.5}, Outer, what="row") == Outer(0.5)
    with pytest.raises(SchemaError, match=r"row is not a complete row \(share: "):
        convert({"share": 2}, Outer, what="row")


@dataclass(frozen=True, kw_only=True)
class Plan(Options):
    epochs: int = 8
    rate: float | None = None
    name: str | None = None
    folders: tuple[Path, ...] = ()
    compile: bool = False


def test_options_take_what_is_meant():
    taken = Plan(epochs=np.int64(3), rate=1, name=Path("a"), folders=["b", Path("c")])
    assert taken == Plan(epochs=3, rate=1.0, name="a", folders=(Path("b"), Path("c")))
    assert [type(value) for value in (taken.epochs, taken.rate, taken.name)] == [int, float, str]
    assert Plan(epochs=10**400).epochs == 10**400
    assert Plan(rate=np.float32(0.5)).rate == 0.5 and Plan().rate is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": "8"}, "`epochs` must be a whole number, not '8'"),
        ({"epochs": 8.0}, "`epochs` must be a whole number, not 8.0"),
        ({"epochs": True}, "`epochs` must be a whole number, not True"),
        ({"rate": 10**400}, "`rate` must be a finite number, not 1000"),
        ({"epochs": None}, "`epochs` must be a whole number, not None"),
        ({"rate": "fast"}, "`rate` must be a finite number, not 'fast'"),
        ({"rate": float("nan")}, "`rate` must be a finite number, not nan"),
        ({"name": 3}, "`name` must be text, not 3"),
        ({"folders": "b"}, "`folders` must be several, each a path, not 'b'"),
        ({"folders": [1]}, "`folders` must be several, each a path, not [1]"),
        ({"compile": 1}, "`compile` must be True or False, not 1"),
    ],
)
def test_options_of_another_type_are_refused_by_their_field(given, says):
    with pytest.raises(InputError) as caught:
        Plan(**given)
    assert str(caught.value).startswith(says) and caught.value.field == next(iter(given))
