"""Commands that take several jobs: one that is refused leaves the others as they would be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

from cli.errors import ExpectedError, UnreachableError, fail
from cli.fields import Fields
from cli.statuses import ExitStatus

Result = TypeVar("Result")


class EachJob:
    """Carries something out for one job after another."""

    def __init__(self) -> None:
        #: Whether one was refused.
        self.failed = False

    def results(self, job_ids: Iterable[str], call: Callable[[str], Result]) -> Iterator[Result]:
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


def print_each(
    job_ids: Iterable[str],
    call: Callable[[str], dict[str, Any]],
    said: Callable[[dict[str, Any]], str],
    fields: Fields | None,
) -> None:
    """Print what came of each job. If one was refused, the exit status is 1 at the end.

    Args:
        job_ids: of the jobs.
        call: is made for each; it returns what the server replied.
        said: the line about a reply.
        fields: of the reply, as JSON instead of the line.
    """
    each = EachJob()
    for reply in each.results(job_ids, call):
        if fields:
            fields.print(reply, lines=True)
        else:
            click.echo(said(reply))
    if each.failed:
        click.get_current_context().exit(ExitStatus.FAILED)
