"""A job's page: its stages, titles and times."""

from __future__ import annotations

import datetime as dt

import pytest

from jobs.models import AttemptStatus, Job, Status
from tests.unit.protocol.rows import END, add_attempt, completed_job, make_job
from web.pages import timeline, view
from web.pages.filters import clock, duration
from web.pages.options import Options


def stages_of(job: Job) -> list[view.StageView]:
    return view.stages(job, END, Options())


def states(job_status: Status, attempt_status: AttemptStatus, **changes: str) -> list[str]:
    job = make_job(job_status)
    add_attempt(job, 0, attempt_status, **changes)
    return [stage.state for stage in stages_of(job)]


def test_a_queued_job_waits() -> None:
    assert [stage.state for stage in stages_of(make_job())] == ["waiting"] * 3


@pytest.mark.parametrize(
    ("job_status", "attempt_status", "state", "next_state"),
    [
        (Status.IN_PROGRESS, AttemptStatus.RUNNING, "writing", "waiting"),
        (Status.IN_PROGRESS, AttemptStatus.FINISHED, "finished", "waiting"),
        (Status.IN_PROGRESS, AttemptStatus.LOST, "waiting for a retry", "waiting"),
        (Status.IN_PROGRESS, AttemptStatus.RELEASED, "waiting for a retry", "waiting"),
        (Status.CANCELLED, AttemptStatus.RUNNING, "stopping", "not run"),
        (Status.CANCELLED, AttemptStatus.CANCELLED, "cancelled", "not run"),
        (Status.FAILED, AttemptStatus.FAILED, "failed", "not run"),
        (Status.FAILED, AttemptStatus.LOST, "lost", "not run"),
    ],
)
def test_a_stage_has_the_state_of_its_last_attempt(
    job_status: Status, attempt_status: AttemptStatus, state: str, next_state: str
) -> None:
    assert states(job_status, attempt_status) == [state, next_state, next_state]


@pytest.mark.parametrize(
    ("rounds", "ran", "sentence"),
    [
        (1, 0, "The job ended before its first stage."),
        (1, 1, "Critique and Regeneration did not run."),
        (1, 2, "Regeneration did not run."),
        (5, 3, "Critique 2 to Regeneration 5 did not run."),
        (1, 3, ""),
    ],
)
def test_the_stages_that_a_job_ended_before_are_one_sentence(
    rounds: int, ran: int, sentence: str
) -> None:
    job = make_job(Status.CANCELLED, rounds=rounds)
    for index in range(ran):
        add_attempt(job, index)
    assert view.never_ran(stages_of(job)) == sentence
    job.status = Status.IN_PROGRESS
    assert view.never_ran(stages_of(job)) == "", "they may still run"


def test_a_truncated_text_says_so() -> None:
    [state, *_] = states(Status.IN_PROGRESS, AttemptStatus.FINISHED, finish_reason="length")
    assert state == "truncated at its token limit"


def test_critiques_and_regenerations_are_numbered_if_there_are_several_rounds() -> None:
    assert [s.title for s in stages_of(completed_job())] == ["Answer", "Critique", "Regeneration"]
    assert [s.title for s in stages_of(completed_job(rounds=2))] == [
        "Answer",
        "Critique 1",
        "Regeneration 1",
        "Critique 2",
        "Regeneration 2",
    ]


def test_a_page_is_live_until_the_text_of_a_cancelled_stage_must_be_there() -> None:
    assert view.is_live(make_job(), END)
    assert not view.is_live(completed_job(), END)
    job = make_job(Status.CANCELLED, finished_at=END)
    add_attempt(job, 0, AttemptStatus.RUNNING)
    assert view.is_live(job, END)
    assert not view.is_live(job, END + view.PARTIAL_TEXT_TIMEOUT)


def test_an_earlier_run_shows_what_had_finished() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0)
    add_attempt(job, 1, AttemptStatus.LOST)
    job.run = 2
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    job.restarts = [{"run": 2, "at": at.isoformat(), "model": "ab" * 32, "reason": "No worker."}]
    [run] = view.earlier_runs(job)
    assert (run.number, run.ended_at, run.model, run.reason) == (1, at, "ab" * 6, "No worker.")
    assert run.texts == [("Answer", "One two.")]
    assert [stage.attempt for stage in stages_of(job)] == [None] * 3


def test_the_timeline_does_not_guess_what_a_running_attempt_does() -> None:
    """When its first token came is stored at its end."""
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0)
    add_attempt(job, 1, AttemptStatus.RUNNING).first_token_at = None
    done, running = timeline.bars(job, END)
    assert [part.kind for part in done.parts] == ["queued", "prompt", "writing"]
    assert [part.kind for part in running.parts] == ["queued", "ran"]
    assert (done.ran, running.ran, running.prompt, running.writing) == (False, True, None, None)


def test_times_and_durations() -> None:
    assert clock(dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)) == "2026-01-02 03:04:05 UTC"
    assert duration(dt.timedelta(milliseconds=16)) == "16 ms"
    assert duration(dt.timedelta(seconds=59.94)) == "59.9 s"
    assert duration(dt.timedelta(seconds=125)) == "2 min 5 s"
