"""Who makes a request: an owner, and what the owner's API key allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flask import g

from jobs.models import ANONYMOUS, ApiKey, Scope


@dataclass(frozen=True)
class Caller:
    """Who makes a request."""

    #: Owns the jobs that the request submits.
    owner: str
    scopes: frozenset[Scope]
    #: None where no keys are required.
    key: ApiKey | None = None
    #: The owner whose jobs may be read; None for all.
    readable_owner: str | None = None
    #: The owner whose jobs may be cancelled; None for all.
    changeable_owner: str | None = None
    #: Returns whether the key is still valid, for requests that take long.
    is_valid: Callable[[], bool] = lambda: True

    @property
    def key_id(self) -> str | None:
        """Id of the key; None where no keys are required."""
        return None if self.key is None else self.key.id

    def may(self, *scopes: Scope) -> bool:
        """Return whether the caller has at least one of some scopes. `Scope.ADMIN` stands for all."""
        return not self.scopes.isdisjoint({*scopes, Scope.ADMIN})

    def names_owners(self, owners: Iterable[str]) -> bool:
        """Return whether pages say whose jobs they show. Where no keys are required, nearly all are the caller's."""
        sees_others = self.key is not None or bool({*owners} - {self.owner})
        return self.readable_owner is None and sees_others


#: Everybody, where no keys are required: an administrator whose own jobs are `ANONYMOUS`'s.
EVERYBODY = Caller(ANONYMOUS, frozenset({Scope.ADMIN}))


def of_key(key: ApiKey, *, audits: bool, is_valid: Callable[[], bool]) -> Caller:
    """Return the caller with an API key.

    Args:
        key: the key.
        audits: whether `Scope.AUDIT` counts for the request.
        is_valid: returns whether the key is still valid.
    """
    scopes = frozenset(map(Scope, key.scopes))
    all_owners = {Scope.ADMIN, Scope.AUDIT} if audits else {Scope.ADMIN}
    return Caller(
        key.owner,
        scopes,
        key,
        readable_owner=key.owner if scopes.isdisjoint(all_owners) else None,
        changeable_owner=None if Scope.ADMIN in scopes else key.owner,
        is_valid=is_valid,
    )


def get_caller() -> Caller:
    """Return who makes the current request. Endpoints that are open to everybody have no caller."""
    caller: Caller = g.caller
    return caller


def set_caller(caller: Caller) -> None:
    """Set who makes the current request."""
    g.caller = caller
