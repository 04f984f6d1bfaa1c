"""Reviews, erasures and deletions over HTTP and with `helixq jobs`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from cli.main import main
from jobs.database import Database
from jobs.models import Job, Scope
from jobs.progress import Progress, TextDeltas
from jobs.protocol.schemas import Agreements, Erased, History, Review, ReviewQueue
from jobs.tlog.record import digest
from jobs.tlog.salted import salts_of
from jobs.use_cases import proving, queries, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.tampering import is_as_recorded
from tests.integration.web.client import Client, ask, finish, services_of, stream
from tests.integration.web.with_keys import browser, code, program
from tests.joining import join
from tests.servers import RedisServer

Command = Callable[..., Result]


def ended(web: Client, **body: Any) -> str:
    """Return the id of a job that has ended and is in the log."""
    job_id: str = ask(web, **body)["id"]
    database = services_of(web).database
    finish(database, job_id)
    seal(database)
    return job_id


def review(web: Client, job_id: str, **body: Any) -> Any:
    return web.post(f"/api/jobs/{job_id}/reviews", json=body)


def erase(web: Client, job_id: str, texts: Any = "all") -> Any:
    return web.post(f"/api/jobs/{job_id}/erase", json={"texts": texts})


# Reviews.


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


def test_only_ended_jobs_are_reviewed_and_erased(web: Client) -> None:
    waiting = ask(web)["id"]
    assert code(review(web, waiting, critique=1)) == (409, "not_ended")
    assert code(erase(web, waiting)) == (409, "not_ended")
    for call in (review(web, "resp_none", critique=1), erase(web, "resp_none")):
        assert code(call) == (404, "not_found")
    assert web.get("/api/jobs/resp_none/reviews").status_code == 404
    assert web.delete("/api/jobs/resp_none").status_code == 404


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


# Erasures.


def test_texts_are_erased(web: Client, database: Database) -> None:
    job_id = ended(web, input="My name is Smith.")
    reply = erase(web, job_id, ["/question"])
    Erased.model_validate(reply.json)
    assert reply.json["erased"][:2] == ["/question", "/attempts/0/prompt"]
    history = web.get(f"/api/jobs/{job_id}").json
    History.model_validate(history)
    assert "Smith" not in json.dumps(history)
    assert history["question"]["erased"] is True
    assert web.get("/api/jobs").json["data"][0]["question"] == history["question"]
    assert erase(web, job_id, ["/question"]).json["erased"] == []
    assert code(erase(web, job_id, ["/attempts/7/output"])) == (400, "no_such_text")
    assert code(web.post(f"/api/jobs/{job_id}/replay")) == (422, "erased")
    seal(database)
    assert is_as_recorded(database).erasures == 1
    assert digest(history, salts_of(history["log"])) == history["digest"]


@pytest.mark.parametrize("texts", [[], "some", ["/question", 1], None, ["x"] * 1001])
def test_wrong_erasures_are_refused(web: Client, texts: Any) -> None:
    reply = erase(web, "resp_none", texts)
    assert reply.status_code == 400
    assert "texts" in reply.json["detail"]


def test_what_clients_had_before_is_not_sent_again(web: Client) -> None:
    job_id = ended(web)
    path = f"/v1/responses/{job_id}"
    before = web.get(path)
    assert "A text." in before.text
    assert len(stream(web, job_id)) > 3
    erase(web, job_id, [f"/attempts/{number}/output" for number in range(3)])
    after = web.get(path, headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200
    assert "A text." not in after.text
    assert after.json["erased_at"] is not None
    assert "A text." not in json.dumps(stream(web, job_id))
    assert web.get(f"{path}/input_items").status_code == 200
    continued = {"input": "How?", "context": "turns", "previous_response_id": job_id}
    reply = web.post("/v1/responses", json={**continued, "background": True})
    assert code(reply) == (400, "previous_response_erased")
    item = before.json["output"][-1]["id"]
    reference = [{"type": "item_reference", "id": item}, {"role": "user", "content": "How?"}]
    reply = web.post("/v1/responses", json={"input": reference, "context": "turns"})
    assert code(reply) == (400, "item_not_found")


def test_live_texts_are_erased_from_redis(web: Client, redis_server: RedisServer) -> None:
    job_id, other = ended(web), ended(web)
    progress, client = Progress(redis_server.url), redis.Redis.from_url(redis_server.url)
    progress.publish([(job_id, TextDeltas(1, 0, ["A"])), (other, TextDeltas(2, 0, ["A"]))])
    erase(web, job_id)
    assert not client.exists(f"helixq:live:{job_id}")
    assert client.exists(f"helixq:live:{other}")
    web.delete(f"/api/jobs/{other}")
    left: Any = client.xrange(f"helixq:live:{other}")
    assert [fields for _, fields in left] == [{b"changed": b"1"}]
    progress.close()
    client.close()


def test_pages_say_what_was_erased(web: Client) -> None:
    job_id = ended(web, input="My name is Smith.", instructions="Be kind to Smith.")
    erase(web, job_id, ["/question", "/system", "/attempts/1/output"])
    page = web.get(f"/jobs/{job_id}").text
    assert "Smith" not in page
    assert "<title>Completed: Erased question" in page
    assert page.count("The text was erased") == 1
    assert "The text is empty" not in page
    # The question, the system prompt, the prompts that had them, the output, and the erasure under Record.
    assert page.count(">Erased<") == 2 + 3 + 1 + 1
    assert "Erased question" in web.get("/jobs").text


# Deletions.


def test_a_job_is_deleted(web: Client, database: Database) -> None:
    job_id = ended(web)
    review(web, job_id, critique=1)
    assert web.delete(f"/api/jobs/{job_id}").json == {"id": job_id, "deleted": True}
    assert web.get(f"/api/jobs/{job_id}").status_code == 404
    seal(database)
    assert is_as_recorded(database).deleted == 1


def test_jobs_are_deleted_by_metadata_in_steps(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.use_cases.deletion.MAX_READ", 5)
    monkeypatch.setattr("jobs.use_cases.deletion.MAX_DELETED", 2)
    ids = [ask(web, metadata={"team": "ab"[n % 2], "n": str(n)})["id"] for n in range(12)]
    finish(database, ids[0])
    seal(database)

    def steps(**body: Any) -> list[tuple[int, int]]:
        found, after = [], None
        while True:
            step = web.post("/api/jobs/delete", json={**body, "after": after}).json
            found.append((step["matched"], step["deleted"]))
            if (after := step["after"]) is None:
                return found

    dry = steps(metadata={"team": "a"}, dry_run=True)
    assert (sum(matched for matched, _ in dry), sum(deleted for _, deleted in dry)) == (6, 0)
    assert len(web.get("/api/jobs").json["data"]) == 12
    assert steps(metadata={"team": "a", "n": "1"}) == [(0, 0)] * 3
    done = steps(metadata={"team": "a"})
    assert sum(deleted for _, deleted in done) == 6
    assert max(deleted for _, deleted in done) == 2
    assert [job["id"] for job in web.get("/api/jobs").json["data"]] == ids[::-2]
    seal(database)
    assert is_as_recorded(database).deleted == 1
    assert sum(deleted for _, deleted in steps(owner="anonymous")) == 6
    assert web.get("/api/jobs").json["data"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"metadata": {}},
        {"owner": ""},
        {"owner": "a\0"},
        {"metadata": {"a": 1}},
        {"owner": "anonymous", "after": "nonsense"},
        {"owner": "a", "status": "failed"},
        {"owner": "a", "dry_run": "yes"},
    ],
)
def test_wrong_deletions_are_refused_and_delete_nothing(web: Client, body: dict[str, Any]) -> None:
    job_id = ended(web)
    assert web.post("/api/jobs/delete", json=body).status_code == 400
    assert web.get(f"/api/jobs/{job_id}").status_code == 200


# Access.


def test_who_may_review_erase_and_delete(app: Any, tokenizer_json: str) -> None:
    alice, bob = program(app), program(app)
    auditor, admin = program(app, Scope.AUDIT), program(app, Scope.ADMIN)
    runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
    workers.register(services_of(alice).database, WORKER, "localhost", 1, runtime)
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
    assert (
        browser(app, Scope.AUDIT)
        .post(f"/api/jobs/{job_id}/reviews", json={"critique": 0})
        .status_code
        == 201
    )
    queue = {web: web.get("/api/reviews/queue").json["data"] for web in (bob, auditor)}
    assert queue[bob] == []
    assert bob.get("/api/reviews/agreement").json["critique"]["jobs"] == 0
    assert auditor.get("/api/reviews/agreement").json["critique"]["jobs"] == 1
    assert code(erase(auditor, job_id)) == (403, "insufficient_scope")
    assert code(erase(bob, job_id)) == (404, "not_found")
    assert erase(alice, job_id, ["/metadata"]).json["erased"] == ["/metadata"]
    assert erase(admin, job_id, ["/system"]).status_code == 200
    erasures = alice.get(f"/api/jobs/{job_id}").json["erasures"]
    assert [(e["by"], e["key"]) for e in erasures] == [
        (web.key.owner, web.key.id) for web in (alice, admin)
    ]
    match = {"owner": alice.key.owner}
    assert code(auditor.post("/api/jobs/delete", json=match)) == (403, "insufficient_scope")
    nothing = {"matched": 0, "deleted": 0, "after": None}
    assert bob.post("/api/jobs/delete", json=match).json == nothing
    assert bob.post("/api/jobs/delete", json={"metadata": {"a": "b"}}).json == nothing
    assert admin.post("/api/jobs/delete", json=match).json["deleted"] == 1
    assert alice.get(f"/api/jobs/{job_id}").status_code == 404


# The commands.


@pytest.fixture
def jobs(web: Client, database_url: str) -> Iterator[Command]:
    """Run `helixq jobs` with arguments."""
    server: Any = make_server("127.0.0.1", 0, web.application, threaded=True)
    server.daemon_threads = False  # closing waits for the requests that still run
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    environ = {
        "HELIXQ_DATABASE_URL": database_url,
        "HELIXQ_HOST": "127.0.0.1",
        "HELIXQ_PORT": str(server.server_port),
    }

    def run(*arguments: Any, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["jobs", *map(str, arguments)], env=environ, input=stdin)

    yield run
    server.shutdown()
    join(thread)
    server.server_close()


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
    assert jobs("list", "--rating", "none").output.split()[0] == other
    assert jobs("review", job_id).exit_code == 1
    assert jobs("review", job_id, "--critique", "2").exit_code == 2


def test_texts_are_erased_by_a_command(
    web: Client, database: Database, jobs: Command, tmp_path: Path
) -> None:
    job_id = ended(web, input="My name is Smith.")
    assert jobs("erase", job_id, "--text", "/question", stdin="n\n").exit_code == 1
    assert queries.get_job(database, None, job_id).erased is None
    done = jobs("erase", job_id, "--text", "/question", "--yes")
    assert done.output.splitlines()[0] == "/question is erased."
    assert "QUESTION: (erased)" in jobs("show", job_id).output
    assert jobs("list").output.rstrip().endswith("(erased)")
    seal(database)
    proof, history = tmp_path / "job.tlog-proof", tmp_path / "history.json"
    jobs("proof", job_id, "-o", proof)
    history.write_text(jobs("show", job_id, "--json").output)
    [key] = proving.list_keys(database)
    checked = jobs("verify", proof, "--key", key, "--history", history)
    assert checked.exit_code == 0, checked.output
    assert (
        "These texts were erased, and are not checked: /question, /attempts/0/prompt"
        in checked.output
    )
    everything = jobs("verify")
    assert everything.output.startswith("Verified: 1 job with 1 erasure is as it was recorded in ")
    left = json.loads(jobs("erase", job_id, "--all", "--yes", "--json").output)
    assert "/question" not in left["erased"]
    assert jobs("erase", job_id, "--all", "--yes").output == "Nothing was left to erase.\n"
    for arguments in ((), ("--all", "--text", "/question")):
        assert jobs("erase", job_id, *arguments).exit_code == 2


def test_jobs_are_deleted_by_a_command(web: Client, database: Database, jobs: Command) -> None:
    first, second, third = (ask(web, metadata={"team": t})["id"] for t in ("a", "b", "b"))
    assert jobs("delete", first, stdin="n\n").exit_code == 1
    assert jobs("delete", first, "--yes").output == f"{first} is deleted.\n"
    by_team = ("delete", "--metadata", "team=b")
    assert jobs(*by_team, "--dry-run").output == "2 jobs would be deleted.\n"
    assert jobs(*by_team, stdin="n\n").exit_code == 1
    with database.read() as connection:
        assert set(connection.scalars(sa.select(Job.id))) == {second, third}
    done = jobs(*by_team, "--owner", "anonymous", stdin="y\n")
    assert done.output.endswith("2 jobs were deleted.\n")
    assert jobs("list").stdout == ""
    for arguments in ((), (first, "--owner", "a"), ("--metadata", "x"), (first, "--dry-run")):
        assert jobs("delete", *arguments).exit_code == 2
