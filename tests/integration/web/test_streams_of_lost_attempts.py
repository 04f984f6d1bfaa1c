"""A text that was streamed and then lost with its worker: all readers of the job get the same events.

Each ending of such a text is read by four readers: one that is there from the start, one that leaves and resumes, and
two that come later, to this process and to another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, Job, Worker, WorkerState
from jobs.progress import TextDeltas
from jobs.use_cases import restarting, retrying, stages, sweeping, workers
from jobs.use_cases.stages import Claim
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.web.test_live_streams import DELTA, Reader, Web, deltas, output, serving
from tests.servers import RedisServer
from web.v1 import feeds

#: The pieces of the text that is lost.
PIECES = ["a ", "b ", "c "]
OTHER = "worker-2"


@pytest.fixture
def webs(redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[Web, Web]]:
    """Two processes that serve the same jobs, as far as a test can tell."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    with (
        serving(url, redis_server.url) as web,
        serving(url, redis_server.url, migrate=False) as other,
    ):
        yield web, other


@contextmanager
def reading(web: Web) -> Iterator[tuple[Job, Claim, Reader, list[dict[str, Any]]]]:
    """Stream the text of a job's first stage to a reader.

    Returns:
        the job, the claim that will be lost, the reader, and what it has received.
    """
    job = submit(web.database)
    lost = claim(web.database, job)
    with Reader(web, job) as early:
        web.generate(lost, 0, PIECES)
        yield job, lost, early, [event for _ in PIECES for event in early.until(DELTA)]


def sweep(web: Web) -> None:
    """Let all leases run out, and sweep as a worker does."""
    let_leases_run_out(web.database)
    swept = sweeping.sweep(web.database, web.services.progress.close_texts)
    for job_id in {*swept.taken_back, *swept.failed, *swept.attempts_ended}:
        web.services.progress.publish_change(job_id)


def end(web: Web, job: Job, stage_index: int = 0, worker: str = WORKER) -> None:
    """Finish a job from a stage on."""
    for index in range(stage_index, 3):
        stages.record(web.database, claim(web.database, job, index, worker), OUTPUT)
    web.services.progress.publish_change(job.id)


def run_again(web: Web, job: Job, pieces: list[str], *, exclusive: bool = False) -> Claim:
    again = claim(web.database, job, exclusive=exclusive)
    web.services.progress.publish_change(job.id)
    web.generate(again, 0, pieces)
    return again


def the_same_text_follows(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    again = run_again(web, job, ["a b", " c d", " e"])  # Its pieces are other ones.
    stages.record(web.database, again, output(["a b", " c d", " e"]))
    end(web, job, 1)


def another_text_follows(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    again = run_again(web, job, ["a ", "B ", "c ", "d"])
    stages.record(web.database, again, output(["a ", "B ", "c ", "d"]))
    end(web, job, 1)


def a_shorter_text_is_cancelled(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    again = run_again(web, job, ["a "])
    web.cancel(job)
    stages.keep_partial(web.database, again, replace(output(["a "]), finish_reason="cancelled"))
    web.services.progress.publish_change(job.id)


def it_is_cancelled_while_it_waits(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    web.cancel(job)


def it_is_cancelled_and_its_worker_is_lost(web: Web, job: Job, _: Claim) -> None:
    web.cancel(job)
    sweep(web)


def it_is_too_late(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    with web.database.engine.begin() as connection:
        late = sa.update(Job).where(Job.id == job.id)
        connection.execute(late.values(deadline_at=utcnow(-1)))
    sweep(web)


def three_workers_are_lost(web: Web, job: Job, _: Claim) -> None:
    for pieces in (["a ", "b ", "c ", "d "], ["a "]):
        sweep(web)
        run_again(web, job, pieces, exclusive=True)
    sweep(web)


def it_restarts_with_another_model(web: Web, job: Job, _: Claim) -> None:
    sweep(web)
    with web.database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(ready_at=utcnow(-700)))
        gone = sa.update(Worker).where(Worker.id == WORKER)
        connection.execute(gone.values(seen_at=utcnow(-700)))
    workers.register(web.database, OTHER, "elsewhere", 2, Runtime({"engine": "other"}, 4096, "{}"))
    workers.set_state(web.database, OTHER, WorkerState.READY)
    assert restarting.restart_jobs(web.database, 600) == [job.id]
    end(web, job, 0, OTHER)


def its_worker_stops_and_it_is_cancelled(web: Web, job: Job, lost: Claim) -> None:
    # What is left of the text is not published.
    assert stages.release(
        web.database, lost, "the worker shut down", replace(output([*PIECES, "d"]))
    )
    web.cancel(job)


def it_fails(web: Web, job: Job, lost: Claim) -> None:
    stages.fail(web.database, lost, "server_error", "broken", output(PIECES))
    web.services.progress.publish_change(job.id)


ENDINGS = (
    the_same_text_follows,
    another_text_follows,
    a_shorter_text_is_cancelled,
    it_is_cancelled_while_it_waits,
    it_is_cancelled_and_its_worker_is_lost,
    it_is_too_late,
    three_workers_are_lost,
    it_restarts_with_another_model,
    its_worker_stops_and_it_is_cancelled,
    it_fails,
)


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_all_readers_get_the_same_events(
    webs: tuple[Web, Web], ending: Callable[[Web, Job, Claim], None]
) -> None:
    web, other_web = webs
    with reading(web) as (job, lost, early, received):
        ending(web, job, lost)
        received += early.rest()
    assert received[-1]["response"]["status"] not in ("queued", "in_progress")
    numbers = [event["sequence_number"] for event in received]
    assert numbers == list(range(len(received))), "no text is lost"
    for seen in (0, numbers[-1] // 2, numbers[-1] - 1):
        with Reader(web, job, after=seen) as resumed:
            assert received[seen + 1 :] == resumed.rest()
    for late_web in (web, other_web):
        with Reader(late_web, job) as late:
            assert late.rest() == received


def test_a_reader_that_comes_while_a_lost_stage_waits_gets_its_text(webs: tuple[Web, Web]) -> None:
    web, other_web = webs
    with reading(web) as (job, lost, early, received):
        sweep(web)
        with Reader(other_web, job) as late:
            assert [event for _ in PIECES for event in late.until(DELTA)] == received
            the_same_text_follows(web, job, lost)
            assert late.rest() == early.rest()


def test_what_a_worker_publishes_after_it_was_taken_for_lost_is_nobodys_text(
    webs: tuple[Web, Web],
) -> None:
    """It was stopped, or cut off from the database, and Redis still takes its text."""
    web, other_web = webs
    with reading(web) as (job, lost, early, received):
        let_leases_run_out(web.database)
        swept = sweeping.sweep(web.database, web.services.progress.close_texts)
        assert swept.taken_back == [job.id]
        web.generate(lost, len(PIECES), ["late "])
        web.cancel(job)
        received += early.rest()
    assert "late" not in received[-2]["item"]["content"][0]["text"]
    with Reader(other_web, job) as late:
        assert late.rest() == received


def test_a_text_that_redis_lost_leaves_out_its_numbers(webs: tuple[Web, Web]) -> None:
    """Nobody knows it any more, and each number still stands for the same event."""
    web, other_web = webs
    with reading(web) as (job, _, early, received):
        web.services.progress.forget(job.id)
        sweep(web)
        web.cancel(job)
        received += early.rest()
    with Reader(other_web, job) as reader:
        late = {event["sequence_number"]: event for event in reader.rest()}
    live = {event["sequence_number"]: event for event in received}
    assert late == {number: event for number, event in live.items() if number in late}
    assert live.keys() - late.keys() == set(range(6, 6 + 2 * len(PIECES)))
    assert received[-2]["item"]["content"][0]["text"] == ""


def test_after_a_retry_a_stream_continues_the_text_of_the_failure(webs: tuple[Web, Web]) -> None:
    """Readers that come at any time after the retry get the same events."""
    web, other_web = webs
    job = submit(web.database)
    it_fails(web, job, claim(web.database, job))
    retrying.retry(web.database, ANONYMOUS, job.id)
    with Reader(web, job) as early:
        received = [event for _ in PIECES for event in early.until(DELTA)]
        again = run_again(web, job, PIECES)
        stages.record(web.database, again, output([*PIECES, "d"]))
        end(web, job, 1)
        received += early.rest()
    assert received[-1]["type"] == "response.completed"
    with Reader(other_web, job) as late:
        assert late.rest() == received


def test_the_end_of_a_cancelled_job_waits_for_a_worker_that_is_lost(
    webs: tuple[Web, Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its lease has run out, it may still hand in the text; readers would get two ends."""
    assert feeds.PARTIAL_TEXT_TIMEOUT > 20
    monkeypatch.setattr(feeds, "PARTIAL_TEXT_EXPECTED", 0.0)
    web, _ = webs
    with reading(web) as (job, _, early, received):
        web.cancel(job)
        sweep(web)
        received += early.rest()
    assert received[-2]["item"]["content"][0]["text"] == "".join(PIECES)


def test_texts_of_before_a_restore_are_nobodys_text(webs: tuple[Web, Web]) -> None:
    """A database that is set back repeats the ids of attempts, and Redis has the texts of those that were lost."""
    web, _ = webs
    job = submit(web.database)
    web.services.progress.publish([(job.id, TextDeltas("1@1.000000", 0, ["of before "]))])
    first = claim(web.database, job)
    assert first.attempt_id == 1
    with Reader(web, job) as early:
        web.generate(first, 0, PIECES)
        received = [event for _ in PIECES for event in early.until(DELTA)]
        assert deltas(received) == PIECES
        web.cancel(job)
        sweep(web)
        assert early.rest()[-2]["item"]["content"][0]["text"] == "".join(PIECES)
