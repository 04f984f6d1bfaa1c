"""The API does what its description says, of valid requests and of others."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from openai import OpenAI
from playwright.sync_api import expect, sync_playwright

from tests import chromium
from tests.clients.server import Server, serving
from tests.polling import poll
from tests.servers import forked

#: Maximum seconds for all questions together, and for one reply.
PATIENCE, REPLY = 550.0, 60.0
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[Server]:
    with serving(socket_folder / "description") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        yield client


def test_whatever_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # It keeps files there.
    key = f"Authorization: Bearer {server.key}"
    command = ["--config-file", str(CONFIG), "run", f"{server.url}/openapi.json", "-H", key]
    asking = forked(*command, environ={}, program=(sys.executable, "-m", "schemathesis.cli"))
    status = asking.popen.wait(PATIENCE)
    asking.stop()
    assert status == 0, asking.output


def test_jobs_in_each_state(server: Server, client: OpenAI) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=REPLY)
    done = client.responses.create(model="helixnet", input="Why?", extra_body={"rounds": 2})
    turns = client.responses.create(
        model="helixnet",
        input=[
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": done.output_text},
            {"role": "user", "content": "How?"},
        ],
        metadata={"team": "a"},
        reasoning={"effort": "low"},
        extra_body={"context": "turns"},
    )
    cut = client.responses.create(model="helixnet", input="Why is that so?", max_output_tokens=1)
    running = client.responses.create(model="helixnet", input="An endless one.", background=True)
    for event in client.responses.retrieve(running.id, stream=True):
        if event.type == "response.reasoning_text.delta":
            break
    for path, method in [
        ("/v1/responses/{job_id}", "GET"),
        ("/api/jobs/{job_id}", "GET"),
        ("/v1/responses/{job_id}/input_items", "GET"),
        ("/v1/responses/{job_id}/cancel", "POST"),
        ("/api/jobs/{job_id}", "GET"),
        ("/v1/responses/{job_id}", "DELETE"),
    ]:
        for response in (done, turns, cut, running):
            case = api[path][method].Case(path_parameters={"job_id": response.id})
            reply = case.call_and_validate(
                timeout=REPLY, headers={"Authorization": f"Bearer {server.key}"}
            )
            assert reply.status_code == 200, reply.text


def has_ended(client: OpenAI, batch_id: str) -> bool:
    return client.batches.retrieve(batch_id).status in ("completed", "failed")


def test_files_and_batches(server: Server, client: OpenAI) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=REPLY)
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"input": "Why?"}}
    uploaded = client.files.create(
        file=("lines.jsonl", json.dumps(line).encode()), purpose="batch"
    ).id
    bad = client.files.create(file=("bad.jsonl", b"{}"), purpose="batch").id
    batches = [
        client.batches.create(
            input_file_id=file, endpoint="/v1/responses", completion_window="24h"
        ).id
        for file in (uploaded, bad)
    ]
    for path, method, ids in [
        ("/v1/batches/{batch_id}", "GET", batches),
        ("/v1/batches/{batch_id}/cancel", "POST", batches),
        ("/v1/files/{file_id}", "GET", [uploaded, bad]),
        ("/v1/files/{file_id}/content", "GET", [uploaded, bad]),
        ("/v1/files/{file_id}", "DELETE", [uploaded, bad]),
    ]:
        for each in ids:
            [parameter] = re.findall(r"{(\w+)}", path)
            case = api[path][method].Case(path_parameters={parameter: each})
            reply = case.call_and_validate(
                timeout=REPLY, headers={"Authorization": f"Bearer {server.key}"}
            )
            assert reply.status_code == 200, reply.text
            if path == "/v1/batches/{batch_id}":
                poll(partial(has_ended, client, each))
                case.call_and_validate(
                    timeout=REPLY, headers={"Authorization": f"Bearer {server.key}"}
                )
    [answered] = client.get("/responses", cast_to=dict[str, Any], options={"params": {"limit": 1}})[
        "data"
    ]
    case = api["/api/jobs/{job_id}"]["GET"].Case(path_parameters={"job_id": answered["id"]})
    reply = case.call_and_validate(timeout=REPLY, headers={"Authorization": f"Bearer {server.key}"})
    assert reply.json()["batch"] == {"id": batches[0], "custom_id": "a"}


def test_webhook_endpoints(server: Server, client: OpenAI) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=REPLY)
    headers = {"Authorization": f"Bearer {server.key}"}

    def call(path: str, method: str, body: Any = None, **parameters: str) -> Any:
        options = {} if body is None else {"body": body, "media_type": "application/json"}
        case = api[f"/v1/{path}"][method].Case(path_parameters=parameters, **options)
        reply = case.call_and_validate(timeout=REPLY, headers=headers)
        assert reply.status_code == 200, reply.text
        return reply.json()

    call("webhook_event_types", "GET")
    url = "https://receiver.invalid/hook"
    created = call(
        "webhook_endpoints",
        "POST",
        {"url": url, "name": "a", "event_types": ["response.failed", "response.completed"]},
    )["id"]
    client.responses.create(model="helixnet", input="Why?")
    one = "webhook_endpoints/{endpoint_id}"
    call("webhook_endpoints", "GET")
    call(one, "GET", endpoint_id=created)
    call(one, "POST", {"name": "b"}, endpoint_id=created)
    call(f"{one}/rotate_secret", "POST", {}, endpoint_id=created)

    def delivery() -> Any:
        [only] = call(f"{one}/deliveries", "GET", endpoint_id=created)["data"]
        return only

    call("webhook_deliveries/{delivery_id}/redeliver", "POST", delivery_id=delivery()["id"])
    poll(lambda: delivery()["attempts"])
    call(one, "DELETE", endpoint_id=created)


def test_lists_and_replays(server: Server, client: OpenAI) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=REPLY)
    headers = {"Authorization": f"Bearer {server.key}"}
    done = client.responses.create(model="helixnet", input="Why?")
    case = api["/api/jobs/{job_id}/replay"]["POST"].Case(path_parameters={"job_id": done.id})
    replay = case.call_and_validate(timeout=REPLY, headers=headers).json()["id"]
    poll(lambda: client.responses.retrieve(replay).status == "completed")
    case = api["/api/jobs/{job_id}"]["GET"].Case(path_parameters={"job_id": replay})
    assert (
        case.call_and_validate(timeout=REPLY, headers=headers).json()["replay"]["identical"]
        is not None
    )
    reply = (
        api["/api/jobs"]["GET"]
        .Case(query={"limit": 1})
        .call_and_validate(timeout=REPLY, headers=headers)
    )
    assert reply.json()["data"][0]["replay_of"] == done.id
    for grouping in ("hour", "model", "adapter", "metadata.team"):
        case = api["/api/stats"]["GET"].Case(query={"by": grouping})
        assert case.call_and_validate(timeout=REPLY, headers=headers).status_code == 200


def test_reviews_and_erasures(server: Server, client: OpenAI) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=REPLY)
    headers = {"Authorization": f"Bearer {server.key}"}
    done = client.responses.create(model="helixnet", input="Why?").id

    def call(path: str, method: str, body: Any = None, status: int = 200) -> Any:
        options = {} if body is None else {"body": body, "media_type": "application/json"}
        if "{job_id}" in path:
            options["path_parameters"] = {"job_id": done}
        reply = (
            api[f"/api{path}"][method]
            .Case(**options)
            .call_and_validate(timeout=REPLY, headers=headers)
        )
        assert reply.status_code == status, reply.text
        return reply.json()

    history, review = "/jobs/{job_id}", {"critique": 1, "regeneration": -1, "tags": ["a"]}
    call(f"{history}/reviews", "POST", {**review, "note": "x"}, 201)
    poll(lambda: call(history, "GET")["reviews"][0]["log"]["index"] is not None)
    call(f"{history}/reviews", "GET")
    call("/reviews/queue", "GET")
    call("/reviews/agreement", "GET")
    for texts in (["/question", "/reviews/0/note"], "all"):
        call(f"{history}/erase", "POST", {"texts": texts})
        call(history, "GET")
        call("/jobs", "GET")
    assert client.responses.retrieve(done).output_text == ""
    call("/jobs/erase", "POST", {"owner": "anonymous", "texts": "all"})
    call("/jobs/delete", "POST", {"metadata": {"no": "such"}})
    call(history, "DELETE")


def test_the_description_is_open(server: Server) -> None:
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui/swagger-ui.css"):
        reply = httpx2.get(f"{server.url}{path}", timeout=REPLY, trust_env=False)
        assert reply.status_code == 200


@pytest.mark.browser
def test_the_page_shows_it(server: Server) -> None:
    executable = chromium.executable()
    if executable is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(chromium.MISSING)
        pytest.skip(chromium.MISSING)
    complaints = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=chromium.ARGUMENTS)
        page = browser.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.goto(f"{server.url}/docs")
        operation = page.get_by_text("Accept a question").first
        expect(operation).to_be_visible(timeout=REPLY * 1000)
        operation.click()
        expect(page.get_by_text("Idempotency-Key", exact=True).first).to_be_visible(
            timeout=REPLY * 1000
        )
        browser.close()
    # No violation of the CSP either.
    assert complaints == []
