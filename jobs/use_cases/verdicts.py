"""The verdicts of reviewers: a person's last review of a job is the one that counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa

#: How many of the newest reviews are looked at.
MAX_REVIEWS = 100_000


class Verdict(NamedTuple):
    """The ratings of a person's last review of a job."""

    critique: int | None
    regeneration: int | None


#: The verdicts that count, by job and reviewer.
Verdicts = dict[str, dict[str, Verdict]]


def current(
    rows: Iterable[sa.Row[str, int, str, int | None, int | None]],
) -> Verdicts:
    """Return the verdicts that count, by job and reviewer.

    Args:
        rows: of reviews, the oldest first. Erased reviewers are left out: they may be the same person.
    """
    verdicts: Verdicts = {}
    for row in rows:
        if row.reviewer:
            verdicts.setdefault(row.job_id, {})[row.reviewer] = Verdict(
                row.critique, row.regeneration
            )
    return verdicts


def disagree(verdicts: dict[str, Verdict]) -> bool:
    """Return whether two reviewers of a job gave different ratings."""
    return any(
        len({verdict[index] for verdict in verdicts.values()} - {None}) > 1 for index in (0, 1)
    )
