"""What webhooks connect to: public addresses, checked once, and servers whose certificate is valid."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path
from typing import Any

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS, DeliveryStatus
from jobs.use_cases import webhooks
from jobs.webhooks import sending as module
from jobs.webhooks.events import EVENT_TYPES
from tests.certificates import make_server_file
from tests.integration.webhooks.conftest import (
    Register,
    all_are,
    end_job,
    has_failed,
    make_due,
    sending,
    wait_for,
)
from tests.receiver import Receiver


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A fake resolver of names: it gives one list of addresses after the other, and the last one again."""
    answers: list[list[str]] = []
    real = socket.getaddrinfo

    def fake(host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in addresses
            ]
        return real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    return answers


def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(
    database: Database, receiver: Receiver, register: Register, resolver: list[list[str]]
) -> None:
    """DNS rebinding: the second answer would lead elsewhere."""
    endpoint = register(f"http://rebinding.example:{receiver.port}/hook")
    resolver += [["10.0.0.1", "127.0.0.1"], ["10.0.0.1"]]
    end_job(database)
    with sending(database):
        [webhook] = receiver.wait_for(1)
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    assert webhook.headers["host"] == f"rebinding.example:{receiver.port}"
    assert resolver == [["10.0.0.1"]], "one answer was used"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "::ffff:127.0.0.1", "fe80::1%lo"])
def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    database: Database,
    receiver: Receiver,
    register: Register,
    resolver: list[list[str]],
    address: str,
) -> None:
    endpoint = register(f"https://harmless.example:{receiver.port}/hook")
    resolver += [[address]]
    end_job(database)
    with sending(database, allowed=False):
        [delivery] = wait_for(database, endpoint, has_failed(1))
    [attempt] = delivery.attempts
    assert attempt["status_code"] is None
    assert "not a public address" in attempt["error"]
    assert receiver.received == []


def test_a_name_that_leads_nowhere_is_said(
    database: Database, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:  # A fake resolver.
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    endpoint = register("https://missing.example/hook")
    end_job(database)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with sending(database):
        [delivery] = wait_for(database, endpoint, has_failed(1))
    [attempt] = delivery.attempts
    assert attempt["error"] == (
        "the connection failed: the name missing.example cannot be resolved"
    )


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "localhost"])
def test_other_spellings_of_loopback_are_not_connected_to(
    database: Database, receiver: Receiver, host: str
) -> None:
    url = f"https://{host}:{receiver.port}/hook"
    try:
        endpoint = webhooks.create(
            database, ANONYMOUS, url=url, name="a", event_types=EVENT_TYPES, allowed=()
        )
    except webhooks.EndpointError:
        return  # It was seen through at once.
    end_job(database)
    with sending(database, allowed=False):
        [delivery] = wait_for(database, endpoint, has_failed(1))
    assert "not a public address" in delivery.attempts[0]["error"]
    assert receiver.received == []


def test_certificates_are_verified(
    database: Database, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, file = make_server_file(tmp_path / "tls")
    receiver = Receiver(certificate=file)
    receiver.url = receiver.url.replace("127.0.0.1", "localhost")
    module._ssl_context.cache_clear()
    endpoint = register(receiver.url)
    end_job(database)
    with sending(database):
        [delivery] = wait_for(database, endpoint, has_failed(1))
        assert "certificate" in delivery.attempts[0]["error"].lower()
        assert receiver.received == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        module._ssl_context.cache_clear()
        make_due(database)
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    module._ssl_context.cache_clear()
    receiver.close()
