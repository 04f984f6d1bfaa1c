"""Filters of the templates: how a page writes a status, a time and a duration."""

from __future__ import annotations

import datetime as dt

from flask import Blueprint

from jobs.models import Status
from web.pages.view import STATUSES


def register(blueprint: Blueprint) -> None:
    """Add the filters to a blueprint's application."""
    for template_filter in (status_name, clock, duration):
        blueprint.add_app_template_filter(template_filter)


def status_name(status: Status) -> str:
    """Return the name of a status."""
    return STATUSES[status]


def clock(time: dt.datetime) -> str:
    """Return a time in UTC. The script replaces it by the time in the user's zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(delta: dt.timedelta) -> str:
    """Return a duration in seconds, from one minute on in minutes and seconds."""
    total = delta.total_seconds()
    if total < 60:
        return f"{total:.1f} s"
    return f"{int(total // 60)} min {int(total % 60)} s"
