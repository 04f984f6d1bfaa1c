"""Limits the jobs that a caller may use to those of the owner that a request asks for. None stands for all owners."""

from __future__ import annotations


def narrow(allowed: str | None, wanted: str | None) -> tuple[bool, str | None]:
    """Return whether any jobs are meant, and the owner whose jobs are.

    Args:
        allowed: the owner whose jobs the caller may read or change.
        wanted: the owner whose jobs the caller asks for.
    """
    owner = allowed if wanted is None else wanted
    return allowed in (None, owner), owner
