"""Reviews."""

from __future__ import annotations

from typing import get_args

from jobs.protocol import schemas
from jobs.protocol.reviews import MAX_NAME, MAX_SEED, CreateReview
from jobs.use_cases.review_queue import Kind
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import PAGE, PERIOD

OPERATIONS = {
    "api.list_reviews": Operation(
        "Audits",
        {200: Reply("The reviews of the job.", schemas.ReviewList)},
        errors=(404,),
    ),
    "api.add_review": Operation(
        "Audits",
        {201: Reply("The review.", schemas.Review)},
        body=CreateReview,
        errors=(404, 409),
    ),
    "api.list_review_queue": Operation(
        "Audits",
        {200: Reply("The jobs to review next.", schemas.ReviewQueue)},
        parameters=(
            Parameter("kind", {"enum": [*get_args(Kind)], "default": "unreviewed"}),
            Parameter(
                "seed",
                {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
                "The same seed gives the same order of the sample.",
            ),
            Parameter(
                "reviewer",
                {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
                "Whose queue it is; by default the key's owner.",
            ),
            PAGE[0],
            *PERIOD,
        ),
    ),
    "api.get_review_agreement": Operation(
        "Audits",
        {200: Reply("The agreement in each rating.", schemas.Agreements)},
        parameters=PERIOD,
    ),
}
