"""What a job's page shows: its stages with their texts and states, and its earlier runs."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jobs import pipeline
from jobs.models import Attempt, AttemptStatus, Job, Status
from jobs.pipeline import Role
from jobs.protocol.response import item_id
from jobs.timing import HEARTBEAT_INTERVAL
from web.pages import texts
from web.pages.marks import marked
from web.pages.options import Options

#: How long after a cancellation the text of the interrupted stage may still arrive.
PARTIAL_TEXT_TIMEOUT = dt.timedelta(seconds=5)

#: How long after its last heartbeat a worker counts as silent: it missed one.
SILENT_AFTER = dt.timedelta(seconds=2 * HEARTBEAT_INTERVAL)

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
    round: int
    title: str
    #: The last attempt at it, if there was one.
    attempt: Attempt | None
    finished: bool
    erased: bool
    state: str
    #: Whether the job ended before it: the page hides it.
    never_ran: bool
    #: Whether it is the one to show where only one fits: the last that has begun.
    shown: bool
    #: The text so far as HTML, with the changes marked as the reader wants them.
    text: Markup
    #: Of a regeneration: how many words it removed from its draft and added. None without a draft.
    changed: tuple[int, int] | None


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


def is_live(job: Job, now: dt.datetime) -> bool:
    """Return whether the page of a job can still change."""
    if job.finished_at is None:
        return True
    # The worker hands in the text of a cancelled stage a moment after the cancellation.
    return job.awaits_partial_text and now - job.finished_at < PARTIAL_TEXT_TIMEOUT


def stages(job: Job, now: dt.datetime, options: Options) -> list[StageView]:
    """Return the stages of a job's current run, those that have not started included."""
    last = last_attempts(job)
    views = []
    for stage in pipeline.stages(job.rounds):
        attempt = last.get(stage.index)
        text, changed = _text(job, last, stage, options)
        views.append(
            StageView(
                item_id=item_id(job, stage, job.run),
                role=stage.role.value,
                round=stage.round,
                title=title(job, stage.role, stage.round),
                attempt=attempt,
                finished=attempt is not None and attempt.status is AttemptStatus.FINISHED,
                erased=attempt is not None and is_erased(job, attempt),
                state=_state(job, attempt, now),
                never_ran=attempt is None and job.status.final,
                shown=stage.index == max(last, default=0),
                text=text,
                changed=changed,
            )
        )
    return views


def never_ran(stages: Sequence[StageView]) -> str:
    """Return a sentence about the stages that a job ended before; nothing if there are none."""
    titles = [stage.title for stage in stages if stage.never_ran]
    if not titles:
        return ""
    if len(titles) == len(stages):
        return "The job ended before its first stage."
    if len(titles) > 2:
        titles = [f"{titles[0]} to {titles[-1]}"]
    return f"{' and '.join(titles)} did not run."


def exact(job: Job) -> list[tuple[str, str | None]]:
    """Return titles and exact texts of the current run's stages that have finished; None for an erased one."""
    return [
        (title(job, a.role, a.round), None if is_erased(job, a) else a.output) for a in job.finished
    ]


def last_attempts(job: Job) -> dict[int, Attempt]:
    """Return the last attempt at each stage of the current run, by the stage's index."""
    return {attempt.stage_index: attempt for attempt in job.of_run(job.run)}


def running(job: Job) -> Attempt | None:
    """Return the running attempt; None if there is none."""
    found = [a for a in job.attempts if a.status is AttemptStatus.RUNNING]
    return found[-1] if found else None


def final_attempt(job: Job) -> Attempt | None:
    """Return the attempt that wrote the final answer; None if there is none, or it was erased."""
    last = last_attempts(job).get(len(pipeline.stages(job.rounds)) - 1)
    return last if last is not None and _has_text(job, last) else None


def _has_text(job: Job, attempt: Attempt | None) -> bool:
    return (
        attempt is not None
        and attempt.status is AttemptStatus.FINISHED
        and not is_erased(job, attempt)
    )


def _text(
    job: Job, last: dict[int, Attempt], stage: pipeline.Stage, options: Options
) -> tuple[Markup, tuple[int, int] | None]:
    """Return a stage's text as HTML, and how many words a regeneration changed."""

    def whole(index: int) -> str | None:
        attempt = last.get(index)
        return (attempt.output or "") if attempt and _has_text(job, attempt) else None

    text, before, after = (whole(stage.index + offset) for offset in (0, -2, 2))
    if text is None:
        attempt = last.get(stage.index)
        return marked(attempt.output if attempt else None, options.invisible), None
    if stage.role is Role.CRITIC:
        return marked(text, options.invisible), None
    changed = None if before is None else texts.changed_words(before, text)
    if options.diff == "side":
        return texts.beside(before, text, after, options), changed
    if options.diff == "inline" and before is not None:
        return texts.inline(before, text, options), changed
    return marked(text, options.invisible), changed


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
                    (title(job, a.role, a.round), None if is_erased(job, a) else a.output)
                    for a in finished
                ],
            )
        )
    return views


def is_erased(job: Job, attempt: Attempt) -> bool:
    """Return whether the output of an attempt was erased."""
    return f"/attempts/{job.attempts.index(attempt)}/output" in (job.erased or {})


def title(job: Job, role: Role, round_: int) -> str:
    """Return the title of a stage's text."""
    # The actor answers once, in the first round.
    numbered = job.rounds > 1 and role is not Role.ACTOR
    return f"{TITLES[role]} {round_}" if numbered else TITLES[role]


def _state(job: Job, last: Attempt | None, now: dt.datetime) -> str:
    """Return the state of a stage, given the last attempt at it."""
    if last is None:
        return "not run" if job.status.final else "waiting"
    match last.status:
        case AttemptStatus.FINISHED if last.finish_reason == "length":
            return "truncated at its token limit"
        case AttemptStatus.FINISHED if last.finish_reason == "stop_string":
            return "ended at a stop string"
        case AttemptStatus.FINISHED:
            return "finished"
        case AttemptStatus.RUNNING if job.status.final:
            return "stopping"
        case AttemptStatus.RUNNING:
            return "worker silent" if is_silent(last, now) else "writing"
        case AttemptStatus.LOST | AttemptStatus.RELEASED if not job.status.final:
            return "waiting for a retry"
        case status:
            return status.value


def is_silent(attempt: Attempt, now: dt.datetime) -> bool:
    """Return whether the worker of a running attempt missed a heartbeat."""
    seen_at: dt.datetime | None = attempt.worker.seen_at
    return seen_at is not None and now - seen_at > SILENT_AFTER
