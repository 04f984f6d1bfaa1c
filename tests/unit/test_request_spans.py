"""Spans of requests."""

from __future__ import annotations

import pytest

from web.request_spans import split_host


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("helixq.example", "helixq.example", None),
        ("helixq.example:8443", "helixq.example", 8443),
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("[::1]", "::1", None),
        ("[2001:db8::1]:8443", "2001:db8::1", 8443),
        ("helixq.example:99999", "helixq.example:99999", None),
        ("[::1", "[::1", None),
        ("helixq.example:", "helixq.example", None),
        ("", "", None),
    ],
)
def test_a_span_has_the_address_and_the_port_of_its_host(
    host: str, address: str, port: int | None
) -> None:
    assert split_host(host) == (address, port)
