"""Reviews over HTTP and with `helixq jobs review`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from jobs.database import Database
from jobs.models import Scope
from jobs.protocol.schemas import Agreements, History, Review, ReviewQueue
from tests.integration.searches import index
from tests.integration.web.client import Client, ask, register_worker
from tests.integration.web.sealed_jobs import ended, review
from tests.integration.web.with_keys import browser, code, program

Command = Callable[..., Result]


def test_a_review_is_added_and_shown(web: Client) -> None:
    job_id = ended(web)
    body = {
        "critique": 1,
        "regeneration": -1,
        "corrected_answer": "No.\0",
        "tags": ["wrong", "wrong", "ünïcode"],
        "note": "A note.",
        "reviewer": "Ann Lee",
    }
    reply = review(web, job_id, **body)
    assert reply.status_code == 201
    Review.model_validate(reply.json)
    assert reply.json["tags"] == ["wrong", "ünïcode"]
    for name in ("critique", "regeneration", "corrected_answer", "note", "reviewer"):
        assert reply.json[name] == body[name]
    assert reply.json["key"] is None
    second = review(web, job_id, note="Again.", critique=None).json
    assert (second["number"], second["reviewer"]) == (1, "anonymous")
    assert web.get(f"/api/jobs/{job_id}/reviews").json["data"] == [reply.json, second]
    history = web.get(f"/api/jobs/{job_id}").json
    assert history["reviews"] == [reply.json, second]
    assert history["rating"] == -1
    History.model_validate(history)


def test_an_idempotency_key_adds_a_review_once(web: Client) -> None:
    jobs = [ended(web), ended(web)]

    def add(job_id: str, key: str, **body: Any) -> Any:
        headers = {"Idempotency-Key": key}
        return web.post(f"/api/jobs/{job_id}/reviews", json=body, headers=headers)

    first = add(jobs[0], "k", critique=1)
    again = add(jobs[0], "k", critique=1, note=None)
    assert (first.status_code, again.status_code, again.json) == (201, 201, first.json)
    for changed in ({"critique": -1}, {"critique": 1, "reviewer": "Ann"}):
        reply = add(jobs[0], "k", **changed)
        assert (reply.status_code, reply.json["code"]) == (422, "idempotency_key_reused")
    assert code(add(jobs[0], "", critique=1)) == (400, "invalid_idempotency_key")
    assert [add(job_id, "l", critique=1).json["number"] for job_id in jobs] == [1, 0]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "regeneration"),
        ({"critique": None, "tags": []}, "regeneration"),
        ({"corrected_answer": "", "note": " \n"}, "regeneration"),
        ({"critique": 2}, "critique"),
        ({"critique": 0.5}, "critique"),
        ({"regeneration": "1"}, "regeneration"),
        ({"regeneration": True}, "regeneration"),
        ({"tags": [""]}, "tags.0"),
        ({"tags": ["x"] * 21}, "tags"),
        ({"note": "\ud800"}, "note"),
        ({"critique": 1, "reviewer": " "}, "reviewer"),
        ({"critique": 1, "rating": 1}, "rating"),
    ],
)
def test_wrong_reviews_are_refused(web: Client, body: dict[str, Any], param: str) -> None:
    job_id = ended(web)
    reply = web.post(
        f"/api/jobs/{job_id}/reviews", data=json.dumps(body), content_type="application/json"
    )
    assert (reply.status_code, reply.mimetype) == (400, "application/problem+json")
    assert f"`{param}`" in reply.json["detail"]
    assert web.get(f"/api/jobs/{job_id}/reviews").json["data"] == []


def test_only_ended_jobs_are_reviewed(web: Client) -> None:
    assert code(review(web, ask(web)["id"], critique=1)) == (409, "not_ended")
    assert code(review(web, "resp_none", critique=1)) == (404, "not_found")
    assert web.get("/api/jobs/resp_none/reviews").status_code == 404


def test_jobs_are_filtered_by_rating(web: Client) -> None:
    good, bad, none = (ended(web) for _ in range(3))
    review(web, good, regeneration=1)
    review(web, bad, regeneration=-1)
    review(web, none, critique=1)

    def listed(rating: str) -> list[str]:
        return [job["id"] for job in web.get(f"/api/jobs?rating={rating}").json["data"]]

    assert [listed(rating) for rating in ("1", "+1", "%2B1", "-1", "0", "none", "")] == [
        [good],
        [good],
        [good],
        [bad],
        [],
        [none],
        [none, bad, good],
    ]
    assert code(web.get("/api/jobs?rating=2")) == (400, "invalid_value")


def test_jobs_are_filtered_by_the_rating_of_the_critique(web: Client, database: Database) -> None:
    good, bad, rerated, only_regeneration, none = (ended(web) for _ in range(5))
    review(web, good, critique=1)
    review(web, bad, critique=-1, regeneration=1)
    review(web, rerated, critique=-1)
    review(web, rerated, critique=0)
    review(web, rerated, note="It says nothing of the critique.")
    review(web, only_regeneration, regeneration=-1)
    waiting = ask(web)["id"]
    index(database)

    def listed(query: str) -> list[str]:
        return [job["id"] for job in web.get(f"/api/jobs?{query}").json["data"]]

    unrated = [waiting, none, only_regeneration]
    assert {
        rating: listed(f"critique_rating={rating}")
        for rating in ("1", "+1", "-1", "0", "any", "none", "")
    } == {
        "1": [good],
        "+1": [good],
        "-1": [bad],
        "0": [rerated],
        "any": [rerated, bad, good],
        "none": unrated,
        "": [*unrated, rerated, bad, good],
    }
    assert listed("critique_rating=-1&rating=1") == [bad]
    assert listed("critique_rating=none&rating=-1") == [only_regeneration]
    assert listed("critique_rating=none&rating=none&status=completed") == [none]
    assert listed("critique_rating=any&rating=none") == [rerated, good]
    assert listed("critique_rating=none&rating=none&q=question") == listed("q=question&rating=none")
    assert code(web.get("/api/jobs?critique_rating=2")) == (400, "invalid_value")
    ratings = {each["id"]: each["critique_rating"] for each in web.get("/api/jobs").json["data"]}
    assert ratings == {
        good: 1,
        bad: -1,
        rerated: 0,
        only_regeneration: None,
        none: None,
        waiting: None,
    }
    exported = web.get("/api/jobs/export?critique_rating=any&shape=review").text.splitlines()
    assert {json.loads(line)["job_id"] for line in exported} == {good, bad, rerated}


def test_jobs_are_filtered_by_reviewer_and_tag_until_they_are_erased(web: Client) -> None:
    one, both, _ = (ended(web) for _ in range(3))
    review(web, one, reviewer="Ada Lovelace", tags=["wrong unit"])
    review(web, both, reviewer="Ada Lovelace", note="The unit is wrong.")
    review(web, both, reviewer="Бо", tags=["Wrong unit", "ok"])

    def listed(**query: str) -> list[str]:
        return [job["id"] for job in web.get("/api/jobs", query_string=query).json["data"]]

    assert listed(reviewer="Ada Lovelace") == [both, one]
    assert listed(reviewer="Бо") == listed(reviewer="Бо", tag="ok") == [both]
    assert listed(reviewer="ada") == listed(reviewer="Бо", tag="wrong unit") == []
    assert listed(tag="wrong unit") == [one], "exactly this tag, and not the words of a note"
    page = web.get(f"/jobs/{both}").text
    for query in ("reviewer=Ada+Lovelace", "tag=Wrong+unit"):
        assert f'href="/jobs?{query}"' in page
        assert 'details class="wide" open' in web.get(f"/jobs?{query}").text
    sent = web.post(f"/api/jobs/{both}/erase", json={"texts": "all"})
    assert sent.status_code == 200
    assert listed(reviewer="Ada Lovelace") == [one]
    assert listed(tag="ok") == listed(reviewer="Бо") == []


def test_rated_jobs_are_found_whatever_their_rating(web: Client) -> None:
    good, bad, critique, _ = [ended(web, input=f"Which? {number}") for number in range(4)]
    review(web, good, regeneration=1)
    review(web, bad, regeneration=-1)
    review(web, critique, critique=1)
    found = web.get("/api/jobs?rating=any").json["data"]
    assert [job["id"] for job in found] == [bad, good]
    exported = web.get("/api/jobs/export?rating=any").text.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [good, bad]
    page = web.get("/jobs?rating=any&q=which").text
    assert '<option value="any" selected>' in page
    assert good in page
    assert critique not in page


def test_the_queue_and_agreement(web: Client) -> None:
    jobs = [ended(web) for _ in range(3)]
    page = web.get("/api/reviews/queue?seed=3").json
    ReviewQueue.model_validate(page)
    assert sorted(job["id"] for job in page["data"]) == sorted(jobs)
    for job_id in jobs:
        for name, rating in (("ann", 1), ("bob", 1 if job_id == jobs[0] else 0)):
            review(web, job_id, regeneration=rating, reviewer=name)
    assert web.get("/api/reviews/queue?reviewer=ann").json["data"] == []
    split = web.get("/api/reviews/queue?kind=disagreements&limit=1").json["data"]
    assert [job["id"] for job in split] == [jobs[2]]
    assert split[0]["verdicts"][0] == {"reviewer": "ann", "critique": None, "regeneration": 1}
    found = web.get("/api/reviews/agreement").json
    Agreements.model_validate(found)
    assert found["regeneration"]["measure"] == "cohen_kappa"
    assert found["regeneration"]["jobs"] == 3
    for query in ("kind=all", "seed=-1", "limit=0", "reviewer=" + "x" * 1000, "since=x"):
        assert code(web.get(f"/api/reviews/queue?{query}")) == (400, "invalid_value")
    for path in ("queue?sinec=2026-01-01", "agreement?kind=disagreements"):
        assert code(web.get(f"/api/reviews/{path}")) == (400, "unknown_parameter")


def test_who_may_review(app: Any, tokenizer_json: str) -> None:
    alice, bob = program(app), program(app)
    auditor, admin = program(app, Scope.AUDIT), program(app, Scope.ADMIN)
    register_worker(alice, tokenizer_json)
    job_id = ended(alice)
    for web, expected in ((alice, 201), (bob, 404), (auditor, 201), (admin, 201)):
        assert review(web, job_id, critique=1).status_code == expected
        assert web.get(f"/api/jobs/{job_id}/reviews").status_code == (
            expected if expected == 404 else 200
        )
    shown = alice.get(f"/api/jobs/{job_id}/reviews").json["data"]
    assert [r["reviewer"] for r in shown] == [w.key.owner for w in (alice, auditor, admin)]
    assert [r["key"] for r in shown] == [w.key.id for w in (alice, auditor, admin)]
    assert code(review(alice, job_id, critique=1, reviewer="bob")) == (400, "invalid_value")
    added = browser(app, Scope.AUDIT).post(f"/api/jobs/{job_id}/reviews", json={"critique": 0})
    assert added.status_code == 201
    queue = {web: web.get("/api/reviews/queue").json["data"] for web in (bob, auditor)}
    assert queue[bob] == []
    assert bob.get("/api/reviews/agreement").json["critique"]["jobs"] == 0
    assert auditor.get("/api/reviews/agreement").json["critique"]["jobs"] == 1


def test_jobs_are_reviewed_and_shown(web: Client, jobs: Command) -> None:
    job_id, other = ended(web), ended(web)
    options = ("--critique", "+1", "--regeneration", "-1", "--tag", "a", "--tag", "b")
    done = jobs("review", job_id, *options, "--note", "Wr\x1bong.", "--reviewer", "Ann")
    assert done.exit_code == 0
    added = jobs("review", job_id, "--corrected-answer", "No.", "--json")
    assert json.loads(added.output)["number"] == 1
    shown = jobs("show", job_id).output
    assert "REVIEW by Ann, 20" in shown
    assert ", critique +1, regeneration -1, tags a, b\nWr�ong.\n" in shown
    assert "CORRECTED ANSWER: No.\n" in shown
    assert jobs("list", "--rating", "-1").output.split()[0] == job_id
    assert jobs("list", "--critique-rating", "any").output.split()[0] == job_id
    assert jobs("list", "--rating", "none").output.split()[0] == other
    assert jobs("review", job_id).exit_code == 1
    assert jobs("review", job_id, "--critique", "2").exit_code == 2


def test_what_to_review_next_and_agreement_on_a_terminal(web: Client, jobs: Command) -> None:
    agreed, split = ended(web, input="Agreed?"), ended(web, input="Split?")
    assert "needs two reviewers" in jobs("agreement").output
    listed = jobs("review-queue", "--seed", "3", "--limit", "1").output
    assert listed.split()[0] == web.get("/api/reviews/queue?seed=3").json["data"][0]["id"]
    for job_id, other in ((agreed, 1), (split, -1)):
        review(web, job_id, regeneration=1, critique=0, reviewer="ann\x1b")
        review(web, job_id, regeneration=other, reviewer="bob")
    first, *verdicts = jobs("review-queue", "--kind", "disagreements").output.splitlines()
    assert first.split()[0] == split
    assert verdicts == ["    ann\ufffd: critique 0, regeneration +1", "    bob: regeneration -1"]
    (found,) = json.loads(
        jobs("review-queue", "--kind", "disagreements", "--json", "id,verdicts").output
    )
    assert (found["id"], len(found["verdicts"])) == (split, 2)
    assert json.loads(jobs("review-queue", "--reviewer", "bob", "--json").output) == []
    done = jobs("review-queue", "--reviewer", "bob")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "There is nothing to review.\n")
    critique, regeneration = jobs("agreement", "--since", "2026-01-01").output.splitlines()
    assert critique == "critique:     needs two reviewers of the same job"
    assert regeneration.endswith(" 0.00, 2 jobs that ann\ufffd and bob rated")
    assert json.loads(jobs("agreement", "--json").output)["regeneration"]["jobs"] == 2
    assert "`since`" in jobs("agreement", "--since", "x").output
