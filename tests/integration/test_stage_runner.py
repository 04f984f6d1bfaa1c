"""The stage runner with a real engine, a real Redis and both databases."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.exceptions import Ignore
from safetensors.torch import load_file, save_file
from sqlalchemy.exc import OperationalError
from transformers import AutoTokenizer

from jobs import logs
from jobs.database import Database
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status
from jobs.pipeline import Sampling
from jobs.progress import Progress
from jobs.use_cases import cancellation, deletion, queries, stages, submission
from jobs.use_cases.stages import Claim, Output
from jobs.use_cases.submission import NewJob
from tests.conftest import WORKER, start_engine
from tests.servers import RedisServer
from worker.attempt_recorder import MAX_INTERRUPTED_ATTEMPTS
from worker.engine.interface import Generation, InterruptedGenerationError, Request
from worker.engine.reference import ReferenceEngine
from worker.progress_publisher import ProgressPublisher
from worker.stage_runner import StageRunner


@pytest.fixture(scope="module")
def nul_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose most likely token is always NUL."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("nul") / "copy"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    [nul] = tokenizer.encode("\0", add_special_tokens=False)
    weights = load_file(folder / "base" / "model.safetensors")
    weights["lm_head.weight"][nul] = weights["lm_head.weight"][tokenizer.eos_token_id] * 100
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def engine(endless: Path) -> Iterator[ReferenceEngine]:
    engine = start_engine(endless)
    yield engine
    engine.close()


@pytest.fixture
def runner(
    database: Database, engine: ReferenceEngine, publisher: ProgressPublisher
) -> StageRunner:
    return StageRunner(database, engine, publisher, WORKER, job_timeout=60)


def submit(database: Database, limit: int, **changes: float) -> Job:
    sampling = Sampling(max_output_tokens=limit, seed=3, **changes)  # type: ignore[arg-type]  # numbers
    new = NewJob("Why?", "Be brief.", sampling, 1, 5, background=True, metadata={})
    return submission.submit(database, ANONYMOUS, new, max_queued=10)[0]


def start_stage(runner: StageRunner, progress: Progress, job: Job) -> threading.Thread:
    """Run a job's first stage on a thread; return once its first text is there."""

    def run() -> None:
        with pytest.raises(Ignore):
            runner.run(job.id, 0)

    thread = threading.Thread(target=run)
    thread.start()
    live_text(progress, job)
    return thread


def live_text(progress: Progress, job: Job) -> list[str]:
    """Wait for live text; return its pieces."""
    with progress.follow(job.id) as follower:
        while not (texts := follower.read(1).texts):
            pass
    return [delta for text in texts for delta in text.deltas]


def test_generated_nul_characters_are_kept(
    database: Database, progress: Progress, publisher: ProgressPublisher, nul_checkpoint: Path
) -> None:
    engine = start_engine(nul_checkpoint)
    runner = StageRunner(database, engine, publisher, WORKER, job_timeout=60)
    job = submit(database, 3, temperature=0)
    for stage_index in range(3):
        runner.run(job.id, stage_index)
    engine.close()
    publisher.stop()
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert [a.output for a in stored.attempts] == ["\0\0\0"] * 3
    assert "RESPONSE: \0\0\0 \nCRITIQUE: \0\0\0 \nREGENERATOR:" in stored.attempts[2].prompt
    assert live_text(progress, job)[0] == "\0"


def test_live_text_is_kept_for_a_minute_after_the_end(
    database: Database,
    runner: StageRunner,
    publisher: ProgressPublisher,
    progress: Progress,
    redis_server: RedisServer,
) -> None:
    job = submit(database, 3)
    for stage_index in range(2):
        runner.run(job.id, stage_index)
    with redis.Redis.from_url(redis_server.url) as client:
        live_text(progress, job)
        [key] = client.scan_iter(f"helixq:*{job.id}")
        assert client.ttl(key) > 3000
        runner.run(job.id, 2)
        publisher.stop()
        assert 0 < client.ttl(key) <= 60


def test_live_text_is_the_recorded_text(
    database: Database, runner: StageRunner, publisher: ProgressPublisher, progress: Progress
) -> None:
    job = submit(database, 40)
    runner.run(job.id, 0)
    publisher.stop()
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    live = live_text(progress, job)
    assert "".join(live) == attempt.output
    assert [len(delta) for delta in live] == attempt.delta_lengths
    assert attempt.finish_reason == "length"
    assert attempt.output_tokens == 40


def test_every_line_of_a_stage_has_its_ids(
    database: Database, runner: StageRunner, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = logging.getLogger().handlers[:]
    logs.configure("json", "worker")
    job = submit(database, 2)
    try:
        runner.run(job.id, 0)
        with pytest.raises(Ignore):
            runner.run(job.id, 0)
        runner.publish_later(job.id, 1, OperationalError("", {}, Exception("it hangs")))
        logging.getLogger("worker").info("of no stage")
    finally:
        logging.getLogger().handlers[:] = handlers
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[0] == "{"]
    *of_stages, other = [line for line in lines if line["logger"].startswith("worker")]
    assert [(line["job_id"], line["stage"]) for line in of_stages] == [
        (job.id, 0),
        (job.id, 0),
        (job.id, 1),
    ]
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    for line in of_stages[:2]:
        assert (line["role"], line["attempt_id"], line["attempt"]) == ("actor", attempt.id, 1)
    assert "job_id" not in other


def test_a_duplicate_message_is_ignored(database: Database, runner: StageRunner) -> None:
    job = submit(database, 2)
    runner.run(job.id, 0)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    assert len(queries.get_job(database, ANONYMOUS, job.id).attempts) == 1


def test_a_message_about_a_job_that_is_gone_is_dropped(
    database: Database, runner: StageRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a failover that lost the job, or a restore."""
    job = submit(database, 2)
    deletion.delete(database, ANONYMOUS, job.id)
    with caplog.at_level(logging.INFO), pytest.raises(Ignore):
        runner.run(job.id, 0)
    assert f"{job.id}: its message is dropped: no such job is in the database" in caplog.text


def test_a_sweep_publishes_a_stage_whose_message_redis_refused(
    database: Database, runner: StageRunner
) -> None:
    job = submit(database, 2)
    runner.run(job.id, 0)
    assert queries.get_job(database, ANONYMOUS, job.id).published_at is not None
    runner.publish_later(job.id, 1, OperationalError("", {}, Exception("it hangs")))
    assert queries.get_job(database, ANONYMOUS, job.id).published_at is None


def test_cancelling_frees_the_engine_and_keeps_the_partial_text(
    database: Database, runner: StageRunner, progress: Progress
) -> None:
    job = submit(database, 4000)
    thread = start_stage(runner, progress, job)
    cancellation.cancel(database, ANONYMOUS, job.id)
    runner.cancel_lost()  # as the heartbeat thread calls it
    thread.join(30)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert stored.status is Status.CANCELLED
    [attempt] = stored.attempts
    assert attempt.status is AttemptStatus.CANCELLED
    assert attempt.output
    assert attempt.finish_reason == "cancelled"


def test_stopping_gives_stages_back(
    database: Database, runner: StageRunner, progress: Progress
) -> None:
    job = submit(database, 4000)
    thread = start_stage(runner, progress, job)
    runner.stop()
    thread.join(30)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.stage_index, stored.published_at) == (Status.IN_PROGRESS, 0, None)
    [attempt] = stored.attempts
    assert attempt.status is AttemptStatus.RELEASED
    assert attempt.output, "readers of the stream have seen it"
    assert attempt.finish_reason is None
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    assert len(queries.get_job(database, ANONYMOUS, job.id).attempts) == 1


def test_a_job_past_its_deadline_fails_with_its_partial_text(
    database: Database, engine: ReferenceEngine, publisher: ProgressPublisher
) -> None:
    for seconds in (0.5, 5, 50):  # A busy machine may not even begin in half a second.
        runner = StageRunner(database, engine, publisher, WORKER, job_timeout=seconds)
        job = submit(database, 4000)
        with pytest.raises(Ignore):
            runner.run(job.id, 0)
        stored = queries.get_job(database, ANONYMOUS, job.id)
        assert (stored.status, stored.error_code) == (Status.FAILED, "deadline_exceeded")
        if stored.attempts[0].output:
            break
    assert stored.attempts[0].output


def test_a_prompt_without_room_fails_the_job(database: Database, runner: StageRunner) -> None:
    sampling = Sampling(max_output_tokens=5)
    new = NewJob("word " * 50_000, "s", sampling, 1, 5, background=True, metadata={})
    job, _ = submission.submit(database, ANONYMOUS, new, max_queued=10)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.error_code) == (Status.FAILED, "context_length_exceeded")


def test_an_error_of_the_engine_fails_the_job_with_the_reason(
    database: Database,
    runner: StageRunner,
    engine: ReferenceEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A fake fault for a broken driver or full memory.
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(engine._models["actor"], "generate", broken)
    job = submit(database, 5)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert stored.status is Status.FAILED
    assert stored.error_message == "the actor failed: RuntimeError: no memory left"


def test_a_stage_that_fails_after_a_cancel_ends_its_attempt(
    database: Database,
    runner: StageRunner,
    engine: ReferenceEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = submit(database, 5)

    def broken(*_: object) -> None:  # a fake fault right after the cancel
        cancellation.cancel(database, ANONYMOUS, job.id)
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(engine, "submit", broken)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.worker_id) == (Status.CANCELLED, None)
    assert stored.attempts[0].status is AttemptStatus.CANCELLED


def test_an_unexpected_error_fails_the_job(
    database: Database,
    runner: StageRunner,
    engine: ReferenceEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A fake fault outside the engine.
    def broken(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(engine, "submit", broken)
    job = submit(database, 5)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.error_message) == (Status.FAILED, "ZeroDivisionError: odd")
    assert runner.running == []


def test_a_finished_text_waits_for_the_database(
    database: Database, runner: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake fault: the database fails three times, the last time while it replies to the commit; then it works again.
    faults = iter(range(3))
    record = stages.record

    def flaky(database: Database, claim: Claim, output: Output) -> bool:
        for fault in faults:
            if fault == 2:
                assert record(database, claim, output)
            raise OperationalError("INSERT", {}, ConnectionError(str(fault)))
        return record(database, claim, output)

    monkeypatch.setattr(stages, "record", flaky)
    job = submit(database, 3)
    runner.run(job.id, 0)
    assert queries.get_job(database, ANONYMOUS, job.id).stage_index == 1
    assert next(faults, None) is None


def lose_replies_to_claims(monkeypatch: pytest.MonkeyPatch, *, succeeds: bool) -> None:
    """Fake a fault: the first two claims of a thread fail, the second one when it commits.

    Args:
        monkeypatch: ends it.
        succeeds: whether that commit does.
    """
    claim, local = stages.claim, threading.local()

    def flaky(*arguments: Any, **named: Any) -> Claim | None:
        local.tries = getattr(local, "tries", 0) + 1
        if local.tries == 2 and succeeds:
            assert claim(*arguments, **named) is not None
        if local.tries <= 2:
            raise OperationalError("COMMIT", {}, ConnectionError("the connection broke"))
        return claim(*arguments, **named)

    monkeypatch.setattr(stages, "claim", flaky)


@pytest.mark.parametrize("succeeds", [True, False])
def test_a_claim_whose_reply_is_lost_counts_as_no_crash(
    database: Database, runner: StageRunner, monkeypatch: pytest.MonkeyPatch, succeeds: bool
) -> None:
    job = submit(database, 3)
    runner.run(job.id, 0)
    lose_replies_to_claims(monkeypatch, succeeds=succeeds)
    runner.run(job.id, 1)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.stage_index, stored.worker_id) == (2, None)
    assert [attempt.status for attempt in stored.attempts] == [AttemptStatus.FINISHED] * 2
    critic = stored.attempts[1]
    assert critic.first_token_at is not None
    assert critic.finished_at is not None
    assert critic.started_at <= critic.first_token_at <= critic.finished_at


def test_a_claim_that_fails_takes_no_stage_from_another_thread(
    database: Database,
    runner: StageRunner,
    progress: Progress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = submit(database, 4000)
    thread = start_stage(runner, progress, job)
    lose_replies_to_claims(monkeypatch, succeeds=False)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    assert len(runner.running) == 1, "it still runs"
    runner.stop()
    thread.join(30)
    [attempt] = queries.get_job(database, ANONYMOUS, job.id).attempts
    assert attempt.status is AttemptStatus.RELEASED


def test_a_database_that_fails_while_the_worker_stops_fails_no_job(
    database: Database, runner: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:  # A fake fault.
        runner.stop()
        raise OperationalError("INSERT", {}, ConnectionError("terminated"))

    monkeypatch.setattr(stages, "record", fail)
    job = submit(database, 3)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.published_at) == (Status.IN_PROGRESS, None), "it runs again"
    [attempt] = stored.attempts
    assert attempt.status is AttemptStatus.RELEASED
    assert attempt.output, "readers of the stream have seen it"


def test_a_database_that_fails_before_a_claim_while_the_worker_stops_leaves_the_stage(
    database: Database,
    runner: StageRunner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line in the log, and no traceback of Celery's."""

    def fail(*_: object, **__: object) -> None:  # A fake fault.
        runner.stop()
        raise OperationalError("UPDATE", {}, ConnectionError("terminated"))

    monkeypatch.setattr(stages, "claim", fail)
    job = submit(database, 3)
    with pytest.raises(Ignore):
        runner.run(job.id, 0)
    stored = queries.get_job(database, ANONYMOUS, job.id)
    assert (stored.status, stored.attempts) == (Status.QUEUED, [])
    assert caplog.messages == [f"{job.id}: stage 0 is left to a sweep: terminated"]


class BreakingEngine:
    """An engine whose server breaks off in each text."""

    name = "breaking"
    max_num_seqs = 1
    max_model_len = 4096

    def submit(self, request: Request) -> Generation:
        generation = Generation(request)
        generation.emit("The")
        generation.finish(InterruptedGenerationError("it broke off"))
        return generation

    def close(self) -> None:
        pass


def test_a_stage_that_always_breaks_off_fails_in_the_end(
    database: Database, publisher: ProgressPublisher
) -> None:
    runner = StageRunner(database, BreakingEngine(), publisher, WORKER, job_timeout=60)
    job = submit(database, 8)
    for _ in range(MAX_INTERRUPTED_ATTEMPTS):
        with pytest.raises(Ignore):
            runner.run(job.id, 0)
    ended = queries.get_job(database, ANONYMOUS, job.id)
    assert ended.status is Status.FAILED
    assert ended.error_message == "the actor failed at its attempt 5: it broke off"
    assert [a.status for a in ended.attempts] == [
        *[AttemptStatus.RELEASED] * 4,
        AttemptStatus.FAILED,
    ]
    assert [attempt.output for attempt in ended.attempts] == ["The"] * 5
