"""How the HTTP server responds: with what the application makes, or to a request that is refused."""

from __future__ import annotations

from flask import Flask
from waitress.channel import ClientDisconnected
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import Error

from jobs.protocol.errors import ProtocolError
from web.errors import HTTPError, error_response, too_large, translated
from web.server_requests import MAX_HEADERS, RequestParser, RequestRefusedError
from web.v1.sse import KEEPALIVE

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
            RefusalTask(self.channel, self.request).service()
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
    """Responds to a request that is refused, in the shape of the part of the site that was requested."""

    def execute(self) -> None:
        self.channel.refused = True
        app: Flask = self.channel.server.flask
        # As it came: a path such as `//[` is no URL.
        with app.test_request_context(environ_overrides={"PATH_INFO": self.request.target}):
            response = error_response(_reason(self.request.error, self.request))
            response = app.process_response(response)
        body = response.get_data()
        self.status = response.status
        self.response_headers.extend(response.headers.items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def _reason(error: Error, request: RequestParser) -> ProtocolError:
    """Return our error for one of waitress's, most of which are of its parser."""
    if isinstance(error, RequestRefusedError):
        return error.reason
    message, code = f"The request is malformed: {error.body}.", "bad_request"
    if error.code == 413:
        message, code = too_large(request.command, request.path), "request_too_large"
    elif error.code == 431:
        message = f"The request headers are larger than {MAX_HEADERS >> 10} KiB."
    elif error.code == 501:
        message, code = "`Transfer-Encoding` must be `chunked`.", "unsupported_encoding"
    elif error.code >= 500:
        message, code = f"{error.body}.", "server_error"
    return HTTPError(error.code, message, code=code)
