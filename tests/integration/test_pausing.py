"""Pausing the queue: nothing is claimed while it lasts, nothing is lost, and time does not pass for those who wait."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import sqlalchemy as sa
from celery.exceptions import Ignore

from jobs.column_types import UTCDateTime
from jobs.database import Database
from jobs.models import ANONYMOUS, Job, Pause, Status, WorkerState
from jobs.statements import leases, outbox, pauses
from jobs.use_cases import (
    cancellation,
    pausing,
    queries,
    stages,
    standing,
    sweeping,
    workers,
)
from jobs.use_cases.outbox import take_unpublished
from jobs.use_cases.stages import Refusal
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.polling import poll
from tests.servers import PATIENCE
from worker.engine.interface import ContextExceededError, Request
from worker.stage_runner import MAX_CLAIMS, StageRunner

#: How often the queue is paused while others claim, and how many claim.
PAUSES, CLAIMERS = 15, 4
#: Sessions of PostgreSQL that wait for a lock on the pauses.
WAITING = """SELECT count(*) FROM pg_locks WHERE relation = 'pauses'::regclass AND NOT granted"""


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def lapse(database: Database, seconds: float) -> None:
    """Let time pass: move all times of jobs and pauses back."""
    shift = dt.timedelta(seconds=seconds)
    with database.write_session() as session:
        for row in [*session.scalars(sa.select(Job)), *session.scalars(sa.select(Pause))]:
            for name, column in sa.inspect(type(row)).columns.items():
                if isinstance(column.type, UTCDateTime) and (value := getattr(row, name)):
                    setattr(row, name, value - shift)


def stored(database: Database, job: Job) -> Job:
    return queries.get_job(database, ANONYMOUS, job.id)


def published(database: Database, *, queue_empty: bool = False) -> list[str]:
    taken = take_unpublished(database, queue_empty=queue_empty, model=RUNTIME.model)
    return [job.job_id for job in taken]


def test_nothing_is_claimed_while_the_queue_is_paused(database: Database) -> None:
    running, begun, waiting = (submit(database) for _ in range(3))
    claimed = claim(database, running)
    stages.record(database, claim(database, begun), OUTPUT)

    first, is_new = pausing.pause(database, "ops", "new <GPU>\0")
    assert (first.paused_by, first.note, first.resumed_at, is_new) == (
        "ops",
        "new <GPU>\0",
        None,
        True,
    )
    again, is_new = pausing.pause(database, "other", None)
    assert (again.id, again.paused_by, is_new) == (first.id, "ops", False)
    for job, stage_index in ((begun, 1), (waiting, 0)):
        for exclusive in (False, True):
            assert not stages.claim(
                database, job.id, stage_index, WORKER, job_timeout=60, exclusive=exclusive
            )
        assert stages.why_refused(database, job.id, stage_index, WORKER) is Refusal.PAUSED
    # What runs goes on to its end, and can be cancelled; questions are accepted.
    workers.heartbeat(database, WORKER, [(running.id, claimed.lease_token)])
    assert stages.record(database, claimed, OUTPUT)
    assert stages.why_refused(database, running.id, 0, WORKER) is Refusal.NOT_READY
    assert stages.why_refused(database, running.id, 1, WORKER) is Refusal.PAUSED
    cancellation.cancel(database, ANONYMOUS, waiting.id)
    late = submit(database)

    ended, was_paused = pausing.resume(database, "ops 2")
    assert ended is not None
    assert (ended.id, ended.resumed_by, was_paused) == (first.id, "ops 2", True)
    same, was_paused = pausing.resume(database, "other")
    assert same is not None
    assert (same.id, same.resumed_by, was_paused) == (first.id, "ops 2", False)
    assert pausing.current(database) is None
    claim(database, running, 1)
    claim(database, begun, 1)
    claim(database, late)


def test_a_queue_that_was_never_paused_can_be_resumed(database: Database) -> None:
    assert pausing.resume(database, "ops") == (None, False)


def test_a_pause_returns_after_the_claims_that_do_not_see_it(database: Database) -> None:
    """A claim in PostgreSQL looks at what was committed when it began, and may commit later."""
    first, second = submit(database), submit(database)
    with ThreadPoolExecutor(2) as pool:
        with database.write() as connection:
            assert leases.claim(connection, first.id, 0, WORKER, job_timeout=60, exclusive=False)
            pause = pool.submit(pausing.pause, database, "ops", None)
            if database.engine.dialect.name == "postgresql":
                with database.engine.connect() as other:
                    other = other.execution_options(isolation_level="AUTOCOMMIT")
                    poll(lambda: other.scalar(sa.text(WAITING)))
            # One that comes now waits for the other, or sees the pause.
            late = pool.submit(stages.claim, database, second.id, 0, WORKER, job_timeout=60)
            assert not pause.done()
        assert late.result(PATIENCE) is None or database.engine.dialect.name == "sqlite"
        pause.result(PATIENCE)
    assert stored(database, first).status is Status.IN_PROGRESS


def test_no_stage_is_claimed_after_a_pause_has_returned(database: Database) -> None:
    """Threads claim, record and release as fast as they can, while the queue is paused and resumed."""
    jobs = [submit(database, rounds=5) for _ in range(CLAIMERS)]
    done = threading.Event()

    def work(job: Job) -> int:
        count = 0
        while not done.is_set():
            if claimed := stages.claim(database, job.id, 0, WORKER, job_timeout=600):
                count += 1
                stages.release(database, claimed, "again")
        return count

    def claims() -> int:
        with database.read() as connection:
            return connection.scalar(sa.select(sa.func.sum(Job.lease_token))) or 0

    counts = []
    with ThreadPoolExecutor(CLAIMERS) as pool:
        workers_of = [pool.submit(work, job) for job in jobs]
        try:
            for _ in range(PAUSES):
                before = claims()
                while claims() < before + CLAIMERS:
                    pass
                pausing.pause(database, "ops", None)
                counts.append(claims())
                # Whoever held a snapshot of before has had time for many claims since.
                for job in jobs:
                    stages.why_refused(database, job.id, 0, WORKER)
                assert claims() == counts[-1]
                pausing.resume(database, "ops")
        finally:
            done.set()
        total = sum(worker.result(PATIENCE) for worker in workers_of)
    assert counts == sorted(set(counts)), "between two pauses, stages were claimed"
    assert claims() == total


def test_at_most_one_pause_lasts_whoever_asks(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            paused = list(pool.map(lambda n: pausing.pause(database, f"ops {n}", None), range(8)))
            assert sum(is_new for _, is_new in paused) == 1
            assert len({pause.id for pause, _ in paused}) == 1
            ended = list(pool.map(lambda n: pausing.resume(database, f"ops {n}"), range(8)))
            assert sum(was_paused for _, was_paused in ended) == 1
    with database.read_session() as session:
        kept = session.scalars(sa.select(Pause).order_by(Pause.id)).all()
    assert len(kept) == 3
    assert all(pause.resumed_by and pause.resumed_at for pause in kept)


def test_nothing_is_published_while_the_queue_is_paused(database: Database) -> None:
    lost, held, waiting = (submit(database) for _ in range(3))
    claim(database, lost)
    pausing.pause(database, "ops", None)
    outbox_of = [(held.id, 0)]
    with database.write() as connection:
        outbox.mark_unpublished(connection, outbox_of)
    let_leases_run_out(database)
    assert sweeping.sweep(database).taken_back == [lost.id], "its worker was lost meanwhile"
    lapse(database, 3600)
    assert published(database, queue_empty=True) == []
    pausing.resume(database, "ops")
    # What has no message. The message of the third is there: it has not been overtaken, however long the pause was.
    assert set(published(database)) == {lost.id, held.id}
    assert published(database, queue_empty=True) == []
    lapse(database, 11)
    assert waiting.id in published(database, queue_empty=True), "Redis has lost it"


def test_time_limits_do_not_run_for_those_who_wait_in_a_pause(database: Database) -> None:
    ran, waited, finished = (submit(database) for _ in range(3))
    claimed = claim(database, ran)
    stages.record(database, claim(database, waited), OUTPUT)
    during = claim(database, finished)
    before = {job.id: stored(database, job).deadline_at for job in (ran, waited, finished)}
    began = time.monotonic()
    pausing.pause(database, "ops", None)
    lapse(database, 40)
    stages.record(database, during, OUTPUT)
    lapse(database, 100)
    let_leases_run_out(database)
    workers.heartbeat(database, WORKER, [(ran.id, claimed.lease_token)])
    # The limits of all three, 60 seconds, are over. Who runs is ended by the worker, and later by the sweep.
    assert sweeping.sweep(database).failed == [ran.id]
    pausing.resume(database, "ops")
    taken = time.monotonic() - began  # It lasted for up to so many seconds more.
    assert sweeping.sweep(database).failed == []

    def added(job: Job) -> float:
        deadline, earlier = stored(database, job).deadline_at, before[job.id]
        assert deadline is not None
        assert earlier is not None
        return (deadline - (earlier - dt.timedelta(seconds=140))).total_seconds()

    assert 140 <= added(waited) <= 140.1 + taken
    assert 100 <= added(finished) <= 100.1 + taken
    claim(database, waited, 1)
    claim(database, finished, 1)


def test_a_clock_that_is_set_back_in_a_pause_takes_no_time_away(database: Database) -> None:
    job = submit(database)
    stages.record(database, claim(database, job), OUTPUT)
    before = stored(database, job).deadline_at
    pausing.pause(database, "ops", None)
    lapse(database, -3600)
    pausing.resume(database, "ops")
    after = stored(database, job).deadline_at
    assert before is not None
    assert after == before + dt.timedelta(seconds=3600), (
        "an hour in which the clock comes there again"
    )
    assert published(database, queue_empty=True) == []


def test_a_pause_waits_for_claims_although_its_connection_breaks(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lost = sa.exc.OperationalError("LOCK", {}, ConnectionError(), connection_invalidated=True)
    faults = iter([lost])  # A fake fault, once.
    wait_for_claims, waited = pauses.wait_for_claims, threading.Event()

    def wait(connection: sa.Connection) -> None:
        for fault in faults:
            raise fault
        wait_for_claims(connection)
        waited.set()

    monkeypatch.setattr(pauses, "wait_for_claims", wait)
    assert pausing.pause(database, "ops", None)[1]
    assert waited.is_set()
    assert not caplog.records


class Engine:
    """An engine that generates nothing: a stage that is claimed fails."""

    def submit(self, _request: Request) -> Any:
        raise ContextExceededError("claimed")


class Publisher:
    def publish_change(self, _job_id: str, *, ended: bool = False) -> None: ...


def test_a_worker_holds_what_it_took_until_the_queue_is_resumed(database: Database) -> None:
    runner = StageRunner(
        database, cast("Any", Engine()), cast("Any", Publisher()), WORKER, job_timeout=60
    )
    first, second, cancelled = (submit(database) for _ in range(3))
    cancellation.cancel(database, ANONYMOUS, cancelled.id)
    pausing.pause(database, "ops", None)

    def run(job: Job) -> bool:
        """Return whether the stage was claimed."""
        with pytest.raises(Ignore):
            runner.run(job.id, 0)
        return stored(database, job).error_message == "claimed"

    def wait_until_held(job: Job) -> None:
        poll(lambda: stored(database, job).published_at is None)

    with ThreadPoolExecutor(2) as pool:
        assert not run(cancelled), "it waits for nothing"
        held = pool.submit(run, first)
        wait_until_held(first)
        runner.check_pause()
        assert not held.done()
        pausing.resume(database, "ops")
        while not held.done():  # it may not have begun to wait
            runner.check_pause()
        assert held.result()

        pausing.pause(database, "ops", None)
        held = pool.submit(run, second)
        wait_until_held(second)
        runner.drain()  # the worker stops
        assert not held.result(PATIENCE)
    pausing.resume(database, "ops")
    assert published(database) == [second.id]


def test_a_worker_holds_a_stage_however_often_the_queue_is_paused_again_before_its_claim(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runner = StageRunner(
        database, cast("Any", Engine()), cast("Any", Publisher()), WORKER, job_timeout=60
    )
    job = submit(database)
    pausing.pause(database, "ops", None)
    line = f"{job.id}: stage 0 waits: the queue is paused"

    def run() -> None:
        with pytest.raises(Ignore):
            runner.run(job.id, 0)

    def wait_until_held(times: int) -> None:
        poll(lambda: held.done() or caplog.messages.count(line) == times, interval=0.01)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as resumed:
        # The queue is paused again when the worker has read that it is resumed: a fake fault.
        resumed.setattr(pausing, "is_paused", lambda _: False)
        held = pool.submit(run)
        for tries in range(1, MAX_CLAIMS + 2):
            wait_until_held(tries)
            if tries <= MAX_CLAIMS:
                runner.check_pause()
        pausing.resume(database, "ops")
        while not held.done():  # it may not have begun to wait
            runner.check_pause()
        held.result()
    assert stored(database, job).error_message == "claimed"


def test_a_paused_queue_says_so_and_expects_nothing(database: Database) -> None:
    workers.set_state(database, WORKER, WorkerState.READY)
    for _ in range(standing.MIN_SAMPLE):
        job = submit(database)
        cancellation.cancel(database, ANONYMOUS, job.id)
    begun, waiting = submit(database), submit(database)
    stages.record(database, claim(database, begun), OUTPUT)
    assert standing.find_standing(database, waiting, now()).wait is not None
    pausing.pause(database, "ops", "soon")
    found = standing.find_standing(database, waiting, now())
    assert (found.place, found.wait, found.queued) == (None, None, 1)
    assert found.pause is not None
    assert found.pause.note == "soon"
    of_begun = standing.find_standing(database, stored(database, begun), now())
    assert of_begun.pause is not None
    outlook = standing.find_outlook(database, now()).standing
    assert (outlook.pause is not None, outlook.wait) == (True, None)
    pausing.resume(database, "ops")
    found = standing.find_standing(database, waiting, now())
    assert (found.place, found.wait, found.pause) == (1, None, None), "none has ended since"
