"""The options that name public keys of logs and of witnesses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from jobs.tlog.cosignature import Cosigner
from jobs.tlog.note import NoteError, Verifier

F = TypeVar("F", bound=Callable[..., Any])


def log_keys(command: F) -> F:
    """Add the option ``keys`` with the public keys of logs."""
    return click.option(
        "--key",
        "keys",
        metavar="VKEY",
        multiple=True,
        callback=_parse_keys,
        help="The log's public key, or several, as `helixq jobs log-key` prints them; may be repeated.",
    )(command)


def _parse_keys(_context: click.Context, _option: object, keys: tuple[str, ...]) -> list[Verifier]:
    try:
        # After a rotation, `log-key` prints several, one a line. An empty key is an error, not no key.
        return [Verifier.parse(key) for lines in keys for key in lines.split() or [lines]]
    except NoteError as error:
        raise click.UsageError(f"--key: {error}.") from error


def witnesses(command: F) -> F:
    """Add the option ``witnesses`` with the keys of witnesses whose cosignatures are required."""
    return click.option(
        "--witness",
        "witnesses",
        metavar="VKEY",
        multiple=True,
        callback=_parse_witnesses,
        help="The public key of a witness that must have cosigned; may be repeated.",
    )(command)


def _parse_witnesses(
    _context: click.Context, _option: object, keys: tuple[str, ...]
) -> list[Cosigner]:
    try:
        return [Cosigner.parse(key) for key in keys]
    except NoteError as error:
        raise click.UsageError(f"--witness: {error}.") from error
