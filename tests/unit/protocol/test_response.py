"""Jobs as Response objects."""

from __future__ import annotations

from typing import Any

from jobs.models import AttemptStatus, Job, Status
from jobs.protocol.lists import list_object
from jobs.protocol.response import response
from tests.unit.protocol.rows import END, START, add_attempt, completed_job, make_job


def failed_job() -> Job:
    job = make_job(Status.FAILED, error_code="server_error", error_message="The model broke.")
    add_attempt(job, 0)
    add_attempt(job, 1, AttemptStatus.FAILED)
    return job


def test_a_queued_job_has_no_output() -> None:
    body = response(make_job())
    assert (body["status"], body["output"], body["usage"]) == ("queued", [], None)
    assert (body["created_at"], body["completed_at"]) == (int(START.timestamp()), None)
    assert (body["error"], body["incomplete_details"]) == (None, None)


def test_a_response_echoes_the_parameters() -> None:
    body = response(make_job())
    parameters: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 8,
        "metadata": {"team": "blue"},
        "model": "helixnet",
        "temperature": 0.75,
        "top_p": 1.0,
        "top_k": 50,
        "seed": 7,
        "rounds": 1,
        "priority": 5,
        "background": True,
        "run": 1,
    }
    assert {name: body[name] for name in parameters} == parameters


def test_parameters_that_change_nothing_are_repeated() -> None:
    body = response(make_job())
    assert (body["tool_choice"], body["tools"], body["truncation"]) == ("none", [], "disabled")
    assert (body["store"], body["user"], body["text"]) == (True, None, {"format": {"type": "text"}})
    body = response(make_job(options={"tool_choice": "auto", "user": "u1"}))
    assert (body["tool_choice"], body["user"]) == ("auto", "u1")
    # An imported job may have options of any name.
    assert response(make_job(options={"output": "x", "new": 1})) == response(make_job())


def test_the_context_says_what_of_a_conversation_was_asked() -> None:
    assert response(make_job())["context"] == "question"
    assert response(make_job(turns=[]))["context"] == "turns"


def test_the_last_stage_is_the_message_and_the_others_are_reasoning() -> None:
    body = response(completed_job(rounds=2))
    assert [(item["type"], item["id"]) for item in body["output"]] == [
        ("reasoning", "rs_actor_1_0123"),
        ("reasoning", "rs_critic_1_0123"),
        ("reasoning", "rs_regenerator_1_0123"),
        ("reasoning", "rs_critic_2_0123"),
        ("message", "msg_regenerator_2_0123"),
    ]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": "One two."}]
    assert body["output"][0]["summary"] == [{"type": "summary_text", "text": "One two."}]
    assert body["output"][-1]["content"] == [
        {"type": "output_text", "text": "One two.", "annotations": [], "logprobs": []}
    ]
    assert body["completed_at"] == int(END.timestamp())


def test_usage_is_the_sum_over_the_stages() -> None:
    assert response(completed_job())["usage"] == {
        "input_tokens": 30,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 6},
        "total_tokens": 39,
    }


def test_a_failed_job_has_the_error_and_what_was_finished() -> None:
    body = response(failed_job())
    assert body["error"] == {"code": "server_error", "message": "The model broke."}
    assert [item["id"] for item in body["output"]] == ["rs_actor_1_0123"]
    assert body["completed_at"] is None


def test_a_truncated_answer_is_incomplete() -> None:
    job = make_job(Status.INCOMPLETE)
    for index in range(3):
        add_attempt(job, index, finish_reason="length" if index == 2 else "stop")
    body = response(job)
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in body["output"]] == ["completed", "completed", "incomplete"]


def test_an_earlier_status_has_no_output() -> None:
    body = response(completed_job(), as_of=Status.IN_PROGRESS, run=1)
    assert (body["status"], body["output"], body["usage"]) == ("in_progress", [], None)
    assert body["completed_at"] is None


def test_a_response_shows_the_last_run_only() -> None:
    job = make_job(Status.IN_PROGRESS)
    add_attempt(job, 0)
    add_attempt(job, 1)
    job.run = 2
    assert response(job)["output"] == []
    add_attempt(job, 0, output="Again.")
    [item] = response(job)["output"]
    assert (item["id"], item["content"][0]["text"]) == ("rs_actor_1_0123_2", "Again.")
    assert response(job)["run"] == 2


def test_a_list_names_its_first_and_last() -> None:
    jobs = [make_job(id="resp_2"), make_job(id="resp_1")]
    page = list_object(map(response, jobs), has_more=True)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("resp_2", "resp_1", True)
    assert [item["id"] for item in page["data"]] == ["resp_2", "resp_1"]
    empty = list_object([], has_more=False)
    assert (empty["data"], empty["first_id"], empty["last_id"]) == ([], None, None)
