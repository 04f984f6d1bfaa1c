"""Polling a response."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.use_cases import cancellation, queries, stages
from jobs.use_cases.stages import Output
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish, services_of


def test_a_finished_job_reads_as_a_response(web: Client, database: Database) -> None:
    job_id = ask(web, rounds=2)["id"]
    finish(database, job_id, count=5)
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "completed"
    assert body["completed_at"] >= body["created_at"]
    kinds = [(item["type"], item["id"].rsplit("_", 1)[0]) for item in body["output"]]
    assert kinds == [
        ("reasoning", "rs_actor_1"),
        ("reasoning", "rs_critic_1"),
        ("reasoning", "rs_regenerator_1"),
        ("reasoning", "rs_critic_2"),
        ("message", "msg_regenerator_2"),
    ]
    assert body["output"][1]["content"] == [{"type": "reasoning_text", "text": "A text."}]
    assert body["output"][4]["content"][0]["text"] == "A text."
    assert body["usage"] == {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 15,
        "output_tokens_details": {"reasoning_tokens": 12},
        "total_tokens": 115,
    }


def test_an_unchanged_job_gives_304(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    first = web.get(f"/v1/responses/{job_id}")
    tag = {"If-None-Match": first.headers["ETag"]}
    assert web.get(f"/v1/responses/{job_id}", headers=tag).status_code == 304
    assert web.head(f"/v1/responses/{job_id}", headers=tag).status_code == 304
    mismatched = web.get(f"/v1/responses/{job_id}", headers={"If-Match": '"other"'})
    assert (mismatched.status_code, mismatched.json["error"]["code"]) == (
        412,
        "precondition_failed",
    )
    cancellation.cancel(database, ANONYMOUS, job_id)
    assert web.get(f"/v1/responses/{job_id}", headers=tag).status_code == 200


def test_prefer_wait_holds_the_reply(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=1"})
    assert (reply.status_code, reply.json["status"]) == (200, "queued")
    cancellation.cancel(database, ANONYMOUS, job_id)
    reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=60"})
    assert reply.json["status"] == "cancelled"
    assert "Retry-After" not in reply.headers


def test_preferences_are_read_as_rfc_7240_has_them(
    web: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = services_of(web)
    job_id = ask(web)["id"]
    waited: list[float] = []

    def note(*arguments: Any) -> Any:
        waited.append(arguments[3])
        return queries.get_job(services.database, ANONYMOUS, job_id)

    monkeypatch.setattr(services.waiter, "wait", note)
    for given, seconds in (
        ("wait=7", [7]),
        ("respond-async, Wait=7", [7]),
        ('handling=lenient,wait = "7"', [7]),
        ("wait=7; odd=1, wait=8", [7]),
        ("wait=100", [60]),
        ("wait=x", []),
        ("no-wait=7", []),
        ("odd; wait=7", []),
        ("wait", []),
    ):
        waited.clear()
        assert web.get(f"/v1/responses/{job_id}", headers={"Prefer": given}).status_code == 200
        assert waited == seconds, given


def test_a_failed_job_says_why(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "the model gave no numbers")
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "failed"
    assert body["error"] == {"code": "server_error", "message": "the model gave no numbers"}
    assert "the model gave no numbers" in web.get(f"/jobs/{job_id}").text


def test_an_answer_cut_short_says_so(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id, output=Output("A text.", [7], 20, 3, "length", 3, 0.0))
    body = web.get(f"/v1/responses/{job_id}").json
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert {item["status"] for item in body["output"]} == {"incomplete"}
