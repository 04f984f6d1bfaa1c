"""Statistics as JSON: figures of jobs, in seconds, tokens and shares, and the comparison of two models."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from jobs.models import Status
from jobs.pipeline import Role
from jobs.statistics.counted import MILLION
from jobs.statistics.intervals import Mean, Share, difference_of_means, difference_of_shares
from jobs.statistics.tally import Measure, Tally
from jobs.times import rfc3339
from jobs.use_cases.statistics import AdapterKey, By, Key, Side, Statistics

#: The percentiles that distributions have.
PERCENTILES = (50, 90, 99)
#: The distribution of no values.
_NO_VALUES: dict[str, Any] = {
    "count": 0,
    "total": 0.0,
    "mean": None,
    **{f"p{percentile}": None for percentile in PERCENTILES},
}
#: The measures of a stage.
STAGE_MEASURES = ("time", "first_token", "prompt_tokens", "output_tokens", "rate")
#: What shares are compared: those that count as the first of those that count as any of the others.
SHARES = {
    "completed": ("completed", ("jobs",)),
    "regeneration_better": (
        "regeneration.1",
        ("regeneration.-1", "regeneration.0", "regeneration.1"),
    ),
    "regeneration_worse": (
        "regeneration.-1",
        ("regeneration.-1", "regeneration.0", "regeneration.1"),
    ),
    "critique_right": ("critique.1", ("critique.-1", "critique.0", "critique.1")),
}
#: What means are compared.
MEANS = (
    "changed",
    "duration",
    *(
        f"{role}.{name}"
        for role in Role
        for name in ("time", "first_token", "output_tokens", "rate")
    ),
)


def statistics(read: Statistics) -> dict[str, Any]:
    """Return statistics as the API has them."""
    by = read.query.by
    others = None
    if read.other_values:
        others = {"values": read.other_values, **figures(read.others)}
    return {
        "since": rfc3339(read.since),
        "until": rfc3339(read.until),
        "by": f"metadata.{read.query.key}" if by is By.METADATA else by,
        "current": read.is_current,
        "open": {status.value: count for status, count in read.open.items()},
        "total": figures(read.total),
        "groups": [
            {"key": _key(by, key, read), **figures(tally)} for key, tally in read.groups.items()
        ],
        "others": others,
        "comparison": comparison(read),
    }


def figures(tally: Tally) -> dict[str, Any]:
    """Return the figures of some jobs."""
    counts = tally.counts

    def ratings(name: str) -> dict[str, int]:
        return {str(rating): counts.get(f"{name}.{rating}", 0) for rating in (-1, 0, 1)}

    return {
        "jobs": tally.jobs,
        "statuses": {
            status.value: counts.get(status.value, 0) for status in Status if status.final
        },
        "attempts": counts.get("attempts", 0),
        "lost_attempts": counts.get("lost", 0),
        "queue_wait": _distribution(tally, "queue_wait"),
        "duration": _distribution(tally, "duration"),
        "changed": _distribution(tally, "changed"),
        "stages": {
            role.value: {
                name: _distribution(tally, f"{role.value}.{name}") for name in STAGE_MEASURES
            }
            for role in Role
        },
        "reviews": {
            "reviews": counts.get("reviews", 0),
            "jobs": counts.get("reviewed", 0),
            "corrected": counts.get("corrected", 0),
            "critique": ratings("critique"),
            "regeneration": ratings("regeneration"),
        },
    }


def unit(name: str) -> int:
    """Return how many of a measure's integers make one unit of the API."""
    last = name.rpartition(".")[2]
    return {"rate": 1000, "prompt_tokens": 1, "output_tokens": 1}.get(last, MILLION)


def _distribution(tally: Tally, name: str) -> dict[str, Any]:
    measure = tally.measures.get(name)
    if measure is None or not measure.count:
        return _NO_VALUES.copy()
    per = unit(name)
    values = measure.percentiles([p / 100 for p in PERCENTILES])
    return {
        "count": measure.count,
        "total": _rounded(measure.total / per),
        "mean": _rounded(measure.mean, per),
        **{f"p{p}": _rounded(v, per) for p, v in zip(PERCENTILES, values, strict=True)},
    }


def _rounded(value: float | None, per: float = 1) -> float | None:
    """Return a number of JSON, without the digits that say nothing."""
    if value is None or math.isnan(value):
        return None
    return round(value / per, 6)


def _key(by: By | None, key: Key, read: Statistics) -> dict[str, Any]:
    if isinstance(key, dt.datetime):
        return {"start": rfc3339(key)}
    if by is By.MODEL:
        return _model(None if key is None else str(key), read)
    if by is By.ADAPTER:
        adapter = key if isinstance(key, AdapterKey) else AdapterKey("", "", "")
        return {name: value or None for name, value in adapter._asdict().items()}
    return {"owner" if by is By.OWNER else "value": key}


def _model(model: str | None, read: Statistics) -> dict[str, Any]:
    description = read.models.get(model or "", {})
    return {
        "model": model and f"sha256:{model}",
        "base": _named(description.get("base")),
        "adapters": {
            role: _named(adapter) for role, adapter in description.get("adapters", {}).items()
        },
    }


def _named(of: Any) -> dict[str, Any] | None:
    return None if of is None else {"name": of.get("name"), "digest": of.get("digest")}


def comparison(read: Statistics) -> dict[str, Any] | None:
    """Return the comparison of the two sides of a query; None if it has none."""
    if read.compared is None:
        return None
    first, second = read.compared
    return {
        "first": _side(first, read),
        "second": _side(second, read),
        "measures": [
            *(_compared_share(name, first.tally, second.tally) for name in SHARES),
            *(_compared_mean(name, first.tally, second.tally) for name in MEANS),
        ],
    }


def _side(side: Side, read: Statistics) -> dict[str, Any]:
    return {
        "name": side.name,
        "models": [_model(model, read) for model in side.models],
        **figures(side.tally),
    }


def _compared_share(name: str, first: Tally, second: Tally) -> dict[str, Any]:
    shares = [_share(name, tally) for tally in (first, second)]
    sides = [
        {
            "count": share.total,
            "value": _rounded(share.value),
            "low": _rounded(share.interval[0]),
            "high": _rounded(share.interval[1]),
        }
        for share in shares
    ]
    apart = difference_of_shares(*shares) if all(share.total for share in shares) else None
    return _compared(name, "share", sides, apart, 1)


def _compared_mean(name: str, first: Tally, second: Tally) -> dict[str, Any]:
    per = unit(name)
    measures = [tally.measures.get(name) or Measure() for tally in (first, second)]
    means = [
        Mean(measure.count, math.nan if measure.mean is None else measure.mean, measure.variance)
        for measure in measures
    ]
    sides = [
        {
            "count": mean.count,
            "value": _rounded(mean.value, per),
            "low": _rounded(mean.interval[0], per),
            "high": _rounded(mean.interval[1], per),
        }
        for mean in means
    ]
    apart = difference_of_means(*means) if all(mean.count for mean in means) else None
    return _compared(name, "mean", sides, apart, per)


def _compared(
    name: str,
    kind: str,
    sides: list[dict[str, Any]],
    apart: tuple[float, float, float] | None,
    per: int,
) -> dict[str, Any]:
    difference = None
    if apart is not None:
        value, low, high = (_rounded(number, per) for number in apart)
        difference = {"value": value, "low": low, "high": high}
    return {
        "measure": name,
        "kind": kind,
        "first": sides[0],
        "second": sides[1],
        "difference": difference,
    }


def _share(name: str, tally: Tally) -> Share:
    hit, among = SHARES[name]
    counts = tally.counts
    return Share(counts.get(hit, 0), sum(counts.get(other, 0) for other in among))
