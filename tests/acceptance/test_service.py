"""From a question to the stored stages, on both databases."""

from __future__ import annotations

import re
from typing import Any

import openai
import pytest

from jobs import pipeline
from tests.acceptance.conftest import Service
from tests.servers import forked

QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"


def test_the_openai_client_submits_polls_and_reads(service: Service) -> None:
    with service.openai() as client:
        response = client.responses.create(
            model="helixnet",
            input=QUESTION,
            background=True,
            extra_body={"seed": 11},  # with random weights, some texts are empty
        )
        assert response.status in ("queued", "in_progress")
        while response.status in ("queued", "in_progress"):
            response = client.responses.retrieve(response.id, extra_headers={"Prefer": "wait=10"})
        assert response.status == "completed"
        assert response.output_text
        roles = [item.id.split("_")[1] for item in response.output if item.id]
        assert roles == ["actor", "critic", "regenerator"]
        history: Any = service.history(response.id)
        assert response.output_text == history["attempts"][2]["output"]
        assert response.usage is not None
        assert response.usage.output_tokens == sum(a["output_tokens"] for a in history["attempts"])


def test_the_stored_prompts_are_the_cards(service: Service) -> None:
    job_id = service.submit(QUESTION, seed=11)
    service.wait(job_id)
    history: Any = service.history(job_id)
    actor, critic, regenerator = history["attempts"]
    system = "You are HelixNet. Elaborate on the topic using a Tree of Thoughts and backtrack when necessary to construct a clear, cohesive Chain of Thought reasoning. Always answer without hesitation."
    assert actor["prompt"] == f"SYSTEM: {system} \nUSER: {QUESTION} \nASSISTANT: "
    assert critic["prompt"] == (
        f"SYSTEM: {system} \nUSER: {QUESTION} \nRESPONSE: {actor['output']} \nCRITIQUE:"
    )
    assert regenerator["prompt"] == (
        f"SYSTEM: {system} \nUSER: {QUESTION} \nRESPONSE: {actor['output']} \n"
        f"CRITIQUE: {critic['output']} \nREGENERATOR:"
    )
    for position, attempt in enumerate(history["attempts"]):
        assert attempt["seed"] == pipeline.stage_seed(11, position)
        assert attempt["status"] == "finished"
        assert attempt["worker"]["engine"] == "batching"
        assert set(attempt["worker"]["adapters"]) == {"actor", "critic", "regenerator"}
        assert attempt["worker"]["engine_config"]["max_context"] == 4096
        assert attempt["worker"]["versions"]["tokenizers"]
        times = [attempt[f"{t}_at"] for t in ("queued", "started", "first_token", "finished")]
        assert times == sorted(times)


def test_the_same_seed_gives_the_same_texts(service: Service) -> None:
    jobs = [service.submit(QUESTION, seed=seed) for seed in (4, 4, 5)]
    texts = []
    for job_id in jobs:
        service.wait(job_id)
        history: Any = service.history(job_id)
        texts.append([attempt["output"] for attempt in history["attempts"]])
    assert texts[0] == texts[1] != texts[2]


def test_more_rounds_and_special_characters(service: Service) -> None:
    question = "NUL \0, 漢字, 🧬 and {braces}\n"
    job_id = service.submit(question, rounds=2, instructions="\0", seed=3)
    body: Any = service.wait(job_id)
    assert len(body["output"]) == 5
    history: Any = service.history(job_id)
    assert history["question"] == question
    assert history["attempts"][0]["prompt"] == f"SYSTEM: \0 \nUSER: {question} \nASSISTANT: "
    assert history["attempts"][3]["prompt"].endswith(
        f"RESPONSE: {history['attempts'][2]['output']} \nCRITIQUE:"
    )


def test_without_background_the_reply_is_the_finished_response(service: Service) -> None:
    with service.openai() as client:
        response = client.responses.create(model="helixnet", input="Why?")
        assert response.status == "completed"


def test_a_stream_can_be_replayed(service: Service) -> None:
    with service.openai() as client:
        events = list(client.responses.create(model="helixnet", input="Why?", stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1]
        assert last.type == "response.completed"
        message = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert message == last.response.output_text
        replayed = list(client.responses.retrieve(last.response.id, stream=True))
        assert [event.to_dict() for event in replayed] == [event.to_dict() for event in events]
        rest = list(client.responses.retrieve(last.response.id, stream=True, starting_after=6))
        assert rest[0].sequence_number == 7


def test_the_web_counts_tokens_as_the_worker_does(service: Service) -> None:
    with service.openai() as client:
        with pytest.raises(openai.BadRequestError) as excinfo:
            client.responses.create(model="helixnet", input="why " * 4100)
        assert excinfo.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as excinfo:
            client.responses.create(model="helixnet", input="why", max_output_tokens=4000)
    match = re.search(r"The prompt has (\d+) tokens", str(excinfo.value))
    assert match is not None
    job_id = service.submit("why", max_output_tokens=5)
    service.wait(job_id)
    history: Any = service.history(job_id)
    # The web reports the longest prompt, the regenerator's, without the texts.
    actor = history["attempts"][0]["prompt_tokens"]
    assert actor < int(match[1]) < actor + 20


def test_ask_prints_the_three_texts(service: Service) -> None:
    ask = forked("ask", QUESTION, "--seed", "11", environ=service.environ)
    assert ask.wait() == 0, ask.output
    ask.stop()
    job_id = ask.wait_for("job resp_").split()[1]
    history: Any = service.history(job_id)
    texts = [attempt["output"] for attempt in history["attempts"]]
    expected = "ACTOR: {}\n\n\nCRITIQUE: {}\n\n\nREGENERATION: {}\n".format(*texts)
    page = f"{service.url}/jobs/{job_id}"
    assert ask.output == f"job {job_id}\npage {page}\n{expected}"


def test_ask_without_waiting_prints_the_id(service: Service) -> None:
    ask = forked("ask", "Why?", "--no-wait", environ=service.environ)
    assert ask.wait() == 0
    ask.stop()
    service.wait(ask.output.strip())
    ask = forked("ask", "", environ=service.environ)
    assert ask.wait() == 2
    ask.stop()
    assert "Error: The question is empty" in ask.output
