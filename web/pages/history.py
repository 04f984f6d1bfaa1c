"""The list of jobs: its search, its filters and its pages, all of them in the address."""

from __future__ import annotations

from typing import Any

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs.errors import CursorError
from jobs.models import Status
from jobs.protocol.errors import InvalidRequestError, translate
from jobs.protocol.history import page
from web.job_filters import METADATA, find, wanted

PAGE_SIZE = 25
RATINGS = (("", "Any"), ("1", "+1"), ("0", "0"), ("-1", "-1"), ("none", "None"))
#: The filters that are behind "More filters".
_MORE = (
    "adapter",
    "worker",
    "since",
    "until",
    "min_attempts",
    "min_duration",
    "min_changed",
)


def show() -> Response | str | tuple[str, int]:
    """List jobs, the newest first, or the best matches of a search."""
    given = request.args.to_dict()
    stated = {name: value for name, value in given.items() if value.strip()}
    if stated != given:  # A form sends what was left empty.
        return redirect(_url(stated), code=303)
    jobs: list[Any] = []
    following, message = None, None
    try:
        chosen = wanted(PAGE_SIZE)
        found = find(chosen)
    except (InvalidRequestError, CursorError) as error:
        message = translate(error).message
    else:
        entries = page(found.jobs, chosen.filters.query)
        jobs = list(zip((listed.job for listed in found.jobs), entries, strict=True))
        following = found.next and _url({**stated, "after": found.next})
    metadata = {name: value for name, value in stated.items() if name.startswith(METADATA)}
    text = render_template(
        "jobs.html",
        jobs=jobs,
        given=stated,
        statuses=Status,
        ratings=RATINGS,
        metadata=metadata,
        more_filters=metadata or any(name in stated for name in _MORE),
        filtered=stated.keys() - {"after", "limit", "order"},
        paged="after" in stated,
        first=_url({name: value for name, value in stated.items() if name != "after"}),
        following=following,
        message=message,
    )
    return (text, 400) if message else text


def _url(parameters: dict[str, str]) -> str:
    return url_for("pages.jobs", **parameters)  # type: ignore[arg-type]  # names of parameters
