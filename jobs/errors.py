"""The base class of errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """An error whose message is one sentence for the user: what is wrong, and what to do about it."""
