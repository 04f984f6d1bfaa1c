"""`helixq jobs export --format otlp`: histories as OpenTelemetry's traces, in a file or to a receiver."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from cli.errors import ExpectedError
from jobs.jsonl import read_lines
from jobs.telemetry import Exporter
from jobs.trace_receiver import ReceiverUnavailableError, SpansRefusedError, post

#: Jobs of a request.
BATCH = 50
#: Bytes of a line of an export.
MAX_LINE = 1 << 26
#: Seconds that a receiver may take for a request.
TIMEOUT = 60.0


def in_json(export: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines of OTLP's JSON, a request each.

    Args:
        export: pieces of an export of histories as JSON Lines.
    """
    exporter = Exporter()
    for batch in _batches(export):
        yield f"{exporter.to_json(batch)}\n".encode()


def send(endpoint: str, export: Iterable[bytes]) -> int:
    """Send traces to a receiver; return how many.

    Args:
        endpoint: the receiver's URL.
        export: pieces of an export of histories as JSON Lines.

    Raises:
        ExpectedError: it cannot be reached, or refuses them.
    """
    exporter, sent = Exporter(), 0
    for batch in _batches(export):
        try:
            post(endpoint, exporter.to_protobuf(batch), TIMEOUT)
        except ReceiverUnavailableError as error:
            raise ExpectedError(
                f"{endpoint} {error}, after {sent} traces were sent: check the address, or try again"
            ) from error
        except SpansRefusedError as error:
            raise ExpectedError(
                f"{endpoint} refused the traces with the {error}, after {sent} were sent"
            ) from error
        sent += len(batch)
    return sent


def _batches(export: Iterable[bytes]) -> Iterator[list[dict[str, Any]]]:
    """Yield the histories of jobs that have ended."""
    pieces = iter(export)
    lines = read_lines(lambda _: next(pieces, b""), 0, max_length=MAX_LINE)
    histories = (json.loads(line.text) for line in lines if line.text)
    ended = (history for history in histories if history["finished_at"] is not None)
    while batch := list(islice(ended, BATCH)):
        yield batch
