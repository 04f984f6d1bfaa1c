"""The history of a job."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.pipeline import DEFAULT_SYSTEM
from jobs.use_cases import indexing
from tests.integration.web.client import Client, ask, finish


def test_the_history_has_everything(web: Client, database: Database) -> None:
    job_id = ask(web, seed=5)["id"]
    finish(database, job_id)
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["question"], history["status"], history["seed"]) == ("Why?", "completed", 5)
    assert [a["role"] for a in history["attempts"]] == ["actor", "critic", "regenerator"]
    first = history["attempts"][0]
    assert first["prompt"] == f"SYSTEM: {DEFAULT_SYSTEM} \nUSER: Why? \nASSISTANT: "
    assert (first["output"], first["finish_reason"], first["number"]) == ("A text.", "stop", 1)
    assert first["worker"]["engine"] == "none"
    for name in ("queued_at", "started_at", "first_token_at", "finished_at"):
        assert first[name].endswith("Z")


def test_histories_are_listed_newest_first_in_pages(web: Client, database: Database) -> None:
    ids = [ask(web, input=f"Question {i}?")["id"] for i in range(3)]
    finish(database, ids[0])
    page = web.get("/api/jobs?limit=2").json
    assert [job["id"] for job in page["data"]] == [ids[2], ids[1]]
    assert (page["data"][0]["question"], page["data"][0]["status"]) == ("Question 2?", "queued")
    assert "attempts" not in page["data"][0]
    last = web.get(page["next"]).json
    assert ([job["id"] for job in last["data"]], last["next"]) == ([ids[0]], None)
    assert (page["has_more"], last["has_more"]) == (True, False)


def test_histories_are_filtered_by_status_owner_and_time(web: Client, database: Database) -> None:
    done, open_job = ask(web), ask(web)
    finish(database, done["id"])

    def ids(query: str) -> list[str]:
        return [job["id"] for job in web.get(f"/api/jobs?{query}").json["data"]]

    assert ids("status=completed") == [done["id"]]
    assert ids("status=queued&order=asc") == [open_job["id"]]
    assert ids("owner=anonymous") == [open_job["id"], done["id"]]
    assert ids("owner=somebody") == []
    assert ids(f"until={done['created_at']}") == []


def test_metadata_with_an_empty_name_or_value_is_a_filter(web: Client, database: Database) -> None:
    named = ask(web, metadata={"": "a b"})["id"]
    empty = ask(web, metadata={"team": ""})["id"]
    finish(database, named)
    indexing.put(database, indexing.prepare(database))
    for query, job_id in (({"metadata.": "a b"}, named), ({"metadata.team": ""}, empty)):
        found = web.get("/api/jobs", query_string=query).json["data"]
        assert [job["id"] for job in found] == [job_id], query
    assert web.get("/api/jobs/export?metadata.=a+b").text.count(named) >= 1
    assert [g["key"]["value"] for g in web.get("/api/stats?by=metadata.").json["groups"]] == ["a b"]
    page = web.get(f"/jobs/{named}").text
    assert 'href="/jobs?metadata.=a+b"' in page
    assert named in web.get("/jobs?metadata.=a+b").text


def test_a_wrong_filter_is_a_problem_that_names_it(web: Client) -> None:
    for query, named in (
        ("color=red", "`color`"),
        ("status=odd", "`status`"),
        ("status=failed,odd", "`status`"),
        ("status=failed&status=queued", "`status`"),
        ("metadata=x", "`metadata`"),
        ("q=-", "no word"),
        ("q=%22%22", "no word"),
        (f"q={'x' * 1001}", "1000"),
        ("order=relevance", "`q`"),
        ("order=odd&q=a", "`order`"),
        ("limit=101", "`limit`"),
        ("model=sha256:12", "`model`"),
        ("min_attempts=0", "`min_attempts`"),
        ("min_changed=2", "`min_changed`"),
        ("min_duration=-1", "a number from 0 to 1000000000, such as 0.5."),
        ("max_duration=-1", "`max_duration`"),
        ("min_duration=nan", "`min_duration`"),
        ("owner=%00", "`owner`"),
        ("q=a&after=pos_1", "page after"),
        ("q=a&order=desc&after=rank_1_2", "page after"),
        ("since=x", "`since`"),
    ):
        reply = web.get(f"/api/jobs?{query}")
        assert (reply.status_code, reply.content_type) == (400, "application/problem+json")
        assert named in reply.json["detail"]
    for after in ("resp_none", "x", "pos_1"):
        reply = web.get(f"/api/jobs?after={after}")
        assert (reply.status_code, reply.json["code"]) == (400, "invalid_cursor")


def test_jobs_are_searched_and_show_where_they_match(web: Client, database: Database) -> None:
    found = ask(web, input="Where is the Café?", metadata={"team": "a"})["id"]
    other = ask(web, input="Who asks for <b>coffee</b>?", metadata={"team": "b"})["id"]
    for job_id in (found, other):
        finish(database, job_id)
    indexing.put(database, indexing.prepare(database))
    page = web.get("/api/jobs?q=cafe").json
    [job] = page["data"]
    assert (job["id"], page["has_more"], page["next"]) == (found, False, None)
    assert job["snippets"] == [
        {
            "field": "question",
            "position": None,
            "start": 0,
            "parts": [
                {"text": "Where is the ", "match": False},
                {"text": "Café", "match": True},
                {"text": "?", "match": False},
            ],
        }
    ]
    assert (job["max_attempts"], job["changed"], job["adapters"]) == (1, 0.0, [])
    assert [worker["host"] for worker in job["workers"]] == ["localhost"]
    assert web.get("/api/jobs?q=text").json["data"][0]["snippets"][0]["field"] == "regeneration"
    first = web.get("/api/jobs?q=text&limit=1").json
    second = web.get(first["next"]).json
    assert {j["id"] for j in first["data"] + second["data"]} == {found, other}

    def ids(query: str) -> list[str]:
        return [job["id"] for job in web.get(f"/api/jobs?{query}").json["data"]]

    assert ids("metadata.team=b") == ids("q=%22b+coffee%22") == [other]
    assert ids("q=&status=completed,failed") == [other, found], (
        "an empty field of a form is no query"
    )
    assert ids("max_changed=0.5&min_attempts=1&worker=localhost&max_duration=100.5") == [
        other,
        found,
    ]
    assert ids("min_changed=0.5") == ids("adapter=x") == ids("q=nothing") == []


@given(st.text(max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_makes_the_server_fail(web: Client, text: str) -> None:
    for name in ("q", "adapter", "worker", "owner", "after", "status", "metadata.x"):
        reply = web.get("/api/jobs", query_string={name: text})
        assert reply.status_code in (200, 400), (name, text)
