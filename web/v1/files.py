"""The endpoints of ``/v1/files``: the inputs and outputs of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import quote

from flask import Response, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import dump_options_header

from jobs.models import File, FilePurpose
from jobs.protocol.files import check_purpose, file_object, parse_fields
from jobs.protocol.lists import list_object
from jobs.use_cases import files
from web import query
from web.caller import get_caller
from web.idempotency import idempotency_key, keyed_request
from web.multipart import MAX_UPLOAD, read_form
from web.services import get_services
from web.v1.routes import blueprint, json_response

MAX_PAGE_SIZE = 10_000
MAX_NAME = 255


@blueprint.post("/files")
def upload_file() -> Response:
    """Store a file. It becomes visible when all of it is stored."""
    request.max_content_length = MAX_UPLOAD
    upload = _Upload(is_keyed=idempotency_key() is not None)
    try:
        fields = read_form("file", upload.begin)
        file = upload.finish(parse_fields(fields))
    except BaseException:
        upload.abort()
        raise
    return json_response(file_object(file))


class _Upload:
    """A file on its way into the database, a chunk at a time."""

    def __init__(self, *, is_keyed: bool) -> None:
        self._database = get_services().database
        self._owner = get_services().owner
        self._is_keyed = is_keyed
        self._id: str | None = None
        self._name = ""
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._size = 0

    def begin(self, name: str, fields: dict[str, str]) -> Callable[[bytes], None]:
        if "purpose" in fields:
            check_purpose(fields["purpose"])  # Before the whole file is stored.
        self._name = name[:MAX_NAME]
        self._id = files.begin_upload(self._database, self._owner, self._name)
        return self._write

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > files.MAX_FILE:
            raise RequestEntityTooLarge
        if self._is_keyed:
            self._digest.update(data)
        self._buffer += data
        while len(self._buffer) >= files.CHUNK:
            self._store(bytes(self._buffer[: files.CHUNK]))
            del self._buffer[: files.CHUNK]

    def _store(self, data: bytes) -> None:
        assert self._id is not None  # noqa: S101 (`begin` comes first)
        files.append(self._database, self._id, data)

    def finish(self, expires_after: int | None) -> File:
        assert self._id is not None  # noqa: S101 (`read_form` found a file)
        if self._buffer:
            self._store(bytes(self._buffer))
        sent = {
            "file": self._name,
            "sha256": self._digest.hexdigest(),
            "expires_after": expires_after,
        }
        return files.finish_upload(
            self._database,
            self._id,
            files.DEFAULT_EXPIRY if expires_after is None else expires_after,
            keyed_request(sent),
        )

    def abort(self) -> None:
        """Give it up. If that fails too, a sweep does it later."""
        if self._id is not None:
            files.abort_upload(self._database, self._id)


@blueprint.get("/files")
def list_files() -> Response:
    """List files by age; the newest first unless the request says otherwise."""
    services = get_services()
    found, has_more = files.list_files(
        services.database,
        services.owner,
        query.page("purpose", default=MAX_PAGE_SIZE, maximum=MAX_PAGE_SIZE),
        query.choice("purpose", None, tuple(FilePurpose)),
    )
    return json_response(list_object(map(file_object, found), has_more=has_more))


@blueprint.get("/files/<file_id>")
def retrieve_file(file_id: str) -> Response:
    """Describe a file."""
    services = get_services()
    file = files.get_file(services.database, services.readable_owner, file_id)
    return json_response(file_object(file))


@blueprint.get("/files/<file_id>/content")
def download_file(file_id: str) -> Response:
    """Reply with a file's content, a piece at a time."""
    services = get_services()
    with ExitStack() as stack:
        stack.enter_context(services.waiter.slot())  # A slow reader occupies a thread.
        file = files.get_file(services.database, services.readable_owner, file_id)
        reply = Response(
            _content(file.id, file.size),
            mimetype="application/octet-stream",
        )
        reply.call_on_close(stack.pop_all().close)
    reply.content_length = file.size
    reply.accept_ranges = "none"
    reply.headers["Content-Disposition"] = _attachment(file.name)
    return reply


def _attachment(name: str) -> str:
    """Return the ``Content-Disposition`` of a file with any name, as RFC 6266 has it: headers are Latin-1."""
    ascii_name = "".join(c if c.isascii() and c.isprintable() else "_" for c in name)
    names = {"filename": ascii_name}
    if ascii_name != name:
        names["filename*"] = f"UTF-8''{quote(name, safe='')}"
    return dump_options_header("attachment", names)


def _content(file_id: str, size: int) -> Iterator[bytes]:
    database = get_services().database

    def pieces() -> Iterator[bytes]:
        position = 0
        while position < size:
            data = files.read_file(database, file_id, position)
            if not data:
                # The connection ends before `Content-Length`: the client notices.
                raise ConnectionAbortedError(f"{file_id} was deleted while it was read")
            position += len(data)
            yield data

    return pieces()


@blueprint.delete("/files/<file_id>")
def delete_file(file_id: str) -> Response:
    """Delete a file."""
    services = get_services()
    files.delete_file(services.database, get_caller().changeable_owner, file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})
