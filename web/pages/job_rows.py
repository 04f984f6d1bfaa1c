"""The rows of the list of jobs: what each says about its job, as HTML with marks and highlights."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from jobs.database import Database
from jobs.models import Job
from jobs.pipeline import Role
from jobs.protocol.history import page
from jobs.search.query import Node
from jobs.use_cases import overview
from jobs.use_cases.searching import Listed
from web.pages.figures import percent
from web.pages.filters import question_name
from web.pages.marks import marked
from web.pages.view import STATUSES

__all__ = ["STATUSES", "Row", "models", "rows"]

#: Characters of a question, at most.
QUESTION = 140
#: Hexadecimal digits of a model's digest.
DIGEST = 8


@dataclass(frozen=True)
class Row:
    """A job in the list."""

    job: Job
    question: Markup
    #: What it says beneath the question: names and pieces of texts.
    pieces: list[tuple[str, Markup]]
    #: None until it has ended.
    duration: dt.timedelta | None
    #: The most attempts at one stage; None until it is indexed.
    attempts: int | None
    #: The last rating of the critique; None until it is indexed.
    critique_rating: int | None
    #: The share of words that the regenerator changed, in percent; None if it is not known.
    changed: str | None
    #: The first digits of the model's digest; None until a stage has started.
    model: str | None
    #: The names of the model's adapters.
    adapters: tuple[str, ...]


def rows(database: Database, listed: Sequence[Listed], query: Node | None) -> list[Row]:
    """Return the rows of a page.

    Args:
        database: of the jobs.
        listed: the jobs.
        query: the full-text query that they match, if there was one.
    """
    begin = overview.openings(database, [each.job.id for each in listed])
    entries = page(list(listed), query)
    return [
        _row(each.job, entry, begin.get(each.job.id))
        for each, entry in zip(listed, entries, strict=True)
    ]


def models(rows: Sequence[Row]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the models of a page by their first digits: the whole digest, and the adapters' names if known."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for row in rows:
        if row.model and row.job.model and not (row.model in found and found[row.model][1]):
            found[row.model] = row.job.model, row.adapters
    return found


def _row(job: Job, entry: dict[str, Any], opening: overview.Opening | None) -> Row:
    question = question_name(job, QUESTION)
    pieces = []
    for snippet in entry["snippets"] or ():
        if snippet["field"] == "question" and snippet["start"] == 0:
            question = _highlighted(snippet)
        else:
            pieces.append((snippet["field"].capitalize(), _highlighted(snippet)))
    if not pieces and opening is not None and opening.text.strip():
        name = "" if opening.role is Role.REGENERATOR else "Draft"
        pieces.append((name, _beginning(opening.text)))
    return Row(
        job=job,
        question=question,
        pieces=pieces,
        duration=None if job.finished_at is None else job.finished_at - job.created_at,
        attempts=entry["max_attempts"],
        critique_rating=entry["critique_rating"],
        changed=None if entry["changed"] is None else percent(entry["changed"]),
        model=job.model and job.model[:DIGEST],
        adapters=tuple(adapter["name"] for adapter in entry["adapters"] or ()),
    )


def _beginning(text: str) -> Markup:
    whole = len(text) < overview.LENGTH
    # In one line, but with every character that deceives.
    line = re.sub(r"[ \t\r\n]+", " ", text).strip()
    return marked(line if whole else f"{line}…")


def _highlighted(snippet: dict[str, Any]) -> Markup:
    parts = [
        Markup("<mark>{}</mark>").format(marked(part["text"]))
        if part["match"]
        else marked(part["text"])
        for part in snippet["parts"]
    ]
    return Markup("").join(parts)
