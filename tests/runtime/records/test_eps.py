"""How a budget is written, and how many grey levels it holds."""

from __future__ import annotations

import pytest

from edgeadv_runtime.errors import InputError
from edgeadv_runtime.records.eps import Eps


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("8/255", "8/255", 8 / 255),
        (" 8 / 255 ", "8/255", 8 / 255),
        ("2.5/255", "2.5/255", 2.5 / 255),
        ("0.03", "0.03", 0.03),
        ("1e-2", "1e-2", 0.01),
        ("1", "1", 1.0),
        ("255/255", "255/255", 1.0),
    ],
)
def test_what_is_understood(text: str, name: str, value: float) -> None:
    assert Eps.parse(text) == Eps(name, value)


@pytest.mark.parametrize("text", ["", "eight", "8/", "/255", "8/0", "8/255/2", "8:255", "0x8", "8/25.5", "-8/255"])
def test_what_is_not_a_number(text: str) -> None:
    with pytest.raises(InputError, match="is not a number"):
        Eps.parse(text)


@pytest.mark.parametrize("text", ["0", "0/255", "-0.1", "1.0001", "256/255", "nan", "inf", "-inf", "1e9"])
def test_what_is_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match=r"not in \(0, 1\]"):
        Eps.parse(text)


def test_grey_levels_without_255_are_recognised() -> None:
    with pytest.raises(InputError, match=r"did you mean 8/255\?"):
        Eps.parse("8")
    with pytest.raises(InputError) as caught:
        Eps.parse("256")
    assert "did you mean" not in str(caught.value)


def test_a_list_is_ascending() -> None:
    assert [eps.text for eps in Eps.parse_list("1/255, 0.01 ,8/255")] == ["1/255", "0.01", "8/255"]


@pytest.mark.parametrize("text", ["8/255, 0.01 ,1/255", "1/255,8/255,0.01"])
def test_a_list_in_another_order_is_an_error_that_says_the_right_one(text: str) -> None:
    with pytest.raises(InputError, match=r"is not in ascending order: write 1/255,0\.01,8/255"):
        Eps.parse_list(text)


@pytest.mark.parametrize("text", ["8/255,8/255", "0.1,0.10", "1/255,2/510", f"8/255,{8 / 255!r}"])
def test_a_budget_twice_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="twice"):
        Eps.parse_list(text)


@pytest.mark.parametrize("text", ["", "8/255,", ",", "8/255,,1/255", "8/255;1/255"])
def test_a_list_with_gaps_is_an_error(text: str) -> None:
    with pytest.raises(InputError):
        Eps.parse_list(text)


@pytest.mark.parametrize("k", range(1, 256))
def test_every_grey_level_survives_both_ways_of_writing_it(k: int) -> None:
    assert Eps.parse(f"{k}/255").grey_levels == k
    assert Eps.parse(repr(k / 255)).grey_levels == k
    assert Eps.parse(f"{k / 255:.7f}").grey_levels == k


def test_what_lies_between_two_levels_is_rounded_down() -> None:
    assert Eps.parse("8.9/255").grey_levels == 8
    assert Eps.parse("0.031").grey_levels == 7
    assert Eps.parse("0.5/255").grey_levels == 0


def test_a_length_may_be_above_1_and_is_no_number_of_grey_levels() -> None:
    """3 is a usual L2 budget on ImageNet; whoever followed a hint to 3/255 would attack with almost nothing."""
    assert Eps.parse("3", norm="l2") == Eps("3", 3.0)
    assert [eps.text for eps in Eps.parse_list("0.5,3.0", norm="l2")] == ["0.5", "3.0"]
    for text in ("0", "-1", "inf", "nan"):
        with pytest.raises(InputError, match="is not a length above 0") as caught:
            Eps.parse(text, norm="l2")
        assert "did you mean" not in str(caught.value)
