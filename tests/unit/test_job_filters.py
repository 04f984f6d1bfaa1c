"""A filter of jobs is everywhere where there are filters, and is never left out of a list without a word."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from cli.options import job_filters
from jobs.models import Status
from jobs.search.filters import Filters
from jobs.search.query import parse
from jobs.statements.jobs import IndexedFilters
from web.job_filters import FILTERS
from web.openapi.operations import parameters

DOCS = Path(__file__).parents[2] / "docs"
#: A value of each field.
VALUES: dict[str, Any] = {
    "statuses": (Status.FAILED,),
    "since": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "until": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "query": parse("why"),
    "adapter": "actor",
    "key": "key_0",
    "batch": "batch_0",
    "model": "sha256:0",
    "worker": "host",
    "metadata": {"team": "a"},
    "min_attempts": 2,
    "min_changed": 0.5,
    "max_changed": 0.5,
    "min_duration": 1.0,
    "max_duration": 1.0,
    "rating": 1,
    "critique_rating": 1,
    "reviewer": "Ada",
    "tag": "wrong unit",
}


def test_the_api_its_description_the_command_line_and_the_docs_have_the_same_filters() -> None:
    assert {each.name for each in parameters.FILTERS} == {*FILTERS}

    @job_filters
    def command() -> None: ...

    options = click.command(command).params
    assert {str(each.name) for each in options} == {*FILTERS, "metadata"}
    for page, heading in (("http-histories", "## List histories"), ("http-exports", "# Exports")):
        _, _, section = (DOCS / f"{page}.md").read_text(encoding="utf-8").partition(heading)
        cells = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert {*FILTERS} - named == set(), page


def test_a_list_leaves_no_filter_out() -> None:
    """The table of jobs has no index for most: a filter that does not say so would be ignored."""
    everything = Filters()
    for field in fields(Filters):
        filters = Filters(**{field.name: VALUES[field.name]})
        # The statuses are an argument of their own.
        if not filters.need_index and field.name != "statuses":
            indexed = IndexedFilters.of(filters, None)
            assert indexed != IndexedFilters.of(everything, None), field.name
        # Times are no terms: they say where the list begins and ends.
        if field.name not in ("since", "until"):
            names = [filters.adapter] if filters.adapter else []
            node = filters.index_query(None, names).node
            assert node != everything.index_query(None, []).node, field.name
