"""Salted hashes in place of the texts of a record, and what a history has in place of an erased text.

Once a text was erased, the salt that all own salts come from is gone, so that nobody can try out what the text was.
The own salts of the other texts are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

from jobs.tlog.canonical import canonical

#: The secret of a record: one salt that the own salts of all texts come from, or once a text was erased, the
#: own salts of the others by their JSON pointers.
Salts = bytes | Mapping[str, bytes]

SALT_SIZE = 32


def new_salt() -> bytes:
    """Return the secret salt of a job."""
    return secrets.token_bytes(SALT_SIZE)


def own_salt(salts: Salts, pointer: str) -> bytes:
    """Return the own salt of a text: HMAC-SHA256(salt, pointer), so that one hash says nothing about another.

    Raises:
        KeyError: the text was erased, and its salt with it.
    """
    if isinstance(salts, bytes):
        return hmac.digest(salts, pointer.encode(), "sha256")
    return salts[pointer]


def text_hash(salts: Salts, pointer: str, value: Any) -> str | None:
    """Return the salted hash of a text (or another JSON value) of a record; None stays None.

    Args:
        salts: of the record.
        pointer: where the text is in the record: a JSON pointer (RFC 6901).
        value: the text, or what `erased` returned.
    """
    if value is None:
        return None
    if is_erased(value):
        return str(value["hash"])
    salted = own_salt(salts, pointer) + canonical(value)
    return f"sha256:{hashlib.sha256(salted).hexdigest()}"


def erased(text_hash: str) -> dict[str, Any]:
    """Return what a history has in the place of an erased text.

    No other value of a history is like it: in those that clients give, the members are texts, or have
    other names.
    """
    return {"erased": True, "hash": text_hash}


def is_erased(value: Any) -> bool:
    """Return whether a value of a history is that of an erased text."""
    return (
        isinstance(value, dict)
        and value.keys() == {"erased", "hash"}
        and value["erased"] is True
        and isinstance(value["hash"], str)
    )


def salts_of(log: Mapping[str, Any]) -> Salts:
    """Return the salts that a history names in ``log``, in hexadecimal.

    Raises:
        KeyError, TypeError, ValueError: it names none.
    """
    if "salts" in log:
        return {pointer: bytes.fromhex(salt) for pointer, salt in log["salts"].items()}
    return bytes.fromhex(log["salt"])
