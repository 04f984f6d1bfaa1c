"""An ended attempt never changes, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Attempt, AttemptStatus, Job
from jobs.use_cases import cancellation, stages, sweeping, workers
from jobs.use_cases.stages import Claim
from tests.conftest import WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit

PARTIAL = replace(OUTPUT, text="Bec", delta_lengths=[3], finish_reason="cancelled")


@dataclass
class History:
    """A job, all claims on it so far, and its rows at the last check."""

    database: Database
    job: Job
    claims: list[Claim] = field(default_factory=list)
    rows: dict[int, Any] = field(default_factory=dict)
    ended: Any = None

    def claim(self) -> None:
        for stage_index in range(3):
            for exclusive in (False, True):
                claimed = stages.claim(
                    self.database,
                    self.job.id,
                    stage_index,
                    WORKER,
                    job_timeout=60,
                    exclusive=exclusive,
                )
                if claimed is not None:
                    self.claims.append(claimed)

    def lose(self) -> None:
        let_leases_run_out(self.database)
        sweeping.sweep(self.database)

    def pass_the_deadline(self) -> None:
        with self.database.engine.begin() as connection:
            past = sa.update(Job).where(Job.deadline_at.is_not(None))
            connection.execute(past.values(deadline_at=utcnow(-3600)))
        sweeping.sweep(self.database)

    def check(self) -> None:
        with self.database.engine.begin() as connection:
            of_job = sa.select(Attempt.__table__).where(Attempt.job_id == self.job.id)
            attempts = {row.id: row for row in connection.execute(of_job)}
            job = connection.execute(sa.select(Job.__table__).where(Job.id == self.job.id)).one()
        for number, row in self.rows.items():
            if row.status is not AttemptStatus.RUNNING:
                assert attempts[number] == row, "it had ended"
        self.rows = attempts
        running = [a.lease_token for a in attempts.values() if a.finished_at is None]
        assert running == [
            a.lease_token for a in attempts.values() if a.status is AttemptStatus.RUNNING
        ]
        assert running == ([] if job.worker_id is None else [job.lease_token])
        assert (job.lease_expires_at is None) == (job.worker_id is None)
        assert (job.finished_at is not None) == job.status.final
        ended = (job.status, job.finished_at, job.error_message)
        assert self.ended in (None, ended), "a job ends once"
        if job.status.final:
            self.ended = ended


#: Events in the life of a job.
EVENTS: dict[str, Callable[[History], object]] = {
    "claim": History.claim,
    "cancel": lambda history: cancellation.cancel(history.database, ANONYMOUS, history.job.id),
    "lose": History.lose,
    "pass the deadline": History.pass_the_deadline,
    "heartbeat": lambda history: workers.heartbeat(
        history.database, WORKER, [(claim.job_id, claim.lease_token) for claim in history.claims]
    ),
}
#: What the holder of a claim may do, whether it still has the lease or lost it.
ENDS: dict[str, Callable[[Database, Claim], object]] = {
    "record": lambda database, claim: stages.record(database, claim, OUTPUT),
    "fail": lambda database, claim: stages.fail(database, claim, "server_error", "broken", PARTIAL),
    "release": lambda database, claim: stages.release(database, claim, "the worker shut down"),
    "hand in": lambda database, claim: stages.keep_partial(database, claim, PARTIAL),
    "hand nothing in": lambda database, claim: stages.keep_partial(database, claim, None),
}
happenings = st.lists(
    st.one_of(
        st.sampled_from(sorted(EVENTS)),
        st.tuples(st.sampled_from(sorted(ENDS)), st.integers(-3, -1)),
    ),
    min_size=2,
    max_size=14,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(happened=happenings)
def test_an_ended_attempt_never_changes(database: Database, happened: list[Any]) -> None:
    history = History(database, submit(database))
    history.claim()
    for event in happened:
        if isinstance(event, str):
            EVENTS[event](history)
        elif len(history.claims) >= -event[1]:
            ENDS[event[0]](database, history.claims[event[1]])
        history.check()
    cancellation.cancel(database, ANONYMOUS, history.job.id)
    history.lose()
    history.check()
    assert not sweeping.any_unfinished(database)


@pytest.mark.parametrize("first", sorted(ENDS))
def test_of_two_concurrent_ends_one_is_recorded(database: Database, first: str) -> None:
    """The second one finds the attempt ended: by another end, a cancel or a lost lease."""
    for second in ENDS:
        for event in EVENTS:
            for order in ((first, second, event), (event, first, second)):
                history = History(database, submit(database))
                history.claim()
                for name in order:
                    if name in EVENTS:
                        EVENTS[name](history)
                    else:
                        ENDS[name](database, history.claims[0])
                    history.check()
                cancellation.cancel(database, ANONYMOUS, history.job.id)
                history.lose()


def test_triggers_protect_ended_attempts(database: Database) -> None:
    job = submit(database)
    stages.record(database, claim(database, job), OUTPUT)
    changed = sa.update(Attempt).values(output="something else")
    with (
        database.engine.begin() as connection,
        pytest.raises(sa.exc.IntegrityError, match="has ended never changes"),
    ):
        connection.execute(changed)
