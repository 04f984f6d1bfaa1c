"""Listing what was asked."""

from __future__ import annotations

from typing import Any

from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from tests.integration.web.client import Client, ask

ITEMS: list[dict[str, Any]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "status": "completed"},
    {"role": "assistant", "content": "So.\0"},
    {"role": "assistant", "id": "msg_1", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": [{"type": "input_text", "text": "How?"}], "status": None},
]


def test_a_text_is_a_users_message(web: Client) -> None:
    job_id = ask(web)["id"]
    page = web.get(f"/v1/responses/{job_id}/input_items").json
    [item] = page["data"]
    assert (item["type"], item["role"]) == ("message", "user")
    assert item["content"] == [{"type": "input_text", "text": "Why?"}]
    assert (page["object"], page["has_more"], page["first_id"]) == ("list", False, item["id"])


def test_items_come_in_openais_shape(web: Client) -> None:
    job_id = ask(web, input=ITEMS)["id"]
    items = web.get(f"/v1/responses/{job_id}/input_items?order=asc").json["data"]
    TypeAdapter(list[ResponseItem]).validate_python(items)
    assert [item.get("role") for item in items] == [item.get("role") for item in ITEMS]
    assert items[3]["content"] == [{"type": "output_text", "text": "So.\0", "annotations": []}]
    assert len({item["id"] for item in items}) == len(items)


def test_items_come_in_pages(web: Client) -> None:
    path = f"/v1/responses/{ask(web, input=ITEMS)['id']}/input_items"
    newest = web.get(f"{path}?limit=4").json
    assert (len(newest["data"]), newest["has_more"]) == (4, True)
    rest = web.get(f"{path}?limit=4&after={newest['last_id']}").json
    assert (len(rest["data"]), rest["has_more"]) == (2, False)
    items = [*newest["data"], *rest["data"]]
    assert items == web.get(f"{path}?order=asc").json["data"][::-1]
    assert web.get(f"{path}?after=msg_none").status_code == 400
    assert web.get("/v1/responses/resp_none/input_items").status_code == 404
