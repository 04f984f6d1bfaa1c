"""What the description says of each endpoint, besides its docstring and its path.

Bodies are described by the models that validate them. Replies are described by `jobs.protocol.schemas`, and
the tests check that they are so. Each area of the API has a module.
"""

from __future__ import annotations

from web.openapi.operations import (
    batches,
    jobs,
    proofs,
    responses,
    reviews,
    stats,
    system,
    webhooks,
)
from web.openapi.operations.description import Operation

#: By the names of the endpoints.
OPERATIONS: dict[str, Operation] = {
    **responses.OPERATIONS,
    **batches.OPERATIONS,
    **webhooks.OPERATIONS,
    **jobs.OPERATIONS,
    **reviews.OPERATIONS,
    **stats.OPERATIONS,
    **proofs.OPERATIONS,
    **system.OPERATIONS,
}
