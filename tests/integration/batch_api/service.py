"""A real web server, OpenAI's client for it, and the duty of batches; the tests answer the jobs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from openai import OpenAI
from openai.types import Batch

from jobs.batch_runner import BatchRunner
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import Batch as BatchRow
from jobs.models import BatchLine, Job, Status
from jobs.progress import Progress
from jobs.queue import Publisher, make_app
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.test_web_server import serving
from tests.integration.web.client import finish

RESPONSES: Literal["/v1/responses"] = "/v1/responses"
CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class BatchService:
    """Where batches are made, and what works on them."""

    client: OpenAI
    database: Database
    runner: BatchRunner

    def upload(self, content: str | bytes, **options: Any) -> str:
        data = content.encode() if isinstance(content, str) else content
        file = self.client.files.create(file=("in.jsonl", data), purpose="batch", **options)
        return file.id

    def create(self, content: str | bytes, endpoint: Any = RESPONSES, **options: Any) -> str:
        """Upload a file and make it a batch; return its id."""
        return self.create_from(self.upload(content), endpoint, **options)

    def create_from(self, file_id: str, endpoint: Any = RESPONSES, **options: Any) -> str:
        """Make a file a batch; return its id."""
        batch = self.client.batches.create(
            input_file_id=file_id, endpoint=endpoint, completion_window="24h", **options
        )
        assert batch.status == "validating"
        return batch.id

    def get(self, batch_id: str) -> Batch:
        return self.client.batches.retrieve(batch_id)

    def queued(self, batch_id: str) -> list[str]:
        """Return the ids of a batch's jobs that nobody has claimed, in order of their lines."""
        query = (
            sa.select(Job.id)
            .join(BatchLine, BatchLine.job_id == Job.id)
            .where(Job.batch_id == batch_id, Job.status == Status.QUEUED)
            .order_by(BatchLine.number)
        )
        with self.database.read() as connection:
            return list(connection.scalars(query))

    def validate(self, batch_id: str) -> Batch:
        """Work until a batch is valid, or failed."""
        while (batch := self.get(batch_id)).status == "validating":
            assert self.runner.run()
        return batch

    def complete(self, batch_id: str) -> Batch:
        """Work and answer jobs until a batch has ended."""
        while (batch := self.get(batch_id)).status not in ENDED:
            worked = self.runner.run()
            jobs = self.queued(batch_id)
            for job_id in jobs:
                finish(self.database, job_id)
            assert worked or jobs, batch
        return batch

    def lines(self, file_id: str | None) -> dict[str, Any]:
        """Return the lines of a batch's file by their custom ids."""
        if file_id is None:
            return {}
        lines = [json.loads(line) for line in self.client.files.content(file_id).iter_lines()]
        by_id = {line["custom_id"]: line for line in lines}
        assert len(by_id) == len(lines), "each line is answered once"
        return by_id

    def count(self, table: Any) -> int:
        """Return the number of rows of a table."""
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0

    def shift(self, table: Any, column: str, seconds: float) -> None:
        """Set a time of all rows of a table, in seconds from now."""
        with self.database.write() as connection:
            connection.execute(sa.update(table).values({column: utcnow(seconds)}))

    def end_leases(self) -> None:
        """Let other processes go on with all batches."""
        self.shift(BatchRow, "leased_until", -1)


def line(custom_id: str, endpoint: str = RESPONSES, **body: Any) -> str:
    """Return a line of a batch's input."""
    question: dict[str, Any] = {"input": "Why?"}
    if endpoint == CHAT:
        question = {"messages": [{"role": "user", "content": "Why?"}]}
    request = {"custom_id": custom_id, "method": "POST", "url": endpoint}
    return json.dumps({**request, "body": {"model": "helixnet", **question, **body}}) + "\n"


def lines(count: int, **body: Any) -> str:
    return "".join(line(f"line-{number}", **body) for number in range(1, count + 1))


@contextmanager
def batch_service(
    database_url: str, redis_url: str, tokenizer_json: str, **settings: str
) -> Iterator[BatchService]:
    environ = {"HELIXQ_DATABASE_URL": database_url, "HELIXQ_REDIS_URL": redis_url, **settings}
    database, progress = Database(database_url), Progress(redis_url)
    with serving(environ) as (host, port):
        runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
        workers.register(database, WORKER, "localhost", 1, runtime)
        client = OpenAI(base_url=f"http://{host}:{port}/v1", api_key="unused", max_retries=0)
        publisher = Publisher(make_app(redis_url))
        runner = BatchRunner(database, publisher, progress, threading.Event())
        yield BatchService(client, database, runner)
        client.close()
    database.close()
    progress.close()
