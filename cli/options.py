"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def server(command: F) -> F:
    """Add the option that names the server."""
    return click.option(
        "--url",
        metavar="URL",
        help="The server's URL (default: from HELIXQ_HOST and HELIXQ_PORT).",
    )(command)
