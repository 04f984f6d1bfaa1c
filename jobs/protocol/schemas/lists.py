"""The shapes of lists of jobs, with snippets of what was searched for."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.schemas.base import Reply
from jobs.protocol.schemas.summary import Summary


class SnippetPart(Reply):
    text: str
    match: bool


class Snippet(Reply):
    """A piece of a text that matches a search."""

    field: Literal["question", "answer", "critique", "regeneration"]
    position: int | None
    start: int
    parts: list[SnippetPart]


class AdapterName(Reply):
    name: str
    digest: str


class WorkerName(Reply):
    id: str
    host: str


class ListedJob(Summary):
    """A job in a list, with what the list is filtered by; null until the job is indexed."""

    critique_rating: int | None
    max_attempts: int | None
    changed: float | None
    duration: float | None
    adapters: list[AdapterName] | None
    workers: list[WorkerName] | None
    snippets: list[Snippet] | None


class SummaryList(Reply):
    """A page of jobs."""

    data: list[ListedJob]
    has_more: bool
    next: str | None
