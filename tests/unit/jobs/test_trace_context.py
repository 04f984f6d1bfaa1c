"""W3C Trace Context: which headers count, and what a server elsewhere gets."""

from __future__ import annotations

import pytest

from jobs import trace_context

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (SAMPLED, 1),
        (f" {SAMPLED}\t", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        # Of unknown flags nothing is passed on.
        (f"00-{TRACE}-{SPAN}-ff", 3),
        # A later version may have more.
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", 1),
    ],
)
def test_headers_that_name_a_span(given: str, flags: int) -> None:
    found = trace_context.parse(given)
    assert found is not None
    assert (found.trace_id, found.span_id, found.flags) == (TRACE, SPAN, flags)
    assert found.is_sampled == bool(flags & 1)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-{flags:02x}"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        SAMPLED.upper(),
        f"{SAMPLED}-more",
        f"{SAMPLED}\n",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
    ],
)
def test_headers_that_do_not(given: str | None) -> None:
    assert trace_context.parse(given, "a=b") is None


def test_what_others_pass_on_is_kept_if_it_can_be_a_header() -> None:
    for state, kept in (
        ("a=b,c@d=e f", True),
        ("", False),
        ("a", False),
        ("a=\n", False),
        ("a=é", False),
        (f"a={'b' * 510}", True),
        (f"a={'b' * 511}", False),
    ):
        found = trace_context.parse(SAMPLED, state)
        assert found is not None
        assert found.headers == {"traceparent": SAMPLED, **({"tracestate": state} if kept else {})}


def test_a_server_elsewhere_gets_the_span_that_is_sent_or_the_clients() -> None:
    own = trace_context.of_attempt("resp_1", 2, SAMPLED, "a=b", is_sent=True)
    assert own is not None
    assert (own.trace_id, own.span_id) == (TRACE, trace_context.attempt_span("resp_1", 2))
    assert own.headers["tracestate"] == "a=b"
    clients = trace_context.of_attempt("resp_1", 2, SAMPLED, "a=b", is_sent=False)
    assert clients is not None
    assert clients.headers == {"traceparent": SAMPLED, "tracestate": "a=b"}
    # Of a job whose request had none.
    alone = trace_context.of_attempt("resp_1", 2, None, None, is_sent=True)
    assert alone is not None
    assert (alone.trace_id, alone.flags) == (trace_context.of_job("resp_1", None).trace_id, 1)
    assert trace_context.of_attempt("resp_1", 2, None, None, is_sent=False) is None
