"""The history of a job, for audits."""

from __future__ import annotations

import json

from jobs.models import AttemptStatus, Status
from jobs.protocol.history import history
from tests.unit.protocol.rows import add_attempt, completed_job, make_job


def test_every_stage_is_there_with_all_that_it_depends_on() -> None:
    found = history(completed_job(model="cd" * 32))
    assert (found["question"], found["system"], found["status"]) == (
        "Why?",
        "Be brief.",
        "completed",
    )
    assert found["model"] == "sha256:" + "cd" * 32
    assert found["created_at"] == "2026-01-02T03:04:05.678Z"
    assert [(a["position"], a["role"]) for a in found["attempts"]] == [
        (0, "actor"),
        (1, "critic"),
        (2, "regenerator"),
    ]
    first = found["attempts"][0]
    assert (first["prompt"], first["output"], first["finish_reason"]) == (
        "A prompt",
        "One two.",
        "stop",
    )
    assert first["worker"]["model"] == "sha256:" + "ab" * 32
    assert (first["worker"]["host"], first["worker"]["dtype"]) == ("gpu-1", "none")
    json.dumps(found)


def test_attempts_that_failed_stay() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0, AttemptStatus.LOST)
    add_attempt(job, 0, AttemptStatus.RUNNING, number=2)
    found = history(job)
    assert [(a["status"], a["number"]) for a in found["attempts"]] == [("lost", 1), ("running", 2)]
    assert (found["model"], found["error"], found["finished_at"]) == (None, None, None)


def test_restarts_say_why() -> None:
    restart = {
        "run": 2,
        "at": "2026-01-02T03:04:05.678+00:00",
        "model": "ef",
        "reason": "no worker came back",
    }
    job = make_job(
        Status.FAILED, restarts=[restart], error_code="server_error", error_message="No."
    )
    found = history(job)
    assert found["restarts"] == [
        {
            "run": 2,
            "at": "2026-01-02T03:04:05.678Z",
            "model_before": "sha256:ef",
            "reason": "no worker came back",
        }
    ]
    assert found["error"] == {"code": "server_error", "message": "No."}
