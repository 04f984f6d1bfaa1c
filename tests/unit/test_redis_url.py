"""redis-py and Kombu read a Redis URL in the same way."""

from __future__ import annotations

from typing import Any

import kombu
import pytest
import redis

from jobs.redis_url import broker_options, checked

PASSWORD = "p/w:%?#é@"
QUOTED = "p%2Fw%3A%25%3F%23%C3%A9%40"


def kombu_reads(url: str) -> dict[str, Any]:
    options = broker_options(url)
    connection = kombu.Connection(options["broker_url"], ssl=options.get("broker_use_ssl", False))
    virtual: Any = connection.transport
    channel = virtual.Channel.__new__(virtual.Channel)
    channel.connection = virtual
    parameters: dict[str, Any] = channel._connparams()
    return parameters


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0}),
        ("redis://", {"host": "localhost", "port": 6379, "db": 0}),
        ("redis:///2", {"host": "localhost", "port": 6379, "db": 2}),
        ("redis://h?db=3", {"host": "h", "port": 6379, "db": 3}),
        ("redis://[::1]:7000/1", {"host": "::1", "port": 7000, "db": 1}),
        (
            f"redis://us%40er:{QUOTED}@h/1",
            {"host": "h", "db": 1, "username": "us@er", "password": PASSWORD},
        ),
        (f"redis://:{QUOTED}@h", {"host": "h", "password": PASSWORD, "db": 0}),
        ("unix:///run/redis.sock", {"path": "/run/redis.sock", "db": 0}),
        ("unix:///run/a b%23.sock?db=3", {"path": "/run/a b#.sock", "db": 3}),
        (
            f"unix://us%40er:{QUOTED}@/run/redis.sock?db=3",
            {"path": "/run/redis.sock", "db": 3, "username": "us@er", "password": PASSWORD},
        ),
        ("rediss://h/1?ssl_ca_certs=/a%20b.pem", {"host": "h", "ssl_ca_certs": "/a b.pem"}),
        ("rediss://h?ssl_cert_reqs=none", {"host": "h", "ssl_cert_reqs": "none"}),
        ("rediss://h?ssl_check_hostname=false", {"host": "h", "ssl_check_hostname": False}),
    ],
)
def test_redis_py_and_kombu_read_the_same(url: str, expected: dict[str, Any]) -> None:
    spelled = checked(url)
    assert checked(spelled) == spelled
    by_redis_py = redis.ConnectionPool.from_url(spelled).connection_kwargs
    by_kombu = kombu_reads(spelled)
    for parameters in (by_redis_py, by_kombu):
        assert {name: parameters.get(name) for name in expected} == expected


def test_certificates_are_verified_by_default() -> None:
    assert broker_options(checked("rediss://h/0"))["broker_use_ssl"] == {
        "ssl_cert_reqs": "required"
    }
