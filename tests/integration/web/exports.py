"""Jobs that tests export, and what they get."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pyarrow.parquet as pq

from jobs.database import Database
from jobs.use_cases import stages
from jobs.use_cases.stages import Output
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask

FINISHED = [
    Output(text, [len(text)], 20, 3, "stop", 1024, 0.0)
    for text in ("=1+1", "Wrong: 2\u2028é\0.", "@SUM(1)")
]


def end(web: Client, database: Database, *outputs: Output, **body: Any) -> str:
    """Ask, and run the stages with these texts; return the job's id."""
    job_id: str = ask(web, **body)["id"]
    for index, output in enumerate(outputs or FINISHED):
        claim = stages.claim(database, job_id, index, WORKER, job_timeout=60)
        assert claim is not None
        stages.record(database, claim, output)
    return job_id


def review(web: Client, job_id: str, **verdict: Any) -> None:
    reply = web.post(f"/api/jobs/{job_id}/reviews", json=verdict)
    assert reply.status_code == 201, reply.text


def erase(web: Client, job_id: str, *texts: str) -> None:
    reply = web.post(f"/api/jobs/{job_id}/erase", json={"texts": texts or "all"})
    assert reply.status_code == 200, reply.text


def lines(web: Client, query: str = "") -> list[dict[str, Any]]:
    reply = web.get(f"/api/jobs/export?{query}")
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.data.splitlines()]


def parquet(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def from_csv(data: bytes) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
