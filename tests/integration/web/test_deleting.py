"""Deleting jobs over HTTP and with `helixq jobs delete`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result

from jobs.database import Database
from jobs.models import Job, Scope
from jobs.use_cases import stages
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.tampering import is_as_recorded
from tests.integration.web.client import OUTPUT, Client, ask, finish, register_worker
from tests.integration.web.sealed_jobs import ended, review
from tests.integration.web.with_keys import code, program

Command = Callable[..., Result]


def test_a_deleted_job_is_gone_with_its_history(web: Client, database: Database) -> None:
    job_id, other = ask(web)["id"], ask(web)["id"]
    finish(database, job_id)
    reply = web.delete(f"/v1/responses/{job_id}")
    assert (reply.status_code, reply.json) == (
        200,
        {"id": job_id, "object": "response", "deleted": True},
    )
    for path in (f"/v1/responses/{job_id}", f"/api/jobs/{job_id}", f"/jobs/{job_id}"):
        assert web.get(path).status_code == 404
    assert [job["id"] for job in web.get("/v1/responses").json["data"]] == [other]
    assert web.delete(f"/v1/responses/{job_id}").status_code == 404


def test_a_running_job_can_be_deleted_and_its_worker_records_nothing(
    web: Client, database: Database
) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    assert web.delete(f"/v1/responses/{job_id}").status_code == 200
    assert not stages.record(database, claim, OUTPUT)
    stages.keep_partial(database, claim, OUTPUT)
    assert web.get(f"/v1/responses/{job_id}").status_code == 404


def test_a_deleted_jobs_idempotency_key_is_free(web: Client) -> None:
    first = ask(web, idempotency_key="k")
    assert ask(web, idempotency_key="k")["id"] == first["id"]
    web.delete(f"/v1/responses/{first['id']}")
    assert ask(web, idempotency_key="k")["id"] != first["id"]


def test_the_log_says_that_a_job_was_deleted(web: Client, database: Database) -> None:
    job_id = ended(web)
    review(web, job_id, critique=1)
    assert web.delete(f"/api/jobs/{job_id}").json == {"id": job_id, "deleted": True}
    assert web.get(f"/api/jobs/{job_id}").status_code == 404
    assert web.delete(f"/api/jobs/{job_id}").status_code == 404
    seal(database)
    assert is_as_recorded(database).deleted == 1


def test_jobs_are_deleted_by_metadata_in_steps(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.use_cases.matching.MAX_READ", 5)
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


def test_who_may_delete(app: Any, tokenizer_json: str) -> None:
    alice, bob = program(app), program(app)
    auditor, admin = program(app, Scope.AUDIT), program(app, Scope.ADMIN)
    register_worker(alice, tokenizer_json)
    job_id = ended(alice)
    match = {"owner": alice.key.owner}
    assert code(auditor.post("/api/jobs/delete", json=match)) == (403, "insufficient_scope")
    nothing = {"matched": 0, "deleted": 0, "after": None}
    assert bob.post("/api/jobs/delete", json=match).json == nothing
    assert bob.post("/api/jobs/delete", json={"metadata": {"a": "b"}}).json == nothing
    assert admin.post("/api/jobs/delete", json=match).json["deleted"] == 1
    assert alice.get(f"/api/jobs/{job_id}").status_code == 404


def test_jobs_are_deleted_by_a_command(web: Client, database: Database, jobs: Command) -> None:
    first, second, third = (ask(web, metadata={"team": t})["id"] for t in ("a", "b", "b"))
    assert jobs("delete", first, input="n\n").exit_code == 1
    assert jobs("delete", first, "--yes").output == f"{first} is deleted.\n"
    by_team = ("delete", "--metadata", "team=b")
    assert jobs(*by_team, "--dry-run").output == "2 jobs would be deleted.\n"
    assert jobs(*by_team, input="n\n").exit_code == 1
    with database.read() as connection:
        assert set(connection.scalars(sa.select(Job.id))) == {second, third}
    done = jobs(*by_team, "--owner", "anonymous", input="y\n")
    assert done.output.endswith("2 jobs were deleted.\n")
    assert jobs("list").stdout == ""
    for arguments in ((), (first, "--owner", "a"), ("--metadata", "x"), (first, "--dry-run")):
        assert jobs("delete", *arguments).exit_code == 2
