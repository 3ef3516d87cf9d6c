"""The size of a perturbation, the area of a patch or the severity of a corruption, as it is written and as it is
used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from ..errors import InputError

SEVERITY = "severity"
"""What the budgets of corruptions are measured in."""
AREA = "area"
"""What the budgets of patches are measured in: the share of the picture that is covered."""
SEVERITIES = 5
"""Corruptions have severities 1 to this."""
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_FRACTION = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d+)")
# a step of eps that is meant to be k/255 must not lose a grey level to the rounding of floats
_LEVEL_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Eps:
    """A budget in pixels of [0, 1], L-infinity unless said.

    Attributes:
        text: as written, ``"8/255"`` or ``"0.03"``: the name of the budget in every file.
        value: the number, above 0; in L-infinity at most 1.
    """

    text: str
    value: float

    @classmethod
    def parse(cls, text: str, *, norm: str = "linf") -> Eps:
        """Read ``8/255`` or a decimal number.

        Args:
            text: what was written.
            norm: ``"linf"``, or ``"l2"``, whose budgets are Euclidean lengths over all pixels and may be above 1, or
                ``"severity"``, a whole number from 1 to 5, or ``"area"``, ``5%`` of the picture.

        Raises:
            InputError: not a number, or out of range; 8 is taken for the 8/255 that was probably meant.
        """
        check_text(text)
        stripped = text.strip()
        if norm == SEVERITY:
            if stripped not in map(str, range(1, SEVERITIES + 1)):
                raise InputError("severity", f"{text!r} is not a whole number from 1 to {SEVERITIES}")
            return cls(stripped, float(stripped))
        if norm == AREA:
            percent = _PERCENT.fullmatch(stripped)
            if percent is None or not 0 < float(percent[1]) < 100:
                raise InputError("patch", f"{text!r} is not an area between 0% and 100% of the picture, such as 5%")
            return cls(stripped.replace(" ", ""), float(percent[1]) / 100)
        try:
            match = _FRACTION.fullmatch(stripped)
            value = float(Fraction(match[1]) / int(match[2])) if match else float(stripped)
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            raise InputError(f"eps {text!r} is not a number: write it 8/255 or 0.03, in pixels of [0, 1]") from error
        if norm == "l2":
            if not 0 < value < float("inf"):
                raise InputError(f"eps {text!r} is not a length above 0 (the L2 norm of all pixels together)")
        elif not 0 < value <= 1:
            hint = f": did you mean {stripped}/255?" if 1 < value <= 255 else ""
            raise InputError(f"eps {text!r} is not in (0, 1], the range of a pixel{hint}")
        return cls(stripped.replace(" ", ""), value)

    @classmethod
    def parse_list(cls, text: str, *, norm: str = "linf") -> tuple[Eps, ...]:
        """Read a comma-separated list in ascending order, of budgets in ``norm``.

        Raises:
            InputError: as :meth:`parse`, a budget is there twice, or the order is another.
        """
        values = tuple(cls.parse(part, norm=norm) for part in text.split(","))
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

    @property
    def fits_8_bits(self) -> bool:
        """Whether it is a whole number of grey levels, at least one: a perturbation of 8-bit images can use it up."""
        return self.grey_levels >= 1 and self.value * 255 - self.grey_levels <= _LEVEL_TOLERANCE

    def check_8_bits(self, *, instead: str = "") -> None:
        """Refuse an L-infinity budget that 8-bit images cannot hold.

        An attack searches the whole budget and is content with what works there. Cut back to fewer grey levels much of
        that works no more, and the model looks robust.

        Args:
            instead: what else one may do, in words.

        Raises:
            InputError: it is no whole number of grey levels, or less than one.
        """
        if self.fits_8_bits:
            return
        levels, otherwise = self.grey_levels, f", or {instead}" if instead else ""
        if levels < 1:
            raise InputError(
                f"eps {self.text} is less than one grey level of 8-bit images: use a larger one{otherwise}"
            )
        raise InputError(
            f"eps {self.text} is {self.value * 255:.7g} grey levels, and 8-bit images hold whole ones: use "
            f"{levels}/255 or {levels + 1}/255{otherwise}"
        )


def check_text(eps: object) -> None:
    """Refuse a budget that is not written as text, which is how results name it.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(eps, str):
        raise InputError("eps", f"is written as text, '8/255' or '0.03', so that results name it; it is {eps!r}")
