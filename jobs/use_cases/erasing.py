"""Erasing texts of ended jobs on request. What remains still verifies.

The hash of each text stays and its salt is deleted, so nobody can find out what the text was, not even by
guessing. The log gets an entry about it.

A job may have a text in several places. Copies that result from how a job runs are erased with it: see
`with_copies`. What a model repeated in its own words is not found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import LineNotWrittenError, NotEndedError, NotSealedError, TextNotFoundError
from jobs.jsonl import find_line
from jobs.models import Attempt, Job, Review
from jobs.statements import clock, documents, erasures, files, jobs, requests, whole_jobs
from jobs.statements.requests import Keyed
from jobs.tlog.record import review_texts, texts
from jobs.tlog.salted import Salts, is_erased, own_salt, salts_of, text_hash
from jobs.transient import retry_on_conflict
from jobs.use_cases.files import READ_CHUNKS
from jobs.use_cases.sealing import Describe

#: Texts of one entry of the log: it may have 65,535 bytes.
MAX_TEXTS = 1000

#: The column of each of a job's texts, by its pointer, and what takes the place of the text.
_EMPTY: dict[str, tuple[Any, Any]] = {
    "/question": (Job.question, ""),
    "/system": (Job.system, ""),
    # Not null: that would say that the context was the question alone.
    "/turns": (Job.turns, []),
    "/input_items": (Job.input_items, []),
    "/options": (Job.options, None),
    "/stop": (Job.stop, []),
    "/metadata": (Job.metadata_, {}),
    "/batch/custom_id": (Job.custom_id, ""),
    "/error/message": (Job.error_message, ""),
}
_ATTEMPT = re.compile(r"/attempts/(\d+)/(prompt|output|error)")
_REVIEW = re.compile(r"/reviews/(\d+)/(\w+)")
#: The texts that the files of a batch have.
_IN_FILES = re.compile(r"/system|/options|/stop|/metadata|/batch/.*|/error/.*|/attempts/\d+/output")


@retry_on_conflict
def erase(
    database: Database,
    owner: str | None,
    job_id: str,
    describe: Describe,
    asked: Sequence[str] | None,
    *,
    erased_by: str,
    key_id: str | None = None,
    keyed: Keyed | None = None,
) -> list[str]:
    """Erase texts of a job that has ended, with their copies in the job and in the files of its batch.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        describe: returns the history of a job.
        asked: JSON pointers into the history; None for all texts.
        erased_by: who asks for it.
        key_id: of the API key that it was asked with, if any.
        keyed: the request, if it has an idempotency key.

    Returns:
        the pointers of the texts that this, or the same request before, erased. Those that had been erased by then
        are left out.

    Raises:
        JobNotFoundError: the owner has no such job.
        NotEndedError: the job has not ended.
        NotSealedError: the job has no entry in the log yet.
        LineNotWrittenError: the job's answer is about to be written to its batch's file.
        TextNotFoundError: the job has no text at a pointer.
        IdempotencyError: the key was used for a different request.
    """
    lines = find_lines(database, owner, job_id)
    with database.write_session() as session:
        connection = session.connection()
        before = requests.begin(connection, keyed)
        if before is not None:
            _lock(connection, owner, job_id)
            return list(before["erased"])
        erased = erase_locked(session, owner, job_id, describe, asked, lines, erased_by, key_id)
        requests.end(connection, keyed, erased=erased)
        return erased


def erase_locked(
    session: Session,
    owner: str | None,
    job_id: str,
    describe: Describe,
    asked: Sequence[str] | None,
    lines: Iterable[tuple[str, int, int]],
    erased_by: str,
    key_id: str | None,
) -> list[str]:
    """Lock a job and erase texts in a transaction, which goes on; return their pointers.

    Args:
        session: in the transaction.
        owner, job_id, describe, asked, erased_by, key_id: as of `erase`.
        lines: what `find_lines` returned.

    Raises:
        JobNotFoundError, NotEndedError, NotSealedError, TextNotFoundError: as `erase`. Nothing was changed.
    """
    connection = session.connection()
    _lock(connection, owner, job_id)
    job = whole_jobs.load(session, [job_id])[job_id]
    history = describe(job)
    own, theirs = texts(history), review_texts(history)
    present = {**own, **theirs}
    for pointer in asked or ():
        if pointer not in present:
            raise TextNotFoundError(job_id, pointer)
    wanted = present if asked is None else with_copies(history, asked)
    new = [p for p, value in present.items() if p in wanted and not is_erased(value)]
    if not new:
        return []
    now = clock.now(connection)
    for start in range(0, len(new), MAX_TEXTS):
        part = new[start : start + MAX_TEXTS]
        erasures.add(connection, job_id, part, erased_by=erased_by, key_id=key_id, created_at=now)
    hashes = dict(job.erased or {})
    _empty_attempts(connection, job, new)
    for review, record in zip(job.reviews, history["reviews"], strict=True):
        hashes |= _empty_review(connection, review, record, new)
    columns: dict[Any, Any] = {Job.erased_at: now}
    erased = [pointer for pointer in new if pointer in own]
    if erased:
        salts = salts_of(history["log"])
        hashes |= {pointer: _hash(salts, pointer, own[pointer]) for pointer in erased}
        columns |= dict(_EMPTY[pointer] for pointer in erased if pointer in _EMPTY)
        left = [p for p, value in own.items() if p not in hashes and not is_erased(value)]
        columns |= {
            Job.log_salt: None,
            Job.log_salts: _kept(salts, left),
            # It would tell whether a guess of the request is right.
            Job.request_digest: None,
            # Nobody here knows what others have put into it.
            Job.tracestate: None,
        }
    columns[Job.erased] = hashes
    erasures.update_job(connection, job_id, columns)
    documents.reindex(connection, job_id, forget=True)
    if any(_IN_FILES.fullmatch(pointer) for pointer in new):
        for file_id, start, end in lines:
            keep = "/batch/custom_id" not in hashes
            _empty_line(connection, file_id, start, end, keep_custom_id=keep)
    return new


def with_copies(history: dict[str, Any], asked: Iterable[str]) -> set[str]:
    """Return the pointers of texts and of their copies in a job.

    Prompts have the question, the system prompt, the turns before the question and the outputs of earlier
    stages; ``/input_items`` has what came with the request. Attempts at a stage have the same seed, so that
    one that was interrupted has the beginning of the next one's output. The job's error is the attempt's.

    Args:
        history: the job's history.
        asked: the pointers.
    """
    attempts = list(enumerate(history["attempts"]))
    prompts = {f"/attempts/{number}/prompt" for number, _ in attempts}
    errors = {"/error/message", *(f"/attempts/{number}/error" for number, _ in attempts)}
    found = set(asked)
    for pointer in list(found):
        match = _ATTEMPT.fullmatch(pointer)
        if pointer in ("/question", "/system", "/turns"):
            found |= {"/input_items", *prompts}
        elif pointer == "/input_items":
            found |= {"/question", "/turns", *prompts, *_system_of(history)}
        elif pointer in errors:
            found |= errors
        elif match is not None and match[2] == "output":
            stage = history["attempts"][int(match[1])]
            for number, attempt in attempts:
                if attempt["run"] != stage["run"]:
                    continue
                if attempt["position"] == stage["position"]:
                    found.add(f"/attempts/{number}/output")
                elif attempt["position"] > stage["position"]:
                    found.add(f"/attempts/{number}/prompt")
    return found


def _system_of(history: dict[str, Any]) -> list[str]:
    """Return the pointer of the system prompt if it may come from the items of the request."""
    items = history["input_items"]
    if not isinstance(items, list):
        return []
    roles = {item.get("role") for item in items if isinstance(item, dict)}
    return ["/system"] if roles & {"system", "developer"} else []


def _lock(connection: sa.Connection, owner: str | None, job_id: str) -> None:
    """Lock a job that texts of can be erased."""
    job = jobs.lock(connection, owner, job_id)
    if not job.status.final:
        raise NotEndedError(job_id)
    if job.log_index is None:
        raise NotSealedError(job_id, ended=True)


def _hash(salts: Salts, pointer: str, value: Any) -> str:
    hashed = text_hash(salts, pointer, value)
    assert hashed is not None  # noqa: S101 (the text is there)
    return hashed


def _kept(salts: Salts, pointers: Iterable[str]) -> dict[str, str]:
    """Return the own salts of texts in hexadecimal."""
    return {pointer: own_salt(salts, pointer).hex() for pointer in pointers}


def _empty_attempts(connection: sa.Connection, job: Job, new: Iterable[str]) -> None:
    columns: dict[int, dict[Any, Any]] = {}
    for pointer in new:
        if match := _ATTEMPT.fullmatch(pointer):
            attempt = columns.setdefault(job.attempts[int(match[1])].id, {})
            attempt[getattr(Attempt, match[2])] = ""
            if match[2] == "output":
                attempt[Attempt.delta_lengths] = sa.null()
    for attempt_id, changes in columns.items():
        erasures.update_attempt(connection, attempt_id, changes)


def _empty_review(
    connection: sa.Connection, review: Review, record: dict[str, Any], new: Iterable[str]
) -> dict[str, str]:
    """Erase texts of a review; return the hashes of those that were erased, by pointer."""
    names = [m[2] for p in new if (m := _REVIEW.fullmatch(p)) and int(m[1]) == review.number]
    if not names:
        return {}
    salts = salts_of(record["log"])
    present = [n for n in ("reviewer", "corrected_answer", "tags", "note") if record[n] is not None]
    left = [f"/{n}" for n in present if n not in names and not is_erased(record[n])]
    columns: dict[Any, Any] = {
        getattr(Review, name): [] if name == "tags" else "" for name in names
    }
    columns |= {
        Review.log_salt: None,
        Review.log_salts: _kept(salts, left),
        # As a job's: it would tell whether a guess is right.
        Review.request_digest: None,
    }
    erasures.update_review(connection, review.id, columns)
    return {
        f"/reviews/{review.number}/{name}": _hash(salts, f"/{name}", record[name]) for name in names
    }


def find_lines(database: Database, owner: str | None, job_id: str) -> list[tuple[str, int, int]]:
    """Return where a job's answer is in the files of its batch: file, and begin and end in bytes.

    A line stays where it is. It is looked for in transactions of its own, since a file may be large.

    Raises:
        JobNotFoundError, NotEndedError, LineNotWrittenError: as `erase`.
    """
    with database.read() as connection:
        job = jobs.lock(connection, owner, job_id, for_update=False)
        batch_id = job.batch_id
        if not job.status.final:
            raise NotEndedError(job_id)  # Its line could be written before the job is locked.
        if batch_id is None:
            return []
        if erasures.awaits_line(connection, batch_id, job_id):
            raise LineNotWrittenError(job_id)
        ids = erasures.result_files(connection, batch_id)
        custom_id = erasures.custom_id(connection, job_id)

    # Within a text, its quotation marks would be escaped, and where a client names members, none is null.
    answered = f'"request_id":"{job_id}"'
    unanswered = f'"custom_id":{json.dumps(custom_id)},"response":null,'
    found = []
    for file_id in ids:

        def read(position: int, file_id: str = file_id) -> bytes:
            with database.read() as connection:
                return files.read(connection, file_id, position, chunks=READ_CHUNKS)

        needles = answered, unanswered
        places = (find_line(read, needle.encode()) for needle in needles)
        place = next((place for place in places if place is not None), None)
        if place is not None:
            found.append((file_id, *place))
    return found


def _empty_line(
    connection: sa.Connection, file_id: str, start: int, end: int, *, keep_custom_id: bool
) -> None:
    """Say in the place of a line of a batch's file that texts were erased. The file keeps its length."""
    chunks = erasures.chunks(connection, file_id, start, end)
    if not chunks:
        return  # The file was deleted.
    first, data = chunks[0].start, b"".join(chunk.data for chunk in chunks)
    line = json.loads(data[start - first : end - first])
    error = {"message": "Erased.", "type": "invalid_request_error", "code": "erased", "param": None}
    # The line of a job that was cancelled has no text but its custom id.
    if line["response"] is not None:
        reply = {"status_code": 410, "request_id": line["response"]["request_id"]}
        line["response"] = {**reply, "body": {"error": error}}
    if not keep_custom_id:
        line["custom_id"] = ""
    # Every answer and every error is longer.
    text = json.dumps(line, separators=(",", ":")).encode().ljust(end - start)
    data = data[: start - first] + text + data[end - first :]
    for chunk in chunks:
        offset = chunk.start - first
        piece = data[offset : offset + len(chunk.data)]
        if piece != chunk.data:
            erasures.set_chunk(connection, file_id, chunk.start, piece)
