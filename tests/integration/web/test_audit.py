"""The history of a job."""

from __future__ import annotations

from jobs.database import Database
from jobs.pipeline import DEFAULT_SYSTEM
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


def test_a_wrong_filter_is_a_problem_that_names_it(web: Client) -> None:
    for query, named in (
        ("color=red", "`color`"),
        ("status=odd", "`status`"),
        ("since=x", "`since`"),
    ):
        reply = web.get(f"/api/jobs?{query}")
        assert (reply.status_code, reply.content_type) == (400, "application/problem+json")
        assert named in reply.json["detail"]
    for after in ("resp_none", "x", "pos_1"):
        reply = web.get(f"/api/jobs?after={after}")
        assert (reply.status_code, reply.json["code"]) == (400, "invalid_cursor")
