"""Proofs, and the transparency log."""

from __future__ import annotations

from web.api.routes import MAX_NUMBER
from web.openapi.operations.description import ERRORS, Operation, Parameter, Reply

_NUMBER = {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}
#: The errors of the log are plain text.
_LOG_ERRORS = {status: Reply(ERRORS[status], media="text/plain") for status in (400, 500, 503)}

OPERATIONS = {
    "api.retrieve_job_proof": Operation(
        "Audits",
        {200: Reply("The proof, a C2SP tlog-proof.", media="text/plain")},
        parameters=(
            Parameter(
                "origin",
                {"enum": ["true", "false"], "default": "false"},
                "The origin proof: that of the first log that had it.",
            ),
            Parameter(
                "review",
                _NUMBER,
                "The proof of the review with this `number`.",
            ),
            Parameter(
                "erasure",
                _NUMBER,
                "The proof of this erasure, from 0 on.",
            ),
        ),
        errors=(404, 409),
    ),
    "log.log_checkpoint": Operation(
        "Audits",
        {
            200: Reply("The checkpoint, a C2SP signed note.", media="text/plain"),
            404: Reply("The log is empty.", media="text/plain"),
            **_LOG_ERRORS,
        },
        is_open=True,
    ),
    "log.log_tile": Operation(
        "Audits",
        {
            200: Reply(
                "32 bytes for each hash; with the level `entries`, each entry after its length in 2 bytes.",
                media="application/octet-stream",
                headers={"Cache-Control": "It never changes."},
            ),
            404: Reply("The log has no such tile.", media="text/plain"),
            **_LOG_ERRORS,
        },
        is_open=True,
    ),
}
