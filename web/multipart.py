"""Reading a multipart form with one file, a piece at a time: memory stays the same however long the file is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Field, File, MultipartDecoder, NeedData

from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.use_cases.files import MAX_FILE
from web.errors import HTTPError

#: The maximum number of bytes of a form: an uploaded file, and what is around it.
MAX_UPLOAD = MAX_FILE + (1 << 16)
#: Bytes that are read at a time.
_READ = 1 << 16
#: The maximum number of bytes of a field, and of the headers of a part.
_MAX_FIELD = 1 << 12
_MAX_BUFFER = 1 << 20
_MAX_PARTS = 20


def read_form(
    field: str, begin: Callable[[str, dict[str, str]], Callable[[bytes], None]]
) -> dict[str, str]:
    """Read the form in the current request's body.

    Args:
        field: the name of the field with the file.
        begin: is called with the file's name and the fields before it, and returns a function that gets its
            content in pieces.

    Returns:
        the other fields.

    Raises:
        HTTPError: the body is not a form.
        InvalidRequestError: it is not a valid one, or has no file.
        RequestEntityTooLarge: it is larger than the request's limit.
    """
    boundary = request.mimetype_params.get("boundary", "")
    if request.mimetype != "multipart/form-data" or not boundary:
        raise HTTPError(
            415,
            "The body must be a form, with the header `Content-Type: multipart/form-data; boundary=…`.",
            code="unsupported_type",
            headers={"Accept": "multipart/form-data"},
        )
    if "Content-Encoding" in request.headers:
        raise HTTPError(
            415,
            "Send the form as it is, not compressed.",
            code="unsupported_encoding",
            headers={"Accept-Encoding": "identity"},
        )
    decoder = MultipartDecoder(boundary.encode(), _MAX_BUFFER, max_parts=_MAX_PARTS)
    parts = _Parts(field, begin)
    stream = request.stream
    try:
        while data := stream.read(_READ):
            _decode(decoder, data, parts)
        _decode(decoder, None, parts)
    except ValueError as error:
        raise InvalidRequestError(
            "The form is not valid, or not complete.", code="invalid_form"
        ) from error
    if not parts.has_file:
        raise InvalidRequestError(
            f"Missing required parameter: `{field}`.",
            code="missing_required_parameter",
            param=field,
        )
    return parts.fields


class _Parts:
    """The parts of a form so far."""

    def __init__(
        self, field: str, begin: Callable[[str, dict[str, str]], Callable[[bytes], None]]
    ) -> None:
        self._field = field
        self._begin = begin
        self._write: Callable[[bytes], None] | None = None
        self._name = ""
        self._text = b""
        self.fields: dict[str, str] = {}
        self.has_file = False

    def begin(self, part: Field | File) -> None:
        self._name, self._text, self._write = part.name or "", b"", None
        if not isinstance(part, File):
            return
        if self._name != self._field or self.has_file:
            raise invalid_value(
                self._name[:100], f"The form must have one file, in the field `{self._field}`."
            )
        self.has_file = True
        self._write = self._begin(part.filename, self.fields)

    def add(self, data: Data) -> None:
        if self._write is not None:
            if data.data:
                self._write(data.data)
            return
        self._text += data.data
        if len(self._text) > _MAX_FIELD:
            raise InvalidRequestError(
                f"A field is larger than {_MAX_FIELD >> 10} KiB.",
                code="invalid_form",
                param=self._name,
            )
        if not data.more_data:
            self.fields[self._name] = self._text.decode()


@contextmanager
def _limited() -> Iterator[None]:
    """Say that a form is too large, and not its file."""
    try:
        yield
    except RequestEntityTooLarge as error:
        raise InvalidRequestError(
            f"The form has more than {_MAX_PARTS} parts, or one whose headers are too large.",
            code="invalid_form",
        ) from error


def _decode(decoder: MultipartDecoder, data: bytes | None, parts: _Parts) -> None:
    """Handle all events for which there is data.

    Args:
        decoder: gets the data.
        data: the next piece of the form; None at its end.
        parts: get the events.
    """
    with _limited():
        decoder.receive_data(data)
    while True:
        with _limited():
            event = decoder.next_event()
        if isinstance(event, Field | File):
            parts.begin(event)
        elif isinstance(event, Data):
            parts.add(event)
        elif isinstance(event, NeedData) or decoder.state.name == "COMPLETE":
            return
