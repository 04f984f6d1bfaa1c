"""Commands that take several jobs: one that is refused leaves the others as they would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import click

from cli.errors import ExpectedError, UnreachableError, fail
from cli.statuses import ExitStatus


class EachJob:
    """Carries something out for one job after another."""

    def __init__(self) -> None:
        #: Whether one was refused.
        self.failed = False

    def results(self, job_ids: Iterable[str], call: Callable[[str], str]) -> Iterator[str]:
        """Yield what a call returns for each job, and print an error where it is refused.

        Raises:
            UnreachableError: the server cannot be reached.
        """
        for job_id in job_ids:
            try:
                result = call(job_id)
            except UnreachableError:
                raise
            except ExpectedError as error:
                self.failed = True
                fail(str(error)).show()
            else:
                yield result


def print_each(job_ids: Iterable[str], call: Callable[[str], str]) -> None:
    """Print what a call returns for each job. If one was refused, the exit status is 1 at the end."""
    each = EachJob()
    for line in each.results(job_ids, call):
        click.echo(line)
    if each.failed:
        click.get_current_context().exit(ExitStatus.FAILED)
