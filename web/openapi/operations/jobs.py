"""Lists, histories, exports, replays, erasures and deletions of jobs."""

from __future__ import annotations

from jobs.enums import Order, Shape
from jobs.formats.compression import Compression
from jobs.formats.writing import MEDIA_TYPES, Format
from jobs.pipeline import Role
from jobs.protocol import schemas
from jobs.protocol.removal import DeleteJobs, EraseJobs, EraseTexts
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import FILTERS, PAGE, TEXT

OPERATIONS = {
    "api.list_jobs": Operation(
        "Audits",
        {200: Reply("A page of jobs.", schemas.SummaryList)},
        parameters=(
            *PAGE[:1],
            Parameter(
                "order",
                {"enum": [*Order]},
                "`relevance` (the default with `q`); by age: `desc` (the default without) or `asc`; or of jobs "
                "that have ended, the most `changed` or those of the longest `duration` first.",
            ),
            Parameter(
                "after",
                TEXT,
                "The cursor in `next` of the previous page, or the id of its last entry.",
            ),
            *FILTERS,
        ),
    ),
    "api.erase_texts": Operation(
        "Audits",
        {200: Reply("The texts that were erased.", schemas.Erased)},
        body=EraseTexts,
        errors=(404, 409),
    ),
    "api.erase_texts_of_jobs": Operation(
        "Audits",
        {200: Reply("What this step erased.", schemas.ErasedJobs)},
        body=EraseJobs,
    ),
    "api.delete_job": Operation(
        "Audits",
        {200: Reply("It is deleted.", schemas.DeletedJob)},
        errors=(404,),
    ),
    "api.delete_jobs": Operation(
        "Audits",
        {200: Reply("What this step deleted.", schemas.DeletedJobs)},
        body=DeleteJobs,
    ),
    "api.export_jobs": Operation(
        "Audits",
        {200: Reply("The file, while it is made.", media=MEDIA_TYPES)},
        parameters=(
            Parameter("format", {"enum": [*Format], "default": Format.JSONL}),
            Parameter("shape", {"enum": [*Shape], "default": Shape.HISTORY}),
            Parameter(
                "role",
                {"enum": ["all", *Role]},
                "The role whose texts are exported; only with the shape `sft`.",
            ),
            Parameter("compression", {"enum": [*Compression]}, "In Parquet, that of the columns."),
            Parameter(
                "ids", TEXT, "Only these jobs, 1 to 100, separated by commas; without filters."
            ),
            *FILTERS,
        ),
        errors=(404,),
    ),
    "api.replay_job": Operation(
        "Audits",
        {
            202: Reply(
                "The job was accepted.", schemas.Summary, headers={"Location": "Its history."}
            )
        },
        errors=(404,),
    ),
    "api.retry_job": Operation(
        "Audits",
        {202: Reply("The job goes on.", schemas.Summary, headers={"Location": "Its history."})},
        errors=(404, 409),
    ),
    "api.retrieve_job": Operation(
        "Audits",
        {200: Reply("The job's history.", schemas.History)},
        errors=(404,),
    ),
}
