"""Secrets and signatures of Standard Webhooks 1.0, in its symmetric form (HMAC-SHA256).

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

#: Every secret begins with it; the rest is base64.
PREFIX = "whsec_"
#: The standard asks for 24 to 64.
_SECRET_BYTES = 32
#: Characters of a secret that are shown for people to recognize it.
_HINT_LENGTH = len(PREFIX) + 4


def new_secret() -> str:
    """Return a new secret: 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def hint(secret: str) -> str:
    """Return the beginning of a secret, by which people recognize it."""
    return f"{secret[:_HINT_LENGTH]}…"


def headers(
    event_id: str, timestamp: int, body: bytes, signing_secrets: Sequence[str]
) -> dict[str, str]:
    """Return the headers of a webhook.

    Args:
        event_id: the same for each attempt to deliver an event.
        timestamp: of this attempt, in Unix seconds.
        body: as it is sent.
        signing_secrets: one, or two while one replaces the other. Each gives a signature.
    """
    signatures = (f"v1,{_sign(event_id, timestamp, body, secret)}" for secret in signing_secrets)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _sign(event_id: str, timestamp: int, body: bytes, secret: str) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{event_id}.{timestamp}.".encode() + body
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
