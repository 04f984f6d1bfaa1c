"""``/log``: the transparency log as C2SP's tlog-tiles, for everybody.

Tiles and bundles never change, so caches may keep them. A checkpoint may be cached for a second.
"""

from __future__ import annotations

import gzip

from flask import Blueprint, Response, request

from jobs.tlog import tiles
from jobs.use_cases import proving
from web.errors import HTTPError
from web.services import get_services

blueprint = Blueprint("log", __name__)

#: Seconds for which a checkpoint, and a tile, may be cached.
CHECKPOINT_AGE = 1
TILE_AGE = 31_536_000


@blueprint.get("/checkpoint")
def log_checkpoint() -> Response:
    """Reply with the newest checkpoint."""
    note = proving.get_checkpoint(get_services().database)
    if note is None:
        raise _not_found("The log is empty: no job has ended yet.")
    response = Response(note, content_type="text/plain; charset=utf-8")
    response.cache_control.public = True
    response.cache_control.max_age = CHECKPOINT_AGE
    return response


@blueprint.get("/tile/<level>/<path:path>")
def log_tile(level: str, path: str) -> Response:
    """Reply with the hashes of a tile, or with a bundle of entries."""
    found, number = None, tiles.parse_level(level)
    place = tiles.parse_path(path)
    database = get_services().database
    if place is not None and level == "entries":
        found = proving.get_bundle(database, place)
    elif place is not None and number is not None:
        found = proving.get_tile(database, number, place)
    if found is None:
        raise _not_found(
            f"The log has no tile {level}/{path}. Its checkpoint says how large it is."
        )
    response = Response(found, content_type="application/octet-stream")
    response.cache_control.public = True
    response.cache_control.max_age = TILE_AGE
    response.cache_control.immutable = True
    if level == "entries":
        response.vary.add("Accept-Encoding")
        if request.accept_encodings["gzip"]:
            response.set_data(gzip.compress(found, mtime=0))
            response.content_encoding = "gzip"
    return response


def _not_found(message: str) -> HTTPError:
    return HTTPError(404, message, code="not_found")
