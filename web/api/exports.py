"""``/api/jobs/export``: many jobs as a file, which is made while it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from flask import Response, request

from jobs.enums import Shape
from jobs.formats.compression import Compression
from jobs.formats.extra import NotInstalledError
from jobs.formats.writing import FileKind, Format, Row, writing
from jobs.pipeline import Role
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.protocol.shapes import COLUMNS, rows
from jobs.use_cases import exporting
from jobs.use_cases.exporting import Exported
from web import job_filters, query
from web.api.routes import blueprint
from web.caller import get_caller
from web.services import get_services

ALL = "all"
#: The compressions of a reply, as `Accept-Encoding` spells them, the better one first.
ENCODINGS = (Compression.ZSTD, Compression.GZIP)


@blueprint.get("/jobs/export")
def export_jobs() -> Response:
    """Export jobs as a file, in the order of their creation.

    It has the jobs that there are when it begins. Its rows are of one of four shapes: whole histories, pairs of
    texts of which one is better, prompts with their completions, or reviews.
    """
    chosen, of = job_filters.exported({"format", "shape", "role", "compression", "ids"})
    ids = job_filters.selected()
    shape = query.choice("shape", Shape.HISTORY, tuple(Shape))
    roles = _roles(shape)
    kind, encoding = _kind()
    try:
        write = writing(FileKind(kind.format, encoding or kind.compression), COLUMNS[shape])
    except NotInstalledError as error:
        raise InvalidRequestError(f"{error}.", code="not_installed") from error
    database, owner = get_services().database, get_caller().readable_owner
    with_proofs = shape is Shape.HISTORY
    pages: Iterable[list[Exported]]
    if ids is None:
        pages = exporting.pages(database, owner, chosen, of=of, with_proofs=with_proofs)
    else:
        pages = exporting.selected(database, owner, ids, with_proofs=with_proofs)
    with ExitStack() as stack:
        stack.enter_context(get_services().waiter.slot())  # A slow reader occupies a thread.
        reply = Response(write(_rows(shape, pages, roles)), content_type=kind.media_type)
        reply.call_on_close(stack.pop_all().close)
    name = f"helixq-{shape}{kind.suffix}"
    reply.headers.set("Content-Disposition", "attachment", filename=name)
    if encoding is not None:
        reply.content_encoding = str(encoding)
    reply.accept_ranges = "none"  # Jobs may come, change and go between two requests.
    reply.vary.add("Accept-Encoding")
    reply.cache_control.no_store = True
    return reply


def _roles(shape: Shape) -> tuple[Role, ...]:
    role = query.choice("role", None, (ALL, *Role))
    if shape is not Shape.SFT and role is not None:
        raise invalid_value("role", f"`role` needs the shape `{Shape.SFT}`.")
    return (role,) if isinstance(role, Role) else tuple(Role)


def _kind() -> tuple[FileKind, Compression | None]:
    """Return what the file is, and how it is compressed on its way."""
    format_ = query.choice("format", Format.JSONL, tuple(Format))
    default = Compression.ZSTD if format_ is Format.PARQUET else Compression.NONE
    compression = query.choice("compression", default, tuple(Compression))
    kind = FileKind(format_, compression)
    if format_ is Format.PARQUET or compression is not Compression.NONE:
        return kind, None  # It is as small as it gets.
    return kind, _accepted()


def _accepted() -> Compression | None:
    """Return the compression of the reply that its reader accepts, and that is installed here."""
    accepted = request.accept_encodings
    return next((c for c in ENCODINGS if accepted[c] > 0 and c.available), None)


def _rows(
    shape: Shape, pages: Iterable[list[Exported]], roles: tuple[Role, ...]
) -> Iterator[list[Row]]:
    """Return the rows of an export in pages. The request is read now, since it is over when they are made."""
    services, caller = get_services(), get_caller()

    def made() -> Iterator[list[Row]]:
        for page in pages:
            if services.waiter.stopping() or not caller.is_valid():
                # The reply ends without its last chunk: the client notices that it is not whole.
                raise ConnectionAbortedError("the server stops, or the API key was revoked")
            yield [row for exported in page for row in rows(shape, exported, roles)]

    return made()
