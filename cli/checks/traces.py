"""The receiver of traces."""

from __future__ import annotations

from urllib.parse import urlsplit

from cli.checks.findings import Findings, error, ok
from jobs.settings import Settings
from jobs.telemetry import Exporter
from jobs.trace_receiver import ReceiverUnavailableError, SpansRefusedError, post

TIMEOUT = 5.0


def check(settings: Settings) -> Findings:
    """Whether the receiver of traces takes a request, which has no spans."""
    if settings.otlp_endpoint is None:
        yield ok("HELIXQ_OTLP_ENDPOINT is not set: no traces are sent")
        return
    # The address may have a password.
    address = urlsplit(settings.otlp_endpoint)
    place = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
    try:
        post(settings.otlp_endpoint, Exporter().to_protobuf([]), TIMEOUT)
    except (SpansRefusedError, ReceiverUnavailableError) as problem:
        reason = (
            f"refuses them: {problem}" if isinstance(problem, SpansRefusedError) else str(problem)
        )
        yield error(
            f"the receiver of traces at {place} {reason}: start it, or correct HELIXQ_OTLP_ENDPOINT"
        )
    else:
        yield ok(f"the receiver of traces at {place} takes them")
