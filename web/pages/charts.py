"""Charts as SVG, made on the server.

They can be read without colour: areas have patterns, lines have markers and dashes, and a legend names them. Each
has a title and a description for screen readers. All looks are those of the style sheet, but patterns, which an
SVG can only refer to by its own ids. A chart is so narrow that its text can be read on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

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


def columns(name: str, title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Return stacked columns over time."""
    totals = _totals(series)
    top = nice(max(totals, default=0))
    step = (WIDTH - LEFT - 4) / max(1, len(labels))
    parts = [*_y_axis(top, lambda value: f"{value:g}"), *_x_axis(labels)]
    below = [0.0] * len(labels)
    for one in series:
        boxes = []
        for number, value in enumerate(one.values):
            if value:
                height = PLOT * value / top
                below[number] += height
                x = LEFT + (number + 0.1) * step
                boxes.append(_Box(x, TOP + PLOT - below[number], step * 0.8, height))
        parts.append(_areas(name, one.kind, boxes))
    described = (
        f"Columns from {labels[0]} to {labels[-1]}, the highest {max(totals):g}." if labels else ""
    )
    return _svg(
        name,
        title,
        described,
        parts,
        [(s.kind, s.name) for s in series],
        TOP + PLOT + 24,
        areas=True,
    )


def lines(
    name: str, title: str, labels: Sequence[str], series: Sequence[Series], form: Form
) -> Markup:
    """Return lines over time. A line is broken where it has no value."""
    known = [value for one in series for value in one.values if value is not None]
    top = nice(max(known, default=0))
    step = (WIDTH - LEFT - 4) / max(1, len(labels))
    parts = [*_y_axis(top, form), *_x_axis(labels)]
    for one in series:
        drawn, command = [], "M"
        for number, value in enumerate(one.values):
            if value is None:
                command = "M"
                continue
            x, y = LEFT + (number + 0.5) * step, TOP + PLOT * (1 - value / top)
            # A point alone is a line without a length.
            drawn.append(f"{command}{x:.1f} {y:.1f}{'h0' if command == 'M' else ''}")
            command = "L"
        if drawn:
            parts.append(_line(name, one.kind, "".join(drawn)))
    ends = (form(min(known)), form(max(known))) if known else ("", "")
    described = (
        f"Lines from {labels[0]} to {labels[-1]}, between {ends[0]} and {ends[1]}."
        if known
        else "No values."
    )
    return _svg(name, title, described, parts, [(s.kind, s.name) for s in series], TOP + PLOT + 24)


def bars(name: str, title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Return a stacked bar for each label."""
    totals = _totals(series)
    top = max([*totals, 1])
    parts = [
        _text(0, TOP + number * 2 * LINE + 10, f"{_short(label)}: {totals[number]:g}")
        for number, label in enumerate(labels)
    ]
    begun = [0.0] * len(labels)
    for one in series:
        boxes = []
        for number, value in enumerate(one.values):
            if value:
                width = WIDTH * value / top
                boxes.append(_Box(begun[number], TOP + number * 2 * LINE + 15, width, 12))
                begun[number] += width
        parts.append(_areas(name, one.kind, boxes))
    described = f"{len(labels)} bars, the longest {max(totals, default=0):g}."
    return _svg(
        name,
        title,
        described,
        parts,
        [(s.kind, s.name) for s in series],
        TOP + len(labels) * 2 * LINE,
        areas=True,
    )


def dots(
    name: str, title: str, labels: Sequence[str], series: Sequence[Series], form: Form
) -> Markup:
    """Return a line with a marker of each series for each label."""
    known = [value for one in series for value in one.values if value is not None]
    top = nice(max(known, default=0))
    parts = []
    for number, label in enumerate(labels):
        y = TOP + number * 2 * LINE
        parts += [
            _text(0, y + 10, _short(label)),
            Markup('<path class="axis" d="M4 {0}H{1}"/>').format(y + 22, WIDTH - 4),
        ]
    for one in series:
        points = (
            (4 + (WIDTH - 8) * value / top, TOP + number * 2 * LINE + 22.0)
            for number, value in enumerate(one.values)
            if value is not None
        )
        parts.append(_markers(one.kind, points))
    height = TOP + len(labels) * 2 * LINE
    parts += [_text(4, height + 8, form(0)), _text(WIDTH - 4, height + 8, form(top), "end")]
    ends = (form(min(known)), form(max(known))) if known else ("", "")
    described = f"Between {ends[0]} and {ends[1]}." if known else "No values."
    return _svg(name, title, described, parts, [(s.kind, s.name) for s in series], height + 14)


def intervals(name: str, title: str, rows: Sequence[Interval], form: Form) -> Markup:
    """Return intervals around values, beside a line at 0. Those that do not reach it are filled."""
    reach = nice(max((max(abs(row.low), abs(row.high)) for row in rows), default=0))

    def x(value: float) -> float:
        return round(WIDTH / 2 + (WIDTH / 2 - 6) * value / reach, 1)

    height = TOP + len(rows) * 2 * LINE
    parts = [Markup('<path class="axis" d="M{0} {1}V{2}"/>').format(WIDTH / 2, TOP, height)]
    for number, row in enumerate(rows):
        y = TOP + number * 2 * LINE
        parts += [
            _text(0, y + 10, _short(row.label)),
            Markup('<path class="line plain" d="M{0} {2}H{1}M{0} {3}v8M{1} {3}v8"/>').format(
                x(row.low), x(row.high), y + 22, y + 18
            ),
            _markers(
                "plain" if row.low > 0 or row.high < 0 else "plain hollow",
                [(x(row.value), y + 22)],
            ),
        ]
    parts += [
        _text(6, height + 10, form(-reach)),
        _text(WIDTH / 2, height + 10, form(0), "middle"),
        _text(WIDTH - 6, height + 10, form(reach), "end"),
    ]
    clear = sum(row.low > 0 or row.high < 0 for row in rows)
    described = f"{len(rows)} intervals, of which {clear} do not reach 0."
    return _svg(name, title, described, parts, [], height + 16)


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
    parts: Sequence[Markup],
    legend: Sequence[tuple[str, str]],
    height: float,
    *,
    areas: bool = False,
) -> Markup:
    drawn = list(parts)
    if areas:  # An SVG can only refer to patterns of its own.
        patterns = (
            Markup(
                '<pattern id="{}-{}" class="{}" width="6" height="6" patternUnits="userSpaceOnUse">{}</pattern>'
            ).format(name, kind, kind, PATTERNS[kind])
            for kind, _ in legend
        )
        drawn.insert(0, Markup("<defs>{}</defs>").format(Markup("").join(patterns)))
    # Two entries a line.
    for number, (kind, label) in enumerate(legend):
        x, y = 4 + number % 2 * WIDTH / 2, height + 6 + number // 2 * LINE
        box = _Box(x, y, 14, 11)
        drawn.append(_areas(name, kind, [box]) if areas else _markers(kind, [(x + 7, y + 6)]))
        drawn.append(_text(x + 20, y + 10, label))
    height += 6 + (len(legend) + 1) // 2 * LINE
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


def _y_axis(top: float, form: Form) -> Iterator[Markup]:
    for part in (0.0, 0.5, 1.0):
        y = TOP + PLOT * (1 - part)
        yield Markup('<path class="axis" d="M{} {:g}H{}"/>').format(LEFT, y, WIDTH - 4)
        yield _text(LEFT - 4, y + 4, form(top * part), "end")


def _x_axis(labels: Sequence[str]) -> Iterator[Markup]:
    """Yield the first and the last label."""
    if labels:
        yield _text(LEFT, TOP + PLOT + 16, labels[0])
    if len(labels) > 1:
        yield _text(WIDTH - 4, TOP + PLOT + 16, labels[-1], "end")


def _totals(series: Sequence[Series]) -> list[float]:
    return [
        sum(value or 0 for value in values)
        for values in zip(*(s.values for s in series), strict=True)
    ]


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
