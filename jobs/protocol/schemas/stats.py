"""The shapes of statistics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from jobs.protocol.schemas.base import Digest, Reply, Time


class Distribution(Reply):
    """Values of a measure: seconds, tokens, tokens a second, or shares.

    Percentiles are right within 9%, and those of shares within 0.02.
    """

    count: int
    total: float
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class StageFigures(Reply):
    """Finished stages of a role."""

    time: Distribution
    first_token: Distribution
    prompt_tokens: Distribution
    output_tokens: Distribution
    rate: Distribution


class RoleFigures(Reply):
    actor: StageFigures
    critic: StageFigures
    regenerator: StageFigures


class EndCounts(Reply):
    completed: int
    failed: int
    cancelled: int
    incomplete: int


class OpenCounts(Reply):
    """Jobs that have not ended; 1000 stands for more too."""

    queued: int
    in_progress: int


#: Jobs by their last rating. Generators of clients would give two of such properties the same name.
RatingCounts = Annotated[dict[Literal["-1", "0", "1"], int], Field(min_length=3)]


class ReviewFigures(Reply):
    reviews: int
    jobs: int
    corrected: int
    critique: RatingCounts
    regeneration: RatingCounts


class Figures(Reply):
    """Figures of some ended jobs."""

    jobs: int
    statuses: EndCounts
    attempts: int
    lost_attempts: int
    queue_wait: Distribution
    duration: Distribution
    changed: Distribution
    stages: RoleFigures
    reviews: ReviewFigures


class NamedDigest(Reply):
    name: str | None
    digest: str | None


class ModelKey(Reply):
    model: Digest | None
    base: NamedDigest | None
    adapters: dict[str, NamedDigest | None]


class AdapterKey(Reply):
    role: str | None
    name: str | None
    digest: str | None


class PeriodKey(Reply):
    start: Time


class OwnerKey(Reply):
    owner: str


class ValueKey(Reply):
    value: str | None


class FigureGroup(Figures):
    """Jobs that have something in common."""

    key: PeriodKey | ModelKey | AdapterKey | OwnerKey | ValueKey


class OtherFigures(Figures):
    """The jobs with the values, or of the owners, that have no group of their own."""

    values: int


class ComparedSide(Figures):
    name: str
    models: list[ModelKey]


class Estimate(Reply):
    """A share or a mean, with its 95% interval."""

    count: int
    value: float | None
    low: float | None
    high: float | None


class Difference95(Reply):
    """How much larger the second one is, with the 95% interval."""

    value: float | None
    low: float | None
    high: float | None


class ComparedMeasure(Reply):
    measure: str
    kind: Literal["share", "mean"]
    first: Estimate
    second: Estimate
    difference: Difference95 | None


class Comparison(Reply):
    """Two models, adapters or periods."""

    first: ComparedSide
    second: ComparedSide
    measures: list[ComparedMeasure]


class Statistics(Reply):
    """Statistics of ended jobs."""

    since: Time
    until: Time
    by: str | None
    current: bool
    open: OpenCounts
    total: Figures
    groups: list[FigureGroup]
    others: OtherFigures | None
    comparison: Comparison | None
