"""Exporting histories from one database and importing them into another."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import Shape
from jobs.formats.compression import Compression
from jobs.formats.writing import FileKind, Format, to_json, writing
from jobs.importer import Line, Report, import_file, read_histories
from jobs.models import Job
from jobs.protocol.history import history
from jobs.protocol.shapes import COLUMNS, rows
from jobs.search.filters import Filters
from jobs.tlog.exported import PROOFS
from jobs.tlog.note import Verifier
from jobs.use_cases import erasing, exporting, reviewing, stages, workers
from jobs.use_cases.reviewing import NewReview
from tests.conftest import RUNTIME
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import seal


def export(database: Database, compression: Compression = Compression.NONE) -> bytes:
    """Export all histories as the API does."""
    pages = exporting.pages(database, None, Filters(), with_proofs=True)
    made = ([r for each in page for r in rows(Shape.HISTORY, each)] for page in pages)
    return b"".join(writing(FileKind(Format.JSONL, compression), COLUMNS[Shape.HISTORY])(made))


def load(data: bytes, database: Database, *trusted: Verifier, check_first: bool = True) -> Report:
    """Import a file."""
    return import_file(lambda: io.BytesIO(data), database, trusted, check_first=check_first)


def histories(database: Database) -> list[dict[str, Any]]:
    """Return all histories, but for what differs between logs."""
    lines = [json.loads(line) for line in export(database).splitlines()]
    for line in lines:
        for name in ("log", "origin", "proof", "origin_proof", *PROOFS):
            line.pop(name)
        for added in (*line["reviews"], *line["erasures"]):
            added["log"].pop("index")
    return lines


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(Job)) or 0


def review(database: Database, job_id: str, reviewer: str = "ann", **verdict: Any) -> None:
    new = NewReview(**verdict or {"regeneration": -1, "note": "No.\0", "tags": ("a", "b")})
    reviewing.add(database, None, job_id, new, reviewer=reviewer, key_id="key_1")


def erase(database: Database, job_id: str, *texts: str) -> list[str]:
    return erasing.erase(database, None, job_id, history, texts or None, erased_by="bob")


def seal_all(database: Database) -> None:
    """Seal jobs, and then their reviews and erasures."""
    while seal(database):
        pass


def read(data: bytes, *trusted: Verifier) -> list[Line]:
    """Check the lines of a file, and import none of them."""
    return list(read_histories(io.BytesIO(data), trusted))


#: Changes a history in place.
Change = Callable[[dict[str, Any]], object]


def changed(data: bytes, number: int, change: Change) -> bytes:
    """Change a line of a file."""
    lines = [json.loads(line) for line in data.splitlines()]
    change(lines[number - 1])
    return "".join(f"{to_json(line)}\n" for line in lines).encode()


def end_one_here(database: Database) -> str:
    """Run a job to its end on a worker of its own; return its id."""
    workers.register(database, "worker-here", "localhost", 1, RUNTIME)
    job = submit(database)
    for index in range(3):
        assert stages.record(database, claim(database, job, index, "worker-here"), OUTPUT)
    return job.id
