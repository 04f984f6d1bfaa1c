"""Parsing of bodies, and their digests."""

from __future__ import annotations

import pytest

from jobs.protocol.body import MAX_DEPTH, digest, parse
from jobs.protocol.errors import InvalidRequestError


def test_a_json_object_is_parsed() -> None:
    assert parse('{"input": "Wör?", "seed": 1}'.encode()) == {"input": "Wör?", "seed": 1}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"seed": NaN}', "invalid_json"),
        (b'{"seed": -Infinity}', "invalid_json"),
        (b'{"seed": 1e400}', "invalid_json"),
        (b"[1]", "invalid_type"),
        (b'"text"', "invalid_type"),
    ],
)
def test_invalid_bodies_are_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequestError) as excinfo:
        parse(body)
    assert excinfo.value.code == code
    assert "recursion" not in excinfo.value.message, "Python's own messages are not passed on"
    assert "sys." not in excinfo.value.message


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_body_is_said_to_be_empty(body: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="body is empty"):
        parse(body)


@pytest.mark.parametrize(
    "same",
    [
        '{"temperature": 1, "input": "Why?"}',
        '{"input":"Why?","temperature":1.0}',
        '{"input": "Why?", "temperature": 1, "seed": null}',
    ],
)
def test_a_digest_ignores_notation(same: str) -> None:
    assert digest(parse(same.encode())) == digest({"input": "Why?", "temperature": 1})


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("622.0", 622),
        ("1e2", 100),
        ("-0.0", 0),
        ("9007199254740991.0", 2**53 - 1),
        ("0.5", 0.5),
        ("9007199254740993.0", 2.0**53),  # beyond what is exact it is no integer
    ],
)
def test_a_number_without_a_fraction_is_an_integer(written: str, number: float) -> None:
    found = parse(b'{"a": [%s]}' % written.encode())["a"][0]
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize(
    "body",
    [
        {"input": "How?"},
        {"input": "Why?", "seed": 0},
        {"input": "Why?", "background": True},
        {"input": "Why?", "metadata": {"a": "1"}},
    ],
)
def test_different_requests_have_different_digests(body: dict[str, object]) -> None:
    assert digest(body) != digest({"input": "Why?"})


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 900])
def test_a_body_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    assert parse(nested(MAX_DEPTH))
    with pytest.raises(InvalidRequestError, match="more than 100 arrays and objects"):
        parse(nested(depth))


def nested(depth: int) -> bytes:
    """Return a body with so many objects within each other."""
    return b'{"input":' * depth + b"1" + b"}" * depth
