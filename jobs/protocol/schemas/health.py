"""The shapes of liveness and readiness."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.schemas.base import Reply


class Alive(Reply):
    status: Literal["ok"]


class Checks(Reply):
    database: Literal["ok", "unreachable"]
    redis: Literal["ok", "unreachable"]
    worker: str


class Readiness(Reply):
    """What the server can reach."""

    status: Literal["ok", "unavailable"]
    checks: Checks
    queue: Literal["open", "paused", "unknown"]
