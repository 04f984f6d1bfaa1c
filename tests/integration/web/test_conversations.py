"""Second turns: what of a conversation is asked, and how the history shows it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.database import Database
from jobs.protocol import conversation
from jobs.use_cases import stages
from jobs.use_cases.stages import Output
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "So.\0"}]},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {"role": "user", "content": "How?"},
]


def prompt_of(database: Database, job_id: str) -> str:
    """Return the prompt with which a worker begins a job's first stage."""
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    return claim.prompt


def refusal(web: Client, **body: Any) -> dict[str, Any]:
    reply = web.post("/v1/responses", json={"input": "How?", "background": True, **body})
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json["error"]
    return error


def test_by_default_the_last_question_alone_is_asked(web: Client, database: Database) -> None:
    response = ask(web, input=CHAT)
    assert response["context"] == "question"
    assert prompt_of(database, response["id"]) == "SYSTEM: Be brief. \nUSER: How? \nASSISTANT: "
    history = web.get(f"/api/jobs/{response['id']}").json
    assert (history["context"], history["turns"], history["input_items"]) == (
        "question",
        None,
        CHAT,
    )


def test_with_turns_the_conversation_is_asked(web: Client, database: Database) -> None:
    response = ask(web, input=CHAT, context="turns")
    assert response["context"] == "turns"
    prompt = "SYSTEM: Be brief. \nUSER: Why? \nASSISTANT: So.\0 \nUSER: How? \nASSISTANT: "
    assert prompt_of(database, response["id"]) == prompt
    history = web.get(f"/api/jobs/{response['id']}").json
    assert history["turns"] == [
        {"role": "user", "text": "Why?"},
        {"role": "assistant", "text": "So.\0"},
    ]
    assert history["attempts"][0]["prompt"] == prompt


def test_a_response_continues_another(web: Client, database: Database) -> None:
    first = ask(web, input="Why?", context="turns")
    finish(database, first["id"])
    second = ask(web, input="How?", context="turns", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    finish(database, second["id"], output=Output("Thus.", [5], 20, 3, "length", 1024, 0.0))
    third = ask(web, input="And?", previous_response_id=second["id"])
    assert third["context"] == "turns"
    assert web.get(f"/api/jobs/{third['id']}").json["turns"] == [
        {"role": "user", "text": "Why?"},
        {"role": "assistant", "text": "A text."},
        {"role": "user", "text": "How?"},
        {"role": "assistant", "text": "Thus."},
    ]


def test_an_item_reference_stands_for_the_answer(web: Client, database: Database) -> None:
    first = ask(web, input="Why?", rounds=2)
    finish(database, first["id"], count=5)
    draft, *_, answer = web.get(f"/v1/responses/{first['id']}").json["output"]
    items = [
        {"role": "user", "content": "Why?"},
        {"type": "item_reference", "id": draft["id"]},
        {"type": "item_reference", "id": answer["id"]},
        {"role": "user", "content": "How?"},
    ]
    second = ask(web, input=items, context="turns")
    assert web.get(f"/api/jobs/{second['id']}").json["turns"] == [
        {"role": "user", "text": "Why?"},
        {"role": "assistant", "text": "A text."},
    ]


def test_an_item_reference_stands_for_what_was_asked(web: Client, database: Database) -> None:
    first = ask(web, input=CHAT)
    finish(database, first["id"])
    asked = web.get(f"/v1/responses/{first['id']}/input_items?order=asc").json["data"]
    text = ask(web, input="And?")["id"]
    [as_text] = web.get(f"/v1/responses/{text}/input_items").json["data"]
    answer = web.get(f"/v1/responses/{first['id']}").json["output"][-1]
    references = [{"type": "item_reference", "id": i["id"]} for i in (*asked, answer, as_text)]
    question = {"role": "user", "content": "Where?"}
    second = ask(web, input=[*references, question], context="turns")
    assert web.get(f"/api/jobs/{second['id']}").json["turns"] == [
        {"role": "user", "text": "Why?"},
        {"role": "assistant", "text": "So.\0"},
        {"role": "user", "text": "How?"},
        {"role": "assistant", "text": "A text."},
        {"role": "user", "text": "And?"},
    ]
    # What the list says may also be sent back as it is.
    assert ask(web, input=[*asked, question], context="turns")["status"] == "queued"


def test_a_question_and_a_system_prompt_may_be_referred_to(web: Client, database: Database) -> None:
    first = ask(web, input=CHAT)
    finish(database, first["id"])
    asked = web.get(f"/v1/responses/{first['id']}/input_items?order=asc").json["data"]
    answer = web.get(f"/v1/responses/{first['id']}").json["output"][-1]
    references = [{"type": "item_reference", "id": item["id"]} for item in (*asked, answer)]
    system, why, *_, how, answered = references

    def prompt(*items: Any, **body: Any) -> str:
        return prompt_of(database, ask(web, input=[*items], **body)["id"])

    assert prompt(system, how) == "SYSTEM: Be brief. \nUSER: How? \nASSISTANT: "
    assert prompt({"role": "user", "content": "Who?"}, how, answered, instructions="I") == (
        "SYSTEM: I \nUSER: How? \nASSISTANT: "
    )
    assert prompt(*references, {"role": "user", "content": "Who?"}) == (
        "SYSTEM: Be brief. \nUSER: Who? \nASSISTANT: "
    )
    assert prompt(system, why, answered, how, context="turns") == (
        "SYSTEM: Be brief. \nUSER: Why? \nASSISTANT: A text. \nUSER: How? \nASSISTANT: "
    )
    again = ask(web, input=[how])
    [item] = web.get(f"/v1/responses/{again['id']}/input_items").json["data"]
    assert item["content"] == [{"type": "input_text", "text": "How?"}]
    # A question that is not there is not replaced by an earlier one.
    gone = {"type": "item_reference", "id": how["id"].replace("msg_input_4", "msg_input_9")}
    error = refusal(web, input=[{"role": "user", "content": "Why?"}, gone])
    assert (error["param"], error["code"]) == ("input.1.id", "item_not_found")
    assert refusal(web, input=[system])["code"] == "empty_input"
    error = refusal(web, input=[*references[:-1], answered], context="turns")
    assert error["code"] == "invalid_value"


def test_what_cannot_be_continued_is_refused(web: Client, database: Database) -> None:
    def previous(response_id: str) -> str:
        error = refusal(web, context="turns", previous_response_id=response_id)
        assert error["param"] == "previous_response_id"
        assert "`previous_response_id`" in error["message"]
        return str(error["code"])

    assert previous("resp_1") == "previous_response_not_found"
    assert previous("\0") == "previous_response_not_found"
    open_job = ask(web)["id"]
    assert previous(open_job) == "previous_response_not_completed"
    web.post(f"/v1/responses/{open_job}/cancel")
    assert previous(open_job) == "previous_response_not_completed"
    finished = ask(web)["id"]
    finish(database, finished)
    suffix = finished.removeprefix("resp_")
    for item_id in (
        "msg_1",
        f"msg_regenerator_2_{suffix}",
        f"msg_regenerator_1_{suffix}_2",
        f"msg_regenerator_1_{open_job.removeprefix('resp_')}",
        f"msg_input_1_{suffix}",
        "msg_input_0_1",
    ):
        items = [{"type": "item_reference", "id": item_id}, {"role": "user", "content": "How?"}]
        error = refusal(web, context="turns", input=items)
        assert (error["param"], error["code"]) == ("input.0.id", "item_not_found")
        ask(web, input=items)  # Where only the question is asked, nobody needs the item.


def test_references_to_very_many_responses_are_refused(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_REFERENCED", 1)
    items: list[dict[str, Any]] = []
    for _ in range(2):
        job_id = ask(web)["id"]
        finish(database, job_id)
        [*_, answer] = web.get(f"/v1/responses/{job_id}").json["output"]
        items += [{"id": answer["id"]}, {"id": answer["id"]}]
    question = {"role": "user", "content": "How?"}
    ask(web, context="turns", input=[*items[:2], question])
    error = refusal(web, context="turns", input=[*items, question])
    assert (error["param"], error["code"]) == ("input.2.id", "invalid_value")
