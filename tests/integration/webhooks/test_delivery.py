"""Sending: attempts, retries, and faults of receivers."""

from __future__ import annotations

import datetime as dt
import itertools
import signal
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS, DeliveryStatus, WebhookDelivery, WebhookEndpoint
from jobs.use_cases import clock, deliveries, webhooks
from jobs.webhook_delivery import WebhookSending
from jobs.webhooks import sending as module
from tests.integration.webhooks.conftest import (
    LOOPBACK,
    Register,
    all_are,
    end_job,
    has_failed,
    list_all,
    make_due,
    sending,
    wait_for,
)
from tests.receiver import Receiver, status
from tests.servers import PATIENCE, PROGRAM, RedisServer, forked

URL = "http://127.0.0.1:9999/"


def wait_in(delivery: WebhookDelivery) -> float:
    """Return the seconds between the last attempt of a delivery and the next one."""
    assert delivery.next_attempt_at is not None
    last = delivery.attempts[-1]
    taken_at = dt.datetime.fromisoformat(last["at"])
    return (delivery.next_attempt_at - taken_at).total_seconds() - float(last["duration"])


def test_a_failed_delivery_is_tried_again_with_the_same_id(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.reply = status(500)
    end_job(database)
    with sending(database):
        began = time.monotonic()
        [delivery] = wait_for(database, endpoint, has_failed(1))
        assert delivery.status is DeliveryStatus.PENDING
        # A busy machine records a failure later.
        assert 3 < wait_in(delivery) < 7 + time.monotonic() - began
        make_due(database)
        began = time.monotonic()
        [delivery] = wait_for(database, endpoint, has_failed(2))
        assert 15 < wait_in(delivery) < 25 + time.monotonic() - began
        receiver.reply = status(200)
        make_due(database)
        [delivery] = wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    assert [attempt["status_code"] for attempt in delivery.attempts] == [500, 500, 200]
    assert delivery.attempts[0]["error"] == "the receiver replied with 500"
    first, second, third = receiver.received
    assert first.id == second.id == third.id == delivery.event_id
    assert first.body == second.body == third.body
    third.unwrap(endpoint.secret)


@pytest.mark.parametrize(("code", "honoured"), [(429, True), (503, True), (500, False)])
def test_retry_after_of_a_busy_receiver(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint, code: int, honoured: bool
) -> None:
    receiver.reply = status(code, Retry_After="600")
    end_job(database)
    with sending(database):
        [delivery] = wait_for(database, endpoint, has_failed(1))
    assert (wait_in(delivery) > 590) is honoured


def waits(database: Database, delivery: WebhookDelivery) -> float:
    """Return the seconds until the next attempt of a delivery."""
    assert delivery.next_attempt_at is not None
    return (delivery.next_attempt_at - clock.now(database)).total_seconds()


def test_a_clock_that_was_set_back_holds_up_no_webhook(
    database: Database,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither one that was never sent, nor one whose next attempt would be hours later."""
    monkeypatch.setattr("jobs.webhook_delivery.CLOCK_INTERVAL", 0.02)
    receiver.reply = status(500)
    end_job(database)
    make_due(database, seconds=7200)
    with sending(database):
        wait_for(database, endpoint, has_failed(1))
    make_due(database, seconds=7200)
    looks = itertools.count()

    def set_back(database: Database) -> dt.datetime:
        return clock.now(database) - dt.timedelta(seconds=7200 * (next(looks) > 0))

    monkeypatch.setattr("jobs.clock_watch.clock", SimpleNamespace(now=set_back))
    with sending(database):
        [delivery] = wait_for(database, endpoint, lambda found: waits(database, *found) < 3600)
    assert delivery.failures == 1
    assert waits(database, delivery) < 8


def test_after_a_day_a_delivery_is_given_up_and_can_be_repeated(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.reply = status(404)
    end_job(database)
    make_due(database, WebhookDelivery.give_up_at)
    with sending(database):
        [failed] = wait_for(database, endpoint, all_are(DeliveryStatus.FAILED))
        assert (failed.next_attempt_at, len(failed.attempts)) == (None, 1)
        receiver.reply = status(204)
        repeated = deliveries.redeliver(database, ANONYMOUS, failed.id)
        assert (repeated.status, repeated.failures) == (DeliveryStatus.PENDING, 0)
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
        # What was delivered can be repeated too, for a receiver that lost it.
        deliveries.redeliver(database, ANONYMOUS, failed.id)
        first, second, third = receiver.wait_for(3)
        [delivery] = wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    assert first.id == second.id == third.id
    assert [attempt["status_code"] for attempt in delivery.attempts] == [404, 204, 204]


def test_a_receiver_that_is_gone_disables_its_endpoint(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.reply = status(410)
    end_job(database)
    with sending(database):
        [delivery] = wait_for(database, endpoint, all_are(DeliveryStatus.FAILED))
        assert webhooks.get(database, None, endpoint.id).disabled_at is not None
        end_job(database)
        assert len(list_all(database, endpoint)) == 1, "later events are not even stored"
        with pytest.raises(deliveries.EndpointDisabledError, match=f"{endpoint.id} is disabled"):
            deliveries.redeliver(database, ANONYMOUS, delivery.id)

        receiver.reply = status(204)
        webhooks.update(database, ANONYMOUS, endpoint.id, allowed=LOOPBACK)
        deliveries.redeliver(database, ANONYMOUS, delivery.id)
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    assert len(receiver.received) == 2


def test_what_waits_for_a_receiver_that_is_gone_is_given_up(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    receiver.reply = status(500)
    end_job(database)
    with sending(database):
        wait_for(database, endpoint, has_failed(1))
        make_due(database, seconds=7200)  # The next attempt is long after the other job's.
        receiver.reply = status(410)
        end_job(database)
        wait_for(database, endpoint, all_are(DeliveryStatus.FAILED))
    assert len(receiver.received) == 2


def test_redirects_are_not_followed(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    other = Receiver()
    with sending(database):
        for code in (301, 302, 303, 307, 308):
            receiver.reply = status(code, Location=other.url)
            end_job(database)
            found = wait_for(database, endpoint, lambda found: found[-1].failures)
            attempt = found[-1].attempts[-1]
            assert (attempt["status_code"], "not followed" in attempt["error"]) == (code, True)
    assert other.received == []
    other.close()


def test_a_slow_receiver_holds_nobody_up(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint, register: Register
) -> None:
    """It gets some at a time, and no more until it has replied."""
    released = threading.Event()

    def hold(handler: BaseHTTPRequestHandler) -> None:
        assert released.wait(PATIENCE)
        status(204)(handler)

    slow = Receiver()
    slow.reply = hold
    slow_endpoint = register(slow.url)
    # A port where nobody listens.
    register("http://127.0.0.1:1999/")
    jobs = [end_job(database) for _ in range(30)]
    with sending(database):
        received = receiver.wait_for(len(jobs))
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
        assert len(slow.wait_for(8)) == 8
        assert len(list_all(database, slow_endpoint, DeliveryStatus.SENDING)) == 8
        released.set()
        slow.wait_for(len(jobs))
        wait_for(database, slow_endpoint, all_are(DeliveryStatus.DELIVERED))
    assert len({webhook.id for webhook in received}) == len(jobs)
    slow.close()


def test_a_receiver_that_works_again_gets_several_at_a_time(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    released = threading.Event()

    def hold(handler: BaseHTTPRequestHandler) -> None:
        assert released.wait(PATIENCE)
        status(204)(handler)

    receiver.reply = status(500)
    end_job(database)
    with sending(database):
        wait_for(database, endpoint, has_failed(1))
        receiver.reply = status(204)
        make_due(database)
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
        receiver.reply = hold
        for _ in range(3):
            end_job(database)
        receiver.wait_for(2 + 3)
        assert len(list_all(database, endpoint, DeliveryStatus.SENDING)) == 3
        released.set()
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))


def test_several_processes_send_an_event_once(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    jobs = [end_job(database) for _ in range(60)]
    url = database.engine.url.render_as_string(hide_password=False)
    others = [Database(url) for _ in range(2)]
    with sending(database), sending(others[0]), sending(others[1]):
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    ids = Counter(webhook.id for webhook in receiver.received)
    assert (len(ids), set(ids.values())) == (len(jobs), {1})
    for other in others:
        other.close()


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Reply without end, and so slowly that no single wait is long."""
    try:
        for letter in itertools.chain("HTTP/1.1 200 O", itertools.repeat("K")):
            handler.wfile.write(letter.encode())
            threading.Event().wait(0.1)
    except OSError:
        pass  # The sender has gone.


def flood(handler: BaseHTTPRequestHandler) -> None:
    """Reply with more than anybody would read."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass  # The sender has gone.


def break_off(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def talk_nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (drip, "no reply within"),
        (break_off, "the connection failed"),
        (talk_nonsense, "the connection failed"),
        (flood, None),
    ],
)
def test_replies_are_bounded(
    database: Database,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
    reply: Any,
    error: str | None,
) -> None:
    if reply is drip:
        monkeypatch.setattr(module, "TIMEOUT", 1.0)
    receiver.reply = reply
    end_job(database)
    with sending(database):
        [delivery] = wait_for(database, endpoint, lambda found: found[0].attempts)
    [attempt] = delivery.attempts
    if error is None:
        assert delivery.status is DeliveryStatus.DELIVERED
    else:
        assert error in attempt["error"]


def test_a_secret_that_was_rotated_signs_too_for_a_day(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    old = endpoint.secret
    new = webhooks.rotate_secret(database, ANONYMOUS, endpoint.id, keep_previous=True).secret
    assert new != old
    end_job(database)
    with sending(database):
        [webhook] = receiver.wait_for(1)
    for secret in (old, new):
        webhook.unwrap(secret)
    newest = webhooks.rotate_secret(database, ANONYMOUS, endpoint.id, keep_previous=False).secret
    end_job(database)
    with sending(database):
        webhook = receiver.wait_for(2)[1]
    webhook.unwrap(newest)
    assert webhook.headers["webhook-signature"].count("v1,") == 1


def test_a_process_killed_before_it_recorded_a_delivery_leaves_it_to_the_next(
    database: Database,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    environ = {
        "HELIXQ_DATABASE_URL": database.engine.url.render_as_string(hide_password=False),
        "HELIXQ_REDIS_URL": redis_server.url,
        "HELIXQ_DATA_DIR": str(tmp_path),
        "HELIXQ_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    doomed = (sys.executable, "-m", "tests.acceptance.doomed", "webhook_sent")
    end_job(database)
    process = forked("maintain", environ=environ, program=doomed)
    process.wait_for("dying")
    assert process.wait() == -signal.SIGKILL
    [first] = receiver.wait_for(1)
    [delivery] = list_all(database, endpoint)
    assert delivery.status is DeliveryStatus.SENDING
    make_due(database)  # as when its lease has expired
    process = forked("maintain", environ=environ, program=PROGRAM)
    second = receiver.wait_for(2)[1]
    [delivery] = wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    process.stop()
    assert first.id == second.id
    assert len(delivery.attempts) == 1, "of the first one nobody knows"


def test_a_process_that_stops_records_what_it_has_sent(
    database: Database,
    receiver: Receiver,
    endpoint: WebhookEndpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise it would be sent again."""
    monkeypatch.setattr("jobs.webhook_delivery.STOP_TIMEOUT", PATIENCE)
    duty = WebhookSending(database, LOOPBACK)

    def reply_at_the_stop(handler: BaseHTTPRequestHandler) -> None:
        assert duty.stopped.wait(PATIENCE)
        status(204)(handler)

    receiver.reply = reply_at_the_stop
    end_job(database)
    duty.start()
    receiver.wait_for(1)
    duty.stop()
    assert all_are(DeliveryStatus.DELIVERED)(list_all(database, endpoint))


def test_a_process_that_stops_gives_back_what_it_could_not_send(
    database: Database, receiver: Receiver, endpoint: WebhookEndpoint
) -> None:
    released = threading.Event()

    def hold(_: BaseHTTPRequestHandler) -> None:
        assert released.wait(PATIENCE)

    receiver.reply = hold
    end_job(database)
    with sending(database):
        receiver.wait_for(1)
    [delivery] = list_all(database, endpoint)
    assert (delivery.status, delivery.attempts) == (DeliveryStatus.PENDING, [])
    receiver.reply = status(204)
    with sending(database):
        wait_for(database, endpoint, all_are(DeliveryStatus.DELIVERED))
    released.set()
