"""A request of the HTTP server: how waitress parses it, and makes the reply to it."""

from __future__ import annotations

import copy
import re
import weakref
from typing import Protocol

from flask import Flask
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error, RequestHeaderFieldsTooLarge

from jobs.protocol.errors import ProtocolError
from web.errors import HTTPError, error_response, is_upload, status_of, too_large, translated
from web.multipart import MAX_UPLOAD
from web.v1.sse import KEEPALIVE

#: Seconds that a client may take to send a request.
REQUEST_TIMEOUT = 60.0
#: An upload may take a second longer for every so many bytes.
MIN_UPLOAD_RATE = 1 << 14
#: Uploads at the same time. Each has a file of the system until all of it has arrived.
MAX_UPLOADS = 16
#: The maximum number of bytes of a request's headers.
MAX_HEADERS = 1 << 16


#: A response that any client may get before its own, and skips.
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestTask(WSGITask):  # type: ignore[misc]  # waitress has no types
    """Makes the response to a request. Its headers and the beginning of its body are sent together."""

    #: Of waitress: whether the application has begun the response, and whether its beginning was sent.
    complete: bool
    wrote_header: bool

    def probe(self) -> bool:
        """Send what changes nothing to a client that sends no more; return whether that was possible.

        If the client has gone, its system resets the connection. The response is one that waits.
        """
        if self.wrote_header:
            self.write(KEEPALIVE)  # Of the responses that wait, only event streams have begun.
        elif self.version == "1.1" and not self.complete:
            self.channel.write_soon(CONTINUE)
        else:
            return False
        return True

    def execute(self) -> None:
        """Make the response. What fails before its first piece is a reply, as what fails in the application is."""
        self.channel.task = self
        try:
            super().execute()
        except (ClientDisconnected, OSError):
            raise
        except Exception as error:
            reason = translated(error)
            if self.wrote_header:
                # The reply breaks off, so that nobody takes it for a whole one. Waitress would log a traceback.
                raise ClientDisconnected from error
            self.request.error = RequestRefusedError(reason)
            self.close_on_finish = True
            refusal = RefusalTask(self.channel, self.request)
            refusal.service()
            self.wrote_header = True

    def write(self, data: bytes) -> None:
        with self.channel.sent_together():
            super().write(data)

    def build_response_header(self) -> bytes:
        header: bytes = super().build_response_header()
        if self.request.command == "HEAD":
            self.chunked_response = False  # No body, and so no last chunk either.
        return header


class RefusalTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Responds to a malformed request, in the shape of the part of the site that was requested."""

    def execute(self) -> None:
        error = self.request.error
        code = "request_too_large" if error.code == 413 else "bad_request"
        message = f"The request is malformed: {error.body}."
        if error.code == 413:
            message = too_large(self.request.command, self.request.path)
        elif error.code == 431:
            message = f"The request headers are larger than {MAX_HEADERS >> 10} KiB."
        elif error.code == 501:
            message, code = "`Transfer-Encoding` must be `chunked`.", "unsupported_encoding"
        elif error.code >= 500:
            message, code = f"{error.body}.", "server_error"
        if error.code == 503:
            code = "too_many_uploads"
        refused: ProtocolError = HTTPError(error.code, message, code=code)
        if isinstance(error, RequestRefusedError):
            refused = error.reason
        self.channel.refused = True
        app: Flask = self.channel.server.flask
        # As it came: a path such as `//[` is no URL.
        with app.test_request_context(environ_overrides={"PATH_INFO": self.request.target}):
            response = error_response(refused)
            response = app.process_response(response)
        body = response.get_data()
        self.status = response.status
        self.response_headers.extend(response.headers.items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class TooManyUploadsError(Error):  # type: ignore[misc]  # waitress has no types
    code = 503
    reason = "Service Unavailable"


class RequestRefusedError(Error):  # type: ignore[misc]  # waitress has no types
    """The application refuses the request."""

    def __init__(self, reason: ProtocolError) -> None:
        super().__init__(reason.message)
        self.code = status_of(reason)
        self.reason = reason


class UploadCheck(Protocol):
    """What `web.server` has of an upload while it asks."""

    done: bool


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request. An upload may be larger than others, and take longer."""

    is_upload = False
    #: What asks whether an upload is refused (`web.server`); None before that is asked.
    check: UploadCheck | None = None
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
                self.error = TooManyUploadsError("Too many files are uploaded at once. Retry later")
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
