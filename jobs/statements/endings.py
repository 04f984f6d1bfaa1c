"""What follows from the end of jobs, in the same transaction.

Every statement that ends jobs returns `COLUMNS` of them, and passes the rows to `follow_up`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from jobs.models import Job, WebhookEndpoint
from jobs.statements import deliveries
from jobs.statements.webhooks import IS_ENABLED

#: Whether anybody is to be told. It is part of the statement that ends the job, so that jobs of owners
#: without webhooks cost no further one.
_HAS_WEBHOOKS = (
    sa.exists()
    .where(WebhookEndpoint.owner == Job.owner, IS_ENABLED)
    .correlate(Job)
    .label("has_webhooks")
)
COLUMNS = (Job.id, Job.owner, Job.status, _HAS_WEBHOOKS)


def follow_up(connection: sa.Connection, ended: Iterable[sa.Row[*tuple[Any, ...]]]) -> None:
    """Add the events of jobs that have ended to the outbox of webhooks.

    Args:
        connection: in the transaction that ended them.
        ended: their `COLUMNS`.
    """
    events: dict[str, list[tuple[str, str]]] = {}
    for job in ended:
        if job.has_webhooks:
            events.setdefault(job.owner, []).append((f"response.{job.status}", job.id))
    for owner, theirs in events.items():
        deliveries.add_events(connection, owner, theirs)
