"""The figures of metrics: how much waits, and what has ended since they were last read.

Counts of what has ended are no query: a history grows. So `Ended` follows the history from where it was when the
process first read it, and returns what has ended since.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import AttemptStatus
from jobs.pipeline import Role
from jobs.statements import clock, in_queue, log, metrics, pauses, system
from jobs.use_cases.system import ROLES, state_of

#: Counts end here: what is read is bounded, however much waits.
MOST = 100_000
#: Rows that `Ended.read` reads at once, and how often at most. Whatever is left is read the next time.
PAGE, MAX_PAGES = 1000, 20
#: The maximum numbers of attempts to look for again: running ones, and ids that were not there yet.
MAX_RUNNING, MAX_MISSING = 20_000, 1000
#: Seconds after which a change can be seen at the latest: a commit may come later than the time and the id that
#: its rows have, and so after those of others.
OVERLAP = 10.0


@dataclass(frozen=True)
class Waiting:
    """What runs and what waits. No number counts further than its limit."""

    queued: int
    is_paused: bool
    #: Seconds that the oldest of them has waited; 0 if there is none.
    oldest_queued_age: float
    #: Stages of jobs that have begun, by role.
    running: Mapping[Role, int]
    waiting: Mapping[Role, int]
    #: Numbers of workers, by `jobs.use_cases.system.RunningWorker.state`.
    workers: Mapping[str, int]
    #: Webhooks to send, and for how many seconds the first of them has been due.
    deliveries: int
    delivery_lag: float
    log_size: int
    #: Ended jobs without an entry in the log, and the seconds since the first of them ended.
    unsealed: int
    log_lag: float


def measure(database: Database, limit: int = MOST) -> Waiting:
    """Return what runs and what waits.

    Args:
        database: of the service.
        limit: the maximum number of rows of each kind.
    """
    with database.read_session() as session:
        connection = session.connection()
        now = clock.now(connection)

        def since(moment: dt.datetime | None) -> float:
            return 0.0 if moment is None else max(0.0, (now - moment).total_seconds())

        running, waiting = Counter[Role](), Counter[Role]()
        for _, stage_index, is_running, number in system.count_in_progress(connection, limit):
            (running if is_running else waiting)[ROLES[stage_index]] += number
        deliveries, due_at = metrics.pending_deliveries(connection, limit)
        _, log_size = log.state(connection)
        return Waiting(
            queued=in_queue.count(connection, limit),
            is_paused=pauses.is_paused(connection),
            oldest_queued_age=since(in_queue.oldest(connection)),
            running=running,
            waiting=waiting,
            workers=Counter(state_of(each, now) for each in system.list_workers(session)),
            deliveries=deliveries,
            delivery_lag=since(due_at),
            log_size=log_size,
            unsealed=log.count_unsealed(connection, limit),
            log_lag=since(metrics.oldest_unsealed(connection)),
        )


class Ended:
    """The jobs and attempts that have ended since the last `read`. One thread at a time may use it.

    Jobs that were imported ended elsewhere, and are left out. So is what was deleted before it was read.
    """

    def __init__(self) -> None:
        self._begun = False
        #: The attempt that was added last.
        self._last = 0
        #: Attempts that were running, and ids below ``_last`` that were not there yet, with when to give them up
        #: on the clock of `time.monotonic`.
        self._running: set[int] = set()
        self._missing: dict[int, float] = {}
        #: When the last job ended, and the ends that were returned of those that ended since `OVERLAP` before it.
        self._job_at = dt.datetime.min.replace(tzinfo=dt.UTC)
        self._since = self._job_at
        self._returned: set[tuple[str, dt.datetime]] = set()

    def read(self, database: Database) -> tuple[list[sa.Row[Any]], list[sa.Row[Any]]]:
        """Return the jobs and the attempts that have ended since the last call; none at the first call.

        Args:
            database: of the service; the same at each call.

        Returns:
            jobs: ``status``, ``created_at``, ``finished_at``; attempts: ``role``, ``status``, ``prompt_tokens``,
            ``output_tokens``, ``queued_at``, ``started_at``, ``first_token_at``, ``finished_at``.
        """
        state = {name: copy(value) for name, value in vars(self).items()}
        try:
            with database.read() as connection:
                if not self._begun:
                    self._begin(connection)
                    return [], []
                return self._jobs(connection), self._attempts(connection)
        except BaseException:
            vars(self).update(state)  # The next call returns what this one had found already.
            raise

    def _begin(self, connection: sa.Connection) -> None:
        self._since = self._job_at = clock.now(connection)
        self._last = metrics.last_attempt(connection)
        self._running = set(metrics.running_attempts(connection, MAX_RUNNING))
        self._begun = True

    def _jobs(self, connection: sa.Connection) -> list[sa.Row[Any]]:
        found: list[sa.Row[Any]] = []
        overlap = dt.timedelta(seconds=OVERLAP)
        after = (max(self._since, self._job_at - overlap), "")
        for _ in range(MAX_PAGES):
            page = metrics.jobs_ended_after(connection, after, PAGE)
            found += page
            if len(page) < PAGE:
                break
            after = (page[-1].finished_at, page[-1].id)
        new = [row for row in found if (row.id, row.finished_at) not in self._returned]
        if found:
            self._job_at = max(self._job_at, found[-1].finished_at)
        self._returned |= {(row.id, row.finished_at) for row in new}
        self._returned = {end for end in self._returned if end[1] >= self._job_at - overlap}
        return [row for row in new if not row.is_imported]

    def _attempts(self, connection: sa.Connection) -> list[sa.Row[Any]]:
        now = time.monotonic()
        # SQLite gives the ids of the newest attempts again, once they are deleted.
        self._last = min(self._last, metrics.last_attempt(connection))
        again = [
            *(number for number in self._running if number <= self._last),
            *(n for n, end in self._missing.items() if end > now and n <= self._last),
        ]
        self._missing = {
            number: self._missing[number] for number in again if number in self._missing
        }
        found = metrics.attempts_by_id(connection, again) if again else []
        for _ in range(MAX_PAGES):
            page = metrics.attempts_after(connection, self._last, PAGE)
            found += page
            self._expect([row.id for row in page], now + OVERLAP)
            if len(page) < PAGE:
                break
        running = [row.id for row in found if row.status is AttemptStatus.RUNNING]
        self._running = set(running[-MAX_RUNNING:])
        for row in found:
            self._missing.pop(row.id, None)
        return [
            row for row in found if row.status is not AttemptStatus.RUNNING and not row.is_imported
        ]

    def _expect(self, ids: list[int], until: float) -> None:
        """Note the ids that are missing among those of new attempts, and move on to the last of them."""
        if not ids:
            return
        missing = sorted({*range(max(self._last + 1, ids[-1] - MAX_MISSING), ids[-1])} - {*ids})
        for number in missing[: MAX_MISSING - len(self._missing)]:
            self._missing[number] = until
        self._last = ids[-1]
