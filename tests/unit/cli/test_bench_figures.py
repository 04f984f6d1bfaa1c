"""A benchmark's figures compared with the last recorded ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cli.bench.figures import Figures, table
from cli.errors import ExpectedError

FIGURES = Figures("2026-11-27", "2 cores", 0.030, 0.045, 40_000)


def test_recorded_figures_are_read(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert Figures.read(file) is None
    FIGURES.write(file)
    assert Figures.read(file) == FIGURES


@pytest.mark.parametrize("text", ["", "[]", '{"date": "2026-11-27"}'])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(ExpectedError, match=r"figures\.json was not written by"):
        Figures.read(file)


def test_the_table_shows_both_runs_and_their_ratio() -> None:
    lines = table(replace(FIGURES, idle_service=0.090), FIGURES).splitlines()
    assert "| idle job, the service | 90 ms | 45 ms | 2.00 |" in lines
    assert "| jobs an hour, many at once | 40,000 | 40,000 | 1.00 |" in lines
    assert "recorded: 2026-11-27, 2 cores" in lines


def test_the_first_run_has_no_ratio() -> None:
    lines = table(FIGURES, None).splitlines()
    assert "| idle job, the service | 45 ms | – | – |" in lines
