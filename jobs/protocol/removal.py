"""The bodies of requests to erase texts of jobs, and to delete jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from jobs.protocol.base import RequestObject

#: The maximum number of texts that one request erases.
MAX_TEXTS = 1000

#: An owner, without the NUL that PostgreSQL refuses.
_Owner = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=r"^[^\x00]+$")]


#: JSON pointers into the history.
_Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)] | Literal["all"]


class EraseTexts(RequestObject):
    """The body of ``POST /api/jobs/{id}/erase``."""

    texts: _Texts


class DeleteJobs(RequestObject):
    """The body of ``POST /api/jobs/delete``."""

    owner: _Owner | None = None
    metadata: dict[str, str] | None = None
    dry_run: bool = False
    after: str | None = None


class EraseJobs(DeleteJobs):
    """The body of ``POST /api/jobs/erase``."""

    texts: _Texts
