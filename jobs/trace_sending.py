"""The duty that sends ended jobs and reviews to a receiver of traces (OpenTelemetry's OTLP over HTTP), on a thread of its own."""

from __future__ import annotations

import hashlib
import logging

from jobs.database import Database
from jobs.duties import Duty, DutyThread
from jobs.protocol.history import history
from jobs.telemetry import Exporter
from jobs.use_cases import tracing

log = logging.getLogger(__name__)

#: Seconds between two looks for jobs that the receiver does not have.
INTERVAL = 1.0
#: Seconds that the receiver may take, and for which a process keeps it to itself.
TIMEOUT, LEASE = 10.0, 60.0
#: Statuses after which the same request may succeed later. After others of a client's errors it is left out.
TRANSIENT = frozenset({401, 403, 404, 407, 408, 425, 429})


class TraceSending(DutyThread):
    """Sends ended jobs and reviews to a receiver; nothing if there is none."""

    def __init__(self, database: Database, endpoint: str | None) -> None:
        """
        Args:
            database: of the jobs.
            endpoint: the receiver's address, such as ``http://127.0.0.1:6006/v1/traces``; None for no receiver.

        Raises:
            NotInstalledError: opentelemetry-proto is not installed.
        """
        self._database = database
        self._endpoint = endpoint or ""
        self._receiver = hashlib.sha256(self._endpoint.encode()).hexdigest()
        self._exporter = Exporter() if endpoint else None
        #: Why the receiver takes nothing, so that it is said once.
        self._failure: str | None = None
        duties = [Duty(INTERVAL, self.send)]
        super().__init__("traces", duties, poll=INTERVAL / 5, jitter=0.2)

    def start(self) -> None:
        """Begin to send, if there is a receiver."""
        if self._exporter is not None:
            super().start()

    def stop(self, timeout: float | None = None) -> bool:
        """End it, as `DutyThread.stop`."""
        return self._exporter is None or super().stop(timeout)

    def send(self) -> bool:
        """Send jobs and reviews that the receiver does not have.

        Returns:
            whether to call it again at once.
        """
        sending = tracing.begin_sending(self._database, self._receiver, history, LEASE)
        if sending is None:
            return False
        failure = self._post(sending) if sending.histories or sending.reviews else None
        if failure is None:
            if self._failure is not None:
                log.info("the receiver of traces takes them again")
            self._failure = None
            tracing.note_sent(self._database, self._receiver, sending.end)
            return True
        if failure != self._failure:
            log.warning("the receiver of traces %s", failure)
        self._failure = failure
        tracing.note_unsent(self._database, self._receiver, sending.failures + 1)
        return False

    def _post(self, sending: tracing.Sending) -> str | None:
        """Send jobs and reviews; return why they must be sent again, or None. The reason follows "the receiver of traces"."""
        import httpx2  # Here, since most processes send no traces.

        assert self._exporter is not None  # noqa: S101 (there is no duty without it)
        data = self._exporter.to_protobuf(sending.histories, sending.reviews)
        headers = {"Content-Type": "application/x-protobuf"}
        try:
            reply = httpx2.post(
                self._endpoint, content=data, headers=headers, timeout=TIMEOUT, trust_env=False
            )
        except httpx2.HTTPError as error:
            return f"does not respond ({str(error) or type(error).__name__})"
        if 400 <= reply.status_code < 500 and reply.status_code not in TRANSIENT:
            # It would refuse them for ever, and all that follow would wait.
            reviews = [review_id for _, review_id in sending.reviews]
            ids = ", ".join([*(told["id"] for told in sending.histories), *reviews])
            log.error("the receiver of traces refuses %s: status %d", ids, reply.status_code)
            return None
        return None if reply.is_success else f"replied with the status {reply.status_code}"
