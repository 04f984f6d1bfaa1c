"""Server-sent events: how events are framed in a stream.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from jobs.protocol.events import Event, Pieces, to_json

#: A comment that shows that a silent stream is alive. It is one line, without the empty line that would
#: end an event: the official OpenAI clients hand out an event without data there, once they have seen
#: an ``id``, and fail to parse it. For the same reason the streams have no ``retry`` field.
KEEPALIVE = b": waiting\n"


def message(event: Event, sequence_number: int) -> bytes:
    """Return an event as a message of a stream."""
    return _message(event["type"], to_json(event, sequence_number), sequence_number)


def piece_messages(pieces: Pieces, text: str, sequence_number: int) -> list[bytes]:
    """Return the events of a piece of a text as messages of a stream.

    Args:
        pieces: makes the events.
        text: of the piece.
        sequence_number: of its first event.
    """
    events = pieces.to_json(text, sequence_number)
    return [_message(*event, number) for number, event in enumerate(events, sequence_number)]


def _message(kind: str, data: str, sequence_number: int) -> bytes:
    # The id lets a browser's EventSource resume by itself after a lost connection.
    return f"id: {sequence_number}\nevent: {kind}\ndata: {data}\n\n".encode("ascii")


def data_message(data: str) -> bytes:
    """Return a message that is data alone, as the streams of chat completions have them."""
    return f"data: {data}\n\n".encode("ascii")


def events_of(messages: bytes) -> list[str]:
    """Return the data of some messages, each an event as JSON."""
    return [
        line.removeprefix("data: ")
        for line in messages.decode("ascii").split("\n")
        if line.startswith("data: ")
    ]
