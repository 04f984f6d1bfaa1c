"""How far reviewers agree.

The jobs of other owners are not found; the owner None stands for all owners.
"""

from __future__ import annotations

import datetime as dt
from typing import Literal, NamedTuple

from jobs.agreement import cohen_kappa, krippendorff_alpha
from jobs.database import Database
from jobs.statements import jobs, reviews
from jobs.use_cases.verdicts import MAX_REVIEWS, Verdicts, current

Rating = Literal["critique", "regeneration"]


class Agreement(NamedTuple):
    """How far reviewers agree in a rating."""

    #: ``cohen_kappa`` for two reviewers, ``krippendorff_alpha`` for more, None for fewer.
    measure: str | None
    #: None if it is not defined: there is no job that two have rated, or no rating differs from another.
    value: float | None
    #: The people who rated a job that another one rated too, and the number of these jobs.
    reviewers: list[str]
    jobs: int


def agreement(
    database: Database,
    owner: str | None,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    limit: int = MAX_REVIEWS,
) -> dict[Rating, Agreement]:
    """Return how far reviewers agree, for each rating.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        since, until: the reviews were created from ``since`` on, and before ``until``.
        limit: of more reviews, the newest count.
    """
    with database.read() as connection:
        rows = reviews.recent(connection, jobs.IndexedFilters(owner, since, until), limit)
    verdicts = current(reversed(rows))
    return {"critique": _agreement(verdicts, 0), "regeneration": _agreement(verdicts, 1)}


def _agreement(verdicts: Verdicts, index: int) -> Agreement:
    units: list[dict[str, int]] = []
    for by_reviewer in verdicts.values():
        ratings = {
            reviewer: rating
            for reviewer, verdict in by_reviewer.items()
            if (rating := verdict[index]) is not None
        }
        if len(ratings) > 1:
            units.append(ratings)
    reviewers = sorted({reviewer for unit in units for reviewer in unit})
    if len(reviewers) < 2:
        return Agreement(None, None, [], 0)
    if len(reviewers) == 2:
        first, second = reviewers
        value = cohen_kappa([(unit[first], unit[second]) for unit in units])
        return Agreement("cohen_kappa", value, reviewers, len(units))
    value = krippendorff_alpha([list(unit.values()) for unit in units])
    return Agreement("krippendorff_alpha", value, reviewers, len(units))
