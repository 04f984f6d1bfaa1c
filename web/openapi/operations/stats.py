"""Statistics."""

from __future__ import annotations

from jobs.protocol import schemas
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import PERIOD, TEXT

OPERATIONS = {
    "api.get_statistics": Operation(
        "Audits",
        {200: Reply("The statistics.", schemas.Statistics)},
        parameters=(
            Parameter(
                "by",
                TEXT,
                "How jobs are grouped: `hour`, `day`, `model`, `adapter`, `owner` or `metadata.KEY`.",
            ),
            *PERIOD,
            Parameter("owner", TEXT, "Only jobs of this owner."),
            Parameter("model", TEXT, "Digest of the model."),
            Parameter(
                "adapter", TEXT, "Name of an adapter, the last parts of its name, or its digest."
            ),
            Parameter(
                "compare",
                TEXT,
                "Two models, adapters or periods, separated by a comma: digests, names of adapters, or `2026-01-01/2026-02-01`.",
            ),
        ),
    ),
}
