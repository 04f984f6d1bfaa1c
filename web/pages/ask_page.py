"""The page with the form of a question: which model serves, how long questions wait, and recent jobs."""

from __future__ import annotations

from flask import render_template

from jobs import demo_model
from jobs.models import Job
from jobs.page_request import PageRequest
from jobs.protocol.errors import ProtocolError
from jobs.use_cases import clock, queries, standing
from web.pages.asking import NUMBERS
from web.pages.complaints import field_of, message_of
from web.pages.standing import outlook_sentence
from web.services import get_services

#: How many of the own jobs are listed.
RECENT = 5
#: The labels of the settings, by the names of their parameters.
LABELS = {
    "instructions": "System prompt",
    "stop": "Stop strings",
    **{name: label for name, label, *_ in NUMBERS},
}


def show(
    given: dict[str, str], error: ProtocolError | None = None, again: Job | None = None
) -> str:
    """Return the page.

    Args:
        given: the fields of the form.
        error: what is wrong with them.
        again: the job that they are of.
    """
    services = get_services()
    now = clock.now(services.database)
    outlook = standing.find_outlook(services.database, now)
    recent, _ = queries.list_jobs(services.database, services.owner, PageRequest(RECENT))
    bases = {base for base, _ in outlook.serving}
    return render_template(
        "ask.html",
        given=given,
        open=any(value.strip() for name, value in given.items() if name != "question"),
        message=error and _message(error),
        wrong=error and _wrong(error),
        numbers=NUMBERS,
        again=again,
        models=outlook.serving,
        demo=demo_model if bases == {demo_model.BASE} else None,
        outlook=outlook_sentence(outlook.standing, now),
        held=outlook.standing.pause is not None or not outlook.standing.ready,
        recent=recent,
    )


def _wrong(error: ProtocolError) -> str | None:
    """Return the name of the field that is wrong; None if it is none of them."""
    name = field_of(error)
    return "question" if name == "input" else name if name in LABELS else None


def _message(error: ProtocolError) -> str:
    """Return what is wrong, with the label of the field in the place of the parameter's name."""
    if error.code == "empty_input":
        return "Enter a question."  # The API's message is about parameters that the form does not have.
    return message_of(error, LABELS)
