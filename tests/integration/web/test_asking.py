"""Submitting questions."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.pipeline import DEFAULT_SYSTEM, Sampling
from jobs.use_cases import queries
from tests.integration.web.client import Client, ask


def test_a_question_is_accepted(web: Client, database: Database) -> None:
    reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
    assert reply.status_code == 202
    assert reply.headers["Location"] == f"/v1/responses/{reply.json['id']}"
    assert reply.headers["Retry-After"] == "1"
    body = reply.json
    assert (body["status"], body["model"], body["object"]) == ("queued", "helixnet", "response")
    assert body["instructions"] == DEFAULT_SYSTEM
    assert body["output"] == []
    job = queries.get_job(database, ANONYMOUS, body["id"])
    card = Sampling()
    assert (job.temperature, job.top_k, job.top_p) == (card.temperature, card.top_k, card.top_p)
    assert (job.max_output_tokens, job.rounds) == (1024, 1)
    assert job.published_at is not None


def test_every_parameter_reaches_the_job(web: Client, database: Database) -> None:
    body = ask(
        web,
        input=[
            {"role": "user", "content": "Before"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Answer"}]},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Wh"},
                    {"type": "input_text", "text": "y?\0"},
                ],
            },
        ],
        instructions="Rhyme.",
        model="helixnet",
        temperature=0,
        top_p=0.5,
        top_k=0,
        seed=2**53 - 1,
        rounds=5,
        priority=9,
        max_output_tokens=33,
        metadata={"team": "blau"},
    )
    job = queries.get_job(database, ANONYMOUS, body["id"])
    assert (job.question, job.system) == ("Why?\0", "Rhyme.")
    assert (job.temperature, job.top_p, job.top_k, job.seed) == (0, 0.5, 0, 2**53 - 1)
    assert (job.rounds, job.priority, job.max_output_tokens) == (5, 9, 33)
    assert body["metadata"] == job.metadata_ == {"team": "blau"}


def test_models(web: Client) -> None:
    assert [model["id"] for model in web.get("/v1/models").json["data"]] == ["helixnet"]
    assert web.get("/v1/models/helixnet").json["object"] == "model"
