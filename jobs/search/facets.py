"""Facets: what a list of jobs can be filtered by, as terms of the same index that the words are in.

So a filter is one more term of the query, however many of them there are, and the databases intersect them. A
term is the facet's name and a hash of the value; words have no ``_``, so that they never meet. Ranges of
numbers are divided into buckets. The buckets at the ends of a range also have numbers outside of it, so a search
compares the numbers of the documents as well.
"""

from __future__ import annotations

import hashlib
import math

from jobs.enums import RATED
from jobs.search.query import Node, Not, Or, Term

#: Ratings as parts of terms.
_RATINGS = {-1: "worse", 0: "same", 1: "better"}
#: Larger numbers of attempts have the terms of this one.
MAX_ATTEMPTS = 8
#: The buckets of a changed share, and the powers of two of the buckets of a duration in seconds.
SHARES = 20
SHORTEST, LONGEST = -7, 22


def term(facet: str, *values: str) -> str:
    """Return the term of a facet's value."""
    joined = "\0".join(values).encode("utf-8", "surrogatepass")
    return f"_{facet}_{hashlib.blake2b(joined, digest_size=8).hexdigest()}"


def rating_term(facet: str, rating: int) -> str:
    """Return the term of a job's last rating of one kind."""
    return f"_{facet}_{_RATINGS[rating]}"


def rated(facet: str, rating: int | None) -> Node:
    """Return the query for jobs by their last rating of one kind: its value, `RATED` for any, None for no rating."""
    if rating in _RATINGS:
        return Term(rating_term(facet, rating))
    any_rating = Or(tuple(Term(rating_term(facet, each)) for each in _RATINGS))
    return any_rating if rating == RATED else Not(any_rating)


def attempts_terms(attempts: int) -> list[str]:
    """Return the terms of a job with this number of attempts at one stage: one for each minimum that it meets."""
    return [f"_attempts_{number}" for number in range(2, min(attempts, MAX_ATTEMPTS) + 1)]


def at_least(attempts: int) -> Node:
    """Return the query for jobs with at least this number of attempts at one stage."""
    return Term(attempts_terms(attempts)[-1])


def share_term(share: float) -> str:
    """Return the term of a changed share, from 0 to 1."""
    return f"_changed_{_share_bucket(share)}"


def share_terms(least: float | None, most: float | None) -> list[Term]:
    """Return the terms of changed shares from one on and up to another, in the order of the shares."""
    first = 0 if least is None else _share_bucket(least)
    last = SHARES if most is None else _share_bucket(most)
    return [Term(f"_changed_{bucket}") for bucket in range(first, last + 1)]


def duration_term(seconds: float) -> str:
    """Return the term of a duration in seconds."""
    return f"_duration_{_duration_bucket(seconds)}"


def duration_terms(least: float | None, most: float | None) -> list[Term]:
    """Return the terms of durations in seconds from one on and up to another, in the order of the durations."""
    first = 0 if least is None else _duration_bucket(least)
    last = LONGEST - SHORTEST if most is None else _duration_bucket(most)
    return [Term(f"_duration_{bucket}") for bucket in range(first, last + 1)]


def _share_bucket(share: float) -> int:
    return math.floor(min(max(share, 0.0), 1.0) * SHARES)


def _duration_bucket(seconds: float) -> int:
    power = math.floor(math.log2(seconds)) if seconds > 0 else SHORTEST
    return min(max(power, SHORTEST), LONGEST) - SHORTEST
