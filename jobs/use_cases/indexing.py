"""Indexing: ended jobs get into the search index, and into the statistics.

A job counts its changes that the index does not have (`Job.unindexed`). What takes long, reading the texts and
cutting them into words, comes before the transaction. The transaction takes off as many changes as the job had
when it was read: so a process may die at any time, several may index at once, and a change that came meanwhile
is left for the next time. The statistics get the difference between what the job counts for now and what they have
of it (`Job.counted`), in the same transaction.
"""

from __future__ import annotations

import time
from collections import ChainMap
from itertools import chain, islice

from jobs.database import Database
from jobs.models import Attempt, AttemptStatus, Job
from jobs.pipeline import Role
from jobs.search import facets
from jobs.search.query import EVERY
from jobs.search.words import BREAK, terms, words
from jobs.statements import documents, rollups
from jobs.statements.documents import NewDocument
from jobs.statements.rollups import Change
from jobs.statistics.counted import MILLION, Counted
from jobs.transient import retry_on_conflict
from jobs.use_cases import counting
from jobs.word_changes import changed_share

#: The maximum number of jobs of one transaction. Nobody else can write to SQLite meanwhile, about a millisecond for each
#: job. Fewer would be worse: each transaction leaves a segment to merge, and empties the caches of other writers.
MAX_JOBS = 25
#: The maximum number of merges after a transaction: more than its documents ask for.
MAX_MERGES = 30
#: How long a pause between two merges is, in durations of the merge.
PAUSE = 4
#: The maximum number of words of a job that are indexed: PostgreSQL's ``tsvector`` takes 1 MiB of terms.
MAX_WORDS = 100_000
MAX_TERMS_SIZE = 900_000


def any_pending(database: Database) -> bool:
    """Return whether the index or the statistics lack an ended job, or a change of one."""
    with database.read() as connection:
        return documents.any_unindexed(connection)


def prepare(database: Database, *, limit: int = MAX_JOBS) -> list[NewDocument]:
    """Return the documents of jobs whose document is missing or outdated, those that ended first."""
    with database.read_session() as session:
        jobs = documents.load_unindexed(session, limit)
    return [document(job) for job in jobs]


@retry_on_conflict
def put(database: Database, prepared: list[NewDocument]) -> int:
    """Put jobs into the index. Those that another process has put there, or that were deleted, are left out.

    Returns:
        the number of jobs that were put there.
    """
    with database.write(durable=False) as connection:
        done = [new for new in prepared if documents.put(connection, new)]
        rollups.add_models(connection, dict(ChainMap(*(new.models for new in done))))
        rollups.apply(connection, [new.counted for new in done])
    return len(done)


def merge(database: Database) -> None:
    """Merge the latest changes of SQLite's index, in short transactions, with pauses for other writers."""
    if database.engine.dialect.name != "sqlite":
        return
    for _ in range(MAX_MERGES):
        with database.write(durable=False) as connection:
            begun = time.monotonic()
            if not documents.merge_some(connection):
                return
        # A writer that meets a lock asks for it again after some milliseconds: without pauses it would meet
        # one transaction after another.
        time.sleep(PAUSE * (time.monotonic() - begun))


def document(job: Job) -> NewDocument:
    """Return the document of a job.

    Args:
        job: that has ended, with its attempts and their workers loaded.
    """
    sequence: list[str] = []
    for text in _texts(job):
        # The last words of a very long job are not searched.
        sequence += [*islice(words(text), MAX_WORDS - len(sequence)), BREAK]
        if len(sequence) >= MAX_WORDS:
            break
    workers = {attempt.worker.id: attempt.worker for attempt in job.attempts}
    adapters = {
        (adapter.get("name", ""), adapter.get("digest", ""))
        for worker in workers.values()
        for adapter in worker.runtime.get("adapters", {}).values()
    }
    attempts = _most_attempts(job)
    changed = _changed(job)
    assert job.finished_at is not None  # noqa: S101 (the statement selects jobs that have ended)
    duration = max(0.0, (job.finished_at - job.created_at).total_seconds())
    facet_terms = [
        EVERY,
        facets.term("owner", job.owner),
        facets.term("status", job.status.value),
        *([facets.term("key", job.key_id)] if job.key_id else []),
        *([facets.term("batch", job.batch_id)] if job.batch_id else []),
        *([facets.term("model", job.model)] if job.model else []),
        *(facets.term("worker", name) for w in workers.values() for name in (w.id, w.host)),
        *(facets.term("adapter", value) for adapter in adapters for value in adapter if value),
        *(facets.term("metadata", *item) for item in job.metadata_.items()),
        *_review_terms(job),
        *facets.attempts_terms(attempts),
        *([] if changed is None else [facets.share_term(changed)]),
        facets.duration_term(duration),
    ]
    return NewDocument(
        job_id=job.id,
        created_at=job.created_at,
        changes=job.unindexed,
        columns={
            "attempts": attempts,
            "changed": changed,
            "duration": duration,
            "details": {
                "adapters": [{"name": n, "digest": d} for n, d in sorted(adapters)],
                "critique_rating": job.critique_rating,
                "workers": [{"id": w.id, "host": w.host} for w in workers.values()],
            },
            "words": f" {' '.join(sequence)} ",
        },
        terms=[*dict.fromkeys(facet_terms), *_limited(sorted(terms(sequence)))],
        counted=Change(
            job.created_at,
            job.owner,
            job.model,
            before=job.counted,
            after=counting.counted(job, changed).dump(),
        ),
        models=counting.models(job),
    )


def _review_terms(job: Job) -> list[str]:
    """Return the terms of a job's reviews: the last ratings, and all reviewers and tags that were not erased."""
    ratings = {"rating": job.rating, "critique_rating": job.critique_rating}
    return [
        *(facets.rating_term(name, value) for name, value in ratings.items() if value is not None),
        *(facets.term("reviewer", each.reviewer) for each in job.reviews if each.reviewer),
        *(facets.term("tag", tag) for review in job.reviews for tag in review.tags),
    ]


def _texts(job: Job) -> list[str]:
    """Return the texts of a job and its reviews that are searched, the question first."""
    outputs = [attempt.output for attempt in job.attempts]
    reviews = [(review.corrected_answer, review.note, *review.tags) for review in job.reviews]
    return [job.question, *(text for text in (*outputs, *chain(*reviews)) if text is not None)]


def _limited(found: list[str]) -> list[str]:
    """Return as many terms as PostgreSQL takes of one document."""
    size = 0
    for position, term in enumerate(found):
        size += len(term.encode()) + 1
        if size > MAX_TERMS_SIZE:
            return found[:position]
    return found


def _most_attempts(job: Job) -> int:
    counts: dict[int, int] = {}
    for attempt in job.attempts:
        counts[attempt.stage_index] = counts.get(attempt.stage_index, 0) + 1
    return max(counts.values(), default=0)


def _changed(job: Job) -> float | None:
    """Return the share of words that the last regenerator changed of the actor's draft.

    Once outputs were erased, it is what was counted before that, if it was.
    """
    if any(pointer.endswith("/output") for pointer in job.erased or ()):
        known = None if job.counted is None else Counted.load(job.counted).changed
        return None if known is None else known / MILLION
    draft = _last(job, Role.ACTOR)
    answer = _last(job, Role.REGENERATOR)
    if draft is None or answer is None:
        return None
    return changed_share(draft.output or "", answer.output or "")


def _last(job: Job, role: Role) -> Attempt | None:
    """Return the last finished attempt of a role in the current run."""
    done = [a for a in job.of_run(job.run) if a.role is role]
    return next((a for a in reversed(done) if a.status is AttemptStatus.FINISHED), None)
