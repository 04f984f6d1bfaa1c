"""The history of a job."""

from __future__ import annotations

from jobs.database import Database
from jobs.pipeline import DEFAULT_SYSTEM
from tests.integration.web.client import Client, ask, finish


def test_the_history_has_everything(web: Client, database: Database) -> None:
    job_id = ask(web, seed=5)["id"]
    finish(database, job_id)
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["question"], history["status"], history["seed"]) == ("Why?", "completed", 5)
    assert [a["role"] for a in history["attempts"]] == ["actor", "critic", "regenerator"]
    first = history["attempts"][0]
    assert first["prompt"] == f"SYSTEM: {DEFAULT_SYSTEM} \nUSER: Why? \nASSISTANT: "
    assert (first["output"], first["finish_reason"], first["number"]) == ("A text.", "stop", 1)
    assert first["worker"]["engine"] == "none"
    for name in ("queued_at", "started_at", "first_token_at", "finished_at"):
        assert first[name].endswith("Z")
