"""Is the process alive, and could a question be answered now?"""

from __future__ import annotations

import redis
from flask import Blueprint, Response, jsonify
from sqlalchemy.exc import SQLAlchemyError

from web.services import services

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Say that the process answers."""
    return jsonify(status="ok")


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Check the database, Redis and that a worker is ready: 200, or 503 and what is missing."""
    found = services()
    checks = {"database": "ok", "redis": "ok", "worker": "ok"}
    try:
        if not found.store.ready_workers():
            loading = found.store.loading()
            checks["worker"] = "a worker loads its model" if loading else "no worker is ready"
    except SQLAlchemyError:
        checks["database"] = "unreachable"
        checks["worker"] = "unknown"
    try:
        found.progress.ping()
    except redis.RedisError:
        checks["redis"] = "unreachable"
    ready = set(checks.values()) == {"ok"}
    return jsonify(status="ok" if ready else "unavailable", checks=checks), 200 if ready else 503
