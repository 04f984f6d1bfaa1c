"""The duty that sends webhooks: it takes due deliveries from the outbox, sends them, and records the outcomes.

It runs beside the maintenance in every worker and in `helixq maintain`. Several processes may run it at once.
Webhooks are sent at least once: a process that dies after it has sent one, and before that is recorded,
leaves it to be sent again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future
from concurrent.futures import wait as wait_for

from jobs.clock_watch import ClockWatch
from jobs.database import Database
from jobs.duties import Duty, DutyThread
from jobs.use_cases import deliveries, requests
from jobs.use_cases.deliveries import Delivery
from jobs.use_cases.requests import Keyed
from jobs.webhooks.outcome import GONE, Outcome
from jobs.webhooks.targets import Network

log = logging.getLogger(__name__)

#: Seconds between two checks for deliveries that are due.
INTERVAL = 0.5
#: Seconds between two checks of whether one has been sent.
POLL_INTERVAL = 0.1
#: The maximum number of webhooks that are being sent.
MAX_SENDING = 200
#: The maximum number of them to one endpoint. A receiver that fails gets one at a time until it succeeds, so
#: that many dead receivers leave room for the others.
MAX_SENDING_TO_ONE = 8
#: Seconds between two looks at the database's clock.
CLOCK_INTERVAL = 5.0
#: Seconds that webhooks which are being sent have to finish when the process stops.
STOP_TIMEOUT = 1.0


class WebhookSending(DutyThread):
    """Sends the webhooks of one process, on threads of its own."""

    def __init__(self, database: Database, allowed: Collection[Network]) -> None:
        """
        Args:
            database: of the deliveries.
            allowed: networks with addresses that are allowed though they are not public.
        """
        self._database = database
        self._allowed = allowed
        #: It runs on a thread of its own from the first webhook on.
        self._loop: asyncio.AbstractEventLoop | None = None
        #: What is being sent, by delivery and fencing token.
        self._sending: dict[tuple[str, int], tuple[Delivery, Future[Outcome]]] = {}
        #: The number of them by endpoint.
        self._counts: Counter[str] = Counter()
        #: Endpoints whose last webhook failed.
        self._failing: set[str] = set()
        self._sent: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        #: What was sent and could not be recorded yet.
        self._unrecorded: list[tuple[Delivery, Outcome]] = []
        self._next_look = 0.0
        self._clock = ClockWatch(database)
        #: Whether times are to be corrected; and whether the clock was set back, so that all of them are.
        self._check_times, self._was_set_back = True, False
        duties = [Duty(CLOCK_INTERVAL, self.check_clock), Duty(POLL_INTERVAL, self.deliver)]
        super().__init__("webhooks", duties, poll=POLL_INTERVAL, finish=self._finish)

    def check_clock(self) -> None:
        """Correct the times of deliveries after the database's clock was set back, and once at the start.

        Otherwise they would be due when it has come to the same time again: hours later, if it was hours wrong.
        """
        if self._clock.look() < 0:
            self._check_times = self._was_set_back = True
        if self._check_times:
            deliveries.correct_future_times(self._database, failed=self._was_set_back)
            self._check_times = self._was_set_back = False

    def deliver(self) -> None:
        """Record what has been sent, and begin to send what is due."""
        self._collect()
        has_news = bool(self._unrecorded)
        if has_news:
            deliveries.record(self._database, self._unrecorded)
            self._unrecorded.clear()
        if has_news or time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + INTERVAL
            limit = MAX_SENDING - len(self._sending)
            for delivery in deliveries.take(self._database, room=self._room, limit=limit):
                self._begin(delivery)

    def _finish(self) -> None:
        """Wait a moment for what is being sent, and give back what was not sent in time."""
        if self._loop is None:
            return
        wait_for([future for _, future in self._sending.values()], STOP_TIMEOUT)
        self._collect()
        unsent = [delivery for delivery, _ in self._sending.values()]
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._loop_thread.join()
        try:
            if self._unrecorded:
                deliveries.record(self._database, self._unrecorded)
            if unsent:
                deliveries.release(self._database, unsent)
        except Exception as error:  # noqa: BLE001 (their leases expire, and they are sent again)
            log.warning("webhooks that were being sent are sent again later: %s", error)

    def _room(self, endpoint_id: str) -> int:
        """Return how many more webhooks may be sent to an endpoint."""
        maximum = 1 if endpoint_id in self._failing else MAX_SENDING_TO_ONE
        return maximum - self._counts[endpoint_id]

    def _begin(self, delivery: Delivery) -> None:
        # Imported here since most processes never send a webhook.
        from jobs.webhooks import sending

        future = asyncio.run_coroutine_threadsafe(
            sending.post(delivery.url, delivery.headers, delivery.body, allowed=self._allowed),
            self._running_loop(),
        )
        key = (delivery.id, delivery.claims)
        self._sending[key] = (delivery, future)
        self._counts[delivery.endpoint_id] += 1
        future.add_done_callback(lambda _: self._sent.put(key))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop_thread = threading.Thread(
                target=_run, args=(self._loop,), name="sending", daemon=True
            )
            self._loop_thread.start()
        return self._loop

    def _collect(self) -> None:
        """Move what has been sent to `_unrecorded`."""
        while not self._sent.empty():
            delivery, future = self._sending.pop(self._sent.get())
            self._counts[delivery.endpoint_id] -= 1
            try:
                outcome = future.result()
            except Exception as error:
                log.exception("a webhook could not be sent")
                outcome = Outcome(None, f"not sent: {error!r}", 0.0)
            self._unrecorded.append((delivery, outcome))
            if outcome.error is None:
                self._failing.discard(delivery.endpoint_id)
            else:
                self._failing.add(delivery.endpoint_id)
                log.warning(
                    "webhook %s to %s: %s", delivery.id, delivery.endpoint_id, outcome.error
                )
            if outcome.status_code == GONE:
                log.warning("%s is disabled: its receiver is gone", delivery.endpoint_id)


def send_sample(
    database: Database,
    owner: str | None,
    endpoint_id: str,
    event_type: str,
    allowed: Collection[Network],
    keyed: Keyed | None = None,
) -> Outcome:
    """Send a sample event to an owner's endpoint, without retries; return the outcome.

    Args:
        database: of the endpoint.
        owner: of the endpoint; None for any.
        endpoint_id: of the endpoint.
        event_type: of the event.
        allowed: networks with addresses that are allowed though they are not public.
        keyed: the request, if it has an idempotency key. If the receiver has replied to the same request before,
            nothing is sent.

    Raises:
        EndpointNotFoundError: the owner has no such endpoint.
        IdempotencyError: the key was used for a different request.
    """
    from jobs.webhooks import sending

    before = None if keyed is None else requests.find_outcome(database, keyed)
    if before is not None:
        return Outcome(before["status_code"], None, 0.0)
    url, headers, body = deliveries.sample(database, owner, endpoint_id, event_type)
    outcome = asyncio.run(sending.post(url, headers, body, allowed=allowed))
    if keyed is not None and outcome.status_code is not None:
        requests.note_outcome(database, keyed, status_code=outcome.status_code)
    return outcome


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped."""
    loop.run_forever()
    loop.close()


async def _cancel_all() -> None:
    """Cancel what else is running in this loop, and wait until it has ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
