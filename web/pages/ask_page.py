"""The page with the form of a question: which model serves, how long questions wait, and recent jobs."""

from __future__ import annotations

from pathlib import PurePath

from flask import render_template

from jobs import demo_model
from jobs.models import Job
from jobs.use_cases import clock, queries, standing
from web.pages.standing import outlook_sentence
from web.services import get_services

#: How many of the own jobs are listed.
RECENT = 5


def show(given: dict[str, str], message: str | None = None, again: Job | None = None) -> str:
    """Return the page.

    Args:
        given: the fields of the form.
        message: what is wrong with them.
        again: the job that they are of.
    """
    services = get_services()
    now = clock.now(services.database)
    outlook = standing.find_outlook(services.database, now)
    recent, _ = queries.list_jobs(services.database, services.owner, limit=RECENT)
    bases = {base for base, _ in outlook.serving}
    return render_template(
        "ask.html",
        given=given,
        open=any(value.strip() for name, value in given.items() if name != "question"),
        message=message,
        again=again,
        models=[(_short(base), context) for base, context in outlook.serving],
        demo=demo_model if bases == {demo_model.BASE} else None,
        outlook=outlook_sentence(outlook.standing, now),
        held=outlook.standing.pause is not None or not outlook.standing.ready,
        recent=recent,
    )


def _short(base: str) -> str:
    """Return a name of the hub, or the end of a path."""
    path = PurePath(base)
    return "/".join(path.parts[-2:]) if path.is_absolute() else base
