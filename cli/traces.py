"""`helixq jobs export --format otlp`: histories as OpenTelemetry's traces, in a file or to a receiver."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import httpx2

from cli.errors import ExpectedError
from jobs.jsonl import read_lines
from jobs.telemetry import Exporter

#: Jobs of a request.
BATCH = 50
#: Bytes of a line of an export.
MAX_LINE = 1 << 26


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
    headers = {"Content-Type": "application/x-protobuf"}
    # Of the environment only SSL_CERT_FILE: no proxies.
    context = httpx2.create_ssl_context()
    with httpx2.Client(timeout=60, verify=context, trust_env=False) as http:
        for batch in _batches(export):
            data = exporter.to_protobuf(batch)
            try:
                reply = http.post(endpoint, content=data, headers=headers)
            except (httpx2.TransportError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
                raise ExpectedError(f"{endpoint} cannot be reached ({error})") from error
            if reply.is_error:
                raise ExpectedError(
                    f"{endpoint} refused the traces with the status {reply.status_code}, after {sent} were sent"
                )
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
