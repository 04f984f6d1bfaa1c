"""Jobs that have ended and are in the log, and requests to review them and to erase their texts."""

from __future__ import annotations

from typing import Any

from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish, services_of


def ended(web: Client, **body: Any) -> str:
    """Return the id of a job that has ended and is in the log."""
    job_id: str = ask(web, **body)["id"]
    database = services_of(web).database
    finish(database, job_id)
    seal(database)
    return job_id


def review(web: Client, job_id: str, **body: Any) -> Any:
    return web.post(f"/api/jobs/{job_id}/reviews", json=body)


def erase(web: Client, job_id: str, texts: Any = "all") -> Any:
    return web.post(f"/api/jobs/{job_id}/erase", json={"texts": texts})
