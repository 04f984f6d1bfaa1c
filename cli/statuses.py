"""The exit statuses of all commands."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import click


class ExitStatus(IntEnum):
    """How a command ended. docs/cli.md has the table."""

    #: The command did what it should; a job that was followed has its answer.
    DONE = 0
    #: The job failed, the server refused the request, or the command found what it looked for: a difference,
    #: a change, a fault.
    FAILED = 1
    #: The arguments are wrong.
    USAGE = 2
    #: The server cannot be reached, or does not work.
    UNREACHABLE = 3
    #: The job was cancelled.
    CANCELLED = 4
    #: A worker cannot use its checkpoints: a supervisor need not restart it. The number is sysexits' EX_CONFIG.
    UNUSABLE = 78
    #: Ctrl-C ended the command, or SIGTERM a benchmark.
    INTERRUPTED = 130


class Interrupted(click.ClickException):
    """Ctrl-C ended the command. The message says what became of its work."""

    exit_code = ExitStatus.INTERRUPTED

    def show(self, _file: Any = None) -> None:
        """Print the message on a line of its own: the terminal has shown ``^C``."""
        click.echo(f"\n{self.message}", err=True)


def of_job(status: str) -> ExitStatus:
    """Return the exit status for the status of a job that has ended."""
    return {"failed": ExitStatus.FAILED, "cancelled": ExitStatus.CANCELLED}.get(
        status, ExitStatus.DONE
    )
