"""The page of what runs and what waits, for those who operate a service."""

from __future__ import annotations

from importlib.metadata import version

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from jobs import quantities
from jobs.models import AttemptStatus, Scope, WebhookEndpoint
from jobs.protocol.system import MAX_NOTE, worker_object
from jobs.use_cases import deliveries
from jobs.use_cases import system as use_case
from jobs.use_cases.system import CAP
from web.access import check_scope
from web.caller import get_caller
from web.pages.routes import blueprint
from web.services import get_services


@blueprint.get("/system")
def system() -> str:
    """Show what runs and what waits."""
    check_scope(Scope.AUDIT)
    services, caller = get_services(), get_caller()
    database, owner = services.database, services.readable_owner
    found = use_case.describe(database)
    last = sum(found.attempts.values())

    def may_repeat(endpoint: WebhookEndpoint) -> bool:
        return caller.may(Scope.ASK) and caller.changeable_owner in (None, endpoint.owner)

    return render_template(
        "system.html",
        system=found,
        version=version("helixq"),
        database=database.engine.dialect.name,
        workers=[worker_object(each) for each in found.workers],
        gone=use_case.list_gone(database),
        owners=found.owners if caller.names_owners(found.owners) else None,
        last=last,
        lost=found.attempts.get(AttemptStatus.LOST, 0),
        released=found.attempts.get(AttemptStatus.RELEASED, 0),
        failed=use_case.list_failed(database, owner),
        may_repeat=may_repeat,
        may_pause=caller.may(Scope.ADMIN),
        max_note=MAX_NOTE,
        ago=lambda time: f"{quantities.duration(found.now - time)} ago",
        capped=_capped,
        size=quantities.size,
    )


@blueprint.post("/system/pause")
def pause() -> Response:
    """Pause the queue, and redirect to the page."""
    get_services().pause(request.form.get("note", "")[:MAX_NOTE])
    return redirect(url_for("pages.system", _anchor="queue-title"), code=303)


@blueprint.post("/system/resume")
def resume() -> Response:
    """Resume the queue, and redirect to the page."""
    get_services().resume()
    return redirect(url_for("pages.system", _anchor="queue-title"), code=303)


@blueprint.post("/system/deliveries/<delivery_id>/redeliver")
def redeliver(delivery_id: str) -> Response:
    """Send a webhook that was given up again, and redirect to the page."""
    deliveries.redeliver(get_services().database, get_caller().changeable_owner, delivery_id)
    return redirect(url_for("pages.system", _anchor="webhooks"), code=303)


def _capped(number: int) -> str:
    return f"{number:,} or more" if number >= CAP else f"{number:,}"
