"""Costs grow neither with the history nor with the queue, on SQLite and on PostgreSQL.

What a database looks at is counted, whatever makes it look: a statement, a foreign key, a trigger.
"""

from __future__ import annotations

import datetime as dt
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobs import queued_counts, use_cases
from jobs.database import Database
from jobs.enums import RATED, Order
from jobs.errors import StatisticsError
from jobs.kept_checkpoint import KeptCheckpoint
from jobs.models import ANONYMOUS, DeliveryStatus, Job, Scope, Status, Worker, WorkerState
from jobs.page_request import PageRequest
from jobs.pipeline import NextStage
from jobs.protocol.history import history
from jobs.queued_counts import QueuedCounts
from jobs.search.filters import Filters
from jobs.search.query import parse
from jobs.tlog.tiles import Tile
from jobs.use_cases import (
    batch_answers,
    batch_validation,
    batch_work,
    batches,
    cancellation,
    clock,
    deletion,
    deliveries,
    erasing,
    erasing_jobs,
    exporting,
    files,
    importing,
    indexing,
    keys,
    log_signing,
    metrics,
    outbox,
    overview,
    pausing,
    proving,
    queries,
    requests,
    restarting,
    retention,
    retrying,
    review_agreement,
    review_queue,
    reviewing,
    sealing,
    searching,
    stages,
    standing,
    statistics,
    submission,
    sweeping,
    system,
    tracing,
    verifying_jobs,
    webhooks,
    witnessing,
    workers,
)
from jobs.use_cases.batch_answers import LineResult, Submission
from jobs.use_cases.batch_validation import Piece
from jobs.use_cases.batches import NewBatch
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.requests import Keyed
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.statistics import By, Period, Query
from jobs.webhooks.outcome import Outcome
from tests.conftest import RUNTIME, WORKER
from tests.integration.long_history import ENDPOINT, HOOKED, WORKERS, fill
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit
from tests.integration.rows_read import counting

#: Queued questions with messages in Redis.
FEW = 300
MANY = 20_000
#: The maximum that one call may read: rows and index entries on PostgreSQL, a tenth of the virtual
#: machine's instructions on SQLite. A scan of the workers alone would be `WORKERS` or more.
MAX_ROWS = 9_000


def read_statistics(run: Callable[..., Any], database: Database) -> None:
    """Read statistics of all time, of a part of it, and in groups."""
    now = dt.datetime.now(dt.UTC)
    years = run(statistics.read, database, None, Query(by=By.MODEL))
    assert years.until - years.since > dt.timedelta(days=800)
    part = Query(since=now - dt.timedelta(days=700), until=now - dt.timedelta(hours=30))
    assert run(statistics.read, database, None, part).total.jobs > 20
    for by in (By.HOUR, By.DAY):
        length = dt.timedelta(days=33 if by is By.HOUR else 799)
        found = run(statistics.read, database, None, Query(by=by, since=now - length))
        assert len(found.groups) > 700
    run(statistics.read, database, ANONYMOUS, Query(by=By.ADAPTER, compare=None))
    for owner in (None, ANONYMOUS):
        assert run(statistics.read, database, owner, Query(by=By.OWNER)).groups
    periods = (
        Period("before", now - dt.timedelta(days=700), now - dt.timedelta(days=300)),
        Period("since", now - dt.timedelta(days=300), now),
    )
    run(statistics.read, database, None, Query(compare=periods))
    run(statistics.any_of_others, database, ANONYMOUS)
    of_jobs = Query(by=By.METADATA, key="team", since=now - dt.timedelta(days=20))
    with pytest.raises(StatisticsError):
        run(statistics.read, database, None, of_jobs, max_jobs=500)


def work_on_batches(run: Callable[..., Any], database: Database) -> None:
    """Run the use cases of files and batches."""
    file_id = run(files.begin_upload, database, ANONYMOUS, "in.jsonl")
    run(files.append, database, file_id, b"{}\n")
    keyed = Keyed(ANONYMOUS, "k", "d")
    run(files.finish_upload, database, file_id, 3600, keyed)
    run(files.finish_upload, database, file_id, 3600, keyed)
    run(files.abort_upload, database, run(files.begin_upload, database, ANONYMOUS, "lost"))
    run(files.get_file, database, ANONYMOUS, file_id)
    run(files.list_files, database, ANONYMOUS, PageRequest(20))
    run(files.list_files, database, ANONYMOUS, PageRequest(20, file_id))
    run(files.read_file, database, file_id, 0)
    new = NewBatch(file_id, "/v1/responses", "question", {}, None, keyed)
    batch = run(batches.create, database, ANONYMOUS, new)
    run(batches.create, database, ANONYMOUS, new)
    run(batches.get_batch, database, ANONYMOUS, batch.id)
    run(batches.list_batches, database, ANONYMOUS, PageRequest(20))
    run(batches.list_batches, database, ANONYMOUS, PageRequest(20, batch.id))
    row = run(batch_work.take_batch, database, batch.id, "me")
    run(batch_work.input_size, database, row)
    lines = [batch_validation.ValidatedLine(number, str(number), 0, 2) for number in range(1, 4)]
    run(
        batch_validation.record_piece,
        database,
        batch.id,
        "me",
        Piece(0, 3, 3, lines, [], last=True),
    )
    row = run(batch_work.take_batch, database, batch.id, "me")
    run(batch_answers.pending_lines, database, row, 20)
    line = replace(QUESTION, batch_id=batch.id, custom_id="1")
    submitted = Submission(0, 1, {1: line})
    [job] = run(batch_answers.record_lines, database, batch.id, "me", [], submitted)
    assert [work.queued for work in run(batch_work.find_work, database, "me")] == [1]
    run(batch_answers.raise_waiting_lines, database)
    cancellation.cancel(database, ANONYMOUS, job.id)
    run(batch_answers.ended_lines, database, batch.id, limit=20)
    run(batch_answers.record_lines, database, batch.id, "me", [LineResult(1, b"{}\n", failed=True)])
    run(batch_work.expire_batch, database, batch.id, "me")
    other = run(batches.create, database, ANONYMOUS, replace(new, keyed=None))
    run(batches.cancel_batch, database, ANONYMOUS, other.id)
    run(batch_work.end_unstarted, database, other.id, "me")
    run(batches.delete_batches, database, 1)
    run(files.delete_file, database, ANONYMOUS, file_id)
    run(files.sweep_files, database, 1)


def run_webhooks(run: Callable[..., Any], database: Database) -> None:
    """Call each use case of webhooks."""
    run(webhooks.create, database, HOOKED, **ENDPOINT)
    endpoints, _ = run(webhooks.list_endpoints, database, HOOKED, PageRequest(20))
    used = endpoints[-1].id
    run(webhooks.list_all_endpoints, database, None)
    run(webhooks.get, database, HOOKED, used)
    run(webhooks.update, database, HOOKED, used, allowed=(), name="renamed")
    run(webhooks.rotate_secret, database, HOOKED, used, keep_previous=True)
    for _ in range(3):
        job, _ = submission.submit(database, HOOKED, QUESTION, max_queued=1_000_000)
        run(cancellation.cancel, database, HOOKED, job.id)
    taken = run(deliveries.take, database, room=lambda _: 2, limit=3)
    assert len(taken) == 3
    outcomes = [Outcome(204, None, 0.1), Outcome(500, "it failed", 0.1)]
    run(deliveries.record, database, list(zip(taken, outcomes, strict=False)))
    run(deliveries.release, database, taken[2:])
    run(deliveries.correct_future_times, database, failed=True)
    page, _ = run(deliveries.list_deliveries, database, HOOKED, used, PageRequest(20))
    after = page[-1].id
    run(deliveries.list_deliveries, database, None, used, PageRequest(20, after))
    for status in DeliveryStatus:
        run(deliveries.list_deliveries, database, None, used, PageRequest(20), status)
    run(deliveries.redeliver, database, HOOKED, after)
    run(deliveries.sample, database, HOOKED, used, "response.failed")
    run(deletion.delete, database, HOOKED, job.id)
    run(webhooks.delete, database, HOOKED, endpoints[0].id)


def review_and_erase(run: Callable[..., Any], database: Database, job_id: str) -> None:
    """Call each use case of reviews and erasures about a job that is in the log."""
    for reviewer in ("ann", "bob"):
        review = NewReview(critique=1, regeneration=len(reviewer) - 3, note="x")
        run(reviewing.add, database, None, job_id, review, reviewer=reviewer)
    for kind in ("unreviewed", "disagreements"):
        for owner in (None, ANONYMOUS):
            run(review_queue.queue, database, owner, reviewer="ann", kind=kind, seed=1, limit=20)
            run(review_queue.next_review, database, owner, reviewer="ann", kind=kind, seed=1)
    run(review_agreement.agreement, database, ANONYMOUS)
    for rating in (0, 1):
        for owner in (None, ANONYMOUS):
            run(searching.search, database, owner, Filters(rating=rating), limit=20)
    run(searching.search, database, ANONYMOUS, Filters(rating=None), limit=20)
    run(searching.search, database, ANONYMOUS, Filters(rating=RATED), limit=20)
    for each in (0, RATED, None):
        run(searching.search, database, ANONYMOUS, Filters(critique_rating=each), limit=20)
    run(erasing.erase, database, None, job_id, history, None, erased_by="ann")
    prepared = run(sealing.prepare, database, history)
    assert [one.kind for one in prepared] == ["review", "review", "erasure"]
    assert run(sealing.append, database, prepared, Signing()) == 3
    assert not run(sealing.any_pending, database)


def ask_a_witness(run: Callable[..., Any], database: Database) -> None:
    """Let a witness cosign, and fail to."""
    asking = run(witnessing.begin_asking, database, "w.example", 0)
    run(witnessing.prove_consistency, database, 1, asking.size)
    run(witnessing.failed, database, "w.example", 1, 1)
    run(witnessing.cosigned, database, "w.example", asking.size, "— w.example AAAAAAAA\n")
    assert run(witnessing.begin_asking, database, "w.example", 0) is None


def send_traces(run: Callable[..., Any], database: Database) -> None:
    """Send ended jobs to a receiver, which takes them the second time."""
    sending = run(tracing.begin_sending, database, "receiver", history, 0)
    assert sending.histories
    run(tracing.note_unsent, database, "receiver", 1)
    run(tracing.note_sent, database, "receiver", sending.end)


def export_and_import(run: Callable[..., Any], database: Database, job_id: str) -> None:
    """Export the first pages, and import a job that is there."""

    def pages(filters: Filters, of: str | None = None) -> None:
        for _ in islice(exporting.pages(database, None, filters, of=of, with_proofs=True), 2):
            pass

    run(pages, Filters())
    run(pages, Filters(statuses=(Status.COMPLETED,)))
    run(pages, Filters(statuses=(Status.FAILED, Status.CANCELLED)))
    run(pages, Filters(since=dt.datetime.now(dt.UTC)), ANONYMOUS)
    run(pages, Filters(query=parse("fox")))

    def selected(ids: list[str]) -> None:
        assert [len(page) for page in exporting.selected(database, None, ids)] == [50, 50]

    page, _ = queries.list_jobs(database, None, PageRequest(100), status=Status.COMPLETED)
    run(selected, [job.id for job in page])
    job = queries.get_job(database, None, job_id, with_history=True)
    for use_case in (importing.check, importing.add):
        run(use_case, database, {1: job}, lambda *_: None)
    run(queries.get_job, database, None, job_id, with_history=True)


def erase_and_delete_matching(run: Callable[..., Any], database: Database) -> None:
    """Erase texts of jobs of all owners and of one, and delete the jobs."""
    for owner in (None, ANONYMOUS):
        step = run(
            erasing_jobs.erase_matching,
            database,
            owner,
            {"team": "blue"},
            history,
            None,
            after=None,
            erased_by="ann",
        )
        assert step.matched == erasing_jobs.MAX_ERASED
    step = run(deletion.delete_matching, database, None, {"team": "blue"}, after=None)
    assert len(step.ids) == deletion.MAX_DELETED
    for owner in (None, ANONYMOUS):
        run(deletion.delete_matching, database, owner, {"team": "red"}, after=step.after)


def search_jobs(run: Callable[..., Any], database: Database) -> None:
    """List jobs with filters and queries: of rare, frequent and missing terms."""
    for statuses in ((Status.FAILED, Status.CANCELLED), (Status.COMPLETED, Status.FAILED)):
        run(searching.search, database, None, Filters(statuses=statuses), limit=20)
    for text in ("why", "fox", "dog -fox", '"fox dog"', '"dog fox"', "none", "fox none"):
        for order in Order:
            filters = Filters(query=parse(text))
            page = run(searching.search, database, None, filters, limit=20, order=order)
            if text in ("why", "fox", "dog -fox", '"fox dog"'):
                assert len(page.jobs) == 20, text
    for order in (Order.MOST_CHANGED, Order.LONGEST):
        for filters in (Filters(), Filters(since=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))):
            after = None
            for _ in range(
                12
            ):  # Of 200 jobs each, these rank six ranges, some of which have the end of a period.
                lists = {"limit": 100, "after": after, "order": order}
                page = run(searching.search, database, None, filters, **lists)
                assert len(page.jobs) == 100
                after = page.next
    for filters in (Filters(metadata={"no": "one"}), Filters(key="key_none")):
        run(searching.search, database, None, filters, limit=20)


def look_over(run: Callable[..., Any], database: Database) -> None:
    """Show what a page with a list of jobs has besides them; the history is newer than its oldest job."""
    for owner in (None, ANONYMOUS):
        oldest, _ = queries.list_jobs(database, owner, PageRequest(1, newest_first=False))
        page, _ = queries.list_jobs(database, owner, PageRequest(100), status=Status.COMPLETED)
        assert len(run(overview.openings, database, [job.id for job in page])) == 100
        for since in (None, oldest[0].created_at):
            counts = run(overview.count_by_status, database, owner, since=since)
            assert counts[Status.COMPLETED] == overview.MAX_COUNT
        for statuses in ((), (Status.COMPLETED,), (Status.FAILED, Status.COMPLETED)):
            for job in (oldest[0], page[0]):
                filters = Filters(statuses=statuses)
                count = run(overview.count_newer, database, owner, filters, job.id)
                assert count == overview.MAX_NEW or job is page[0]


@pytest.mark.parametrize("queued", [FEW, MANY])
def test_no_use_case_scans_the_history_or_the_queue(
    database: Database, queued: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A web counts the queued jobs once a second: here once.
    counts = QueuedCounts()
    monkeypatch.setattr(queued_counts, "MAX_AGE", 3600)
    monkeypatch.setattr(submission, "QueuedCounts", lambda: counts)
    fill(database, queued)
    max_rows: dict[str, int] = {}
    with counting(database) as rows_read:
        rows_read()

        def run(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            name = call.__name__
            max_rows[name] = max(max_rows.get(name, 0), rows_read())
            return result

        ended = metrics.Ended()
        run(ended.read, database)
        run(sweeping.any_unfinished, database)
        of_key = Keyed(ANONYMOUS, "k", "d")
        keyed = replace(QUESTION, keyed=of_key)
        job, _ = run(submission.submit, database, ANONYMOUS, keyed, max_queued=1_000_000)
        run(submission.submit, database, ANONYMOUS, keyed, max_queued=1_000_000)
        together = [submission.JobRequest(ANONYMOUS, new) for new in (keyed, QUESTION)]
        run(submission.submit_all, database, together, max_queued=1_000_000)
        run(submission.find_made, database, of_key)
        run(queries.get_job, database, ANONYMOUS, job.id)
        run(queries.find_version, database, ANONYMOUS, job.id)
        run(queries.get_version, database, ANONYMOUS, job.id)
        for owner in (None, ANONYMOUS):
            run(queries.find_beside, database, owner, job)
            replays = run(queries.list_replays, database, owner, "resp_2old7")
            assert len(replays) == queries.MAX_REPLAYS
            assert run(queries.find_original, database, owner, replays[0]) is not None
        # The first in the queue, the last one, and one without a message.
        for priority, published_at in ((9, job.published_at), (0, job.published_at), (0, None)):
            waits = Job(status=Status.QUEUED, priority=priority, published_at=published_at)
            stands = run(standing.find_standing, database, waits, run(clock.now, database))
            assert (stands.place == standing.CAP) == (queued == MANY and priority == 0)
        outlook = run(standing.find_outlook, database, run(clock.now, database))
        assert (outlook.standing.queued == standing.CAP) == (queued == MANY)
        for newest_first in (True, False):
            first = PageRequest(20, newest_first=newest_first)
            page, _ = run(queries.list_jobs, database, ANONYMOUS, first, with_attempts=True)
            after = page[-1].id
            second = first._replace(after=after)
            run(queries.list_jobs, database, ANONYMOUS, second, with_attempts=True)
        run(queries.list_jobs, database, None, PageRequest(20, after))
        now = dt.datetime.now(dt.UTC)
        for status in (Status.FAILED, Status.COMPLETED):
            run(queries.list_jobs, database, ANONYMOUS, PageRequest(20), status=status)
            run(queries.list_jobs, database, ANONYMOUS, PageRequest(20), status=status, until=now)
        run(queries.list_jobs, database, ANONYMOUS, PageRequest(20), since=now)
        search_jobs(run, database)
        look_over(run, database)
        for ask in (pausing.pause, pausing.resume):
            run(pausing.is_paused, database)
            run(pausing.current, database)
            run(ask, database, "ops", *([None] if ask is pausing.pause else []))
        run(deletion.delete, database, ANONYMOUS, submit(database).id)
        request = requests.Keyed(ANONYMOUS, "k", "d" * 64)
        run(requests.note_outcome, database, request, status_code=200)
        assert run(requests.find_outcome, database, request) == {"status_code": 200}
        assert run(requests.delete_requests, database) == 0
        key, secret = run(keys.create, database, "k", [Scope.ASK], max_queued=10)
        run(submission.submit, database, "k", QUESTION, max_queued=1_000_000, key=key)
        session = run(keys.log_in, database, key)
        assert run(keys.find, database, secret).id == key.id
        assert run(keys.find_by_session, database, session).id == key.id
        run(keys.mark_used, database, [key.id])
        run(keys.log_out, database, session)
        run(keys.any_valid, database)
        run(keys.list_keys, database)
        run(keys.revoke, database, key.id)
        run_webhooks(run, database)
        run(sweeping.sweep, database)
        for queue_empty in (False, True):
            run(
                outbox.put_back,
                database,
                run(
                    outbox.take_unpublished, database, queue_empty=queue_empty, model=RUNTIME.model
                ),
            )
        run(outbox.mark_unpublished, database, job.id, 0)
        waiting = [submit(database) for _ in range(3)]
        taken = [NextStage(job.id, 0, 1, 5, None) for job in waiting]
        run(outbox.put_back, database, taken)
        for stage_index in range(3):
            run(stages.why_refused, database, job.id, stage_index, WORKER)
            claimed = run(stages.claim, database, job.id, stage_index, WORKER, job_timeout=60)
            run(stages.find_claim, database, job.id, stage_index, WORKER)
            run(workers.heartbeat, database, WORKER, [(job.id, claimed.lease_token)])
            run(workers.held_leases, database, WORKER)
            run(stages.record, database, claimed, OUTPUT)
        for end in (stages.release, stages.fail):
            run(
                end,
                database,
                claim(database, submit(database)),
                *["why"] * (1 + (end is stages.fail)),
            )
        job = submit(database)
        claimed = claim(database, job)
        run(cancellation.cancel, database, ANONYMOUS, job.id)
        run(stages.keep_partial, database, claimed, OUTPUT)
        job = submit(database)
        stages.fail(database, claim(database, job), "server_error", "why")
        run(retrying.retry, database, ANONYMOUS, job.id)
        claim(database, submit(database))
        job = submit(database)
        claim(database, job)
        cancellation.cancel(database, ANONYMOUS, job.id)
        let_leases_run_out(database)
        rows_read()
        run(sweeping.sweep, database)
        other_runtime = replace(RUNTIME, description={"engine": "other"})
        run(workers.register, database, "worker-2", "localhost", 2, other_runtime)
        run(workers.set_runtime, database, "worker-2", other_runtime)
        run(workers.set_state, database, "worker-2", WorkerState.READY)
        run(workers.register_again, database, "worker-2", "localhost", 2, other_runtime)
        run(restarting.restart_jobs, database, 600)
        assert run(restarting.restart_jobs, database, 0), "the model of the released stages is gone"
        run(workers.list_ready, database)
        run(workers.any_loading, database)
        run(workers.find_by_process, database, "localhost", 1)
        run(
            workers.get_tokenizer, database, run(workers.list_serving, database)[0].tokenizer_digest
        )
        run(database.check_writable)
        run(system.describe, database)
        run(system.summarize, database)
        assert len(run(system.list_gone, database)) == system.MAX_GONE
        for owner in (None, HOOKED):
            run(system.list_failed, database, owner)
        run(metrics.measure, database, limit=1000)
        jobs, attempts = run(ended.read, database)
        assert 5 < len(jobs) < len(attempts) < 100, "of the history it reads what is new"
        work_on_batches(run, database)
        assert run(indexing.any_pending, database)
        documents = run(indexing.prepare, database)
        assert run(indexing.put, database, documents) == len(documents) > 1
        run(indexing.merge, database)
        read_statistics(run, database)
        run(tracing.begin_sending, database, "receiver", history, 0)
        prepared = run(sealing.prepare, database, history)
        assert 1 < len(prepared) < 10
        assert run(sealing.append, database, prepared, Signing()) == len(prepared)
        assert not run(sealing.any_pending, database)
        run(log_signing.check_signing, database, Signing())
        run(log_signing.rotate_key, database)
        run(proving.list_keys, database)
        run(proving.prove, database, None, prepared[1].job_id)
        run(verifying_jobs.verify_job, database, None, prepared[1].job_id, history)
        assert run(proving.get_checkpoint, database) is not None
        assert run(proving.get_tile, database, 0, Tile(0, 2)) is not None
        assert run(proving.get_bundle, database, Tile(0, 2)) is not None
        ask_a_witness(run, database)
        send_traces(run, database)
        export_and_import(run, database, prepared[1].job_id)
        review_and_erase(run, database, prepared[1].job_id)
        kept = KeptCheckpoint(tmp_path)
        run(log_signing.keep_newest, database, kept)
        assert run(log_signing.require_continued, database, kept) is not None
        run(log_signing.begin_new_log, database, Signing())
        assert run(retention.delete_workers, database) is not None
        assert run(retention.delete_jobs, database, 50) == 0
        assert run(retention.delete_jobs, database, 5) == 100
        erase_and_delete_matching(run, database)
        with database.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count(Worker.id))) == WORKERS + 2 - 100
    # `verify` is there to read everything, and `origin_proof` is a column of one job. `searching.search` searches
    # by age and by rank, and erasures find the lines of batches.
    uncounted = {"verify", "origin_proof", "search_by_age", "search_by_rank", "find_lines"}
    public = {
        name
        for module in pkgutil.iter_modules(use_cases.__path__, f"{use_cases.__name__}.")
        for name, function in inspect.getmembers(import_module(module.name), inspect.isfunction)
        if not name.startswith("_") and "database" in inspect.signature(function).parameters
    }
    assert len(public) > 20
    assert public - set(max_rows) == uncounted, "every other use case is counted here"
    assert {name: count for name, count in max_rows.items() if count > MAX_ROWS} == {}
