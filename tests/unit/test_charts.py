"""Charts: what their marks say, whatever the values."""

from __future__ import annotations

import re

import pytest

from web.pages import charts
from web.pages.charts import Interval, Series

LABELS = ["Monday", "Tuesday", "Wednesday"]
SERIES = [Series("actor", "Actor", [1, None, 3]), Series("critic", "Critic", [2, 4, None])]
ENDS = [Series("completed", "Completed", [1, 0, 3]), Series("failed", "Failed", [2, 4, None])]


def written(value: float) -> str:
    return f"{value:g}"


def test_areas_of_a_label_lie_on_each_other() -> None:
    for make, place in ((charts.columns, 1), (charts.bars, 0)):
        drawn = make("jobs", "Jobs", LABELS, ENDS)
        ends, _ = (
            [
                [float(n) for n in re.findall(r"-?[\d.]+", box)]
                for box in re.search(rf'class="area {kind}"[^>]* d="([^"]*)"', drawn)[1].split("z")[
                    :-1
                ]  # type: ignore[index]
            ]
            for kind in ("completed", "failed")
        )
        failed = re.search(
            r'class="area failed"[^>]* d="M(-?[\d.]+) (-?[\d.]+)h([\d.]+)v([\d.]+)', drawn
        )
        assert failed is not None
        x, y, width, height = map(float, failed.groups())
        first = ends[0]
        if place:  # Upwards: the lower end of the second is the upper end of the first.
            assert y + height == pytest.approx(first[1], abs=0.11)
            assert height == pytest.approx(2 * first[3], abs=0.11)
        else:
            assert x == pytest.approx(first[0] + first[2], abs=0.11)
            assert width == pytest.approx(2 * first[2], abs=0.11)


def test_a_line_is_broken_where_it_has_no_value() -> None:
    drawn = charts.lines("time", "Time", LABELS, SERIES, written)
    assert [path.count("M") for path in re.findall(r'class="line [^>]* d="([^"]*)"', drawn)] == [
        2,
        1,
    ]
    assert "Lines from Monday to Wednesday, between 1 and 4." in drawn


def test_every_value_has_a_marker_and_the_ends_are_named() -> None:
    drawn = charts.dots("time", "Time", LABELS, SERIES, written)
    markers = re.findall(r'class="marker [^>]* d="([^"]*)"', drawn)
    assert [path.count("M") for path in markers] == [2, 2, 1, 1]  # and one each in the legend
    assert "Between 1 and 4." in drawn
    assert ">0</text>" in drawn


def test_intervals_that_do_not_reach_zero_are_filled() -> None:
    rows = [Interval("Clear", 2, 1, 3), Interval("Unclear", 0.5, -1, 2)]
    drawn = charts.intervals("d", "Differences", rows, written)
    assert drawn.count("plain hollow") == 1
    assert "2 intervals, of which 1 do not reach 0." in drawn


@pytest.mark.parametrize("make", [charts.lines, charts.dots])
def test_a_chart_without_values_says_so(make: object) -> None:
    assert "No values." in make("t", "T", [], [Series("actor", "Actor", [])], written)  # type: ignore[operator]
