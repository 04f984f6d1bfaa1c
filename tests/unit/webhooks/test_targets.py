"""Which URLs and addresses webhooks may be sent to."""

from __future__ import annotations

import ipaddress

import pytest

from jobs.setting_values import networks
from jobs.webhooks import targets
from jobs.webhooks.targets import TargetError

SPECIAL = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255"),  # noqa: S104 (none is bound to)
    *("127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1"),
    *("2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1"),
    *("169.253.1.1", "192.169.0.1", "198.17.0.1", "198.20.0.1", "223.255.255.255"),
    *("2606:4700:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8"),
]


@pytest.mark.parametrize("address", SPECIAL)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    reason = targets.refusal(ipaddress.ip_address(address), [], encrypted=True)
    assert reason is not None
    assert "not a public address" in reason


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_need_tls(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert targets.refusal(parsed, [], encrypted=True) is None
    assert "needs https" in str(targets.refusal(parsed, [], encrypted=False))


def test_networks_that_are_allowed_need_no_tls() -> None:
    allowed = networks("10.1.0.0/16, fd00::/8")
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1"):
        assert targets.refusal(ipaddress.ip_address(address), allowed, encrypted=False) is None
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        assert targets.refusal(ipaddress.ip_address(address), allowed, encrypted=True) is not None
    assert targets.refusal(ipaddress.ip_address("8.8.8.8"), allowed, encrypted=False) is not None


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("https://example.com", ("https", "example.com", 443, "/")),
        (
            "HTTPS://example.com:8443/a/b?c=d&e=%20",
            ("https", "example.com", 8443, "/a/b?c=d&e=%20"),
        ),
        ("https://example.com?x=1", ("https", "example.com", 443, "/?x=1")),
        ("http://[::1]:8080/", ("http", "::1", 8080, "/")),
        ("https://a_b.example.", ("https", "a_b.example.", 443, "/")),
        ("https://example.com/~a@b:c;d=[1]", ("https", "example.com", 443, "/~a@b:c;d=[1]")),
    ],
)
def test_urls(url: str, parts: tuple[object, ...]) -> None:
    target = targets.parse(url)
    assert (target.scheme, target.host, target.port, target.target) == parts


@pytest.mark.parametrize(
    "url",
    [
        *("", "example.com", "ftp://example.com/", "file:///etc/passwd", "https://", "https:///a"),
        *("https://user@example.com/", "https://user:password@example.com/", "https://@a.example/"),
        *("https://example.com/#a", "https://exa mple.com/", "https://example.com/\r\nHost: a"),
        *("https://example.com\\@127.0.0.1/", "https://exämple.com/", "https://example.com/ä"),
        *("https://example.com:22/", "https://example.com:25/", "https://example.com:0/"),
        *(
            "https://example.com:65536/",
            "https://example.com:x/",
            "https://[::1/",
            "https://[::g]/",
        ),
        *("https://[1.2.3.4]x/", "https://a..example/", f"https://{'a' * 64}.example/"),
        *(f"https://example.com/{'a' * 2048}", "https://example.com/\0", "https://example.com\n"),
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(TargetError):
        targets.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        *("https://localhost/", "https://LOCALHOST./", "https://127.0.0.1/", "https://[::1]/"),
        *("https://169.254.169.254/latest/meta-data", "https://[::ffff:10.0.0.1]/"),
        *("https://[64:ff9b::7f00:1]/", "http://8.8.8.8/", "http://example.com/"),
    ],
)
def test_urls_that_are_refused_at_registration(url: str) -> None:
    with pytest.raises(TargetError):
        targets.check(url, [])


def test_urls_that_may_be_registered() -> None:
    targets.check("https://example.com/", [])
    loopback = networks("127.0.0.0/8")
    for url in ("http://127.0.0.1:8080/", "http://localhost:8080/", "http://name.internal/"):
        targets.check(url, loopback)
