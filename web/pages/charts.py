"""Charts as SVG, made on the server.

They can be read without colour: areas have patterns, lines have markers and dashes, and a legend names them. Each
has a title and a description for screen readers. All looks are those of the style sheet, but patterns, which an
SVG can only refer to by its own ids. A chart is so narrow that its text can be read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from markupsafe import Markup, escape

#: Units of the view box; a character is about 6 wide.
WIDTH, LEFT, TOP, PLOT, LINE = 360, 52, 8, 130, 19
#: Characters of a label that stands on a line of its own.
MAX_LABEL = 52

#: Tiles of 6 units, by the name of what they stand for.
PATTERNS = {
    "completed": Markup('<path d="M0 0h6v6H0z"/>'),
    "failed": Markup('<path d="M-1 1l2-2M0 6l6-6M5 7l2-2" class="ruled"/>'),
    "cancelled": Markup('<circle cx="3" cy="3" r="1.4"/>'),
    "incomplete": Markup('<path d="M0 1.5h6M0 4.5h6" class="ruled"/>'),
}
#: Markers as pieces of a path, around the point where it is.
MARKERS = {
    "actor": "m-3.2 0a3.2 3.2 0 1 0 0-.1z",
    "critic": "m-3-3h6v6h-6z",
    "regenerator": "m0-4.2l4 7h-8z",
    "plain": "m0-4.2l4.2 4.2l-4.2 4.2l-4.2-4.2z",
}
#: The description of a chart without any value.
NONE = "No values."
#: The dashes of lines.
DASHES = {"actor": "none", "critic": "6 3", "regenerator": "2 2.5", "plain": "none"}

Form = Callable[[float], str]


class Series(NamedTuple):
    """Values of one kind, one for each label; None for none."""

    #: The class in the style sheet, and the pattern or the marker.
    kind: str
    name: str
    values: Sequence[float | None]


class Interval(NamedTuple):
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float


class _Frame(Protocol):
    """Where labels and values are in a chart."""

    #: The axes with their words.
    axes: list[Markup]
    #: How far down the axes reach.
    height: float

    def point(self, number: int, value: float) -> tuple[float, float]:
        """Return where a value of a label is."""

    def box(self, number: int, low: float, high: float) -> _Box:
        """Return the area between two values of a label."""


class _Time:
    """Labels from left to right, and values upwards from 0."""

    def __init__(self, labels: Sequence[str], top: float, form: Form) -> None:
        self._top, self._step = top, (WIDTH - LEFT - 4) / max(1, len(labels))
        self.height = TOP + PLOT + 24.0
        self.axes = []
        for part in (0.0, 0.5, 1.0):
            y = TOP + PLOT * (1 - part)
            self.axes += [
                Markup('<path class="axis" d="M{} {:g}H{}"/>').format(LEFT, y, WIDTH - 4),
                _text(LEFT - 4, y + 4, form(top * part), "end"),
            ]
        # The first and the last label.
        if labels:
            self.axes.append(_text(LEFT, TOP + PLOT + 16, labels[0]))
        if len(labels) > 1:
            self.axes.append(_text(WIDTH - 4, TOP + PLOT + 16, labels[-1], "end"))

    def point(self, number: int, value: float) -> tuple[float, float]:
        return LEFT + (number + 0.5) * self._step, TOP + PLOT * (1 - value / self._top)

    def box(self, number: int, low: float, high: float) -> _Box:
        x, y = self.point(number, high)
        return _Box(x - 0.4 * self._step, y, 0.8 * self._step, PLOT * (high - low) / self._top)


class _Rows:
    """Two lines for each label: its words, and values to the right."""

    def __init__(self, labels: Sequence[str], ends: tuple[float, float], form: Form | None) -> None:
        """
        Args:
            labels: from top to bottom.
            ends: the values at the left and at the right.
            form: writes the values of an axis; None for none.
        """
        self._low, self._width = ends[0], ends[1] - ends[0]
        self.height = TOP + len(labels) * 2.0 * LINE
        self.axes = [
            _text(0, TOP + number * 2 * LINE + 10, _short(label))
            for number, label in enumerate(labels)
        ]
        if form is not None:
            self.axes += [
                _text(self._x(value), self.height + 10, form(value), anchor)
                for value, anchor in ((ends[0], "start"), (ends[1], "end"))
            ]
            self.height += 16

    def _x(self, value: float) -> float:
        return 6 + (WIDTH - 12) * (value - self._low) / self._width

    def point(self, number: int, value: float) -> tuple[float, float]:
        return self._x(value), TOP + number * 2 * LINE + 22.0

    def box(self, number: int, low: float, high: float) -> _Box:
        (x, y), (end, _) = self.point(number, low), self.point(number, high)
        return _Box(x, y - 7, end - x, 12)


def columns(name: str, title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Return stacked columns over time."""
    top = max(_totals(series), default=0)
    described = f"Columns from {labels[0]} to {labels[-1]}, the highest {top:g}." if labels else ""
    frame = _Time(labels, nice(top), lambda value: f"{value:g}")
    return _stacked(name, title, described, frame, series)


def bars(name: str, title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Return a stacked bar for each label."""
    totals = _totals(series)
    described = f"{len(labels)} bars, the longest {max(totals, default=0):g}."
    named = [
        f"{_short(label, MAX_LABEL - len(f': {total:g}'))}: {total:g}"
        for label, total in zip(labels, totals, strict=True)
    ]
    return _stacked(name, title, described, _Rows(named, (0, max([*totals, 1])), None), series)


def lines(
    name: str, title: str, labels: Sequence[str], series: Sequence[Series], form: Form
) -> Markup:
    """Return lines over time. A line is broken where it has no value."""
    known = _known(series)
    frame = _Time(labels, nice(max(known, default=0)), form)
    parts = [_line(name, one.kind, path) for one in series if (path := _path(frame, one))]
    described = (
        f"Lines from {labels[0]} to {labels[-1]}, {_between(known, form)}" if known else NONE
    )
    return _svg(name, title, described, frame, parts, series)


def dots(
    name: str, title: str, labels: Sequence[str], series: Sequence[Series], form: Form
) -> Markup:
    """Return a line with a marker of each series for each label."""
    known = _known(series)
    top = nice(max(known, default=0))
    frame = _Rows(labels, (0, top), form)
    parts = [
        _rule(frame.point(number, 0), frame.point(number, top)) for number in range(len(labels))
    ]
    parts += [
        _markers(
            one.kind,
            (frame.point(n, value) for n, value in enumerate(one.values) if value is not None),
        )
        for one in series
    ]
    described = f"B{_between(known, form)[1:]}" if known else NONE
    return _svg(name, title, described, frame, parts, series)


def intervals(name: str, title: str, rows: Sequence[Interval], form: Form) -> Markup:
    """Return intervals around values, beside a line at 0. Those that do not reach it are filled."""
    reach = nice(max((max(abs(row.low), abs(row.high)) for row in rows), default=0))
    frame = _Rows([row.label for row in rows], (-reach, reach), form)
    middle, end = frame.point(0, 0)[0], TOP + len(rows) * 2 * LINE
    parts = [_rule((middle, TOP), (middle, end)), _text(middle, end + 10, form(0), "middle")]
    for number, row in enumerate(rows):
        (low, y), (high, _) = frame.point(number, row.low), frame.point(number, row.high)
        clear = row.low > 0 or row.high < 0
        parts += [
            Markup(
                '<path class="line plain" d="M{0:.1f} {2}H{1:.1f}M{0:.1f} {3}v8M{1:.1f} {3}v8"/>'
            ).format(low, high, y, y - 4),
            _markers("plain" if clear else "plain hollow", [frame.point(number, row.value)]),
        ]
    clear_ones = sum(row.low > 0 or row.high < 0 for row in rows)
    described = f"{len(rows)} intervals, of which {clear_ones} do not reach 0."
    return _svg(name, title, described, frame, parts, ())


def _stacked(
    name: str, title: str, described: str, frame: _Frame, series: Sequence[Series]
) -> Markup:
    """Return a chart of areas, those of a label on each other."""
    parts = []
    reached = [0.0] * max((len(one.values) for one in series), default=0)
    for one in series:
        boxes = []
        for number, value in enumerate(one.values):
            if value:
                boxes.append(frame.box(number, reached[number], reached[number] + value))
                reached[number] += value
        parts.append(_areas(name, one.kind, boxes))
    return _svg(name, title, described, frame, parts, series, areas=True)


def _path(frame: _Frame, series: Series) -> str:
    """Return the path of a line through the values of a series; empty if there is none."""
    drawn, command = [], "M"
    for number, value in enumerate(series.values):
        if value is None:
            command = "M"
            continue
        x, y = frame.point(number, value)
        # A point alone is a line without a length.
        drawn.append(f"{command}{x:.1f} {y:.1f}{'h0' if command == 'M' else ''}")
        command = "L"
    return "".join(drawn)


def _known(series: Sequence[Series]) -> list[float]:
    return [value for one in series for value in one.values if value is not None]


def _between(known: Sequence[float], form: Form) -> str:
    return f"between {form(min(known))} and {form(max(known))}."


def nice(value: float) -> float:
    """Return a round number that is as large or larger, and not 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10, 20) if step * power >= value)


def _svg(
    name: str,
    title: str,
    described: str,
    frame: _Frame,
    parts: Sequence[Markup],
    series: Sequence[Series],
    *,
    areas: bool = False,
) -> Markup:
    """Return a chart: its axes, its parts and its legend."""
    height = frame.height
    drawn = [*frame.axes, *parts]
    if areas:  # An SVG can only refer to patterns of its own.
        patterns = (
            Markup(
                '<pattern id="{}-{}" class="{}" width="6" height="6" patternUnits="userSpaceOnUse">{}</pattern>'
            ).format(name, kind, kind, PATTERNS[kind])
            for kind in (one.kind for one in series)
        )
        drawn.insert(0, Markup("<defs>{}</defs>").format(Markup("").join(patterns)))
    # Two entries a line.
    for number, (kind, label, _) in enumerate(series):
        x, y = 4 + number % 2 * WIDTH / 2, height + 6 + number // 2 * LINE
        box = _Box(x, y, 14, 11)
        drawn.append(_areas(name, kind, [box]) if areas else _markers(kind, [(x + 7, y + 6)]))
        drawn.append(_text(x + 20, y + 10, label))
    height += 6 + (len(series) + 1) // 2 * LINE
    return Markup(
        '<svg class="chart" viewBox="0 0 {0} {1:g}" role="img" aria-labelledby="{2}-title" aria-describedby="{2}-desc">'
        '<title id="{2}-title">{3}</title><desc id="{2}-desc">{4}</desc>{5}</svg>'
    ).format(WIDTH, height, name, title, described, Markup("").join(drawn))


class _Box(NamedTuple):
    x: float
    y: float
    width: float
    height: float


def _areas(name: str, kind: str, boxes: Iterable[_Box]) -> Markup:
    """Return boxes with the pattern of a kind."""
    path = "".join(
        f"M{b.x:.1f} {b.y:.1f}h{b.width:.1f}v{b.height:.1f}h{-b.width:.1f}z" for b in boxes
    )
    return Markup('<path class="area {1}" fill="url(#{0}-{1})" d="{2}"/>').format(name, kind, path)


def _line(name: str, kind: str, path: str) -> Markup:
    """Return a line with the markers of a kind."""
    return Markup(
        '<marker id="{0}-{1}" class="marker {1}" viewBox="-5 -5 10 10" markerWidth="10" markerHeight="10" '
        'markerUnits="userSpaceOnUse"><path d="M0 0{2}"/></marker>'
        '<path class="line {1}" stroke-dasharray="{3}" marker-start="url(#{0}-{1})" '
        'marker-mid="url(#{0}-{1})" marker-end="url(#{0}-{1})" d="{4}"/>'
    ).format(name, kind, MARKERS[kind], DASHES[kind], path)


def _markers(kind: str, points: Iterable[tuple[float, float]]) -> Markup:
    """Return the markers of a kind at points."""
    shape = MARKERS[kind.split()[0]]
    path = "".join(f"M{x:.1f} {y:.1f}{shape}" for x, y in points)
    return Markup('<path class="marker {}" d="{}"/>').format(kind, path)


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(
        x, y, anchor, escape(text)
    )


def _rule(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    return Markup('<path class="axis" d="M{:g} {:g}L{:g} {:g}"/>').format(*start, *end)


def _totals(series: Sequence[Series]) -> list[float]:
    return [
        sum(value or 0 for value in values)
        for values in zip(*(s.values for s in series), strict=True)
    ]


def _short(label: str, maximum: int = MAX_LABEL) -> str:
    return label if len(label) <= maximum else f"{label[: maximum - 1]}…"
