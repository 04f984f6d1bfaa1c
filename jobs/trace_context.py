"""W3C Trace Context: the trace that a job belongs to, and the ids of the job's own spans.

A request may have the header ``traceparent`` (https://www.w3.org/TR/trace-context/). The job keeps it in the database,
and not in the messages of the queue, which may be lost and published again: so all of its stages belong to that trace,
whoever publishes and runs them. A job without one is a trace of its own.

The ids of a job's own spans are hashes of the job's id: who sends the spans, and when, makes no difference. So the
worker can name the span of an attempt to a server elsewhere before the span is sent, and a job that is sent twice is
the same trace.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

#: The sizes of ids in bytes.
TRACE_ID, SPAN_ID = 16, 8
SAMPLED = 0x01
#: The flags that are known: sampled, and whether the id of the trace is random.
_KNOWN_FLAGS = 0x03
_TRACEPARENT = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-"
    r"(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
#: One or more members ``key=value``, in printable ASCII.
_TRACESTATE = re.compile(r"(?=.{3,512}\Z)[!-<>-~ ]+=[ -~]+")


@dataclass(frozen=True)
class TraceContext:
    """A span that is the parent of others."""

    #: In hexadecimal, as in the headers.
    trace_id: str
    span_id: str
    flags: int
    #: What tracing systems pass on to each other; it means nothing here.
    state: str | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether its spans are sent."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """The header that names it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request that is made within the span."""
        headers = {"traceparent": self.traceparent}
        return headers if self.state is None else {**headers, "tracestate": self.state}


def parse(traceparent: str | None, tracestate: str | None = None) -> TraceContext | None:
    """Return the context that headers name; None if there is none, or it is malformed: then a trace begins here."""
    match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent.strip(" \t"))
    if match is None or (match["version"] == "00" and match["more"]):
        return None
    valid = tracestate and _TRACESTATE.fullmatch(tracestate)
    flags = int(match["flags"], 16) & _KNOWN_FLAGS
    return TraceContext(match["trace"], match["span"], flags, tracestate if valid else None)


def of_job(job_id: str, traceparent: str | None) -> TraceContext:
    """Return the trace of a job: the one that its request belongs to, or its own; its span is the job's."""
    given = parse(traceparent)
    trace_id = _id(job_id, TRACE_ID) if given is None else given.trace_id
    flags = SAMPLED if given is None else given.flags
    return TraceContext(trace_id, _id(f"{job_id}/job", SPAN_ID), flags)


def of_attempt(
    job_id: str, number: int, traceparent: str | None, tracestate: str | None, *, is_sent: bool
) -> TraceContext | None:
    """Return the parent of the spans that a server elsewhere makes for an attempt; None for no parent.

    Args:
        job_id: of the job.
        number: see `attempt_span`.
        traceparent, tracestate: the job's.
        is_sent: whether the job's own spans are sent to a receiver. If not, the server's spans have the parent that
            the job's would have had.
    """
    if not is_sent:
        return parse(traceparent, tracestate)
    return replace(
        of_job(job_id, traceparent), span_id=attempt_span(job_id, number), state=tracestate
    )


def attempt_span(job_id: str, number: int) -> str:
    """Return the id of the span in which an attempt generates its text.

    Args:
        job_id: of the job.
        number: of the attempt among all of the job, from 0 on.
    """
    return _id(f"{job_id}/{number}", SPAN_ID)


def process_span(job_id: str, number: int) -> str:
    """Return the id of the span in which a worker processes the message of an attempt; see `attempt_span`."""
    return _id(f"{job_id}/{number}/process", SPAN_ID)


def review_span(job_id: str, review_id: str, number: int) -> str:
    """Return the id of the span of a review's rating of an attempt's text; see `attempt_span`."""
    return _id(f"{job_id}/{review_id}/{number}", SPAN_ID)


def _id(name: str, size: int) -> str:
    return hashlib.sha256(name.encode()).digest()[:size].hex()
