"""The shapes of files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.enums import FilePurpose
from jobs.protocol.schemas.base import AlwaysTrue, NoText, Page, Reply, Timestamp


class FileObject(Reply):
    """The input or the output of a batch."""

    id: str = Field(pattern=r"^file-[0-9a-f]{32}$")
    object: Literal["file"]
    bytes: int
    created_at: Timestamp
    expires_at: Timestamp | None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"]
    status_details: NoText


class FileList(Page):
    """A page of files."""

    data: list[FileObject]


class DeletedFile(Reply):
    id: str
    object: Literal["file"]
    deleted: AlwaysTrue
