"""Charts as SVG text. Hand-made, so that they take the page's own fonts and its colours, light or dark.

Colours and weights are classes that ``style.css`` knows. Names from files go through ElementTree, which escapes them.
Strips are measured in per cent and stretch without distorting what is in them; the curves scale as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from edgeadv_runtime.records.bench import BenchRow
from edgeadv_runtime.records.rows import CLEAN, WORST_CASE, Row
from edgeadv_runtime.records.suites import base_name

from .accuracy import Group
from .phrases import LABELS, attack_label

_STRIP_HEIGHT = 20
_WIDTH, _HEIGHT = 548, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 232, 22, 46
_PLOT_RIGHT, _PLOT_BOTTOM = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
_LABEL_GAP = 17.0
# a tick's label is about this wide, in units of the curves' view box
_CHARACTER = 7.2
# where the slowest is this many times the fastest, a linear axis would hide the fast ones
_LOG_FROM = 60.0
_MOST_TICKS = 6
# an attack that the page does not know takes one of these, always the same for the same set
_SPARE_COLOURS = 3
# a point of a curve: eps, share, its interval; the end of one: x, y, label, CSS class
_Place = tuple[float, float, tuple[float, float]]
_End = tuple[float, float, str, str]


def attack_classes(attacks: Iterable[str]) -> dict[str, str]:
    """CSS class of each attack, the same on the whole page.

    Args:
        attacks: all that occur on the page.
    """
    found = set(attacks)
    known = {attack: f"a-{base_name(attack)}" for attack in (*LABELS, *found) if base_name(attack) in LABELS}
    unknown = sorted(found - set(known))
    return known | {attack: f"a-other-{i % _SPARE_COLOURS}" for i, attack in enumerate(unknown)}


def share_strip(row: Row, css_class: str) -> str:
    """A dot for the share and a line for its interval, on a track from 0 to 100%."""
    low, high = row.top1_ci95
    words = f"{row.top1:.1%}, 95% interval {low:.1%} to {high:.1%}"
    svg = _svg("strip", words, width="100%", height=str(_STRIP_HEIGHT))
    y = str(_STRIP_HEIGHT // 2)
    _add(svg, "line", "track", x1="0%", x2="100%", y1=y, y2=y)
    for share in (0.0, 0.5, 1.0):
        _add(svg, "line", "track", x1=_percent(share), x2=_percent(share), y1="7", y2="13")
    _add(svg, "line", f"range {css_class}", x1=_percent(low), x2=_percent(high), y1=y, y2=y)
    _add(svg, "circle", f"dot {css_class}", cx=_percent(row.top1), cy=y, r="6" if row.attack == WORST_CASE else "4.5")
    return _text(svg)


@dataclass(frozen=True)
class LatencyScale:
    """One axis for all latencies of a page.

    Attributes:
        low: milliseconds at its left end.
        high: milliseconds at its right end.
        logarithmic: whether equal steps are equal factors.
    """

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def covering(cls, rows: Sequence[BenchRow]) -> LatencyScale:
        """A scale on which the slowest of ``rows`` still fits: nothing is cut off."""
        high = max(row.max_ms for row in rows)
        positive = [row.p50_ms for row in rows if row.p50_ms > 0]
        low = min(positive, default=high)
        if low > 0 and high / low > _LOG_FROM:
            return cls(_nice(low, up=False), _nice(high, up=True), True)
        step = _nice(high / (_MOST_TICKS - 1), up=True) or 1.0
        return cls(0.0, max(1, math.ceil(high / step - 1e-9)) * step, False)

    def place(self, ms: float) -> float:
        """Position of ``ms`` as a share of the axis."""
        if not self.logarithmic:
            return ms / self.high
        return math.log(max(ms, self.low) / self.low) / math.log(self.high / self.low)

    @property
    def ticks(self) -> list[float]:
        """Round values from end to end."""
        if not self.logarithmic:
            step = _nice(self.high / (_MOST_TICKS - 1), up=True)
            return [i * step for i in range(int(self.high / step + 1e-9) + 1)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        values = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        decades = [value for value in values if math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)]
        return values if len(values) <= _MOST_TICKS else decades


def latency_strip(row: BenchRow, scale: LatencyScale) -> str:
    """Median as a dot, up to the 90th percentile as a bar, up to the slowest as a line with an end."""
    p50, p90, slowest = (scale.place(ms) for ms in (row.p50_ms, row.p90_ms, row.max_ms))
    words = f"median {row.p50_ms:.3g} ms, 90th percentile {row.p90_ms:.3g} ms, slowest {row.max_ms:.3g} ms"
    svg = _svg("strip latency", words, width="100%", height=str(_STRIP_HEIGHT))
    y = str(_STRIP_HEIGHT // 2)
    for tick in scale.ticks:
        x = _percent(scale.place(tick))
        _add(svg, "line", "grid", x1=x, x2=x, y1="0", y2=str(_STRIP_HEIGHT))
    _add(svg, "line", "whisker", x1=_percent(p50), x2=_percent(slowest), y1=y, y2=y)
    _add(svg, "line", "whisker", x1=_percent(slowest), x2=_percent(slowest), y1="5", y2="15")
    _add(svg, "line", "bar", x1=_percent(p50), x2=_percent(p90), y1=y, y2=y)
    _add(svg, "circle", "median", cx=_percent(p50), cy=y, r="5")
    return _text(svg)


def latency_axis(scale: LatencyScale) -> str:
    """The axis under the latency strips."""
    svg = _svg("strip axis", "", width="100%", height="20")
    for i, tick in enumerate(scale.ticks):
        place = scale.place(tick)
        # the outermost labels stay inside the strip
        anchor = "start" if place < 0.03 else "end" if place > 0.97 else "middle"
        text = f"{tick:g} ms" if i == len(scale.ticks) - 1 else f"{tick:g}"
        _add(svg, "text", "tick", text, x=_percent(place), y="14", **{"text-anchor": anchor})
    return _text(svg)


def curves(group: Group, classes: dict[str, str], *, title: str, eps_limit: float) -> str:
    """Accuracy against eps for one artefact of one model.

    Args:
        group: the artefact's rows.
        classes: CSS class of each attack.
        title: what the panel shows, in words.
        eps_limit: right end of the axis, the same in all panels of a page.
    """
    svg = _svg("curves", title, viewBox=f"0 0 {_WIDTH} {_HEIGHT}")
    in_l2 = any(row.norm == "l2" for line in group.attacked for row in line.rows.values())
    _frame(svg, [(line.eps_value, str(line.eps)) for line in group.attacked], eps_limit, in_l2=in_l2)
    ends: list[_End] = []
    # the worst case last, so that it lies on top
    for attack in group.attacks:
        rows = [line.rows[attack] for line in group.attacked if attack in line.rows]
        points = ([group.clean] if group.clean else []) + rows
        places = [(0 if row.attack == CLEAN else row.eps_value, row.top1, row.top1_ci95) for row in points]
        radius = "4.5" if attack == WORST_CASE else "3"
        ends.append(_line(svg, classes[attack], attack_label(attack), places, eps_limit, radius=radius))
    if group.clean:
        y = _y(group.clean.top1)
        _add(svg, "circle", "point a-clean", cx=f"{_LEFT}", cy=f"{y:.1f}", r="4.5")
        _add(svg, "text", "label a-clean", f"clean {group.clean.top1:.1%}", x=f"{_LEFT + 8}", y=f"{y - 9:.1f}")
    _end_labels(svg, ends)
    return _text(svg)


def error_curves(
    series: Sequence[tuple[str, str, Sequence[_Place]]],
    budgets: Sequence[tuple[float, str]],
    *,
    title: str,
    eps_limit: float,
) -> str:
    """Error against eps for one classifier.

    Args:
        series: for each curve its CSS class, its label, and eps, share and 95% interval of each point; eps 0 is no
            attack.
        budgets: eps as a number and as written, for the axis.
        title: what the panel shows, in words.
        eps_limit: right end of the axis, the same in all panels of a page.
    """
    svg = _svg("curves", title, viewBox=f"0 0 {_WIDTH} {_HEIGHT}")
    _frame(svg, budgets, eps_limit)
    # the first last, so that it lies on top; its label comes first
    ends = [_line(svg, css, label, places, eps_limit, radius="3.5") for css, label, places in reversed(series)]
    _end_labels(svg, ends[::-1])
    # where there is no attack; again the first on top
    for css, _, places in reversed(series):
        for eps, share, _ in places:
            if not eps:
                _add(svg, "circle", f"point {css}", cx=f"{_LEFT}", cy=f"{_y(share):.1f}", r="4.5")
    return _text(svg)


def _line(
    svg: ElementTree.Element, css_class: str, label: str, places: Sequence[_Place], eps_limit: float, *, radius: str
) -> _End:
    """One curve with its band, its points but for the one at eps 0, and what its label must know."""
    upper = [(_x(eps, eps_limit), _y(high)) for eps, _, (_, high) in places]
    lower = [(_x(eps, eps_limit), _y(low)) for eps, _, (low, _) in places]
    middle = [(_x(eps, eps_limit), _y(share)) for eps, share, _ in places]
    _add(svg, "polygon", f"band {css_class}", points=_points([*upper, *reversed(lower)]))
    _add(svg, "polyline", f"line {css_class}", points=_points(middle))
    for (x, y), (eps, _, _) in zip(middle, places, strict=True):
        if eps:
            _add(svg, "circle", f"point {css_class}", cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius)
    return (*middle[-1], f"{label} {places[-1][1]:.1%}", css_class)


def _frame(
    svg: ElementTree.Element, budgets: Sequence[tuple[float, str]], eps_limit: float, *, in_l2: bool = False
) -> None:
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = f"{_y(share):.1f}"
        _add(svg, "line", "grid" if share else "base", x1=f"{_LEFT}", x2=f"{_PLOT_RIGHT}", y1=y, y2=y)
        _add(svg, "text", "tick", f"{share:.0%}", x=f"{_LEFT - 8}", y=f"{_y(share) + 4:.1f}", **{"text-anchor": "end"})
    in_levels = all(text.endswith("/255") for _, text in budgets)
    free_from = math.inf
    # from the right, because the largest budget is the one that the headline quotes
    for value, text in reversed([(0.0, "0"), *budgets]):
        x = _x(value, eps_limit)
        short = text.removesuffix("/255") if in_levels else f"{value:.3g}"
        half = len(short) * _CHARACTER / 2 + 2
        _add(svg, "line", "base", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=f"{_PLOT_BOTTOM}", y2=f"{_PLOT_BOTTOM + 5}")
        if x + half <= free_from:
            free_from = x - half
            _add(svg, "text", "tick", short, x=f"{x:.1f}", y=f"{_PLOT_BOTTOM + 18}", **{"text-anchor": "middle"})
    unit = "eps in 1/255 of the pixel range" if in_levels else "eps, pixels in [0, 1]"
    if in_l2:
        unit = "eps, L2 length over all pixels"
    middle = (_LEFT + _PLOT_RIGHT) / 2
    _add(svg, "text", "axis-title", unit, x=f"{middle:.1f}", y=f"{_HEIGHT - 8}", **{"text-anchor": "middle"})


def _end_labels(svg: ElementTree.Element, ends: list[_End]) -> None:
    ends = sorted(ends, key=lambda end: end[1])
    for (x, y, text, css_class), at in zip(ends, spread([y for _, y, _, _ in ends], _PLOT_BOTTOM), strict=True):
        leader = f"{x + 6:.1f},{y:.1f} {_PLOT_RIGHT + 14},{at:.1f} {_PLOT_RIGHT + 20},{at:.1f}"
        _add(svg, "polyline", f"leader {css_class}", points=leader)
        _add(svg, "text", f"label {css_class}", text, x=f"{_PLOT_RIGHT + 24}", y=f"{at + 4:.1f}")


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


def _x(eps: float, limit: float) -> float:
    return _LEFT + eps / limit * (_PLOT_RIGHT - _LEFT)


def _y(share: float) -> float:
    return _PLOT_BOTTOM - share * (_PLOT_BOTTOM - _TOP)


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _nice(value: float, *, up: bool) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = [step * power for step in (1, 2, 5, 10)]
    if up:
        return next(step for step in steps if step >= value * (1 - 1e-9))
    return next(step for step in reversed(steps) if step <= value * (1 + 1e-9))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _svg(css_class: str, words: str, **attributes: str) -> ElementTree.Element:
    described = {"role": "img", "aria-label": words} if words else {"aria-hidden": "true"}
    return ElementTree.Element("svg", {"class": css_class, **described, **attributes})


def _add(parent: ElementTree.Element, tag: str, css_class: str, text: str | None = None, **attributes: str) -> None:
    ElementTree.SubElement(parent, tag, {"class": css_class, **attributes}).text = text


def _text(svg: ElementTree.Element) -> str:
    return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False)
