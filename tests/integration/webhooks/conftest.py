"""A receiver, an endpoint that leads to it, and the duty that sends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, DeliveryStatus, Job, WebhookDelivery, WebhookEndpoint
from jobs.page_request import PageRequest
from jobs.setting_values import networks
from jobs.use_cases import cancellation, deliveries, webhooks
from jobs.webhook_delivery import WebhookSending
from jobs.webhooks.events import EVENT_TYPES
from tests.integration.rows import submit
from tests.receiver import Receiver
from tests.servers import PATIENCE

LOOPBACK = networks("127.0.0.0/8")

Register = Callable[..., WebhookEndpoint]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for what is due more often, so that the tests take less time."""
    monkeypatch.setattr("jobs.webhook_delivery.INTERVAL", 0.05)
    monkeypatch.setattr("jobs.webhook_delivery.POLL_INTERVAL", 0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def register(database: Database) -> Register:
    """Register endpoints."""

    def register(url: str, owner: str = ANONYMOUS, **changes: Any) -> WebhookEndpoint:
        values = {"name": "test", "event_types": EVENT_TYPES, **changes}
        return webhooks.create(database, owner, url=url, allowed=LOOPBACK, **values)

    return register


@pytest.fixture
def endpoint(register: Register, receiver: Receiver) -> WebhookEndpoint:
    return register(receiver.url)


def end_job(database: Database) -> Job:
    """End a job, so that there is an event."""
    return cancellation.cancel(database, ANONYMOUS, submit(database).id)


def has_failed(times: int) -> Any:
    return lambda found: (
        found[0].failures == times and found[0].status is not DeliveryStatus.SENDING
    )


@contextmanager
def sending(database: Database, *, allowed: bool = True) -> Iterator[None]:
    """Run the duty, as a process does, until the end of the block."""
    duty = WebhookSending(database, LOOPBACK if allowed else ())
    duty.start()
    try:
        yield
    finally:
        duty.stop()


def list_all(
    database: Database, endpoint: WebhookEndpoint, status: DeliveryStatus | None = None
) -> list[WebhookDelivery]:
    """Return an endpoint's deliveries, the oldest first."""
    found, _ = deliveries.list_deliveries(
        database, None, endpoint.id, PageRequest(1000, newest_first=False), status
    )
    return found


def wait_for(
    database: Database, endpoint: WebhookEndpoint, check: Callable[[list[WebhookDelivery]], Any]
) -> list[WebhookDelivery]:
    """Wait until the deliveries of an endpoint are as they should be; return them."""
    deadline = time.monotonic() + PATIENCE
    while not check(found := list_all(database, endpoint)):
        assert time.monotonic() < deadline, [(d.status, d.attempts) for d in found]
        threading.Event().wait(0.02)  # The database notifies nobody.
    return found


def all_are(status: DeliveryStatus) -> Callable[[list[WebhookDelivery]], bool]:
    return lambda found: bool(found) and all(delivery.status is status for delivery in found)


def make_due(
    database: Database, column: Any = WebhookDelivery.next_attempt_at, *, seconds: float = -1
) -> None:
    """Move a time of all deliveries that are not ended into the past, or elsewhere: a test cannot wait for it."""
    with database.engine.begin() as connection:
        waiting = sa.update(WebhookDelivery).where(WebhookDelivery.next_attempt_at.is_not(None))
        connection.execute(waiting.values({column: utcnow(seconds)}))
