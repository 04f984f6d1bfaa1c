"""API keys: making, listing and revoking them, and finding the one that a request came with.

A key's secret is 256 random bits, and what is stored is its SHA-256. A slow hash, as for passwords, would
protect nothing: it slows down guessing, and 2^256 secrets cannot be guessed at any speed. It would cost
every request its time. Since a secret is found by its digest, no comparison of secrets can leak one
through its timing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Collection
from enum import StrEnum

from jobs.database import Database
from jobs.errors import UserError
from jobs.models import ANONYMOUS, ApiKey, Scope
from jobs.statements import keys
from jobs.transient import retry_on_conflict

#: Every secret begins with it, so that scanners of repositories and logs can find one that leaked:
#: ``hq_[0-9A-Za-z]{43}``.
PREFIX = "hq_"
#: Letters and digits: a double click selects the whole secret.
_ALPHABET = string.digits + string.ascii_letters
#: Characters after the prefix: 43 of 62 kinds are 256 bits.
_LENGTH = 43
#: Characters of a secret that are stored for people to recognize it. They leave 232 bits.
_HINT_LENGTH = len(PREFIX) + 4
_SECRET = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_LENGTH}}}")
_SESSION = re.compile(r"[0-9A-Za-z_-]{43}")
_OWNER = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@+-]{0,39}")
MAX_NAME = 100
#: Seconds between two updates of a key's ``last_used_at``.
USE_INTERVAL = 60.0
#: Seconds for which a login is valid: 7 days.
SESSION_LIFETIME = 7 * 86_400.0


class KeyState(StrEnum):
    """Whether a key can be used."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyNotFoundError(UserError):
    """No API key has this id."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key has the id {key_id!r}: `helixq keys list` shows them")


class NewKeyError(UserError):
    """An API key cannot be made like this. The message says why."""


@retry_on_conflict
def create(
    database: Database,
    name: str,
    scopes: Collection[Scope],
    *,
    owner: str | None = None,
    expires_in: float | None = None,
    max_queued: int | None = None,
    requests_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        database: of the keys.
        name: says what the key is for.
        scopes: what it allows; at least one.
        owner: of the jobs that are submitted with it. None for the name, if no key has that owner yet:
            nobody should get another's jobs by accident.
        expires_in: in seconds; None for never.
        max_queued: the maximum number of queued jobs that were submitted with it; None for no maximum.
        requests_per_minute: the maximum number of requests with it; None for no maximum.

    Returns:
        the key, and its secret, which is stored nowhere.

    Raises:
        NewKeyError: name or owner are unsuitable, or the name is the owner of other keys.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise NewKeyError(f"a key's name has 1 to {MAX_NAME} printable characters")
    if not _OWNER.fullmatch(owner or name):
        what = f"the owner {owner!r}" if owner else f"without --owner, the owner {name!r}"
        raise NewKeyError(
            f"{what} is wrong: an owner has 1 to 40 letters, digits and . _ @ + -, and begins with a "
            "letter or a digit"
        )
    secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    with database.write_session() as session:
        if owner is None and (name == ANONYMOUS or keys.any_of_owner(session, name)):
            raise NewKeyError(
                f"{name!r} owns jobs already: for a key to them add --owner {name}, for a key to new ones "
                "name another --owner"
            )
        key = keys.add(
            session,
            id=f"key_{secrets.token_hex(8)}",
            digest=_digest(secret),
            hint=secret[:_HINT_LENGTH],
            name=name,
            owner=owner or name,
            scopes=[scope.value for scope in Scope if scope in scopes],
            max_queued=max_queued,
            requests_per_minute=requests_per_minute,
            expires_in=expires_in,
        )
    return key, secret


def list_keys(database: Database) -> list[tuple[ApiKey, KeyState]]:
    """Return all keys, the oldest first."""
    with database.read_session() as session:
        return [
            (key, _state(key, has_expired=has_expired))
            for key, has_expired in keys.list_all(session)
        ]


@retry_on_conflict
def revoke(database: Database, key_id: str) -> ApiKey:
    """Revoke a key for good, and end the logins with it; return it.

    Raises:
        KeyNotFoundError: there is none with this id.
    """
    with database.write_session() as session:
        keys.revoke(session.connection(), key_id)
        key = keys.get(session, key_id)
        if key is None:
            raise KeyNotFoundError(key_id)
        return key


def any_valid(database: Database) -> bool:
    """Return whether any key can be used."""
    with database.read() as connection:
        return keys.any_valid(connection)


def find(database: Database, secret: str) -> ApiKey | None:
    """Return the key with a secret; None if there is none, or if it was revoked or has expired."""
    if not _SECRET.fullmatch(secret):
        return None
    with database.read_session() as session:
        return keys.find_valid(session, _digest(secret))


@retry_on_conflict
def mark_used(database: Database, key_ids: Collection[str]) -> None:
    """Record that keys are in use. A key's row changes at most once in `USE_INTERVAL` seconds."""
    with database.write() as connection:
        keys.mark_used(connection, key_ids, USE_INTERVAL)


@retry_on_conflict
def log_in(database: Database, key: ApiKey) -> str:
    """Begin a login session with a key; return its secret, for a cookie.

    The secret is stored hashed, like a key's. A session ends when its key does.
    """
    secret = secrets.token_urlsafe(32)
    with database.write() as connection:
        keys.delete_expired_sessions(connection)
        keys.add_session(connection, _digest(secret), key.id, SESSION_LIFETIME)
    return secret


@retry_on_conflict
def log_out(database: Database, secret: str) -> None:
    """End a login session, if there is one."""
    with database.write() as connection:
        keys.delete_session(connection, _digest(secret))


def find_by_session(database: Database, secret: str) -> ApiKey | None:
    """Return the key of a login session; None if there is none, or if either has ended."""
    if not _SESSION.fullmatch(secret):
        return None
    with database.read_session() as session:
        return keys.find_by_session(session, _digest(secret))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _state(key: ApiKey, *, has_expired: bool) -> KeyState:
    if key.revoked_at is not None:
        return KeyState.REVOKED
    return KeyState.EXPIRED if has_expired else KeyState.ACTIVE
