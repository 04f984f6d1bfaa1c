"""What holds for the requests of every route of the API: idempotency keys, and parameters that are empty or unknown."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.models import Scope
from jobs.use_cases import stages
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.web.client import ask, finish, services_of
from tests.integration.web.test_every_route import ROUTES, VARIABLES, filled, make_things
from tests.integration.web.with_keys import code, program
from tests.receiver import Receiver
from web.openapi.document import described_routes


@dataclass(frozen=True)
class Keyed:
    """What is sent with an idempotency key, first and in another request with the same key."""

    #: The JSON or the form of both; None for no body. Then the other request is about another thing.
    bodies: tuple[Any, Any] | None = None
    #: The status of the job that it is about.
    job: str = "in_progress"
    form: bool = False
    #: Of the reply.
    status: int = 200


def variants(one: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    return one, {**one, **changes}


ENDPOINT = {"url": "{receiver}", "name": "a", "event_types": ["response.cancelled"]}
BATCH = {"input_file_id": "{file}", "endpoint": "/v1/responses", "completion_window": "24h"}
QUESTION = {"input": "Why?", "background": True}
FILE = {"purpose": "batch", "file": b"{}\n"}
CHAT = {"messages": [{"role": "user", "content": "Why?"}]}
#: Every POST of the API that makes or changes something.
KEYED = {
    "POST /api/jobs/<job_id>/replay": Keyed(job="completed", status=202),
    "POST /api/jobs/<job_id>/retry": Keyed(job="failed", status=202),
    "POST /api/jobs/<job_id>/reviews": Keyed(
        variants({"critique": 1}, critique=0), job="completed", status=201
    ),
    "POST /api/jobs/<job_id>/erase": Keyed(
        variants({"texts": ["/system"]}, texts=["/question"]), job="completed"
    ),
    "POST /api/jobs/erase": Keyed(
        variants({"owner": "{owner}", "texts": ["/system"]}, texts=["/question"]), job="completed"
    ),
    "POST /api/jobs/delete": Keyed(
        variants({"owner": "{owner}", "metadata": {"a": "b"}}, metadata={"a": "c"})
    ),
    "POST /api/system/pause": Keyed(variants({"note": "a"}, note="b")),
    "POST /api/system/resume": Keyed(({}, {"a": None})),
    "POST /v1/batches": Keyed(variants(BATCH, metadata={"a": "b"})),
    "POST /v1/batches/<batch_id>/cancel": Keyed(),
    # The server is shutting down, and the reply names the job.
    "POST /v1/chat/completions": Keyed(variants(CHAT, temperature=0.5), status=503),
    "POST /v1/files": Keyed(variants(FILE, file=b"[]\n"), form=True),
    "POST /v1/responses": Keyed(variants(QUESTION, temperature=0.5), status=202),
    "POST /v1/responses/<job_id>/cancel": Keyed(),
    "POST /v1/webhook_deliveries/<delivery_id>/redeliver": Keyed(),
    "POST /v1/webhook_endpoints": Keyed(variants(ENDPOINT, name="b")),
    "POST /v1/webhook_endpoints/<endpoint_id>": Keyed(variants({"name": "b"}, name="c")),
    "POST /v1/webhook_endpoints/<endpoint_id>/rotate_secret": Keyed(
        ({}, {"keep_old_secret_active_for_24_hours": True})
    ),
    "POST /v1/webhook_endpoints/<endpoint_id>/test": Keyed(
        variants({"event_type": "response.failed"}, event_type="response.completed")
    ),
}
#: A POST that makes and changes nothing.
READS = {"POST /v1/responses/input_tokens"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def make_jobs(owner: Any) -> dict[str, str]:
    """Make a job of each status that a route needs, those that have ended with an entry in the log."""
    database = services_of(owner).database
    made = {status: ask(owner)["id"] for status in ("in_progress", "completed", "failed")}
    finish(database, made["in_progress"], 1)
    finish(database, made["completed"])
    claim = stages.claim(database, made["failed"], 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "It broke.")
    seal(database)
    return made


def test_every_post_of_the_api_is_done_once_for_an_idempotency_key_and_takes_no_unknown_parameter(
    site: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = {route for route in ROUTES if route.startswith(("POST /v1/", "POST /api/"))}
    assert posts - READS == set(KEYED)
    client = program(site, Scope.ADMIN)
    # Requests that wait for jobs are replied to at once.
    monkeypatch.setattr(services_of(client).waiter, "stopping", lambda: True)
    things, others = ({**make_things(client), "receiver": receiver.url} for _ in range(2))
    assert client.post(f"/v1/webhook_endpoints/{things['endpoint']}", json={"url": receiver.url})
    jobs, other_jobs = make_jobs(client), make_jobs(client)

    def send(route: str, of: dict[str, str], body: Any, key: str) -> Any:
        path = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: VARIABLES[match[1]], route.split(" ")[1])
        content: dict[str, Any] = {} if body is None else {"json": filled(body, of)}
        if KEYED[route].form:
            content = {"data": {**body, "file": (io.BytesIO(body["file"]), "in.jsonl")}}
        headers = {"Idempotency-Key": key}
        return client.post(filled(path, of), headers=headers, buffered=True, **content)

    for route, keyed in KEYED.items():
        own, theirs = {**things, "job": jobs[keyed.job]}, {**others, "job": other_jobs[keyed.job]}
        one, other = keyed.bodies or (None, None)
        first = send(route, own, one, route)
        assert first.status_code == keyed.status, (route, first.text)
        again = send(route, own, one, route)
        assert (again.status_code, again.json) == (first.status_code, first.json), route
        assert again.headers.get("Location") == first.headers.get("Location"), route
        changed = send(route, own if keyed.bodies else theirs, other, route)
        assert code(changed) == (422, "idempotency_key_reused"), route
        assert code(send(route, own, one, "k" * 256)) == (400, "invalid_idempotency_key"), route
        odd = {**(one or {}), "surprise": "1"}
        refused = send(route, own, odd, f"{route} with a surprise")
        assert code(refused) == (400, "unknown_parameter"), (route, refused.text)
    assert len(receiver.received) == 1, "the sample of an event was sent once"


def test_every_query_parameter_may_be_empty_and_an_unknown_one_is_refused(site: Any) -> None:
    client = program(site, Scope.ADMIN)
    things = make_things(client)
    checked = set()
    for rule, method, operation in described_routes(site):
        names = {p.name for p in operation.parameters if p.place == "query"}
        if method != "GET" or not names or not rule.rule.startswith(("/v1/", "/api/")):
            continue
        path = re.sub(r"<(?:\w+:)?(\w+)>", lambda match: VARIABLES[match[1]], rule.rule)
        # An export of no jobs is no export of all.
        empty = dict.fromkeys(names - {"ids"}, "")
        replies = [client.get(filled(path, things), query_string=q) for q in ({}, empty)]
        # The address of the next page repeats what was asked.
        data = [re.sub(rb'"next":"[^"]*"', b"", reply.data) for reply in replies]
        assert data[0] == data[1], rule.rule
        assert replies[0].status_code == replies[1].status_code, rule.rule
        reply = client.get(filled(path, things), query_string={"statsu": "failed"})
        assert code(reply) == (400, "unknown_parameter"), rule.rule
        if rule.rule.startswith("/v1/"):
            neutral = "include[]=a&include[]=b&include=c&include_obfuscation=false&beta=true&api-version=1"
            reply = client.get(filled(path, things), query_string=neutral)
            assert reply.data == replies[0].data, rule.rule
        checked.add(rule.rule)
    assert len(checked) > 10
    # What takes no parameters looks at none.
    assert client.get("/v1/models?client_version=1").status_code == 200
