"""What is sent to a receiver, and what its reply means."""

from __future__ import annotations

import pytest

from jobs.webhooks import sending, targets


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://hooks.example/a", "hooks.example"),
        ("https://hooks.example:443/a", "hooks.example"),
        ("https://hooks.example:80/a", "hooks.example:80"),
        ("http://127.0.0.1/a", "127.0.0.1"),
        ("http://127.0.0.1:443/a", "127.0.0.1:443"),
        ("https://[2600::1]/a", "[2600::1]"),
        ("https://[2600::1]:8443/a", "[2600::1]:8443"),
    ],
)
def test_the_host_has_the_port_unless_it_is_the_schemes(url: str, host: str) -> None:
    target = targets.parse(url)
    headers = dict(sending._headers(target, {"webhook-id": "evt_1"}, b"{}"))
    assert headers[b"Host"] == host.encode()
    assert (headers[b"Content-Length"], headers[b"webhook-id"]) == (b"2", b"evt_1")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (199, "the receiver replied with 199"),
        (200, None),
        (299, None),
        (300, "the receiver replied with 300: redirects are not followed"),
        (399, "the receiver replied with 399: redirects are not followed"),
        (400, "the receiver replied with 400"),
    ],
)
def test_a_status_is_a_success_or_says_why_not(status: int, error: str | None) -> None:
    assert sending._status_error(status) == error
