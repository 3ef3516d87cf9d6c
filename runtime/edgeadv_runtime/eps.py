"""The size of a perturbation, as it is written and as it is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from .errors import InputError

_FRACTION = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d+)")
# a step of eps that is meant to be k/255 must not lose a grey level to the rounding of floats
_LEVEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Eps:
    """An L-infinity budget in pixels of [0, 1].

    Attributes:
        text: as written, ``"8/255"`` or ``"0.03"``: the name of the budget in every file.
        value: the number, 0 < value <= 1.
    """

    text: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Eps:
        """Read ``8/255`` or a decimal number.

        Raises:
            InputError: not a number, or not in (0, 1]; 8 is taken for the 8/255 that was probably meant.
        """
        stripped = text.strip()
        try:
            match = _FRACTION.fullmatch(stripped)
            value = float(Fraction(match[1]) / int(match[2])) if match else float(stripped)
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"eps {text!r} is not a number: write it 8/255 or 0.03, in pixels of [0, 1]") from error
        if not 0 < value <= 1:
            hint = f": did you mean {stripped}/255?" if 1 < value <= 255 else ""
            raise InputError(f"eps {text!r} is not in (0, 1], the range of a pixel{hint}")
        return cls(stripped.replace(" ", ""), value)

    @classmethod
    def parse_list(cls, text: str) -> tuple[Eps, ...]:
        """Read a comma-separated list in ascending order.

        Raises:
            InputError: as :meth:`parse`, a budget is there twice, or the order is another.
        """
        values = tuple(cls.parse(part) for part in text.split(","))
        ascending = tuple(sorted(values, key=lambda eps: eps.value))
        if len({eps.value for eps in values}) != len(values):
            raise InputError(f"eps list {text!r} names a budget twice")
        if values != ascending:
            right = ",".join(eps.text for eps in ascending)
            raise InputError(f"eps list {text!r} is not in ascending order: write {right}")
        return values

    @property
    def grey_levels(self) -> int:
        """The largest whole number of 8-bit grey levels within the budget."""
        return int(self.value * 255 + _LEVEL_TOLERANCE)
