"""Kombu's Redis transport, with what it lacks for a worker that must outlive its broker.

When Redis goes away while a message is being acknowledged, Kombu keeps the message on its
list of those in progress. With as many such messages as the worker has slots it never asks
Redis for another one, not even to notice that the connection is gone: the worker looks
alive and does nothing. Here the message is forgotten all the same; the database knows what
became of it.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.transport.virtual import base

SCHEME = "helixq"


class QoS(kombu_redis.QoS):
    """Tracks messages in progress, and forgets them whatever Redis says."""

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except Exception:  # whatever it is, it goes on to Celery
            base.QoS.ack(self, delivery_tag)
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except Exception:  # (same)
            base.QoS.ack(self, delivery_tag)
            raise


class Channel(kombu_redis.Channel):
    QoS = QoS


class Transport(kombu_redis.Transport):
    Channel = Channel


TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"


def broker_options(redis_url: str) -> dict[str, Any]:
    """Spell a Redis URL as Celery's settings for this transport.

    Kombu has its own way to write Unix sockets, and verifies no certificate unless told to.
    """
    url = urlsplit(redis_url)
    query = dict(parse_qsl(url.query))
    if url.scheme == "unix":
        options = urlencode({"virtual_host": query["db"]}) if "db" in query else ""
        place = redis_url.partition("://")[2].partition("?")[0]
        return {"broker_url": f"{SCHEME}+socket://{place}" + (f"?{options}" if options else "")}
    address = url._replace(scheme=SCHEME, query="").geturl()
    if url.scheme == "rediss":
        return {"broker_url": address, "broker_use_ssl": {"ssl_cert_reqs": "required", **query}}
    return {"broker_url": address}
