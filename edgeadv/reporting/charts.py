"""Where things stand in the charts; ``charts.html.j2`` draws them as SVG, with the page's own fonts and colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edgeadv_runtime.records.bench import BenchRow
from edgeadv_runtime.records.eps import AREA
from edgeadv_runtime.records.rows import CLEAN, NORMS, WORST_CASE
from edgeadv_runtime.records.suites import base_name

from .accuracy import Group
from .phrases import LABELS, attack_label

_LABEL_GAP = 17.0
# a tick's label is about this wide, in units of the curves' view box
_CHARACTER = 7.2
# where the slowest is this many times the fastest, a linear axis would hide the fast ones
_LOG_FROM = 60.0
_MOST_TICKS = 6
# an attack that the page does not know takes one of these, always the same for the same set
_SPARE_COLOURS = 3


def attack_classes(attacks: Iterable[str]) -> dict[str, str]:
    """CSS class of each attack, the same on the whole page.

    Args:
        attacks: all that occur on the page.
    """
    found = set(attacks)
    known = {attack: f"a-{base_name(attack)}" for attack in (*LABELS, *found) if base_name(attack) in LABELS}
    unknown = sorted(found - set(known))
    return known | {attack: f"a-other-{i % _SPARE_COLOURS}" for i, attack in enumerate(unknown)}


@dataclass(frozen=True)
class LatencyScale:
    """One axis for all latencies of a page.

    Attributes:
        ticks: milliseconds, round values from end to end.
        logarithmic: whether equal steps are equal factors.
        low: milliseconds at its left end.
        high: milliseconds at its right end.
    """

    ticks: list[float]
    logarithmic: bool
    low: float
    high: float

    @classmethod
    def covering(cls, rows: Sequence[BenchRow]) -> LatencyScale:
        """A scale on which the slowest of ``rows`` still fits: nothing is cut off."""
        high = max(row.max_ms for row in rows) or 1.0
        low = min((row.p50_ms for row in rows if row.p50_ms > 0), default=high)
        if high / low <= _LOG_FROM:
            least = (1 - 1e-9) * high / (_MOST_TICKS - 1)
            step = next(value for value in _round_values(least, high) if value >= least)
            ticks = [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]
            return cls(ticks, False, 0.0, ticks[-1])
        around = _round_values(low, high)
        low = max(value for value in around if value <= low * (1 + 1e-9))
        high = min(value for value in around if value >= high * (1 - 1e-9))
        ticks = [value for value in around if low <= value <= high]
        decades = [value for value in ticks if math.log10(value).is_integer()]
        return cls(ticks if len(ticks) <= _MOST_TICKS else decades, True, low, high)

    def place(self, ms: float) -> float:
        """Position of ``ms`` as a share of the axis."""
        if not self.logarithmic:
            return ms / self.high
        return math.log(max(ms, self.low) / self.low) / math.log(self.high / self.low)


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten around both."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in decades for m in (1, 2, 5)]


@dataclass(frozen=True)
class Curve:
    """One curve of a panel.

    Attributes:
        css: its class.
        label: what stands at its end, before its last share.
        places: eps, share and the share's 95% interval of each point; eps 0 is no attack.
        radius: of its points.
    """

    css: str
    label: str
    places: Sequence[tuple[float, float, tuple[float, float]]]
    radius: float

    @property
    def line(self) -> list[tuple[float, float]]:
        """Its points as eps and share."""
        return [(eps, share) for eps, share, _ in self.places]

    @property
    def band(self) -> list[tuple[float, float]]:
        """The intervals' upper ends from left to right, and the lower ones back."""
        return [(eps, high) for eps, _, (_, high) in self.places] + [
            (eps, low) for eps, _, (low, _) in reversed(self.places)
        ]


@dataclass(frozen=True)
class Panel:
    """Shares against eps, for one artefact or classifier.

    Attributes:
        title: what the panel shows, in words.
        curves: the last lies on top.
        starts: CSS class and share of what is marked where there is no attack.
        budgets: eps as a number and as written, for the axis.
        eps_limit: right end of the axis, the same in all panels of a page.
        norm: what budgets are measured in.
    """

    title: str
    curves: Sequence[Curve]
    starts: Sequence[tuple[str, float]]
    budgets: Sequence[tuple[float, str]]
    eps_limit: float
    norm: str = NORMS[0]
    left, right, top, bottom = 44, 316, 22, 284

    def x(self, eps: float) -> float:
        """Where ``eps`` is."""
        return self.left + eps / self.eps_limit * (self.right - self.left)

    def y(self, share: float) -> float:
        """Where ``share`` is."""
        return self.bottom - share * (self.bottom - self.top)

    def points(self, places: Iterable[tuple[float, float]]) -> str:
        """Pairs of eps and share as SVG writes a line."""
        return " ".join(f"{self.x(eps):.1f},{self.y(share):.1f}" for eps, share in places)

    @property
    def _in_levels(self) -> bool:
        return all(text.endswith("/255") for _, text in self.budgets)

    @property
    def unit(self) -> str:
        """What the axis shows."""
        if self.norm == "l2":
            return "eps, L2 length over all pixels"
        if self.norm == AREA:
            return "area of the patch, a share of the picture"
        return "eps in 1/255 of the pixel range" if self._in_levels else "eps, pixels in [0, 1]"

    @property
    def ticks(self) -> Iterator[tuple[float, str]]:
        """Place and label of each budget, the label empty where there is no room for it."""
        free_from = math.inf
        # from the right, because the largest budget is the one that the headline quotes
        for value, text in reversed([(0.0, "0"), *self.budgets]):
            short = text.removesuffix("/255") if self._in_levels else text if self.norm == AREA else f"{value:.3g}"
            x, half = self.x(value), len(short) * _CHARACTER / 2 + 2
            fits = x + half <= free_from
            free_from = x - half if fits else free_from
            yield x, short if fits else ""

    @property
    def ends(self) -> list[tuple[Curve, float, float]]:
        """Each curve with the height of its end and that of its label."""
        ended = [(self.y(curve.line[-1][1]), curve) for curve in self.curves]
        ended.sort(key=lambda end: (end[0], end[1].label))
        labels = spread([y for y, _ in ended], self.bottom)
        return [(curve, y, at) for (y, curve), at in zip(ended, labels, strict=True)]


def accuracy(group: Group, classes: dict[str, str], *, title: str, eps_limit: float, every: bool = False) -> Panel:
    """Accuracy against eps for one artefact of one model.

    Args:
        group: the artefact's rows.
        classes: CSS class of each attack.
        title: what the panel shows, in words.
        eps_limit: right end of the axis, the same in all panels of a page.
        every: draw every attack, and not those alone that are strongest at the largest eps.
    """
    curves = []
    drawn = set(group.attacks) if every else {row.attack for line in group.attacked[-1:] for row in line.summary}
    # the worst case comes last, and so lies on top
    for attack in filter(drawn.__contains__, group.attacks):
        rows = [row for line in group.attacked if (row := line.rows.get(attack))]
        # a clean row has eps 0
        places = [(row.eps_value, row.top1, row.top1_ci95) for row in ([group.clean] if group.clean else []) + rows]
        curves.append(Curve(classes[attack], attack_label(attack), places, 4.5 if attack == WORST_CASE else 3))
    return Panel(
        title,
        curves,
        [("a-clean", group.clean.top1)] if group.clean else [],
        [(line.eps_value, str(line.eps)) for line in group.attacked],
        eps_limit,
        next((row.norm for row in group.rows if row.attack != CLEAN), NORMS[0]),
    )


def spread(places: Sequence[float], high: float) -> list[float]:
    """Move ascending ``places`` apart just enough for a line of text each, none of them beyond ``high``."""
    moved = list(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + _LABEL_GAP)
    limit = high
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - _LABEL_GAP
    return moved
