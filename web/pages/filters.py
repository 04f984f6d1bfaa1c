"""Filters of the templates: how a page writes a status, a time and a duration."""

from __future__ import annotations

import datetime as dt
import json

from flask import Blueprint
from markupsafe import Markup

from jobs.models import Job, Status
from web.pages import marks
from web.pages.view import STATUSES


def register(blueprint: Blueprint) -> None:
    """Add the filters to a blueprint's application."""
    for template_filter in (
        status_name,
        clock,
        duration,
        exact_time,
        question_name,
        marks.marked,
        marks.plain,
        rating,
        strings,
        model_name,
    ):
        blueprint.add_app_template_filter(template_filter)


def status_name(status: Status) -> str:
    """Return the name of a status."""
    return STATUSES[status]


def clock(time: dt.datetime) -> str:
    """Return a time in UTC. The script replaces it by the time in the user's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(delta: dt.timedelta) -> str:
    """Return a duration: in milliseconds, from 0.1 s on in seconds, from one minute on in minutes and seconds."""
    total = delta.total_seconds()
    if total < 0.1:
        return f"{total * 1000:.0f} ms"
    if total < 60:
        return f"{total:.1f} s"
    return f"{int(total // 60)} min {int(total % 60)} s"


def exact_time(time: dt.datetime) -> str:
    """Return a time in UTC with milliseconds."""
    return f"{time:%Y-%m-%d %H:%M:%S}.{time.microsecond // 1000:03d} UTC"


def question_name(job: Job, length: int) -> Markup:
    """Return the beginning of a job's question as HTML, for lists and links."""
    if "/question" in (job.erased or {}):
        return Markup("Erased question")
    text = job.question
    return marks.marked(text if len(text) <= length else f"{text[: length - 1].rstrip()}…")


def rating(value: int | None) -> str:
    """Return a rating with its sign; "none" if there is none."""
    return "none" if value is None else f"{value:+d}" if value else "0"


def short_name(name: str) -> str:
    """Return a model's name: one of a hub as it is, and of a path the last two parts."""
    return "/".join(name.strip("/").split("/")[-2:])


def model_name(name: str) -> Markup:
    """Return a model's short name as HTML, with the whole one as its title if it has more."""
    short = short_name(name)
    if short == name:
        return marks.marked(name)
    return Markup('<span title="{}">{}</span>').format(marks.plain(name), marks.marked(short))


def strings(values: list[str] | None) -> str:
    """Return strings in quotation marks, with line feeds written out; "none" if there are none."""
    return ", ".join(json.dumps(each, ensure_ascii=False) for each in values or ()) or "none"
