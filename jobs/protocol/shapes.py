"""Shapes of an export: what its rows have, and which rows a job gives.

`history` is lossless: a row has everything of a job, and the proof of its entry in the log. `preference` and
`sft` are what trainers read: pairs of texts of which one is better, and prompts with the texts that follow. `review` is
for people with a spreadsheet: a row for each verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from jobs import models
from jobs.enums import Shape
from jobs.formats.columns import Kind
from jobs.models import Attempt, Job, Status
from jobs.pipeline import Role
from jobs.protocol.history import history
from jobs.times import rfc3339
from jobs.use_cases.exporting import Exported


class Review(NamedTuple):
    """What people say about a job: each field is that of the newest review that has it. Erased texts are None."""

    #: -1, 0 or 1.
    critique_rating: int | None = None
    regeneration_rating: int | None = None
    #: What the answer should have been.
    corrected_answer: str | None = None
    tags: Sequence[str] | None = None
    note: str | None = None


_REVIEW = {
    "critique_rating": Kind.INTEGER,
    "regeneration_rating": Kind.INTEGER,
    "corrected_answer": Kind.TEXT,
    "tags": Kind.TEXTS,
    "note": Kind.TEXT,
}
_JOB = {"job_id": Kind.TEXT, "created_at": Kind.TEXT, "model": Kind.TEXT}

#: The columns of each shape, in order.
COLUMNS = MappingProxyType(
    {
        Shape.HISTORY: {
            "id": Kind.TEXT,
            "owner": Kind.TEXT,
            "key": Kind.TEXT,
            "status": Kind.TEXT,
            "question": Kind.TEXT,
            "rounds": Kind.INTEGER,
            "priority": Kind.INTEGER,
            "metadata": Kind.JSON,
            "replay_of": Kind.TEXT,
            "batch": Kind.JSON,
            "model": Kind.TEXT,
            "run": Kind.INTEGER,
            "created_at": Kind.TEXT,
            "started_at": Kind.TEXT,
            "finished_at": Kind.TEXT,
            "erased_at": Kind.TEXT,
            "rating": Kind.INTEGER,
            "error": Kind.JSON,
            "system": Kind.TEXT,
            "context": Kind.TEXT,
            "turns": Kind.JSON,
            "input_items": Kind.JSON,
            "previous_response_id": Kind.TEXT,
            "options": Kind.JSON,
            "temperature": Kind.NUMBER,
            "top_k": Kind.INTEGER,
            "top_p": Kind.NUMBER,
            "max_output_tokens": Kind.INTEGER,
            "seed": Kind.INTEGER,
            "stop": Kind.JSON,
            "background": Kind.BOOLEAN,
            "traceparent": Kind.TEXT,
            "deadline_at": Kind.TEXT,
            "restarts": Kind.JSON,
            "retries": Kind.JSON,
            "attempts": Kind.JSON,
            "origin": Kind.JSON,
            "reviews": Kind.JSON,
            "erasures": Kind.JSON,
            "digest": Kind.TEXT,
            "log": Kind.JSON,
            "proof": Kind.TEXT,
            "origin_proof": Kind.TEXT,
            "review_proofs": Kind.JSON,
            "erasure_proofs": Kind.JSON,
            "review_origin_proofs": Kind.JSON,
            "erasure_origin_proofs": Kind.JSON,
        },
        Shape.PREFERENCE: {
            "prompt": Kind.TEXT,
            "chosen": Kind.TEXT,
            "rejected": Kind.TEXT,
            "critique": Kind.TEXT,
            "chosen_role": Kind.TEXT,
            **_REVIEW,
            **_JOB,
        },
        Shape.SFT: {
            "prompt": Kind.TEXT,
            "completion": Kind.TEXT,
            "role": Kind.TEXT,
            "round": Kind.INTEGER,
            **_REVIEW,
            **_JOB,
        },
        Shape.REVIEW: {
            "reviewer": Kind.TEXT,
            "reviewed_at": Kind.TEXT,
            **_REVIEW,
            "question": Kind.TEXT,
            "answer": Kind.TEXT,
            "owner": Kind.TEXT,
            **_JOB,
            "number": Kind.INTEGER,
            "review_id": Kind.TEXT,
            "key": Kind.TEXT,
        },
    }
)


def rows(
    shape: Shape, exported: Exported, roles: Sequence[Role] = tuple(Role)
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a job, with the columns of `COLUMNS` in their order.

    A history says which texts were erased. A review has None in their place. Examples that have one are left out.

    Args:
        shape: of the rows.
        exported: the job.
        roles: those whose stages are rows of the shape ``sft``.
    """
    job = exported.job
    if shape is Shape.HISTORY:
        proofs = {
            "proof": _proof(exported, job.log_index),
            "origin_proof": job.origin_proof,
            "review_proofs": [_proof(exported, review.log_index) for review in job.reviews],
            "erasure_proofs": [_proof(exported, erasure.log_index) for erasure in job.erasures],
            "review_origin_proofs": [review.origin_proof for review in job.reviews],
            "erasure_origin_proofs": [erasure.origin_proof for erasure in job.erasures],
        }
        yield {**history(job), **proofs}
    elif shape is Shape.PREFERENCE:
        if (pair := _preference(job)) is not None:
            yield pair
    elif shape is Shape.REVIEW:
        yield from (_verdict(job, review) for review in job.reviews)
    else:
        for attempt in job.finished:
            if attempt.role in roles and _is_whole(job, attempt) and _is_kept(job, attempt):
                yield _sft(job, attempt)


def _proof(exported: Exported, index: int | None) -> str | None:
    """Return the proof of an entry by its place; None if it has none yet."""
    proof = None if index is None else exported.proofs.get(index)
    return None if proof is None else proof.text


def review_of(job: Job) -> Review:
    """Return what people say about a job.

    A later review that says nothing of the regeneration does not take back an earlier rating, as with `Job.rating`.
    """
    erased, newest = job.erased or {}, list(reversed(job.reviews))

    def last(name: str) -> Any:
        for review in newest:
            if f"/reviews/{review.number}/{name}" in erased:
                return None
            if (value := getattr(review, name)) not in (None, []):
                return value
        return None

    return Review(
        critique_rating=last("critique"),
        regeneration_rating=last("regeneration"),
        corrected_answer=last("corrected_answer"),
        tags=last("tags"),
        note=last("note"),
    )


def _preference(job: Job) -> dict[str, Any] | None:
    """Return the draft and the final text of a completed job as a pair; None if they are the same or were erased.

    The final text is the better one, unless a review says that it is bad. A corrected answer stays a column: no
    model wrote it, and it may begin otherwise than the model's texts do.
    """
    if job.status is not Status.COMPLETED:
        return None
    attempts = job.finished
    draft, critique, final = attempts[0], attempts[-2], attempts[-1]
    if not (_is_whole(job, draft) and _is_whole(job, final)):
        return None
    if (draft.output or "").strip() == (final.output or "").strip():
        return None  # The text is white space only.
    if not _is_kept(job, draft) or not _is_kept(job, final, "output"):
        return None
    review = review_of(job)
    better, worse = final, draft
    if review.regeneration_rating is not None and review.regeneration_rating < 0:
        better, worse = draft, final
    return {
        "prompt": draft.prompt,
        "chosen": better.output,
        "rejected": worse.output,
        "critique": critique.output if _is_kept(job, critique, "output") else None,
        "chosen_role": better.role.value,
        **_with_review(job, review),
    }


def _sft(job: Job, attempt: Attempt) -> dict[str, Any]:
    return {
        "prompt": attempt.prompt,
        "completion": attempt.output,
        "role": attempt.role.value,
        "round": attempt.round,
        **_with_review(job, review_of(job)),
    }


def _verdict(job: Job, review: models.Review) -> dict[str, Any]:
    erased = job.erased or {}

    def text(name: str) -> Any:
        return None if f"/reviews/{review.number}/{name}" in erased else getattr(review, name)

    finals = [each for each in job.finished if each.role is Role.REGENERATOR]
    return {
        "reviewer": text("reviewer"),
        "reviewed_at": rfc3339(review.created_at),
        "critique_rating": review.critique,
        "regeneration_rating": review.regeneration,
        "corrected_answer": text("corrected_answer"),
        "tags": text("tags") or None,
        "note": text("note"),
        "question": None if "/question" in erased else job.question,
        "answer": finals[-1].output if finals and _is_kept(job, finals[-1], "output") else None,
        "owner": job.owner,
        **_job(job),
        "number": review.number,
        "review_id": review.id,
        "key": review.key_id,
    }


def _with_review(job: Job, review: Review) -> dict[str, Any]:
    described = _job(job)
    return {**review._asdict(), "tags": review.tags and list(review.tags), **described}


def _job(job: Job) -> dict[str, Any]:
    """Return what every row says of its job."""
    return {
        "job_id": job.id,
        "created_at": rfc3339(job.created_at),
        "model": job.model and f"sha256:{job.model}",
    }


def _is_kept(job: Job, attempt: Attempt, *names: str) -> bool:
    """Return whether none of some texts of an attempt was erased: by default, neither prompt nor output."""
    pointer, erased = f"/attempts/{job.attempts.index(attempt)}", job.erased or {}
    return not any(f"{pointer}/{name}" in erased for name in names or ("prompt", "output"))


def _is_whole(job: Job, attempt: Attempt) -> bool:
    """Return whether a text ended by itself. From texts that were cut, a model would learn to stop anywhere.

    The last text of a job with stop strings may have ended at one of them, even if its server did not say so.
    """
    if job.stop is not None and attempt is job.finished[-1] and job.status is Status.COMPLETED:
        return False
    return attempt.is_whole
