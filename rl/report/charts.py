"""Small charts as inline SVG: curves, points with intervals, clouds of points, and the bar of one difference. Colours
are classes that the page's style sheet gives for light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from rl.run.curves import smoothed

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MOST_POINTS = 240
"""of a curve; more are averaged"""


@dataclass(frozen=True)
class Series:
    """One curve, or the points of evaluations. x and y as long as each other."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dots: bool = False
    """points joined by a thin line; else a curve, raw and smoothed"""
    errors: Sequence[float | None] = ()
    """half the length of each point's interval"""
    opens: Sequence[bool] = ()
    """whether the pictures of each point's evaluation are on the page"""


def line_chart(title: str, series: Sequence[Series]) -> Markup:
    """Curves over updates on one axis. Nothing where there are no points."""
    series = [one for one in series if len(one.x)]
    if not series:
        return Markup()
    shown = [_averaged(one) if not one.dots else one for one in series]
    ys = [y + sign * _error(one, n) for one in shown for n, y in enumerate(one.y) for sign in (-1, 1)]
    xs = [x for one in shown for x in one.x]
    frame = _Frame(min(0, *xs), max(*xs, 1), min(ys), max(ys))
    parts = [frame.axes()]
    for one in shown:
        parts.append(_dots(frame, one) if one.dots else _curve(frame, one))
    return _svg(title, parts)


def cloud_chart(title: str, x_label: str, y_label: str, points: Sequence[tuple[float, float, int]]) -> Markup:
    """A point per sample, with the number of the sample that it opens."""
    if not points:
        return Markup()
    xs, ys = [x for x, _, _ in points], [y for _, y, _ in points]
    frame = _Frame(min(xs), max(xs), min(ys), max(ys))
    dots = [
        f'<a href="#sample-{number}" data-sample="{number}">'
        f'<circle class="s0 point" {frame.centre(x, y)} r="2.6"><title>{_number(x)}, {_number(y)}</title></circle></a>'
        for x, y, number in points
    ]
    labels = _text(WIDTH - RIGHT, HEIGHT - 4, "end", x_label) + _text(4, TOP, "start", y_label)
    return _svg(title, [frame.axes(labelled=True), *dots, labels])


def difference_bar(low: float, gain: float, high: float, span: float, tone: str) -> Markup:
    """A gain and its interval about zero. span: the largest absolute value of the bars that stand together. tone: up,
    down or even."""
    width, height = 200, 18
    span = span or 1.0

    def place(value: float) -> float:
        return width / 2 + max(-1.0, min(1.0, value / span)) * (width / 2 - 6)

    line = "" if math.isnan(low) else f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="9" y2="9"/>'
    return Markup(
        f'<svg class="bar {tone}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<line class="zero" x1="{width / 2}" x2="{width / 2}" y1="0" y2="{height}"/>{line}'
        f'<circle cx="{place(gain):.1f}" cy="9" r="4"/></svg>'
    )


class _Frame:
    """Where numbers lie on the drawing."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        self.left, self.right = left, right if right > left else left + 1
        self.low, self.high = low - room, high + room

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def centre(self, x: float, y: float) -> str:
        """Of a circle."""
        return f'cx="{self.x(x):.1f}" cy="{self.y(y):.1f}"'

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """The points of a line."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in zip(xs, ys, strict=True))

    def axes(self, labelled: bool = False) -> str:
        """Grid and numbers. labelled: the right end of the lower axis has a label of its own."""
        parts = []
        for tick in _ticks(self.low, self.high, 4):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 6, y + 3.5, "end", _number(tick)))
        ticks = _ticks(self.left, self.right, 4)
        parts += [_text(self.x(tick), HEIGHT - 8, "middle", _number(tick)) for tick in ticks[: 2 if labelled else None]]
        return "".join(parts)


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(frame: _Frame, one: Series) -> str:
    colour = f"s{one.colour}"
    if len(one.x) == 1:
        return f'<circle class="{colour} point" {frame.centre(one.x[0], one.y[0])} r="2.6"/>'
    raw = frame.path(one.x, one.y)
    if len(one.x) < 12:
        return f'<polyline class="{colour}" points="{raw}"/>'
    smooth = frame.path(one.x, smoothed(one.y))
    return f'<polyline class="{colour} raw" points="{raw}"/><polyline class="{colour}" points="{smooth}"/>'


def _dots(frame: _Frame, one: Series) -> str:
    colour = f"s{one.colour}"
    parts = [f'<polyline class="{colour} thin" points="{frame.path(one.x, one.y)}"/>']
    for number, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        if error := _error(one, number):
            parts.append(f'<polyline class="{colour} thin" points="{frame.path((x, x), (y - error, y + error))}"/>')
        said = escape(f"{one.label}, update {x:.0f}: {_number(y)}")
        opens = bool(one.opens and one.opens[number])
        title = f"<title>{said}{'; opens its pictures' if opens else ''}</title>"
        dot = f'<circle class="{colour}{" opens" if opens else ""}" {frame.centre(x, y)} r="4">{title}</circle>'
        parts.append(f'<a href="#gallery" data-step="{x:.0f}" aria-label="{said}">{dot}</a>' if opens else dot)
    return "".join(parts)


def _error(one: Series, number: int) -> float:
    return (one.errors[number] if one.errors else None) or 0.0


def _averaged(one: Series) -> Series:
    """With as many points as can be told apart."""
    size = -(-len(one.x) // MOST_POINTS)
    if size == 1:
        return one
    parts = range(0, len(one.x), size)
    x, y = ([sum(column[n : n + size]) / len(column[n : n + size]) for n in parts] for column in (one.x, one.y))
    return Series(one.label, x, y, one.colour)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _number(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _svg(title: str, parts: Sequence[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
