"""How a Redis URL is spelled for Celery."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit


def broker_options(redis_url: str) -> dict[str, Any]:
    """Spell a Redis URL as Celery's settings.

    Kombu has its own way to write Unix sockets, and verifies no certificate unless told to.
    """
    url = urlsplit(redis_url)
    query = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        options = urlencode({"virtual_host": query["db"]}) if "db" in query else ""
        place = redis_url.partition("://")[2].partition("?")[0]
        return {"broker_url": f"redis+socket://{place}" + (f"?{options}" if options else "")}
    address = url._replace(scheme="redis", query="").geturl()
    if url.scheme == "rediss":
        return {"broker_url": address, "broker_use_ssl": {"ssl_cert_reqs": "required", **query}}
    return {"broker_url": address}
