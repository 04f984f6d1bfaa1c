"""Requests as the HTTP server parses them, and the limits of their time, their size and the number of uploads."""

from __future__ import annotations

import copy
import re
import weakref

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import Error, RequestHeaderFieldsTooLarge

from jobs.protocol.errors import ProtocolError
from web.errors import HTTPError, is_upload, status_of
from web.multipart import MAX_UPLOAD

#: Seconds that a client may take to send a request.
REQUEST_TIMEOUT = 60.0
#: An upload may take a second longer for every so many bytes.
MIN_UPLOAD_RATE = 1 << 14
#: Uploads at the same time. Each has a file of the system until all of it has arrived.
MAX_UPLOADS = 16
#: The maximum number of bytes of a request's headers.
MAX_HEADERS = 1 << 16


class RequestRefusedError(Error):  # type: ignore[misc]  # waitress has no types
    """The application refuses the request."""

    def __init__(self, reason: ProtocolError) -> None:
        super().__init__(reason.message)
        self.code = status_of(reason)
        self.reason = reason


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request. An upload may be larger than others, and take longer."""

    is_upload = False
    #: Of an upload: whether it began to be asked, and whether it is known, if it is refused (`web.server_channel`).
    check_began = check_done = False
    adj: Adjustments
    #: Of waitress, which sets them when all headers have arrived.
    first_line = b""
    path = ""
    command = "GET"

    def received(self, data: bytes) -> int:
        before = self.header_plus
        consumed = int(super().received(data))
        if isinstance(self.error, RequestHeaderFieldsTooLarge):
            # Waitress has parsed another request line in the place of this one.
            self.first_line, self.path = (before + data).lstrip().partition(b"\r\n")[0], ""
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            # Python's, of a host or a number. Waitress lets it end the connection.
            raise ParsingError("Its target or its Content-Length is invalid") from error
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            # A proxy may believe the one and we the other, and take the rest for another request.
            raise ParsingError("It has both Content-Length and Transfer-Encoding")
        if "TRANSFER_ENCODING" in self.headers:
            # Waitress ignores it in HTTP/1.0, and would take the body for the next request.
            raise ParsingError("Only HTTP/1.1 has Transfer-Encoding")
        host = self.headers.get("HOST")
        if self.version == "1.1" and host is None:
            raise ParsingError("It has no Host")
        if "," in (host or ""):
            raise ParsingError("It has more than one Host")
        self._read_connection()
        # Of clients whose base URL ends with a slash. A redirect would cost each request another one.
        self.path = re.sub("//+", "/", self.path)
        self.is_upload = is_upload(self.command, self.path)
        if self.is_upload:
            # The settings of one server, so a place for what its requests share.
            uploads: Uploads = self.adj.uploads
            if len(uploads.requests) >= MAX_UPLOADS:
                message = "Too many files are uploaded at once. Retry later."
                self.error = RequestRefusedError(HTTPError(503, message, code="too_many_uploads"))
                self.completed = True
            uploads.requests.add(self)
            self.adj = uploads.adj

    def _read_connection(self) -> None:
        """Read the header as the list that it is; waitress compares the whole of it."""
        options = self.headers.get("CONNECTION", "").lower().split(",")
        for option in ("close", "keep-alive"):
            if option in (each.strip(" \t") for each in options):
                self.headers["CONNECTION"] = option
                return

    @property
    def timeout(self) -> float:
        """Seconds that a client may take to send it."""
        extra = self.body_bytes_received / MIN_UPLOAD_RATE if self.is_upload else 0
        return REQUEST_TIMEOUT + extra

    def late(self, seconds: float) -> HTTPError:
        """Return the error for a request of which only a part arrived in some seconds."""
        part = "a part of the request"
        if self.content_length:
            part = (
                f"{self.body_bytes_received} of the {self.content_length} bytes that "
                "`Content-Length` announces"
            )
        message = f"Only {part} arrived in {seconds:.0f} seconds."
        return HTTPError(408, message, code="request_timeout")

    @property
    def target(self) -> str:
        """The path that is requested; as it was sent if the request could not be parsed so far."""
        line = self.first_line or self.header_plus.lstrip().partition(b"\r\n")[0]
        _, _, target = line.partition(b" ")
        return self.path or re.split(r"[ ?]", target.decode("latin-1"))[0] or "/"


class Uploads:
    """The uploads of a server that have begun and are not replied to."""

    def __init__(self, adj: Adjustments) -> None:
        """
        Args:
            adj: waitress's settings for all other requests.
        """
        self.requests: weakref.WeakSet[RequestParser] = weakref.WeakSet()
        self.adj = copy.copy(adj)
        self.adj.max_request_body_size = MAX_UPLOAD + 1
