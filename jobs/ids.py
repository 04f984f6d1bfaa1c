"""Ids that sort by age."""

from __future__ import annotations

import secrets
import time


def new_id(prefix: str) -> str:
    """Return a new id: a prefix, 48 bits of time in milliseconds, and 80 random bits, as 32 hexadecimal digits."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
