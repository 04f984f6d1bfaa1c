"""The page of what runs and what waits, and the footer of all pages."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.models import DeliveryStatus, WebhookDelivery, WorkerState
from jobs.use_cases import cancellation, stages, system, webhooks, workers
from jobs.use_cases.workers import Runtime
from jobs.webhooks.events import EVENT_TYPES
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish, services_of
from tests.integration.web.test_job_page import text_of
from web import summary_cache


def told(web: Client, path: str = "/system") -> str:
    reply = web.get(path)
    assert reply.status_code == 200
    main = reply.text.split("<main")[1].split("<footer>")[0]
    return " ".join(unescape(re.sub("<[^>]*>", " ", main)).split())


def test_the_page_says_what_runs_and_what_waits(
    web: Client, database: Database, tokenizer_json: str
) -> None:
    assert "There were no attempts yet." in told(web)
    runtime = {
        "engine": "batching",
        "engine_config": {"slots": 8},
        "base": {"name": "/srv/models/tiny"},
        "adapters": {"actor": {"name": "org/act-1"}},
        "device": "cpu",
        "versions": {"torch": "2.11"},
    }
    for name in ("ready-1", "gone-1"):
        workers.register(database, name, f"host-{name}", 7, Runtime(runtime, 512, tokenizer_json))
        workers.set_state(database, name, WorkerState.READY)
    workers.set_state(database, "gone-1", WorkerState.STOPPED)
    job_id, waiting = ask(web)["id"], ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.release(database, claim, "it shut down")
    finish(database, job_id)
    seal(database)
    stages.claim(database, waiting, 0, "ready-1", job_timeout=60)
    ask(web)

    page = told(web)
    for part in (
        "host-ready-1, process 7 ready-1 ● ready 0 s ago 1 of 8 running not known models/tiny",
        "actor org/act-1 batching on cpu, context 512 torch 2.11",
        "host-gone-1, process 7 gone-1 stopped",
        "1 job waits for the first stage, the oldest accepted",
        "Actor 1 0",
        "Of the last 5 attempts, 0 were lost with the worker and 1 was given back by it.",
        "0 to send, none given up.",
        "has 1 entry, and 0 ended jobs are not in it yet. Its checkpoint was signed",
    ):
        assert part in re.sub(r"\b\d+ s ago", "0 s ago", page), part
    assert '<span title="/srv/models/tiny">models/tiny</span>' in web.get("/system").text
    assert "Owners" not in web.get("/system").text, "all jobs are the caller's"


def test_webhooks_that_were_given_up_are_sent_again(web: Client, database: Database) -> None:
    endpoint: dict[str, Any] = {
        "url": "https://example.com/",
        "event_types": EVENT_TYPES,
        "allowed": (),
    }
    for owner in ("anonymous", "other"):
        webhooks.create(database, owner, name=f"hook of {owner}", **endpoint)
    job_id = ask(web)["id"]
    cancellation.cancel(database, "anonymous", job_id)
    assert "1 to send, none given up." in told(web)
    failed = {
        "status": DeliveryStatus.FAILED,
        "next_attempt_at": None,
        "attempts": [{"at": "", "status_code": 500, "error": "it <b>failed", "duration": 1}],
    }
    with database.write() as connection:
        connection.execute(sa.update(WebhookDelivery).values(failed))
    page = web.get("/system").text
    assert "it &lt;b&gt;failed" in page
    assert "hook of anonymous" in page
    assert job_id in page
    [action] = re.findall(r'action="(/system/deliveries/[^"]*)"', page)
    assert web.post(action).headers["Location"] == "/system#webhooks"
    assert "1 to send, none given up." in told(web)
    assert web.post("/system/deliveries/whd_0/redeliver").status_code == 404


def test_the_footer_is_asked_for_seldom_and_harms_no_page(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Database] = []
    summarize = system.summarize

    def count(database: Database) -> system.Summary:
        asked.append(database)
        return summarize(database)

    monkeypatch.setattr(system, "summarize", count)
    monkeypatch.setattr(summary_cache, "MAX_AGE", 3600)

    def footer(path: str) -> str:
        return " ".join(text_of(web.get(path).text.split("<footer>")[1]).split())

    workers.set_state(database, WORKER, WorkerState.READY)
    job_id = ask(web)["id"]
    for path in ("/", "/jobs", f"/jobs/{job_id}", "/stats", "/review", "/system", "/nothing"):
        assert re.fullmatch(r"HelixQ [\d.]+\S* 1 worker ready 1 queued API", footer(path)), path
    assert len(asked) == 1
    services_of(web).summaries.summary = system.Summary(2, ["/srv/models/tiny"], system.CAP)
    assert " models/tiny 2 workers ready 1,000 or more queued" in footer("/jobs")

    def fail(_: Database) -> system.Summary:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(system, "summarize", fail)
    monkeypatch.setattr(summary_cache, "MAX_AGE", 0)
    assert re.fullmatch(r"HelixQ [\d.]+\S* API", footer("/jobs"))
