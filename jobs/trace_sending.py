"""The duty that sends ended jobs and reviews to a receiver of traces (OpenTelemetry's OTLP over HTTP), on a thread of its own."""

from __future__ import annotations

import hashlib
import logging

from jobs.database import Database
from jobs.duties import JITTER, Duty, DutyThread
from jobs.protocol.history import history
from jobs.telemetry import Exporter
from jobs.trace_receiver import ReceiverUnavailableError, SpansRefusedError, TraceReceiver
from jobs.use_cases import tracing

log = logging.getLogger(__name__)

#: Seconds between two checks for jobs that the receiver does not have.
INTERVAL = 1.0
#: Seconds that the receiver may take to reply, and for which no other process sends to it.
TIMEOUT, LEASE = 10.0, 60.0


class TraceSending(DutyThread):
    """Sends ended jobs and reviews to a receiver. Does nothing without one."""

    def __init__(self, database: Database, endpoint: str | None) -> None:
        """
        Args:
            database: of the jobs.
            endpoint: the receiver's address, such as ``http://127.0.0.1:6006/v1/traces``; None for no receiver.

        Raises:
            NotInstalledError: opentelemetry-proto is not installed.
        """
        self._database = database
        #: The receiver's name in the database.
        self._name = hashlib.sha256((endpoint or "").encode()).hexdigest()
        self._receiver = TraceReceiver(endpoint or "", TIMEOUT, log)
        self._exporter = Exporter() if endpoint else None
        duties = [Duty(INTERVAL, self.send)]
        super().__init__("traces", duties, jitter=JITTER)

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
        sending = tracing.begin_sending(self._database, self._name, history, LEASE)
        if sending is None:
            return False
        try:
            if sending.histories or sending.reviews:
                self._send(sending)
        except ReceiverUnavailableError:
            tracing.note_unsent(self._database, self._name, sending.failures + 1)
            return False
        tracing.note_sent(self._database, self._name, sending.end)
        return True

    def _send(self, sending: tracing.Sending) -> None:
        """Send jobs and reviews.

        Raises:
            ReceiverUnavailableError: they must be sent again.
        """
        assert self._exporter is not None  # noqa: S101 (there is no duty without it)
        try:
            self._receiver.send(self._exporter.to_protobuf(sending.histories, sending.reviews))
        except SpansRefusedError as error:
            # The receiver would refuse them each time, and everything after them would wait.
            reviews = [review_id for _, review_id in sending.reviews]
            ids = ", ".join([*(history["id"] for history in sending.histories), *reviews])
            log.error("the receiver of traces refuses %s: %s", ids, error)
