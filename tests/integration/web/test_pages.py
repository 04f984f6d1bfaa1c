"""The pages."""

from __future__ import annotations

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.use_cases import queries
from tests.integration.web.client import Client, ask, serving
from tests.servers import RedisServer


def test_the_form_keeps_its_input_after_an_error(web: Client, database: Database) -> None:
    reply = web.post("/", data={"question": "  two\r\nlines <b>&"})
    assert reply.status_code == 303
    [job] = queries.list_jobs(database, ANONYMOUS, limit=2)[0]
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
