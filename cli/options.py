"""Options that several commands have."""

from __future__ import annotations

import shlex
import sys
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
        help="The log's public key, as `helixq jobs log-key` prints it; may be repeated.",
    )(command)


def _parse_keys(_context: click.Context, _option: object, keys: tuple[str, ...]) -> list[Verifier]:
    try:
        return [Verifier.parse(key) for key in keys]
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


def _with_scheme(_context: click.Context, _option: object, url: str | None) -> str | None:
    return f"http://{url}" if url and "://" not in url else url


def server(command: F) -> F:
    """Add the option that names the server."""
    return click.option(
        "--url",
        metavar="URL",
        callback=_with_scheme,
        help="The server's URL, or its host and port (default: from HELIXQ_HOST and HELIXQ_PORT).",
    )(command)


def address(url: str | None) -> str:
    """Return the option that names the same server in another command."""
    return "" if url is None else f" --url {shlex.quote(url)}"


def read_question(question: str | None) -> str:
    """Return a question that was given, or read it from standard input, without the line breaks at its end.

    Raises:
        click.UsageError: there is none.
    """
    if question is None and sys.stdin.isatty():
        raise click.UsageError("Give a QUESTION, or pipe one.")
    if question in (None, "-"):
        try:
            question = sys.stdin.buffer.read().decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise click.UsageError("The question on standard input is not UTF-8.") from error
    if not question or not question.strip():
        raise click.UsageError("The question is empty.")
    return question
