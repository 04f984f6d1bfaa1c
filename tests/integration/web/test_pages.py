"""The pages."""

from __future__ import annotations

import html
from urllib.parse import quote_plus

from jobs import demo_model
from jobs.database import Database
from jobs.models import ANONYMOUS, WorkerState
from jobs.page_request import PageRequest
from jobs.use_cases import queries, stages, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish, serving
from tests.servers import RedisServer


def test_the_form_keeps_its_input_after_an_error(web: Client, database: Database) -> None:
    reply = web.post("/", data={"question": "  two\r\nlines <b>&"})
    assert reply.status_code == 303
    [job] = queries.list_jobs(database, ANONYMOUS, PageRequest(2))[0]
    assert job.question == "  two\nlines <b>&"
    page = web.get(reply.headers["Location"]).text
    assert "lines &lt;b&gt;&amp;" in page
    refused = web.post("/", data={"question": "word " * 4100})
    assert refused.status_code == 400
    assert "too long" in refused.text
    assert "word word" in refused.text


def test_the_form_keeps_the_question_if_the_queue_is_full(
    database_url: str, redis_server: RedisServer
) -> None:
    with serving(database_url, redis_server.url, MAX_QUEUED="1") as web:
        ask(web)
        refused = web.post("/", data={"question": "Why, oh why?"})
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0
    assert "The queue is full" in refused.text
    assert "Why, oh why?" in refused.text


def test_the_jobs_page_lists_and_pages(web: Client) -> None:
    assert "There are no jobs yet" in web.get("/jobs").text
    for number in range(26):
        ask(web, input=f"Question {number}?")
    page = web.get("/jobs").text
    assert "Question 25?" in page
    assert "Question 0?" not in page
    older = page.split('href="/jobs?after=')[1].split('"')[0]
    assert "Question 0?" in web.get(f"/jobs?after={older}").text


def test_a_job_page_shows_the_earlier_turns_of_its_conversation(
    web: Client, database: Database
) -> None:
    first = ask(web, input="What is 2 + 3?", context="turns")
    finish(database, first["id"])
    assert "Earlier turns" not in web.get(f"/jobs/{first['id']}").text
    second = ask(
        web, input="And <b>times</b> 2?", context="turns", previous_response_id=first["id"]
    )
    page = web.get(f"/jobs/{second['id']}").text
    turns, question = page.split("Earlier turns")[1].split(">Question<")
    assert turns.index("User") < turns.index("What is 2 + 3?") < turns.index("Assistant")
    assert "A text." in turns
    assert "And &lt;b&gt;times&lt;/b&gt; 2?" in question
    assert f'href="/jobs/{first["id"]}"' in page
    alone = ask(
        web, input=[{"role": "user", "content": "Why?"}, {"role": "user", "content": "How?"}]
    )
    assert "Earlier turns" not in web.get(f"/jobs/{alone['id']}").text


def test_the_jobs_page_says_why_a_job_failed(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "the GPU is on fire")
    assert "the GPU is on fire" in web.get("/jobs").text


def test_the_form_says_what_answers_and_how_long_questions_wait(
    web: Client, database: Database, tokenizer_json: str
) -> None:
    def shown() -> str:
        return html.unescape(web.get("/").text)

    assert "No worker is ready" in shown()
    assert "Recent jobs" not in shown()
    base = {"name": "mistralai/Mistral-7B-v0.1"}
    runtime = Runtime({"engine": "none", "base": base}, 8192, tokenizer_json)
    workers.register(database, "worker-2", "localhost", 2, runtime)
    workers.set_state(database, "worker-2", WorkerState.READY)
    page = shown()
    assert "Answers come from mistralai/Mistral-7B-v0.1, with a context of 8,192 tokens." in page
    assert "1 worker ready, no questions waiting." in page
    job_id = ask(web)["id"]
    page = shown()
    assert "1 worker ready, 1 question waiting" in page
    assert f'href="/jobs/{job_id}">Why?</a>' in page
    assert demo_model.ABILITY not in page


def test_the_form_has_questions_that_the_demo_can_answer(web: Client, database: Database) -> None:
    runtime = Runtime({"engine": "none", "base": {"name": demo_model.BASE}}, 4096, "{}")
    workers.register(database, "worker-2", "localhost", 2, runtime)
    workers.set_state(database, "worker-2", WorkerState.READY)
    page = html.unescape(web.get("/").text)
    assert demo_model.ABILITY in page
    for question in demo_model.EXAMPLES:
        link = f"/?question={quote_plus(question, safe='')}"
        assert question in html.unescape(web.get(link).text).partition("<textarea")[2]
