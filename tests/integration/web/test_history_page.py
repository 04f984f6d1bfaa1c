"""The page with the list of jobs: search, filters and pages."""

from __future__ import annotations

import html
import re

from jobs.database import Database
from jobs.use_cases import indexing
from tests.integration.web.client import Client, ask, finish


def index(database: Database) -> None:
    """Index what has ended, as the duty does."""
    indexing.put(database, indexing.prepare(database))


def questions(page: str) -> list[str]:
    """Return the questions of a page, in their order."""
    return re.findall(r'<a dir="auto" href="/jobs/resp_\w+">([^<]*)</a>', page)


def link(page: str, name: str) -> str:
    """Return where a link of a page leads."""
    found = re.search(rf'<a href="([^"]*)">{name}</a>', page)
    assert found is not None
    return html.unescape(found[1])


def test_a_search_finds_words_and_shows_where(web: Client, database: Database) -> None:
    for question in ("Why is the sky blue?", "Why do cats purr?"):
        finish(database, ask(web, input=question)["id"])
    index(database)
    page = web.get("/jobs?q=purr").text
    assert questions(page) == ["Why do cats purr?"]
    assert 'value="purr"' in page, "the form keeps what was asked"
    page = web.get("/jobs?q=text").text
    assert "A <mark>text</mark>." in page, "the answers have the word"
    page = web.get("/jobs?q=nothing").text
    assert questions(page) == []
    assert "No job matches." in page
    assert link(page, "Show all jobs") == "/jobs"


def test_filters_are_in_the_address_and_in_the_form(web: Client, database: Database) -> None:
    done, _ = ask(web, input="Done?"), ask(web, input="Open?")
    finish(database, done["id"])
    page = web.get("/jobs?status=completed").text
    assert questions(page) == ["Done?"]
    assert '<option value="completed" selected>' in page
    sent = web.get("/jobs?q=&status=completed&rating=&adapter=++&worker=")
    assert (sent.status_code, sent.location) == (303, "/jobs?status=completed")
    job_id = done["id"]
    web.post(f"/api/jobs/{job_id}/reviews", json={"regeneration": -1})
    page = web.get("/jobs?rating=-1").text
    assert questions(page) == ["Done?"]
    assert "rated -1" in page
    index(database)
    page = web.get("/jobs?min_attempts=1&metadata.team=blue").text
    assert questions(page) == []
    assert 'name="metadata.team" value="blue"' in page
    assert '<details class="wide" open>' in page


def test_a_wrong_filter_is_named_beside_the_form(web: Client) -> None:
    for address, named in (
        ("q=OR", "query"),
        ("min_attempts=many", "min_attempts"),
        ("since=yesterday", "since"),
        ("after=nowhere", "nowhere"),
        ("color=red", "color"),
    ):
        reply = web.get(f"/jobs?{address}")
        assert reply.status_code == 400, address
        assert named in reply.text.split('role="alert">')[1].split("</p>")[0], address
        assert 'name="q"' in reply.text


def test_pages_keep_the_search(web: Client, database: Database) -> None:
    for number in range(3):
        finish(database, ask(web, input=f"Question {number}?")["id"])
    index(database)
    page = web.get("/jobs?q=question&limit=2&order=desc").text
    assert questions(page) == ["Question 2?", "Question 1?"]
    page = web.get(link(page, "Next page")).text
    assert questions(page) == ["Question 0?"]
    first = web.get(link(page, "First page")).text
    assert questions(first) == ["Question 2?", "Question 1?"]


def test_what_people_write_is_text(web: Client, database: Database) -> None:
    finish(database, ask(web, input="<b>bold</b> <script>alert(1)</script>")["id"])
    index(database)
    page = web.get("/jobs?q=bold+%3Cscript%3E").text
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert len(questions(page)) == 1
