"""A receiver of traces: OpenTelemetry's OTLP over HTTP."""

from __future__ import annotations

import logging

#: Statuses after which the same request may succeed later. After any other 4xx status it is not repeated.
TRANSIENT = frozenset({401, 403, 404, 407, 408, 425, 429})


class SpansRefusedError(Exception):
    """The receiver would refuse the same spans each time."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")


class ReceiverUnavailableError(Exception):
    """The receiver did not take spans now. The reason follows "the receiver of traces"."""


def post(endpoint: str, data: bytes, timeout: float) -> None:
    """Send an `ExportTraceServiceRequest` to a receiver.

    Args:
        endpoint: its address, such as ``http://127.0.0.1:6006/v1/traces``. It may have a password.
        data: the request.
        timeout: seconds that it may take.

    Raises:
        SpansRefusedError, ReceiverUnavailableError: it does not take it.
    """
    # Here, since most processes send no traces.
    import httpx2

    from jobs.http_clients import make_client

    headers = {"Content-Type": "application/x-protobuf"}
    try:
        with make_client(timeout=timeout) as http:
            reply = http.post(endpoint, content=data, headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise ReceiverUnavailableError(f"does not respond ({reason})") from error
    if 400 <= reply.status_code < 500 and reply.status_code not in TRANSIENT:
        raise SpansRefusedError(reply.status_code)
    if not reply.is_success:
        raise ReceiverUnavailableError(f"replied with the status {reply.status_code}")


class TraceReceiver:
    """A receiver, and whether it was away when it was called last. It is used by one thread at a time."""

    def __init__(self, endpoint: str, timeout: float, log: logging.Logger) -> None:
        """
        Args:
            endpoint, timeout: as for `post`.
            log: gets a line when it is away, and when it is back.
        """
        self._timeout = timeout
        self._endpoint = endpoint
        self._log = log
        #: Why it takes nothing, so that it is said once.
        self._failure: str | None = None

    @property
    def is_away(self) -> bool:
        """Whether it has not taken what it was sent last."""
        return self._failure is not None

    def send(self, data: bytes) -> None:
        """Do the same as `post`.

        Raises:
            SpansRefusedError, ReceiverUnavailableError: it does not take it.
        """
        try:
            post(self._endpoint, data, self._timeout)
        except ReceiverUnavailableError as error:
            if self._failure != str(error):
                self._log.warning("the receiver of traces %s", error)
            self._failure = str(error)
            raise
        except SpansRefusedError:
            self._note_reply()
            raise
        self._note_reply()

    def _note_reply(self) -> None:
        if self._failure is not None:
            self._log.info("the receiver of traces takes them again")
        self._failure = None
