"""Erasing texts of all jobs of an owner or with metadata, a step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from jobs.database import Database
from jobs.errors import JobNotFoundError, UserError
from jobs.statements import requests
from jobs.statements.requests import Keyed
from jobs.transient import retry_on_conflict
from jobs.use_cases import erasing, matching
from jobs.use_cases.sealing import Describe

#: Jobs that one step erases texts of: nobody else can write to SQLite meanwhile.
MAX_ERASED = 10


@dataclass(frozen=True)
class ErasedJobs:
    """What a step did with the jobs that match, the oldest first."""

    matched: int
    #: The pointers of the texts that were erased, by job. Of a job that had none left, there are none.
    erased: dict[str, list[str]] = field(default_factory=dict)
    #: Why nothing was erased, by job: it has not ended, for example.
    refused: dict[str, str] = field(default_factory=dict)
    #: Where the next step begins; None after the last one.
    after: str | None = None


@retry_on_conflict
def erase_matching(
    database: Database,
    owner: str | None,
    metadata: dict[str, str],
    describe: Describe,
    asked: Sequence[str] | None,
    *,
    after: str | None,
    erased_by: str,
    key_id: str | None = None,
    dry_run: bool = False,
    keyed: Keyed | None = None,
) -> ErasedJobs:
    """Erase texts of the next jobs of an owner that have some metadata, up to `MAX_ERASED`.

    A job that `erasing.erase` would refuse is left as it is, and the others are not.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        metadata: pairs that the jobs have, besides others.
        describe: returns the history of a job.
        asked: JSON pointers into the histories; None for all texts.
        after: where the step before ended; None for the first one.
        erased_by: who asks for it.
        key_id: of the API key that it was asked with, if any.
        dry_run: whether to erase nothing, and to refuse nothing.
        keyed: the request, if it has an idempotency key.

    Returns:
        what this step, or the same request before, did.

    Raises:
        StepCursorError: ``after`` is not what a step returned.
        IdempotencyError: the key was used for a different request.
    """
    limit = matching.MAX_READ if dry_run else MAX_ERASED
    step = matching.find(database, owner, metadata, after, limit)
    if dry_run or not (step.ids or keyed):
        return ErasedJobs(len(step.ids), after=step.after)
    lines, erased, refused = {}, {}, {}
    for job_id in step.ids:
        try:
            lines[job_id] = erasing.find_lines(database, owner, job_id)
        except JobNotFoundError:
            continue  # It was deleted meanwhile.
        except UserError as error:
            refused[job_id] = str(error)
    with database.write_session() as session:
        connection = session.connection()
        before = requests.begin(connection, keyed)
        if before is not None:
            return ErasedJobs(**before)
        for job_id, found in lines.items():
            try:
                erased[job_id] = erasing.erase_locked(
                    session, owner, job_id, describe, asked, found, erased_by, key_id
                )
            except JobNotFoundError:
                continue
            except UserError as error:
                refused[job_id] = str(error)
        in_order = {job_id: refused[job_id] for job_id in step.ids if job_id in refused}
        done = ErasedJobs(len(step.ids), erased, in_order, step.after)
        requests.end(connection, keyed, **asdict(done))
    return done
