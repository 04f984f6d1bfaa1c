"""Ids: those of most things sort by age."""

from __future__ import annotations

import re
import secrets
import time


def new_id(prefix: str) -> str:
    """Return a new id: a prefix, 48 bits of time in milliseconds, and 80 random bits, as 32 hexadecimal digits."""
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def is_id(text: str, prefix: str) -> bool:
    """Return whether a text can be an id with a prefix. Not every text can be a parameter of a statement."""
    return re.fullmatch(rf"{prefix}[0-9a-z]{{1,32}}", text) is not None
