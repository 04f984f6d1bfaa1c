"""Liveness and readiness, for supervisors and load balancers."""

from __future__ import annotations

import redis
from flask import Blueprint, Response, jsonify
from sqlalchemy.exc import SQLAlchemyError

from jobs.use_cases import pausing, workers
from web.services import get_services

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@blueprint.get("/livez")
@blueprint.get("/health")  # of vLLM and others: tools for them ask for it
def healthz() -> Response:
    """Reply: the process responds."""
    return jsonify(status="ok")


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Check the database, Redis and the workers: reply with 200, or with 503 and what is missing."""
    services = get_services()
    checks = {"database": "ok", "redis": "ok", "worker": "ok"}
    # Paused, the service is ready: it accepts questions.
    queue = "unknown"
    try:
        queue = "paused" if pausing.is_paused(services.database) else "open"
        if not workers.list_ready(services.database):
            loading = workers.any_loading(services.database)
            checks["worker"] = "a worker loads its model" if loading else "no worker is ready"
    except SQLAlchemyError:
        checks["database"] = "unreachable"
        checks["worker"] = "unknown"
    try:
        services.progress.ping()
    except redis.RedisError:
        checks["redis"] = "unreachable"
    ready = set(checks.values()) == {"ok"}
    status = "ok" if ready else "unavailable"
    return jsonify(status=status, checks=checks, queue=queue), 200 if ready else 503
