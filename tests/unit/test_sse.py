"""Events as messages of server-sent events."""

from __future__ import annotations

import json

from web.v1 import sse


def test_a_message_has_an_id_a_type_and_the_event_on_one_line() -> None:
    event = {"type": "response.output_text.delta", "delta": "a\r\nb\u2028☃"}
    message = sse.message(event, 7)
    assert message.endswith(b"\n\n")
    lines = message.decode("ascii").rstrip("\n").split("\n")
    assert lines[:2] == ["id: 7", "event: response.output_text.delta"]
    assert len(lines) == 3
    assert json.loads(lines[2].removeprefix("data: ")) == {**event, "sequence_number": 7}


def test_a_keepalive_is_a_comment_that_ends_no_event() -> None:
    assert sse.KEEPALIVE.startswith(b":")
    assert sse.KEEPALIVE.count(b"\n") == 1
