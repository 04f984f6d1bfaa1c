"""kill -9 at every point of sealing: nothing is lost, and nothing is in the log twice."""

from __future__ import annotations

import signal
import sys

import pytest

from jobs.database import Database
from jobs.protocol.history import history
from jobs.statements import log
from jobs.use_cases import deletion, erasing, proving, reviewing, verifying
from jobs.use_cases.reviewing import NewReview
from tests import servers
from tests.integration.sealed import end, seal

#: Seals, and kills itself after one call of a statement, or after the commit.
PROGRAM = """
import os, signal, sys
from jobs.database import Database
from jobs.statements import log, log_checkpoints
from tests.integration.sealed import seal

url, point = sys.argv[1:]
if point != "committed":
    module = log_checkpoints if point == "add_checkpoint" else log
    original = getattr(module, point)

    def call(*arguments, **named):
        original(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, point, call)
seal(Database(url))
os.kill(os.getpid(), signal.SIGKILL)
"""
POINTS = [
    "find_unsealed",
    "lock",
    "set_origin",
    "add_key",
    "seal_job",
    "take_deletions",
    "add_entries",
    "set_tile",
    "add_checkpoint",
    "set_size",
    "committed",
]


def be_killed_while_sealing(database_url: str, point: str) -> None:
    """Run a process that seals until it kills itself."""
    program = (sys.executable, "-c", PROGRAM)
    process = servers.forked(database_url, point, environ={}, program=program)
    assert process.wait() == -signal.SIGKILL, process.output


@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_while_it_seals_loses_nothing(
    database: Database, database_url: str, point: str
) -> None:
    ended = [end(database) for _ in range(3)]
    be_killed_while_sealing(database_url, point)
    seal(database)
    deletion.delete(database, None, ended[1].id)
    seal(database)
    report = verifying.verify(database, history)
    assert (report.entries, report.jobs, report.deleted) == (4, 2, 1)
    assert len(proving.list_keys(database)) == 1
    with database.read() as connection:
        rows = log.list_entries(connection, 0, 4)
    assert [row.job_id for row in rows] == [job.id for job in [*ended, ended[1]]]


@pytest.mark.parametrize(
    "point", ["find_unsealed_reviews", "seal_review", "seal_erasure", "add_entries", "committed"]
)
def test_reviews_and_erasures_of_a_killed_process_are_sealed_once(
    database: Database, database_url: str, point: str
) -> None:
    job = end(database)
    seal(database)
    reviewing.add(database, None, job.id, NewReview(critique=1, note="x"), reviewer="ann")
    erasing.erase(database, None, job.id, history, ["/question"], erased_by="ann")
    be_killed_while_sealing(database_url, point)
    seal(database)
    report = verifying.verify(database, history)
    assert (report.entries, report.jobs, report.reviews, report.erasures) == (3, 1, 1, 1)
