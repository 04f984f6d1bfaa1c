"""`GET /metrics`: what a Prometheus reads there."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from jobs.database import Database
from jobs.models import Attempt, Job, Scope, WorkerState
from jobs.statements import metrics as statements
from jobs.use_cases import cancellation, metrics, stages, sweeping, workers
from tests.conftest import WORKER
from tests.executed_statements import executed, reads
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.web.client import Client, ask, finish
from tests.integration.web.with_keys import program
from web import metrics as exporter


@pytest.fixture(autouse=True)
def _always_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "MAX_AGE", 0.0)


class Scrape:
    """The samples of a reply."""

    def __init__(self, web: Client) -> None:
        reply = web.get("/metrics")
        assert reply.status_code == 200, reply.text
        assert reply.content_type.startswith("text/plain; version=0.0.4")
        self.text = reply.text
        self.samples = [sample for family in parse(reply.text) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with a name and at least some labels."""
        found = [
            sample.value
            for sample in self.samples
            if sample.name == f"helixq_{name}" and labels.items() <= sample.labels.items()
        ]
        assert found, (name, labels)
        return sum(found)


def test_what_waits(web: Client, database: Database) -> None:
    began_at = time.perf_counter()
    empty = Scrape(web)
    assert (empty("jobs_queued"), empty("oldest_queued_job_age_seconds")) == (0, 0)
    assert (empty("database_up"), empty("redis_up")) == (1, 1)
    assert empty("build_info", database=database.engine.dialect.name) == 1
    workers.set_state(database, WORKER, WorkerState.READY)
    first, *_ = (ask(web)["id"] for _ in range(3))
    finish(database, first, 1)
    stages.claim(database, first, 1, WORKER, job_timeout=60)
    cancelled = ask(web)["id"]
    assert web.post(f"/v1/responses/{cancelled}/cancel").status_code == 200
    now = Scrape(web)
    assert now("jobs_queued") == 2
    assert 0 < now("oldest_queued_job_age_seconds") < 60
    assert (now("stages_running", role="critic"), now("stages_running")) == (1, 1)
    assert now("stages_waiting") == 0
    assert (now("workers", state="ready"), now("workers")) == (1, 1)
    assert now("log_unsealed_jobs") == 1
    assert 0 < now("log_lag_seconds") < 60
    assert (now("webhook_deliveries_pending"), now("webhook_lag_seconds")) == (0, 0)
    assert now("http_requests_total", route="/v1/responses", method="POST", status="202") == 4
    assert now("http_requests_total", route="/v1/responses/<job_id>/cancel") == 1
    assert now("http_request_duration_seconds_count", route="/v1/responses") == 4
    seconds = now("http_request_duration_seconds_sum", route="/v1/responses")
    assert 0 < seconds < time.perf_counter() - began_at
    assert first not in now.text
    assert "process_resident_memory_bytes" in now.text


def test_what_ends_is_counted_once(web: Client, database: Database) -> None:
    """Jobs that complete, fail, are cancelled; a stage that is given back, one that is lost, and one that is
    imported."""
    before = submit(database)
    running = claim(database, before)
    assert Scrape(web)("jobs_total") == 0, "it counts what ends from now on"
    assert stages.record(database, running, OUTPUT)
    done, failed, cancelled, lost = (submit(database) for _ in range(4))
    finish(database, done.id, output=OUTPUT)
    stages.fail(database, claim(database, failed), "server_error", "why")
    cancelled_claim = claim(database, cancelled)
    cancellation.cancel(database, cancelled.owner, cancelled.id)
    stages.keep_partial(database, cancelled_claim, OUTPUT)
    claim(database, lost)
    let_leases_run_out(database)
    sweeping.sweep(database)
    stages.release(database, claim(database, lost), "it shuts down")
    still = claim(database, lost)
    finish(database, (imported := submit(database)).id)
    with database.engine.begin() as connection:
        connection.execute(
            sa.update(Job).where(Job.id == imported.id).values(origin_proof="of another log")
        )
    for _ in range(2):
        now = Scrape(web)
        for status, number in {
            "completed": 1,
            "failed": 1,
            "cancelled": 1,
            "incomplete": 0,
        }.items():
            assert now("jobs_total", status=status) == number, status
        assert now("job_duration_seconds_count") == 1
        assert now("attempts_total", role="actor", status="finished") == 2
        assert now("attempts_total", status="finished") == 4
        for status in ("failed", "cancelled", "lost", "released"):
            assert now("attempts_total", role="actor", status=status) == 1, status
        assert (now("rescues_total", role="actor"), now("rescues_total")) == (1, 1)
        # Of four finished attempts and a cancelled one.
        assert now("prompt_tokens_total") == 5 * 12
        assert now("generation_tokens_total", role="actor") == 3 * 3
        assert now("stage_duration_seconds_count", role="regenerator") == 1
        assert now("time_to_first_token_seconds_count", role="actor") == 3
        assert now("time_per_output_token_seconds_count") == 4
        assert now("stage_queue_time_seconds_count") == 8
    stages.record(database, still, OUTPUT)
    assert Scrape(web)("attempts_total", role="actor", status="finished") == 3
    # The newest attempts go, and on SQLite the next ones get their ids.
    web.delete(f"/v1/responses/{cancelled.id}")
    for job in (before, lost):
        cancellation.cancel(database, job.owner, job.id)
        assert web.delete(f"/v1/responses/{job.id}").status_code == 200
    Scrape(web)
    finish(database, submit(database).id, output=OUTPUT)
    now = Scrape(web)
    assert now("attempts_total", role="actor", status="finished") == 4
    assert now("jobs_total", status="completed") == 2


def test_an_attempt_that_becomes_visible_late_is_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions commit in another order than that of their ids and times."""
    ended = metrics.Ended()
    ended.read(database)
    job = submit(database)
    for stage_index in range(3):
        assert stages.record(database, claim(database, job, stage_index), OUTPUT)
    with database.engine.connect() as connection:
        ids = sa.select(Attempt.id).where(Attempt.job_id == job.id).order_by(Attempt.id)
        first, *later = connection.scalars(ids)
    read = statements.attempts_after

    def without_first(*place: Any) -> list[sa.Row[Any]]:
        return [row for row in read(*place) if row.id != first]

    with monkeypatch.context() as patch:
        patch.setattr(statements, "attempts_after", without_first)
        jobs, attempts = ended.read(database)
    assert ([row.id for row in jobs], [row.id for row in attempts]) == ([job.id], later)
    jobs, attempts = ended.read(database)
    assert ([row.id for row in jobs], [row.id for row in attempts]) == ([], [first])
    assert ended.read(database) == ([], [])


def test_scraping_cannot_hurt(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scrape(web)
    numbers = []
    for jobs in (1, 30):
        for _ in range(jobs):
            finish(database, submit(database).id, output=OUTPUT)
        with executed() as statements:
            Scrape(web)
        numbers.append(len(reads(statements)))
        assert not any("prompt," in each or "output," in each for each in statements)
    assert numbers[0] == numbers[1] < 20
    monkeypatch.setattr(exporter, "MAX_AGE", 3600)
    with executed() as statements:
        for _ in range(3):
            Scrape(web)
    assert statements == []


def test_it_says_that_its_servers_are_away(web: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    Scrape(web)

    def away(*_: Any) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("away"))

    monkeypatch.setattr(metrics, "measure", away)
    now = Scrape(web)
    assert (now("database_up"), now("redis_up")) == (0, 1)
    assert "helixq_jobs_queued" not in now.text, "no number rather than an old one"
    assert now("http_requests_total", route="/metrics") == 1


def test_formats(web: Client) -> None:
    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    reply = web.get("/metrics", headers=accept)
    assert reply.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = parse_open(reply.text)  # type: ignore[no-untyped-call]  # it has no types
    assert {"helixq_jobs", "helixq_build"} <= {family.name for family in families}
    packed = web.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert web.head("/metrics").status_code == 200
    assert web.post("/metrics").status_code == 405
    web.get("/nothing/here")
    web.open("/healthz", method="BREW")
    chosen = web.get("/metrics?name[]=helixq_http_requests_total").text
    assert 'method="GET",route="none",status="404"' in chosen
    assert 'method="other"' in chosen
    assert "helixq_jobs" not in chosen


def test_metrics_name_no_owner(app: Any) -> None:
    refused = program(app).get("/metrics")
    assert (refused.status_code, refused.mimetype) == (403, "text/plain")
    assert "scope `audit`" in refused.text
    owner = program(app, Scope.ASK, Scope.AUDIT)
    ask(owner)
    assert owner.key.owner not in owner.get("/metrics").text


def test_ends_that_were_found_before_a_query_failed_are_counted_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = metrics.Ended()
    ended.read(database)
    job = submit(database)
    for stage_index in range(3):
        assert stages.record(database, claim(database, job, stage_index), OUTPUT)

    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("the connection was lost"))

    with monkeypatch.context() as patch:
        patch.setattr(statements, "attempts_after", fail)
        with pytest.raises(sa.exc.OperationalError):
            ended.read(database)
    jobs, attempts = ended.read(database)
    assert ([row.id for row in jobs], len(attempts)) == ([job.id], 3)
