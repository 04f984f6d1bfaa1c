"""Webhook endpoints over HTTP, with OpenAI's client and its types, and the receiver in the documents."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from werkzeug.serving import make_server

from jobs.models import ANONYMOUS
from jobs.use_cases import cancellation, webhooks, workers
from jobs.use_cases.workers import Runtime
from jobs.webhook_delivery import WebhookSending
from tests.conftest import WORKER
from tests.integration.rows import submit
from tests.integration.web.client import Client, ask, finish, services_of, serving
from tests.joining import shut_down
from tests.receiver import Receiver, status
from tests.servers import PATIENCE, RedisServer

DOCUMENT = Path(__file__).parents[3] / "docs" / "webhooks.md"
URL = "http://127.0.0.1:9999/hook"
EVENTS: Any = ["response.failed", "response.completed"]


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve an application; yield its URL."""
    server: Any = make_server("127.0.0.1", 0, app, threaded=True)
    server.daemon_threads = False  # closing waits for the requests that still run
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        shut_down(server, thread)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def web(database_url: str, redis_server: RedisServer, tokenizer_json: str) -> Iterator[Client]:  # noqa: ARG001 (of the fixture that it replaces)
    with serving(database_url, redis_server.url, WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8") as client:
        yield client


@pytest.fixture
def client(web: Client) -> Iterator[OpenAI]:
    with (
        served(web.application) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client


def test_openais_client_manages_endpoints(client: OpenAI, receiver: Receiver) -> None:
    assert "response.completed" in client.webhooks.event_types.list().data
    made = client.webhooks.create(url=URL, name="first", event_types=EVENTS)
    assert made.object == "webhook_endpoint"
    assert made.signing_secret.startswith("whsec_")
    assert made.event_types == ["response.completed", "response.failed"]
    second = client.webhooks.create(url=URL, name="second", event_types=["response.failed"])
    assert [endpoint.id for endpoint in client.webhooks.list()] == [second.id, made.id]
    assert [endpoint.id for endpoint in client.webhooks.list(limit=1)] == [second.id, made.id]

    found = client.webhooks.retrieve(made.id)
    assert (found.url, found.name, found.signing_secret_hint) == (
        *(URL, "first"),
        made.signing_secret[:10] + "…",
    )
    assert not hasattr(found, "signing_secret"), "it is shown once"
    updated = client.webhooks.update(made.id, url=receiver.url, name="renamed")
    assert (updated.url, updated.name, updated.event_types) == (
        *(receiver.url, "renamed"),
        made.event_types,
    )

    result = client.webhooks.test(made.id, event_type="response.failed")
    assert (result.status_code, result.success) == (204, True)
    [webhook] = receiver.received
    assert webhook.unwrap(made.signing_secret).type == "response.failed"
    receiver.reply = status(500)
    assert client.webhooks.test(made.id, event_type="batch.completed").status_code == 500
    with pytest.raises(APIStatusError, match="did not reply") as caught:
        client.webhooks.test(second.id, event_type="response.failed")
    assert caught.value.status_code == 424

    rotated = client.webhooks.rotate_secret(made.id)
    assert rotated.signing_secret != made.signing_secret
    again = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    client.webhooks.test(made.id, event_type="response.failed")
    for secret in (rotated.signing_secret, again.signing_secret):
        receiver.received[-1].unwrap(secret)
    assert client.webhooks.delete(made.id).deleted
    with pytest.raises(NotFoundError):
        client.webhooks.retrieve(made.id)


def test_what_is_wrong_with_an_endpoint_is_said(client: OpenAI) -> None:
    def refused(**changes: Any) -> str:
        values: dict[str, Any] = {"url": URL, "name": "a", "event_types": EVENTS}
        with pytest.raises(BadRequestError) as caught:
            client.webhooks.create(**{**values, **changes})
        [param] = changes
        assert caught.value.param == param
        return caught.value.message

    assert "10.0.0.1 is not a public address" in refused(url="https://10.0.0.1/")
    assert "user name" in refused(url="https://user@example.com/")
    assert "video.failed" in refused(event_types=["video.failed"])
    assert "At least one" in refused(event_types=[])
    assert "1 to 100" in refused(name="")
    for number in range(webhooks.MAX_ENDPOINTS):
        client.webhooks.create(url=URL, name=str(number), event_types=EVENTS)
    assert "at most 20" in refused(url=URL)


def test_deliveries_are_listed_and_repeated(web: Client) -> None:
    database = services_of(web).database
    body = {"url": URL, "name": "a", "event_types": ["response.cancelled"]}
    endpoint = web.post("/v1/webhook_endpoints", json=body).json["id"]
    jobs = [submit(database) for _ in range(3)]
    for job in jobs:
        cancellation.cancel(database, ANONYMOUS, job.id)
    path = f"/v1/webhook_endpoints/{endpoint}/deliveries"
    first = web.get(f"{path}?limit=2&order=asc").json
    rest = web.get(f"{path}?limit=2&order=asc&after={first['last_id']}").json
    found = [*first["data"], *rest["data"]]
    assert [delivery["event"]["data"]["id"] for delivery in found] == [job.id for job in jobs]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert {delivery["status"] for delivery in found} == {"pending"}
    assert web.get(f"{path}?status=failed").json["data"] == []
    again = web.post(f"/v1/webhook_deliveries/{found[0]['id']}/redeliver")
    assert (again.status_code, again.json["event"]) == (200, found[0]["event"])
    for lost in ("whd_0", "whd_%00", "x"):
        assert web.post(f"/v1/webhook_deliveries/{lost}/redeliver").status_code == 404
    assert web.get("/v1/webhook_endpoints/we_%00").status_code == 404
    assert web.get(f"{path}?after=whd_0").json["error"]["code"] == "invalid_cursor"


def test_the_receiver_in_the_document(
    web: Client, client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job ends, and the receiver has its answer."""
    [code] = re.findall(
        r"```python\n(import os\n\nfrom flask.*?)```", DOCUMENT.read_text(), re.DOTALL
    )
    url = str(client.base_url).rstrip("/")
    names: dict[str, Any] = {"__name__": __name__}
    with served(Flask("placeholder")) as placeholder:
        pass
    made = client.webhooks.create(
        url=f"{placeholder}/hook", name="document", event_types=["response.completed"]
    )
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", made.signing_secret)
    exec(code.replace("http://127.0.0.1:8000/v1", url), names)  # noqa: S102 (the document's)
    receiver: Flask = names["app"]
    arrived = threading.Event()

    @receiver.after_request
    def _notify(reply: Response) -> Response:
        if reply.status_code == 204:
            arrived.set()
        return reply

    assert receiver.test_client().post("/hook", data=b"{}").status_code == 400

    database = services_of(web).database
    with served(receiver) as receiver_url:
        client.webhooks.update(made.id, url=f"{receiver_url}/hook")
        job = ask(web)
        _register_worker(web)
        finish(database, job["id"])
        duty = WebhookSending(database, services_of(web).settings.webhook_allowed_networks)
        duty.start()
        try:
            assert arrived.wait(PATIENCE)
        finally:
            duty.stop()
    assert names["answers"] == {job["id"]: "A text."}


def _register_worker(web: Client) -> None:
    workers.register(
        services_of(web).database, WORKER, "localhost", 1, Runtime({"engine": "none"}, 4096, "{}")
    )
