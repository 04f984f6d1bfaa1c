"""What the service costs when there is nothing else to do: a job alone, and a sweep of nothing."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import torch
from transformers import AutoTokenizer

import migrations
from cli import service_bench
from jobs.column_types import utcnow
from jobs.database import Database, begin
from jobs.models import ANONYMOUS, Job, Status
from jobs.pipeline import Sampling
from jobs.settings import DEMO_CHECKPOINT
from jobs.use_cases import sweeping
from jobs.use_cases.submission import new_id
from worker.bench.engine import Model, run_jobs
from worker.engine.batching.engine import BatchingEngine
from worker.engine.threads import run_in_fresh_thread

CONTEXT = 4096
SLOTS = 16
#: Seconds before a job is first polled, as its reply's ``Retry-After`` says: polling would slow the job
#: down.
FIRST_LOOK = 1.0


def jobs(
    folder: Path,
    asked: Sequence[str],
    *,
    max_output_tokens: int,
    seed: int,
    told: Callable[[str], object] = lambda _: None,
) -> list[tuple[float, float]]:
    """Answer questions one at a time, each by the engine alone and by the service in turn.

    Args:
        folder: an empty one, for the service's data.
        asked: the questions.
        max_output_tokens: of every stage.
        seed: of the first job; each has the next one.
        told: called with what happens next.

    Returns:
        seconds of each question's three stages: on the engine alone; and in the service, from the
        moment the job is stored until its last output is, by the database's clock.
    """
    told("the engine is loaded")
    model = Model.of(DEMO_CHECKPOINT)
    tokenizer: Any = AutoTokenizer.from_pretrained(model.base)

    def load() -> BatchingEngine:
        loaded = model.load(torch.float32, torch.device("cpu"))
        return BatchingEngine(loaded, tokenizer, max_model_len=CONTEXT, max_num_seqs=SLOTS)

    engine = run_in_fresh_thread(load)
    found: list[tuple[float, float]] = []
    told("the service starts")
    try:
        with service_bench.service(folder, SLOTS) as client:
            told(f"{len(asked)} questions, one after the other, by the engine and by the service")
            for number, question in enumerate(asked):
                sampling = Sampling(max_output_tokens=max_output_tokens, seed=seed + number)
                alone = run_jobs(engine, [question], at_once=1, sampling=sampling).seconds
                body = {
                    "input": question,
                    "max_output_tokens": max_output_tokens,
                    "seed": seed + number,
                }
                job_id = service_bench.submit(client, body)
                time.sleep(max(FIRST_LOOK, alone))  # as a client that polls: it asks nothing before
                service_bench.wait(client, job_id)
                job = client.get(f"/api/jobs/{job_id}").json()
                created, finished = (
                    dt.datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at")
                )
                found.append((alone, (finished - created).total_seconds()))
    finally:
        engine.close()
    return found[1:]  # the first one warmed both up


def sweep(folder: Path, old: int, rounds: int = 200) -> float:
    """Measure a sweep on SQLite that finds nothing to do.

    Args:
        folder: an empty one, for the database.
        old: jobs in the history, all of them ended.
        rounds: how many sweeps.

    Returns:
        median seconds.
    """
    database = Database(f"sqlite:///{folder / 'jobs.sqlite3'}")
    migrations.migrate(database.engine)
    with database.engine.begin() as connection:
        begin(connection, write=True)
        row = {
            "owner": ANONYMOUS,
            "question": "Why?",
            "system": "",
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_output_tokens": 1,
            "seed": 0,
            "rounds": 1,
            "priority": 5,
            "background": True,
            "metadata": {},
            "status": Status.COMPLETED,
        }
        statement = sa.insert(Job).values(finished_at=utcnow())
        if old:
            connection.execute(statement, [{**row, "id": new_id()} for _ in range(old)])
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        sweeping.any_unfinished(database)
        times.append(time.perf_counter() - start)
    database.close()
    return statistics.median(times)
