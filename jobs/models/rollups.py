"""Sums over ended jobs, for statistics."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.column_types import ExactJSON
from jobs.models.base import Base, enum
from jobs.statistics.periods import Level


class Rollup(Base):
    """The sum of what the ended jobs of a period count for (`Job.counted`). Those without jobs are deleted."""

    __tablename__ = "rollups"

    #: Of the jobs; empty for all owners.
    owner: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    level: Mapped[Level] = mapped_column(enum(Level, "level"), primary_key=True)
    #: When the period starts in which the jobs were accepted.
    start: Mapped[dt.datetime] = mapped_column(primary_key=True)
    #: As in `Job.model`; empty for jobs that no worker has started.
    model: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    #: The number of jobs.
    jobs: Mapped[int]
    #: As `jobs.statistics.tally.Tally.dump` returns it.
    tally: Mapped[dict[str, Any]] = mapped_column(ExactJSON)


class RollupModel(Base):
    """A model that has or had rollups, as the first worker that served it described it."""

    __tablename__ = "rollup_models"

    #: As in `Job.model`.
    model: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    #: ``base``, and ``adapters`` by role: ``name`` and ``digest`` each. ``dtype``, ``quantization``, ``engine``.
    description: Mapped[dict[str, Any]] = mapped_column(ExactJSON)
