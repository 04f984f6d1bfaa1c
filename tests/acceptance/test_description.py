"""The API does what its description says, of valid requests and of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from openai import OpenAI
from playwright.sync_api import expect, sync_playwright

from tests import chromium
from tests.clients.server import Server, serving

CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[Server]:
    with serving(socket_folder / "description") as server:
        yield server


def test_whatever_is_asked(server: Server, tmp_path: Path) -> None:
    key = f"Authorization: Bearer {server.key}"
    command = ["--config-file", str(CONFIG), "run", f"{server.url}/openapi.json", "-H", key]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *command],
        cwd=tmp_path,  # It keeps files there.
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_jobs_in_each_state(server: Server) -> None:
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    client = OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
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
            reply = case.call_and_validate(headers={"Authorization": f"Bearer {server.key}"})
            assert reply.status_code == 200, reply.text


def test_the_description_is_open(server: Server) -> None:
    for path in ("/openapi.json", "/docs", "/docs/swagger-ui/swagger-ui.css"):
        assert httpx2.get(f"{server.url}{path}", trust_env=False).status_code == 200


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
        expect(operation).to_be_visible(timeout=30_000)
        operation.click()
        expect(page.get_by_text("Idempotency-Key", exact=True).first).to_be_visible()
        browser.close()
    # No violation of the CSP either.
    assert complaints == []
