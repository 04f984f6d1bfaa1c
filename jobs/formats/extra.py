"""Packages of the extra ``export``."""

from __future__ import annotations

import importlib
from typing import Any

from jobs.errors import UserError


class NotInstalledError(UserError):
    """A package is missing. The message says how to install it."""


def load(module: str, purpose: str) -> Any:
    """Import a module of an optional package. It is loaded when it is used: pyarrow takes a while.

    Args:
        module: its name.
        purpose: what it is needed for, for the message.

    Raises:
        NotInstalledError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise NotInstalledError(
            f"{purpose} needs {package}, which is not installed here: pip install 'helixq[export]'"
        ) from error
