"""Errors of checkpoints that cannot be used."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager

from jobs.errors import UserError

log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A model or adapter cannot be used. The message is one sentence that says what to do."""


@contextmanager
def explain_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise any error of the libraries as a `CheckpointError` of one sentence.

    Args:
        what: the subject of the sentence.
        remedy: what to do about it.
    """
    try:
        yield
    except (CheckpointError, CancelledError):
        raise
    except pickle.UnpicklingError as error:
        # PyTorch's message recommends running the code in the file.
        reason = "it is a damaged pickle, or contains more than tensors"
        raise CheckpointError(f"{what} cannot be loaded ({reason}); {remedy}") from error
    except Exception as error:  # a bad value may make the libraries raise anything
        log.debug("the error behind the message", exc_info=True)
        raise CheckpointError(f"{what} cannot be loaded ({first_line(error)}); {remedy}") from error


def first_line(error: BaseException) -> str:
    """Return the first useful line of an error's message, without its final period."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"there is no {lines[0]}"
    if lines[0].endswith(":") and len(lines) > 1:
        return " ".join(lines[:2]).rstrip(".")
    return lines[0].rstrip(".")


def and_more(names: Sequence[object]) -> str:
    """Return what follows the first of some names in a message."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
