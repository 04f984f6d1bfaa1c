"""The footer of all pages: version, model, ready workers and the queue."""

from __future__ import annotations

from functools import cache
from importlib import metadata

from flask import Blueprint, g, request

from jobs.use_cases.system import CAP, Summary
from web.pages.filters import short_name
from web.services import get_services

#: The endpoints of the pages whose replies have no footer.
WITHOUT = {"pages.static", "pages.news", "pages.download"}


def register(blueprint: Blueprint) -> None:
    """Let the pages of a blueprint ask for what the footer says, and all templates show it."""
    blueprint.before_request(_refresh)
    blueprint.add_app_template_global(facts, "footer_facts")


def facts() -> list[str]:
    """Return what the footer says; nothing for those who would have to log in.

    Nothing is asked for here: the page may be that of an error of the database.
    """
    services = get_services()
    if services.settings.auth_required and "caller" not in g:
        return []
    version = f"HelixQ {_version()}"
    summary = services.summaries.summary
    return [version] if summary is None else [version, *_of(summary)]


def _of(summary: Summary) -> list[str]:
    models = [short_name(name) for name in summary.models]
    more = " or more" if summary.queued >= CAP else ""
    return [
        *([", ".join(models)] if models else []),
        {0: "no worker ready", 1: "1 worker ready"}.get(
            summary.ready, f"{summary.ready} workers ready"
        ),
        f"{summary.queued:,}{more} queued",
        *([f"paused since {summary.paused_at:%H:%M} UTC"] if summary.paused_at else []),
    ]


def _refresh() -> None:
    if request.method == "GET" and request.endpoint not in WITHOUT:
        get_services().summaries.refresh()


@cache
def _version() -> str:
    return metadata.version("helixq")
