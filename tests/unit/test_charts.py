"""Charts: what their marks say, whatever the values."""

from __future__ import annotations

import re
from typing import Any

import pytest

from web.pages import charts
from web.pages.charts import Interval, Series

LABELS = ["Monday", "Tuesday", "Wednesday"]
SERIES = [Series("actor", "Actor", [1, None, 3]), Series("critic", "Critic", [2, 4, None])]
ENDS = [Series("completed", "Completed", [1, 0, 3]), Series("failed", "Failed", [2, 4, None])]


def written(value: float) -> str:
    return f"{value:g}"


def first_area(drawn: str, kind: str) -> list[float]:
    """Return x, y, width and height of the first area of a kind."""
    found = re.search(rf'class="area {kind}"[^>]* d="M(\S+) (\S+)h(\S+?)v(\S+?)h', drawn)
    assert found is not None
    return [float(number) for number in found.groups()]


def test_areas_of_a_label_lie_on_each_other() -> None:
    drawn = charts.columns("jobs", "Jobs", LABELS, ENDS)
    (x, y, width, height), above = first_area(drawn, "completed"), first_area(drawn, "failed")
    assert above == pytest.approx([x, y - 2 * height, width, 2 * height], abs=0.2)
    drawn = charts.bars("jobs", "Jobs", LABELS, ENDS)
    (x, y, width, height), beside = first_area(drawn, "completed"), first_area(drawn, "failed")
    assert beside == pytest.approx([x + width, y, 2 * width, height], abs=0.2)


def test_a_long_label_keeps_the_total_of_its_bar() -> None:
    drawn = charts.bars(
        "jobs", "Jobs", ["x" * 100], [charts.Series("completed", "Completed", [12345])]
    )
    assert "…: 12345<" in drawn


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
def test_a_chart_without_values_says_so(make: Any) -> None:
    assert "No values." in make("t", "T", [], [Series("actor", "Actor", [])], written)
