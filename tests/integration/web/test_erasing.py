"""Erasing texts over HTTP and with `helixq jobs erase`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from jobs.database import Database
from jobs.models import Scope
from jobs.progress import Progress, TextDeltas
from jobs.protocol.schemas import Erased, ErasedJobs, History
from jobs.tlog.record import digest
from jobs.tlog.salted import salts_of
from jobs.use_cases import proving, queries
from tests.integration.sealed import seal
from tests.integration.tampering import is_as_recorded
from tests.integration.web.client import Client, ask, stream
from tests.integration.web.sealed_jobs import ended, erase
from tests.integration.web.with_keys import code, program
from tests.servers import RedisServer

Command = Callable[..., Result]


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
    progress.publish([(job_id, TextDeltas("1", 0, ["A"])), (other, TextDeltas("2", 0, ["A"]))])
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


def test_only_texts_of_ended_jobs_are_erased(web: Client) -> None:
    assert code(erase(web, ask(web)["id"])) == (409, "not_ended")
    assert code(erase(web, "resp_none")) == (404, "not_found")


def test_who_may_erase(site: Any) -> None:
    alice, bob = program(site), program(site)
    auditor, admin = program(site, Scope.AUDIT), program(site, Scope.ADMIN)
    job_id = ended(alice)
    assert code(erase(auditor, job_id)) == (403, "insufficient_scope")
    assert code(erase(bob, job_id)) == (404, "not_found")
    assert erase(alice, job_id, ["/metadata"]).json["erased"] == ["/metadata"]
    assert erase(admin, job_id, ["/system"]).status_code == 200
    erasures = alice.get(f"/api/jobs/{job_id}").json["erasures"]
    assert [(e["by"], e["key"]) for e in erasures] == [
        (web.key.owner, web.key.id) for web in (alice, admin)
    ]


def test_texts_are_erased_by_a_command(
    web: Client, database: Database, jobs: Command, tmp_path: Path
) -> None:
    job_id = ended(web, input="My name is Smith.")
    assert jobs("erase", job_id, "--text", "/question", input="n\n").exit_code == 1
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


def test_the_texts_of_all_jobs_of_a_person_are_erased_by_a_command(
    web: Client, jobs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.use_cases.erasing_jobs.MAX_ERASED", 2)
    person = {"person": "7"}
    mine = [ended(web, input=f"I am Smith, {n}.", metadata=person) for n in range(5)]
    open_, other = ask(web, metadata=person)["id"], ended(web)
    unsealed = ask(web, metadata=person)["id"]
    web.post(f"/v1/responses/{unsealed}/cancel")
    chosen = ("erase", "--metadata", "person=7", "--all")
    asked = jobs(*chosen, input="n\n")
    assert (asked.exit_code, "Erase all texts of 7 jobs?" in asked.stderr) == (1, True)
    # The search index has none of them: nobody has indexed them, and they are more than a search indexes by itself.
    assert web.get("/api/jobs?q=smith").json["data"] == []
    done = jobs(*chosen, "--yes")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == mine
    assert done.exit_code == 1, "two could not be erased"
    for job_id in (open_, unsealed):
        assert job_id in done.stderr
    for job_id in mine:
        assert "Smith" not in web.get(f"/api/jobs/{job_id}").text
    for job_id in (open_, other):
        assert web.get(f"/api/jobs/{job_id}").json["erased_at"] is None
    again = jobs("erase", "--owner", "anonymous", "--text", "/question", "--yes", "--json")
    erased = {each["id"]: each["erased"] for each in map(json.loads, again.stdout.splitlines())}
    assert erased.keys() == {*mine, other}
    assert "/question" in erased[other]
    assert [erased[job_id] for job_id in mine] == [[]] * 5
    nobody = jobs("erase", "--owner", "nobody", "--all", "--yes")
    assert (nobody.exit_code, nobody.stderr) == (0, "No job matches.\n")
    for arguments in ((), (other, "--owner", "nobody"), ("--metadata", "x")):
        assert jobs("erase", *arguments, "--all").exit_code == 2


def test_texts_of_jobs_are_erased_in_steps_and_who_may(site: Any) -> None:
    alice, bob = program(site), program(site)
    auditor, admin = program(site, Scope.AUDIT), program(site, Scope.ADMIN)
    team = {"team": ""}
    mine, open_ = ended(alice, metadata=team), ask(alice, metadata=team)["id"]
    match = {"metadata": team, "texts": ["/question"]}

    def sent(client: Client, **body: Any) -> Any:
        return client.post("/api/jobs/erase", json={**match, **body})

    assert code(sent(auditor)) == (403, "insufficient_scope")
    nothing = {"matched": 0, "erased": [], "refused": [], "after": None}
    assert sent(bob).json == sent(bob, owner=alice.key.owner).json == nothing
    assert sent(alice, metadata={"team": "a"}).json == nothing
    assert sent(alice, dry_run=True).json == {**nothing, "matched": 2}
    reply = sent(alice).json
    ErasedJobs.model_validate(reply)
    assert (reply["matched"], reply["after"]) == (2, None)
    [erased], [refused] = reply["erased"], reply["refused"]
    assert (erased["id"], erased["erased"][0]) == (mine, "/question")
    assert (refused["id"], "has not ended" in refused["message"]) == (open_, True)
    # A text that a job does not have is a reason of that job alone.
    [refused, _] = sent(admin, texts=["/attempts/9/output"]).json["refused"]
    assert refused["id"] == mine
    refusals: tuple[dict[str, Any], ...] = (
        {"texts": []},
        {"metadata": {}},
        {"metadata": None},
        {"after": "x"},
    )
    for wrong in refusals:
        assert sent(alice, **wrong).status_code == 400, wrong
    assert alice.get(f"/api/jobs/{mine}").json["erasures"][0]["by"] == alice.key.owner
