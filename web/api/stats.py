"""The endpoint of statistics."""

from __future__ import annotations

from flask import Response, jsonify

from jobs.protocol.stats import statistics
from web import statistics_query
from web.api.routes import blueprint


@blueprint.get("/stats")
def get_statistics() -> Response:
    """Reply with statistics of ended jobs: over time, by model, adapter or metadata, and two models compared."""
    return jsonify(statistics(statistics_query.find(statistics_query.wanted())))
