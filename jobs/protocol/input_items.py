"""The items of a job's input in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from jobs.errors import CursorError
from jobs.models import Job
from jobs.page_request import PageRequest
from jobs.protocol.lists import list_object


def input_item_list(job: Job, page: PageRequest) -> dict[str, Any]:
    """Return one page of the items that were asked.

    Args:
        job: whose input it is, with its input items loaded.
        page: which page.

    Raises:
        CursorError: the input has no item with the id ``page.after``.
    """
    sent = job.input_items or [{"role": "user", "content": job.question}]
    items = [_item(job, number, item) for number, item in enumerate(sent)]
    return page_of(items, page)


def page_of(items: list[dict[str, Any]], page: PageRequest) -> dict[str, Any]:
    """Return one page of an input in OpenAI's shape.

    Args:
        items: all of the input, the oldest first.
        page: which page.

    Raises:
        CursorError: none of them has the id ``page.after``.
    """
    if page.newest_first:
        items = items[::-1]
    if page.after is not None:
        ids = [item["id"] for item in items]
        if page.after not in ids:
            raise CursorError(page.after)
        items = items[ids.index(page.after) + 1 :]
    return list_object(items[: page.limit], has_more=len(items) > page.limit)


def _item(job: Job, number: int, sent: dict[str, Any]) -> dict[str, Any]:
    """Return an item with what a client may leave out."""
    # An id that was sent may occur twice.
    item_id = f"msg_input_{number}_{job.id.removeprefix('resp_')}"
    if "role" not in sent:
        return {"type": "item_reference", "id": item_id, **sent}
    kind = "output_text" if sent["role"] == "assistant" else "input_text"
    content = sent["content"]
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    extra: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
    return {
        "type": "message",
        "id": item_id,
        "status": "completed",
        "role": sent["role"],
        "content": [
            part if part["type"] == "refusal" else {**extra, **part, "type": kind}
            for part in content
        ],
    }
