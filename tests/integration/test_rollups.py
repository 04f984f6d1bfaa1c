"""Rollups are always the sum of what the stored jobs count for."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

import migrations
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import UserError
from jobs.models import ANONYMOUS, Job, Rollup, Status
from jobs.protocol.history import history
from jobs.statements import rollups
from jobs.statistics.counted import Counted
from jobs.statistics.periods import Level, start_of
from jobs.statistics.tally import Tally
from jobs.use_cases import (
    cancellation,
    counting,
    deletion,
    erasing,
    indexing,
    queries,
    retention,
    retrying,
    reviewing,
    sealing,
    stages,
    statistics,
    submission,
    workers,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.statistics import By, Query
from tests.conftest import RUNTIME
from tests.executed_statements import executed
from tests.integration.rows import OUTPUT, QUESTION, claim, submit

OTHER = replace(
    RUNTIME,
    description={
        "engine": "other",
        "base": {"name": "base", "digest": "sha256:00"},
        "adapters": {"actor": {"name": "lora-v2", "digest": "sha256:11"}},
    },
)


def count(database: Database) -> None:
    """Count all that is to be counted, as the duty does."""
    while prepared := indexing.prepare(database):
        indexing.put(database, prepared)


def check(database: Database, *, all_counted: bool = True) -> int:
    """Check that the rollups are those of the jobs, and each job's numbers its own; return the jobs."""
    expected: dict[tuple[object, ...], Tally] = {}
    with database.read_session() as session:
        jobs = session.scalars(
            sa.select(Job).options(
                sa.orm.undefer(Job.counted),
                sa.orm.selectinload(Job.attempts),
                sa.orm.selectinload(Job.reviews),
            )
        ).all()
        rows = session.scalars(sa.select(Rollup)).all()
    for job in jobs:
        if all_counted:
            assert (job.counted is not None) == job.status.final, job.id
        if job.counted is None:
            continue
        counted = Counted.load(job.counted)
        if all_counted:
            changed = None if counted.changed is None else counted.changed / 1_000_000
            assert counting.counted(job, changed) == counted
        for owner in ("", job.owner):
            for level in Level:
                key = (owner, level, start_of(level, job.created_at), job.model or "")
                expected.setdefault(key, Tally()).add(counted)
    found = {(row.owner, row.level, row.start, row.model): row for row in rows}
    assert {key: row.tally for key, row in found.items()} == {
        key: tally.dump() for key, tally in expected.items()
    }
    assert {key: row.jobs for key, row in found.items()} == {
        key: tally.jobs for key, tally in expected.items()
    }
    return sum(job.counted is not None for job in jobs)


class History:
    """A history that goes on at random."""

    def __init__(self, database: Database, seed: int) -> None:
        self.database = database
        self.rng = random.Random(seed)
        self.ids: list[str] = []
        #: What a slow process has read.
        self.stale = indexing.prepare(database)

    def any(self) -> str:
        return self.rng.choice(self.ids)

    def submit(self) -> None:
        owner = self.rng.choice([ANONYMOUS, "ann"])
        rounds = self.rng.choice([1, 1, 2])
        new = replace(QUESTION, rounds=rounds)
        job, _ = submission.submit(self.database, owner, new, max_queued=1000)
        self.ids.append(job.id)
        # Some were accepted in another hour, or last year.
        ago = self.rng.choice([0, 0, 4000, 400 * 86_400])
        with self.database.write() as connection:
            moved = sa.update(Job).where(Job.id == job.id)
            connection.execute(moved.values(created_at=utcnow(-ago)))

    def end(self) -> None:
        for job_id in self.ids:
            job = queries.get_job(self.database, None, job_id)
            worker = self.rng.choice(["worker-1", "worker-2"])
            if job.status.final:
                continue
            done = self.rng.randrange(job.rounds * 2 + 2)
            for stage_index in range(job.stage_index, job.rounds * 2 + 1):
                if job.model is not None:
                    worker = "worker-1" if job.model == RUNTIME.model else "worker-2"
                claimed = claim(self.database, job, stage_index, worker)
                if stage_index == done:
                    stages.fail(self.database, claimed, "server_error", "why")
                    break
                text = " ".join(self.rng.choices("abcd", k=6))
                stages.record(self.database, claimed, replace(OUTPUT, text=text, delta_lengths=[]))

    def cancel(self) -> None:
        cancellation.cancel(self.database, None, self.any())

    def retry(self) -> None:
        retrying.retry(self.database, None, self.any())

    def review(self) -> None:
        rating = self.rng.choice([None, -1, 0, 1])
        verdict = NewReview(critique=rating, regeneration=self.rng.choice([None, -1, 1]), note="x")
        reviewing.add(self.database, None, self.any(), verdict, reviewer="bob")

    def erase(self) -> None:
        self.seal()
        erasing.erase(self.database, None, self.any(), history, None, erased_by="bob")

    def seal(self) -> None:
        while prepared := sealing.prepare(self.database, history):
            sealing.append(self.database, prepared, Signing())

    def delete(self) -> None:
        job_id = self.any()
        deletion.delete(self.database, None, job_id)
        self.ids.remove(job_id)

    def retain(self) -> None:
        with self.database.write() as connection:
            old = sa.update(Job).where(Job.id == self.any(), Job.finished_at.is_not(None))
            connection.execute(old.values(finished_at=utcnow(-10 * 86_400)))
        retention.delete_jobs(self.database, 5)
        with self.database.read() as connection:
            left = set(connection.scalars(sa.select(Job.id)))
        self.ids = [job_id for job_id in self.ids if job_id in left]

    def index(self) -> None:
        fresh = indexing.prepare(self.database, limit=3)
        if self.rng.random() < 0.5:
            fresh, self.stale = self.stale, fresh  # Two processes index at once.
        indexing.put(self.database, fresh)

    def step(self) -> None:
        kinds: list[Callable[[], None]] = [self.submit, self.end, self.index, self.index]
        if self.ids:
            kinds += [self.review, self.cancel, self.retry, self.erase, self.delete, self.retain]
        with suppress(UserError):  # What cannot be done in the job's state.
            self.rng.choice(kinds)()


def test_whatever_happens_rollups_are_sums_over_the_stored_jobs(database: Database) -> None:
    workers.register(database, "worker-2", "localhost", 2, OTHER)
    history = History(database, seed=5)
    for _ in range(12):
        history.submit()
    for number in range(150):
        history.step()
        if number % 10 == 0:
            check(database, all_counted=False)
    history.end()
    indexing.put(database, history.stale)
    count(database)
    assert check(database) == len(history.ids) > 5
    for job_id in history.ids:
        deletion.delete(database, None, job_id)
    with database.read() as connection:
        assert connection.execute(sa.select(Rollup)).all() == []


def test_a_crash_while_counting_counts_nothing_and_loses_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(database)
    cancellation.cancel(database, ANONYMOUS, job.id)
    prepared = indexing.prepare(database)
    apply = rollups.apply

    def crash(*arguments: Any) -> None:
        apply(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(rollups, "apply", crash)
    with pytest.raises(KeyboardInterrupt):
        indexing.put(database, prepared)
    with pytest.raises(KeyboardInterrupt):
        deletion.delete(database, None, job.id)
    monkeypatch.undo()
    assert check(database, all_counted=False) == 0
    assert not statistics.read(database, None, Query()).is_current
    for _ in range(2):
        indexing.put(database, prepared)
    assert check(database) == 1


def test_several_processes_count_and_delete_at_once(database: Database) -> None:
    ids = [submit(database).id for _ in range(24)]
    for job_id in ids:
        cancellation.cancel(database, ANONYMOUS, job_id)
    prepared = indexing.prepare(database, limit=24)

    def work(number: int) -> None:
        own = prepared[number * 4 : number * 4 + 8]  # Each is counted by two.
        indexing.put(database, own[::-1] if number % 2 else own)
        deletion.delete(database, None, own[0].job_id)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    count(database)
    assert check(database) == 18


def test_a_history_of_before_is_counted_by_the_duty(database: Database) -> None:
    job = submit(database)
    for stage_index in range(3):
        stages.record(database, claim(database, job, stage_index), OUTPUT)
    count(database)
    before = statistics.read(database, None, Query()).total
    migrations.migrate(database.engine, "0015")
    migrations.migrate(database.engine)
    of_before = statistics.read(database, None, Query())
    assert (of_before.total, of_before.is_current) == (Tally(), False)
    count(database)
    assert check(database) == 1
    assert statistics.read(database, None, Query()).total.dump() == before.dump()


def test_counting_costs_a_few_statements_for_many_jobs(database: Database) -> None:
    for _ in range(2 * indexing.MAX_JOBS):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    indexing.put(database, indexing.prepare(database))
    prepared = indexing.prepare(database)
    assert len(prepared) == indexing.MAX_JOBS
    with executed(database.engine) as said:
        indexing.put(database, prepared)
    own = [s for s in said if re.search(r"\brollup", s)]
    assert len(own) == 2, own  # One reads and locks, and one changes.
    assert sum(statement.startswith("UPDATE jobs") for statement in said) == len(prepared)


def test_groups(database: Database) -> None:
    """By hour, day, model, adapter and metadata; of all and of one owner."""
    workers.register(database, "worker-2", "localhost", 2, OTHER)
    now = dt.datetime.now(dt.UTC).replace(minute=30)
    last_hour = now - dt.timedelta(hours=1)
    for worker, created_at, team in (
        ("worker-1", now, "blue"),
        ("worker-2", now, "red"),
        ("worker-2", last_hour, "red"),
    ):
        job = submit(database, metadata={"team": team})
        for stage_index in range(3):
            claimed = claim(database, job, stage_index, worker)
            stages.record(database, claimed, OUTPUT)
        with database.write() as connection:
            moved = sa.update(Job).where(Job.id == job.id)
            connection.execute(moved.values(created_at=created_at))
    submission.submit(database, "ann", QUESTION, max_queued=10)
    count(database)

    def read(reader: str | None = None, **changes: Any) -> dict[object, int]:
        found = statistics.read(database, reader, Query(**changes))
        assert found.total.jobs == (3 if reader in (None, ANONYMOUS) else 0)
        return {key: tally.jobs for key, tally in found.groups.items()}

    hour = now.replace(minute=0, second=0, microsecond=0)
    assert read(by=By.HOUR) == {hour - dt.timedelta(hours=1): 1, hour: 2}
    assert sum(read(by=By.DAY, since=now - dt.timedelta(days=1)).values()) == 3
    assert read(by=By.MODEL) == {OTHER.model: 2, RUNTIME.model: 1}
    assert read(by=By.ADAPTER) == {("actor", "lora-v2", "sha256:11"): 2, None: 1}
    assert read(by=By.METADATA, key="team") == {"red": 2, "blue": 1}
    assert read(by=By.METADATA, key="none") == {None: 3}
    assert read(ANONYMOUS, by=By.MODEL) == {OTHER.model: 2, RUNTIME.model: 1}
    assert read("ann", by=By.MODEL) == read("ann", by=By.METADATA, key="team") == {}
    assert read("ann", owner=ANONYMOUS) == {}

    of_one = statistics.read(database, "ann", Query())
    assert of_one.open == {Status.QUEUED: 1, Status.IN_PROGRESS: 0}
    of_others = statistics.read(database, "ann", Query(owner=ANONYMOUS))
    assert of_others.open == {Status.QUEUED: 0, Status.IN_PROGRESS: 0}
    old = statistics.read(database, None, Query(until=hour))
    assert (old.total.jobs, old.until) == (1, hour)
    assert statistics.read(database, None, Query(adapter="lora-v2")).total.jobs == 2
    assert statistics.read(database, None, Query(model=RUNTIME.model)).total.jobs == 1
    compared = statistics.read(database, None, Query(compare=(RUNTIME.model, "lora-v2"))).compared
    assert compared is not None
    assert [side.tally.jobs for side in compared] == [1, 2]


def test_lost_attempts_and_the_last_run_count(database: Database) -> None:
    job = submit(database)
    claim(database, job)
    with database.write() as connection:
        connection.execute(sa.text("UPDATE attempts SET status = 'lost'"))
        connection.execute(sa.text("UPDATE jobs SET worker_id = NULL, lease_expires_at = NULL"))
    for stage_index in range(3):
        stages.record(database, claim(database, job, stage_index), OUTPUT)
    count(database)
    total = statistics.read(database, None, Query()).total
    assert (total.counts["attempts"], total.counts["lost"]) == (4, 1)
    assert total.measure("actor.time").count == total.measure("critic.time").count == 1
