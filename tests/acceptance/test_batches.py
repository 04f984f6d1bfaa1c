"""Batches through real processes, with OpenAI's client: whole, fair, at constant memory, and after kill -9."""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from openai.types import Batch

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, BatchLine, Job, Status
from jobs.models import Batch as BatchRow
from jobs.use_cases import batches, files, workers
from jobs.use_cases.batches import NewBatch
from jobs.use_cases.workers import Runtime
from tests import servers
from tests.acceptance.conftest import Service
from tests.conftest import WORKER
from tests.integration.batch_api.service import CHAT, ENDED, RESPONSES, line, lines
from tests.integration.web.client import finish
from tests.joining import join
from tests.polling import poll
from tests.servers import PATIENCE, Process, RedisServer, settings_for

DOOMED = (sys.executable, "-m", "tests.acceptance.doomed")
#: Where a process that works on a batch is killed: between two pieces of the validation; when lines are
#: jobs and not published; when answers are made and not written; when they are written.
POINTS = ("validated", "submitted", "answered", "written")
LINES = 60
SHORT: dict[str, Any] = {"max_output_tokens": 4}


def create(service: Service, content: str, endpoint: Any = RESPONSES) -> str:
    with service.openai() as client:
        file = client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h"
        )
    return batch.id


def wait(service: Service, batch_id: str, *statuses: str) -> Batch:
    with service.openai() as client:
        return poll(
            lambda: client.batches.retrieve(batch_id),
            lambda batch: batch.status in (statuses or ENDED),
        )


def completed(batch: Batch) -> int:
    assert batch.request_counts is not None
    return batch.request_counts.completed


@pytest.mark.parametrize("endpoint", [RESPONSES, CHAT])
def test_a_batch_is_answered(service: Service, endpoint: str) -> None:
    limit = "max_output_tokens" if endpoint == RESPONSES else "max_tokens"
    short: dict[str, Any] = {limit: 4}
    content = "".join(line(f"q-{n}", endpoint, **short) for n in range(20))
    batch = wait(service, create(service, content, endpoint))
    assert batch.status == "completed"
    with service.openai() as client:
        text = client.files.content(batch.output_file_id or "").text
    answers = [json.loads(answer) for answer in text.splitlines()]
    assert {answer["custom_id"] for answer in answers} == {f"q-{n}" for n in range(20)}
    kind = "response" if endpoint == RESPONSES else "chat.completion"
    assert {answer["response"]["body"]["object"] for answer in answers} == {kind}


def test_a_question_does_not_wait_for_a_batch(service: Service) -> None:
    batch_id = create(service, lines(400, **SHORT))
    poll(lambda: completed(wait(service, batch_id, "in_progress")))
    job_id = service.submit("What is 1 + 1?", **SHORT)
    accepted_at = dt.datetime.now(dt.UTC)
    service.wait(job_id)
    with service.openai() as client:
        batch = client.batches.cancel(batch_id)
    assert batch.status == "cancelling", "it was far from its end"
    database = Database(service.environ["HELIXQ_DATABASE_URL"])
    with database.read() as connection:
        asked = connection.execute(sa.select(Job).where(Job.id == job_id)).one()
        overtook = connection.scalar(
            sa.select(sa.func.count()).where(
                Job.batch_id == batch_id,
                Job.started_at > accepted_at,
                Job.started_at < asked.started_at,
            )
        )
    database.close()
    # A thread of the worker may have taken its next message just before.
    assert overtook is not None
    assert overtook <= 16
    assert wait(service, batch_id).status == "cancelled"


def resident(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_batch_needs_little_memory(service: Service) -> None:
    """64 lines of almost 1 MiB, and a wrong one at the end: the batch fails."""
    padding = " " * ((1 << 20) - 200)
    content = io.BytesIO()
    for number in range(64):
        text = line(f"long-{number}", **SHORT).rstrip("\n") + padding + "\n"
        content.write(text.encode())
    content.write(b"no request\n")
    size = content.tell()
    processes = (service.web.popen.pid, service.worker.popen.pid)
    before = [resident(pid) for pid in processes]
    peaks, done = list(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for number, pid in enumerate(processes):
                peaks[number] = max(peaks[number], resident(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        with service.openai() as client:
            content.seek(0)
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
            assert file.bytes == size
            batch = client.batches.create(
                input_file_id=file.id, endpoint=RESPONSES, completion_window="24h"
            )
            failed = wait(service, batch.id)
            with client.files.with_streaming_response.content(file.id) as reply:
                assert sum(len(piece) for piece in reply.iter_bytes()) == size
            client.files.delete(file.id)
    finally:
        done.set()
        join(thread)
    assert failed.errors is not None
    assert [error.line for error in failed.errors.data or []] == [65]
    for first, peak in zip(before, peaks, strict=True):
        assert peak - first < size / 2


def test_a_batch_outlives_the_processes_that_work_on_it(
    database_url: str, redis_server: RedisServer, checkpoint: Path, tmp_path: Path
) -> None:
    """kill -9 at one point after the other. The test answers the jobs."""
    environ = settings_for(database_url, redis_server.url, tmp_path)
    migrate = servers.forked("migrate", environ=environ)
    assert migrate.wait() == 0
    migrate.stop()
    database = Database(database_url)
    tokenizer = (checkpoint / "base" / "tokenizer.json").read_text()
    runtime = Runtime({"engine": "none"}, 4096, tokenizer)
    workers.register(database, WORKER, "localhost", 1, runtime)
    file_id = files.begin_upload(database, ANONYMOUS, "in.jsonl")
    files.append(database, file_id, lines(LINES).encode())
    files.finish_upload(database, file_id, 3600)
    batch_id = batches.create(
        database, ANONYMOUS, NewBatch(file_id, RESPONSES, "question", {}, None)
    ).id
    for point in POINTS:
        process = servers.forked("maintain", environ=environ, program=(*DOOMED, point))

        def ended(point: str = point, process: Process = process) -> bool:
            if point in ("answered", "written"):
                answer(database, batch_id)
            return process.popen.poll() is not None

        poll(ended)
        process.wait()
        assert "dying" in process.output
        with database.write() as connection:
            # As if the time of its lease had passed.
            connection.execute(sa.update(BatchRow).values(leased_until=utcnow(-1)))
    process = servers.forked("maintain", environ=environ)
    give_up = time.monotonic() + PATIENCE
    while batches.get_batch(database, ANONYMOUS, batch_id).ended_at is None:
        assert time.monotonic() < give_up, process.output
        answer(database, batch_id)
        time.sleep(0.02)  # nothing tells of rows
    process.stop()
    batch = batches.get_batch(database, ANONYMOUS, batch_id)
    expected = {f"line-{number}" for number in range(1, LINES + 1)}
    assert (batch.status, batch.total, batch.completed, batch.failed) == (
        "completed",
        LINES,
        LINES,
        0,
    )
    assert batch.output_file_id is not None
    output, position = b"", 0
    while piece := files.read_file(database, batch.output_file_id, position):
        output, position = output + piece, position + len(piece)
    answered = Counter(json.loads(text)["custom_id"] for text in output.splitlines())
    assert answered == Counter(expected), "each line has one answer"
    with database.read() as connection:
        jobs = connection.execute(sa.select(Job.custom_id, Job.status)).all()
    assert Counter(job.custom_id for job in jobs) == Counter(expected), "and one job"
    assert {job.status for job in jobs} == {Status.COMPLETED}
    database.close()


def answer(database: Database, batch_id: str) -> None:
    """Run the queued jobs of a batch as a worker does."""
    query = (
        sa.select(Job.id)
        .join(BatchLine, BatchLine.job_id == Job.id)
        .where(Job.batch_id == batch_id, Job.status == Status.QUEUED)
    )
    with database.read() as connection:
        ids = list(connection.scalars(query))
    for job_id in ids:
        finish(database, job_id)
