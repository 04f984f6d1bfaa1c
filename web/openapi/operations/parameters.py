"""Parameters that several endpoints have."""

from __future__ import annotations

from jobs.models import Status
from jobs.search.query import MAX_LENGTH
from web.idempotency import MAX_KEY_LENGTH
from web.job_filters import MAX_ATTEMPTS, MAX_DURATION, RATINGS
from web.openapi.operations.description import Parameter
from web.query import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

TEXT = {"type": "string"}
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "Makes it safe to repeat the request: the same key and body get the first reply again.",
    "header",
)


def page(
    default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE, order: str = "desc"
) -> tuple[Parameter, ...]:
    """Return the parameters of lists."""
    return (
        Parameter(
            "limit", {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}
        ),
        Parameter("order", {"enum": ["asc", "desc"], "default": order}),
        Parameter("after", TEXT, "The id of the last entry of the previous page."),
    )


PAGE = page()
OLDEST_FIRST = page(order="asc")
PERIOD = (
    Parameter("since", TEXT, "Created from then on: Unix seconds, or RFC 3339."),
    Parameter("until", TEXT, "Created before then: Unix seconds, or RFC 3339."),
)
#: Which jobs are meant.
FILTERS = (
    Parameter("status", TEXT, f"One or several, separated by commas: {', '.join(Status)}."),
    Parameter("owner", TEXT, "Only jobs of this owner."),
    Parameter("key", TEXT, "Only jobs that this API key submitted: its id."),
    Parameter("batch", TEXT, "Only jobs that answer a line of this batch: its id."),
    *PERIOD,
    Parameter(
        "rating",
        {"enum": [*RATINGS]},
        "The last rating of the regeneration in a review, `any` for jobs that have one, or `none`.",
    ),
    Parameter(
        "critique_rating",
        {"enum": [*RATINGS]},
        "The last rating of the critique in a review, `any` for jobs that have one, or `none`.",
    ),
    Parameter("reviewer", TEXT, "Only jobs that this person has reviewed."),
    Parameter("tag", TEXT, "Only jobs with a review that has this tag."),
    Parameter(
        "q",
        {"type": "string", "maxLength": MAX_LENGTH},
        'Full text: words, `"phrases"`, `prefix*`, `-not`, `one OR other`.',
    ),
    Parameter("adapter", TEXT, "Name of an adapter, the last parts of its name, or its digest."),
    Parameter("model", TEXT, "Digest of the model."),
    Parameter("worker", TEXT, "Id or host of a worker."),
    Parameter(
        "min_attempts",
        {"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS},
        "Only jobs with a stage that took at least this many attempts.",
    ),
    *(
        Parameter(
            name,
            {"type": "number", "minimum": 0, "maximum": 1},
            "The share of words that differ between the actor's draft and the last regeneration.",
        )
        for name in ("min_changed", "max_changed")
    ),
    *(
        Parameter(
            name,
            {"type": "number", "minimum": 0, "maximum": MAX_DURATION},
            "Seconds from the job's acceptance to its end.",
        )
        for name in ("min_duration", "max_duration")
    ),
)
