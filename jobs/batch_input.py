"""The lines of a batch's input: checks whether each is a request, and makes jobs of them.

As in OpenAI's API, a batch fails as a whole, before anything is asked, if a line is not a request for its endpoint or
names another model. The rest of a body is checked when the line becomes a job. If it is wrong, only that line fails.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jobs import transient
from jobs.database import Database
from jobs.jsonl import Line, read_lines
from jobs.protocol import batch_lines
from jobs.protocol.conversation import resolve
from jobs.protocol.errors import (
    ErrorKind,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    translate,
)
from jobs.protocol.new_job import new_job
from jobs.protocol.tokens import TokenCounter
from jobs.use_cases import batch_validation, files
from jobs.use_cases.batch_validation import Piece, ValidatedLine, line_error
from jobs.use_cases.submission import NewJob

log = logging.getLogger(__name__)

#: The maximum number of lines of a batch, as in OpenAI's API.
MAX_LINES = 50_000
#: The maximum number of lines and bytes that are validated or submitted in one transaction.
PIECE_LINES = 250
PIECE_BYTES = 1 << 20


class BatchInput:
    """Reads lines of batches, for one process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tokens = TokenCounter(database)

    def lines(self, batch: Any, start: int, chunks: int = files.READ_CHUNKS) -> Iterator[Line]:
        """Yield the lines of a batch's input.

        Args:
            batch: its row.
            start: where the first line begins, in bytes.
            chunks: of the file that are read at once.
        """

        def read(position: int) -> bytes:
            return files.read_file(self._database, batch.input_file_id, position, chunks=chunks)

        return read_lines(read, start, max_length=batch_lines.MAX_LINE)

    def validate(
        self,
        batch: Any,
        lines: Iterator[Line],
        start: int,
        number: int,
        total: int,
        size: int,
    ) -> Piece:
        """Validate the next lines of a batch's input.

        Args:
            batch: its row.
            lines: of its input, from the next one on.
            start: where the next line begins, in bytes.
            number: of the line before it.
            total: the number of requests before it.
            size: of the file in bytes.
        """
        position = start
        found: list[ValidatedLine] = []
        errors: list[dict[str, Any]] = []
        last = False
        while len(found) < PIECE_LINES and position - start < PIECE_BYTES:
            line = next(lines, None)
            if line is None:
                last = True
                if position < size:
                    errors.append(line_error("file_not_found", None, "The input file was deleted."))
                break
            number += 1
            position = line.end
            if line.text is not None and not line.text.strip():
                continue
            if total + len(found) >= MAX_LINES:
                last = True
                message = f"A batch has at most {MAX_LINES:,} requests."
                errors.append(line_error("request_limit_exceeded", number, message))
                break
            try:
                if line.text is None:
                    raise InvalidRequestError(
                        f"The line is larger than {batch_lines.MAX_LINE >> 20} MiB.",
                        code="line_too_large",
                    )
                data = batch_lines.parse_line(_without_mark(line.text, number))
                custom_id = batch_lines.custom_id_of(data)
                # Also of a line that is wrong, so that duplicates are found.
                found.append(ValidatedLine(number, custom_id, line.start, line.length))
                batch_lines.check_model(batch_lines.body_of(data, batch.endpoint))
            except (InvalidRequestError, NotFoundError) as error:
                errors.append(line_error(error.code, number, error.message, error.param))
            if len(errors) + len(batch.errors) >= batch_validation.MAX_ERRORS:
                last = True
                break
        return Piece(start, position, number, found, errors, last)

    def job(self, batch: Any, number: int, custom_id: str, line: Line | None) -> NewJob:
        """Return the job of a line.

        Args:
            batch: its row.
            number: of the line.
            custom_id: of the line.
            line: as `lines` yields it; None if the file ends before it.

        Raises:
            ProtocolError: it cannot become a job.
        """
        if line is None or line.text is None:
            raise InvalidRequestError("The input file was deleted.", code="file_not_found")
        data = batch_lines.parse_line(_without_mark(line.text, number))
        body = batch_lines.body_of(data, batch.endpoint)
        request = batch_lines.to_request(body, batch.endpoint, batch.chat_context)
        request, turns = resolve(request, self._database, batch.owner)
        job = new_job(request, self._tokens, turns)
        return replace(job, batch_id=batch.id, custom_id=custom_id)

    def refusal(self, error: Exception, batch_id: str, number: int) -> ProtocolError:
        """Return why a line is refused.

        Raises:
            Exception: the error itself, if it is transient.
        """
        if transient.is_transient(error):
            raise error
        refused = translate(error)
        if refused.kind is ErrorKind.INTERNAL:
            log.error("%s: line %d failed", batch_id, number, exc_info=error)
        return refused


def _without_mark(line: bytes, number: int) -> bytes:
    """Return a line without the byte order mark that some editors put before the first one."""
    return line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
