"""redis-py and Kombu read a Redis URL in the same way."""

from __future__ import annotations

from typing import Any

import kombu
import pytest
import redis

from jobs.queue import make_app
from jobs.redis_clients import connect, make_pool
from jobs.redis_url import broker_options, checked

PASSWORD = "p/w:%?#é@"
QUOTED = "p%2Fw%3A%25%3F%23%C3%A9%40"


def kombu_reads(url: str) -> dict[str, Any]:
    options = broker_options(url)
    connection = kombu.Connection(
        options["broker_url"],
        transport=options["broker_transport"],
        ssl=options.get("broker_use_ssl", False),
    )
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


@pytest.mark.parametrize(
    ("url", "sentinels", "name", "expected"),
    [
        ("redis+sentinel://a,b:7000,c/main", ["a:26379", "b:7000", "c:26379"], "main", {"db": 0}),
        ("redis+sentinel://a,[::1]:7000/m", ["a:26379", "::1:7000"], "m", {"db": 0}),
        (
            f"redis+sentinel://us%40er:{QUOTED}@a,b/ma%2Fin/3?sentinel_username=s&sentinel_password=t%26",
            ["a:26379", "b:26379"],
            "ma/in",
            {"db": 3, "username": "us@er", "password": PASSWORD},
        ),
        (
            "rediss+sentinel://a/m?db=2&ssl_check_hostname=false",
            ["a:26379"],
            "m",
            {"db": 2, "ssl_cert_reqs": "required", "ssl_check_hostname": False},
        ),
    ],
)
def test_the_queue_and_all_others_ask_the_same_sentinels(
    url: str, sentinels: list[str], name: str, expected: dict[str, Any]
) -> None:
    spelled = checked(url)
    assert checked(spelled) == spelled
    connection: Any = make_app(spelled).connection_for_read()
    virtual: Any = connection.transport
    channel = virtual.Channel.__new__(virtual.Channel)
    channel.connection = virtual
    channel.redis_url = connection.transport_options["redis_url"]
    channel.socket_timeout = 3.0
    pools: list[Any] = [make_pool(spelled, timeout=3.0), channel._sentinel_managed_pool()]
    for pool in pools:
        assert pool.service_name == name
        parameters = pool.connection_kwargs
        assert {key: parameters.get(key) for key in expected} == expected
        asked: list[Any] = [
            each.get_connection_kwargs() for each in pool.sentinel_manager.sentinels
        ]
        assert [f"{each['host']}:{each['port']}" for each in asked] == sentinels
        own = {each["username"] for each in asked}, {each["password"] for each in asked}
        assert own == (({"s"}, {"t&"}) if "sentinel_username" in url else ({None}, {None}))
        ssl = {each.get("ssl_check_hostname") for each in asked}
        assert ssl == ({False} if "rediss" in url else {None})


def test_sentinels_that_do_not_answer_are_named_and_no_password_is() -> None:
    url = checked(
        "redis+sentinel://:hunter2@127.0.0.1:1,127.0.0.1:2/main?sentinel_password=hunter3"
    )
    with pytest.raises(redis.ConnectionError) as excinfo:
        connect(url, timeout=1.0).ping()
    message = str(excinfo.value)
    assert message.startswith("no sentinel knows a primary main that is up: 127.0.0.1:1: ")
    assert "; 127.0.0.1:2: " in message
    assert "hunter" not in message
    assert "\n" not in message
