"""Packages of extras, which are loaded when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from jobs.errors import UserError


class NotInstalledError(UserError):
    """A package is missing. The message says how to install it."""


def load(module: str, purpose: str, *, package: str | None = None, of: str = "export") -> Any:
    """Import a module of an optional package. It is loaded when it is used: pyarrow takes a while.

    Args:
        module: its name.
        purpose: what it is needed for, for the message.
        package: that it is in, if that has another name.
        of: the extra that the package is in.

    Raises:
        NotInstalledError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise NotInstalledError(
            f"{purpose} needs {name}, which is not installed here: pip install 'helixq[{of}]'"
        ) from error
