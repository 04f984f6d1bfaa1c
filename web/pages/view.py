"""What a job's page shows: its stages with their texts and states, and its earlier runs."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.pipeline import Role
from jobs.protocol.response import item_id

#: How long after a cancellation the text of the interrupted stage may still arrive.
PARTIAL_TEXT_TIMEOUT = dt.timedelta(seconds=5)

#: Titles of the stages' texts.
TITLES = {
    Role.ACTOR: "Answer",
    Role.CRITIC: "Critique",
    Role.REGENERATOR: "Regeneration",
}
STATUSES = {
    Status.QUEUED: "Queued",
    Status.IN_PROGRESS: "In progress",
    Status.COMPLETED: "Completed",
    Status.FAILED: "Failed",
    Status.CANCELLED: "Cancelled",
    Status.INCOMPLETE: "Incomplete",
}


@dataclass(frozen=True)
class StageView:
    """A stage of the current run."""

    #: The id of its output item, which its events name.
    item_id: str
    role: str
    title: str
    #: The last attempt at it, if there was one.
    attempt: Attempt | None
    finished: bool
    erased: bool
    state: str


@dataclass(frozen=True)
class RunView:
    """An earlier run, and why it ended."""

    number: int
    ended_at: dt.datetime
    #: The first characters of the model's digest.
    model: str
    reason: str
    #: Titles and texts of the stages that had finished; None for one that was erased.
    texts: list[tuple[str, str | None]]


def is_live(job: Job) -> bool:
    """Return whether the page of a job can still change."""
    if job.finished_at is None:
        return True
    # The worker hands in the text of a cancelled stage a moment after the cancellation.
    age = dt.datetime.now(dt.UTC) - job.finished_at
    return job.awaits_partial_text and age < PARTIAL_TEXT_TIMEOUT


def stages(job: Job) -> list[StageView]:
    """Return the stages of a job's current run, those that have not started included."""
    views = []
    for stage in pipeline.stages(job.rounds):
        attempts = [a for a in job.of_run(job.run) if a.stage_index == stage.index]
        last = attempts[-1] if attempts else None
        views.append(
            StageView(
                item_id=item_id(job, stage),
                role=stage.role.value,
                title=_title(job, stage.role, stage.round),
                attempt=last,
                finished=last is not None and last.status is AttemptStatus.FINISHED,
                erased=last is not None and _is_erased(job, last),
                state=_state(job, last),
            )
        )
    return views


def earlier_runs(job: Job) -> list[RunView]:
    """Return the runs of a job before its current one."""
    views = []
    for restart in job.restarts:
        number = restart["run"] - 1
        finished = [a for a in job.of_run(number) if a.status is AttemptStatus.FINISHED]
        views.append(
            RunView(
                number=number,
                ended_at=dt.datetime.fromisoformat(restart["at"]),
                model=restart["model"][:12],
                reason=restart["reason"],
                texts=[
                    (_title(job, a.role, a.round), None if _is_erased(job, a) else a.output)
                    for a in finished
                ],
            )
        )
    return views


def _is_erased(job: Job, attempt: Attempt) -> bool:
    """Return whether the output of an attempt was erased."""
    return f"/attempts/{job.attempts.index(attempt)}/output" in (job.erased or {})


def _title(job: Job, role: Role, round_: int) -> str:
    # The actor answers once, in the first round.
    numbered = job.rounds > 1 and role is not Role.ACTOR
    return f"{TITLES[role]} {round_}" if numbered else TITLES[role]


def _state(job: Job, last: Attempt | None) -> str:
    """Return the state of a stage, given the last attempt at it."""
    if last is None:
        return "not run" if job.status.final else "waiting"
    match last.status:
        case AttemptStatus.FINISHED if last.finish_reason == "length":
            return "truncated at its token limit"
        case AttemptStatus.FINISHED:
            return "finished"
        case AttemptStatus.RUNNING:
            return "stopping" if job.status.final else "writing"
        case AttemptStatus.LOST | AttemptStatus.RELEASED if not job.status.final:
            return "waiting for a retry"
        case status:
            return status.value
