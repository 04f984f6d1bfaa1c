"""The history of a job, for audits."""

from __future__ import annotations

import json

from jobs.models import AttemptStatus, Status
from jobs.protocol.history import history
from tests.unit.protocol.rows import add_attempt, completed_job, make_job


def test_a_history_has_all_stages_and_their_inputs() -> None:
    record = history(completed_job(model="cd" * 32))
    assert (record["question"], record["system"], record["status"]) == (
        "Why?",
        "Be brief.",
        "completed",
    )
    assert record["model"] == "sha256:" + "cd" * 32
    assert record["created_at"] == "2026-01-02T03:04:05.678Z"
    assert [(a["position"], a["role"]) for a in record["attempts"]] == [
        (0, "actor"),
        (1, "critic"),
        (2, "regenerator"),
    ]
    first = record["attempts"][0]
    assert (first["prompt"], first["output"], first["finish_reason"]) == (
        "A prompt",
        "One two.",
        "stop",
    )
    assert first["worker"]["model"] == "sha256:" + "ab" * 32
    assert (first["worker"]["host"], first["worker"]["dtype"]) == ("gpu-1", "none")
    json.dumps(record)


def test_failed_attempts_stay_in_the_history() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0, AttemptStatus.LOST)
    add_attempt(job, 0, AttemptStatus.RUNNING, number=2)
    record = history(job)
    assert [(a["status"], a["number"]) for a in record["attempts"]] == [("lost", 1), ("running", 2)]
    assert (record["model"], record["error"], record["finished_at"]) == (None, None, None)


def test_restarts_have_reasons() -> None:
    restart = {
        "run": 2,
        "at": "2026-01-02T03:04:05.678+00:00",
        "model": "ef",
        "reason": "no worker came back",
    }
    job = make_job(
        Status.FAILED, restarts=[restart], error_code="server_error", error_message="No."
    )
    record = history(job)
    assert record["restarts"] == [
        {
            "run": 2,
            "at": "2026-01-02T03:04:05.678Z",
            "model_before": "sha256:ef",
            "reason": "no worker came back",
        }
    ]
    assert record["error"] == {"code": "server_error", "message": "No."}
