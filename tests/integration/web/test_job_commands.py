"""`helixq jobs` against a server that listens."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from click.testing import Result
from wcwidth import wcswidth

from cli.client import Client as HTTPClient
from jobs.database import Database
from jobs.models import Scope, Status
from jobs.page_request import PageRequest
from jobs.use_cases import indexing, keys, queries, stages, submission, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.rows import QUESTION
from tests.integration.sealed import seal
from tests.integration.web.client import OUTPUT, Client, ask, finish
from tests.joining import join

Command = Callable[..., Result]


def test_jobs_are_listed_in_lines(
    web: Client, database: Database, jobs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    nothing = jobs("list")
    assert (nothing.stdout, nothing.stderr) == ("", "There are no jobs.\n")
    done, waiting = ask(web, input="Why is\nthe sky blue?")["id"], ask(web, input="Why?")["id"]
    finish(database, done)
    first, second = jobs("list").output.splitlines()
    assert first.split()[:2] == [waiting, "queued"]
    assert second.split()[:2] == [done, "completed"]
    assert second.endswith(" s  Why is the sky blue?")
    assert jobs("list", "--status", "completed").output.split()[0] == done
    printed = jobs("list", "--json").output
    assert [job["id"] for job in json.loads(printed)] == [waiting, done]
    assert len(printed.splitlines()) == 4, "each job is in a line of its own"
    nothing = jobs("list", "--status", "failed")
    assert (nothing.stdout, nothing.stderr) == ("", "No job matches.\n")
    assert json.loads(jobs("list", "--status", "failed", "--json").output) == []


def test_a_list_fits_the_terminal(
    web: Client, jobs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["Why is the sky blue? " * 9, "天空为什么是蓝色的？" * 9]
    ids = [ask(web, input=question)["id"] for question in questions]
    for columns in (130, 95, 80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        output = jobs("list").output
        lines = output.splitlines()
        assert max(map(wcswidth, lines)) in (columns - 1, columns)
        of_jobs = re.findall(r"^(resp_\w+)\s+(\w+)", output, re.MULTILINE)
        assert of_jobs == [(job_id, "queued") for job_id in reversed(ids)]
        for question in questions:
            assert sum(question[:5] in line for line in lines) == 1
        assert len(lines) == (4 if columns <= 60 else 2)
        assert ("Z  " in lines[0]) == (columns > 90)


def test_a_list_of_several_owners_names_them(
    web: Client, database: Database, jobs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ask(web)["id"]
    assert "anonymous" not in jobs("list").output
    key, _ = keys.create(database, "laptop", [Scope.ASK])
    other, _ = submission.submit(
        database, "a-long-name-of-an-owner", QUESTION, max_queued=9, key=key
    )
    for columns, names in ((130, True), (60, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = jobs("list").output.splitlines()
        assert max(map(wcswidth, lines)) <= columns
        first, last = lines[0].split(), lines[-1 if names else -2].split()
        assert (first[0], last[0]) == (other.id, own)
        assert (first[2:3] + last[2:3] == ["a-long-name…", "anonymous"]) == names
    assert f"\nowner:     {other.owner}\nkey:       {key.id}\n" in jobs("show", other.id).output
    assert jobs("list", "--key", key.id).output.split()[0] == other.id


def test_a_job_is_shown_with_its_adapters(web: Client, database: Database, jobs: Command) -> None:
    adapters = {"actor": {"name": "lora/actor", "digest": "sha256:ab"}, "critic": {"name": "c"}}
    runtime = Runtime({"engine": "none", "adapters": adapters}, 4096, "")
    workers.register(database, "worker-2", "elsewhere", 2, runtime)
    job_id = ask(web)["id"]
    assert "adapter:" not in jobs("show", job_id).output
    assert stages.claim(database, job_id, 0, "worker-2", job_timeout=60)
    shown = jobs("show", job_id).output
    assert "\nadapter:   actor = lora/actor, sha256:ab\nadapter:   critic = c\n" in shown


def test_jobs_are_searched_and_filtered(web: Client, database: Database, jobs: Command) -> None:
    ids = [ask(web, input=f"Which fox is it, {n}?", metadata={"n": str(n)})["id"] for n in range(3)]
    for job_id in ids[:2]:
        finish(database, job_id)
    indexing.put(database, indexing.prepare(database))
    first, snippet = jobs("list", "-q", "fox 1").output.splitlines()
    assert first.split()[0] == ids[1]
    assert snippet == "    question: Which fox is it, 1?"
    filters = ["--metadata", "n=0", "--max-changed", "0", "--min-attempts", "1", "--worker", WORKER]
    assert jobs("list", *filters).output.split()[0] == ids[0]
    both = jobs("list", "--status", "queued", "--status", "completed", "--order", "asc").output
    assert [line.split()[0] for line in both.splitlines()] == ids
    wrong = jobs("list", "-q", "-")
    assert (wrong.exit_code, "no word" in wrong.output) == (1, True)
    assert "KEY=VALUE" in jobs("list", "--metadata", "n").output
    nameless = ask(web, metadata={"": "="})["id"]
    assert jobs("list", "--metadata", "==").output.split()[0] == nameless


def test_a_list_has_as_many_jobs_as_were_asked_for(web: Client, jobs: Command) -> None:
    ids = [ask(web)["id"] for _ in range(103)]
    lines = jobs("list", "--limit", "102").output.splitlines()
    assert [line.split()[0] for line in lines] == ids[:0:-1]


def test_a_job_is_shown_with_its_texts(web: Client, database: Database, jobs: Command) -> None:
    metadata = {"lot": "7", "team": "red\x1b"}
    job_id = ask(web, input="What does \x1b[2J do, and \x9b2J?", metadata=metadata)["id"]
    finish(database, job_id)
    shown = jobs("show", job_id).output
    assert "\nmetadata:  lot = 7; team = red�\n" in shown
    assert "\nlog:" not in shown, "it has no entry yet"
    assert shown.startswith(f"id:        {job_id}\nstatus:    completed\n")
    assert "QUESTION: What does �[2J do, and �2J?" in shown
    for heading in ("ACTOR", "CRITIQUE", "REGENERATION"):
        assert f"\n{heading}, 3 tokens\nA text.\n" in shown
    cut = ask(web)["id"]
    finish(database, cut, output=replace(OUTPUT, finish_reason="stop_string"))
    assert "REGENERATION, ended at a stop string, 3 tokens\n" in jobs("show", cut).output
    printed = jobs("show", job_id, "--json").output
    assert "\x9b" not in printed
    history = json.loads(printed)
    assert history == web.get(f"/api/jobs/{job_id}").json
    web.post(f"/api/jobs/{job_id}/reviews", json={"regeneration": 1, "tags": ["a tag"]})
    assert "regeneration +1, tags a tag\n" in jobs("show", job_id).output
    seal(database)
    erased = ["/metadata", "/reviews/0/tags"]
    web.post(f"/api/jobs/{job_id}/erase", json={"texts": erased})
    shown = jobs("show", job_id).output
    assert "\nmetadata:  (erased)\nlog:       entry 0\nerased:    " in shown
    assert "Z by anonymous: /metadata, /reviews/0/tags\n" in shown
    assert "regeneration +1, tags (erased)\n" in shown


def test_jobs_are_cancelled(web: Client, database: Database, jobs: Command) -> None:
    done, waiting = ask(web)["id"], ask(web)["id"]
    finish(database, done)
    assert jobs("cancel", waiting, done).output == (
        f"{waiting} is cancelled.\n{done} is completed.\n"
    )
    assert web.get(f"/v1/responses/{waiting}").json["status"] == "cancelled"


def test_what_changes_jobs_prints_json(web: Client, database: Database, jobs: Command) -> None:
    first, second, failed = ask(web)["id"], ask(web, metadata={"team": "a"})["id"], ask(web)["id"]
    claim = stages.claim(database, failed, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "it broke", OUTPUT)

    def printed(*arguments: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in jobs(*arguments).stdout.splitlines()]

    assert printed("cancel", first, second, "--json", "id,status") == [
        {"id": job_id, "status": "cancelled"} for job_id in (first, second)
    ]
    assert printed("cancel", "--json", first) == [web.get(f"/v1/responses/{first}").json]
    assert printed("retry", failed, "--json=id,status") == [{"id": failed, "status": "in_progress"}]
    by_metadata = ("delete", "--metadata", "team=a", "--json", "deleted,matched")
    assert printed(*by_metadata, "--dry-run") == [{"deleted": 0, "matched": 1}]
    assert printed(*by_metadata, "--yes") == [{"deleted": 1, "matched": 1}]
    assert printed("delete", first, failed, "--yes", "--json") == [
        {"id": job_id, "deleted": True} for job_id in (first, failed)
    ]


def test_a_job_that_is_refused_leaves_the_others(web: Client, jobs: Command) -> None:
    for command, said in (("cancel", "cancelled"), ("delete", "deleted")):
        given = [ask(web)["id"], "resp_none", "none", ask(web)["id"]]
        result = jobs(command, *given, *(["--yes"] if command == "delete" else []))
        assert result.exit_code == 1
        first, unknown, odd, last = result.output.splitlines()
        assert (first, last) == (f"{given[0]} is {said}.", f"{given[3]} is {said}.")
        assert unknown.startswith("Error: ")
        assert "resp_none" in unknown
        assert odd.startswith("Error: 'none' is not the id of a job")


def test_a_job_that_has_ended_is_watched_to_its_end(
    web: Client, database: Database, jobs: Command
) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)
    watched = jobs("watch", job_id)
    assert watched.exit_code == 0
    assert "ACTOR: A text." in watched.output


def test_a_job_whose_texts_were_erased_is_watched(
    web: Client, database: Database, jobs: Command
) -> None:
    done, failed = ask(web)["id"], ask(web)["id"]
    finish(database, done)
    claim = stages.claim(database, failed, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "it broke")
    erased = "Texts of the job were erased. They are empty here.\n"
    assert "erased" not in jobs("watch", done).stderr
    seal(database)
    assert jobs("erase", done, failed, "--all", "--yes").exit_code == 0
    assert jobs("watch", done).stderr.endswith(erased)
    watched = jobs("watch", failed)
    assert (watched.exit_code, watched.stderr.endswith(f"The job failed.\n{erased}")) == (1, True)


def test_an_unknown_job_is_an_error_in_one_sentence(jobs: Command) -> None:
    for command in ("show", "cancel"):
        result = jobs(command, "resp_none")
        assert result.exit_code == 1
        assert "resp_none" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize("given", ["", "export", "../stats", "resp_0/place", "resp_0?stream=true"])
def test_what_is_no_id_of_a_job_names_nothing_else(jobs: Command, given: str) -> None:
    for command in ("show", "watch", "cancel"):
        result = jobs(command, given)
        assert result.exit_code == 1
        assert result.output == (
            f"Error: {given!r} is not the id of a job: these begin with `resp_`\n"
        )


def test_a_failed_job_is_retried(web: Client, database: Database, jobs: Command) -> None:
    job_id = ask(web)["id"]
    claim = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert claim is not None
    stages.fail(database, claim, "server_error", "it broke", OUTPUT)
    result = jobs("retry", job_id)
    assert (result.exit_code, result.output) == (0, f"{job_id} is in_progress.\n")
    result = jobs("retry", job_id)
    assert result.exit_code == 1
    assert "only a failed job can be retried" in result.output


@pytest.fixture
def work(database: Database) -> Iterator[Callable[[dict[int, Output]], None]]:
    """Run the stages of jobs as they are submitted, with other outputs for some stages."""
    stopped = threading.Event()
    outputs: dict[int, Output] = {}

    def run() -> None:
        while not stopped.wait(0.02):
            jobs, _ = queries.list_jobs(database, None, PageRequest(10), status=Status.QUEUED)
            for job in jobs:
                for stage_index in range(3):
                    claim = stages.claim(database, job.id, stage_index, WORKER, job_timeout=60)
                    assert claim is not None
                    stages.record(database, claim, outputs.get(stage_index, OUTPUT))

    thread = threading.Thread(target=run)
    thread.start()
    yield outputs.update
    stopped.set()
    join(thread)


@pytest.mark.usefixtures("work")
def test_a_replay_with_the_same_texts_is_identical(web: Client, jobs: Command) -> None:
    job_id = ask(web, seed=7, input="Why?", temperature=0.5, rounds=1)["id"]
    wait_for(web, job_id)
    result = jobs("replay", job_id)
    assert (result.exit_code, result.output.count("identical")) == (0, 1)
    (listed,) = [j for j in web.get("/api/jobs").json["data"] if j["replay_of"] == job_id]
    replayed, original = (web.get(f"/api/jobs/{i}").json for i in (listed["id"], job_id))
    assert replayed["replay"] == {
        "of": job_id,
        "identical": True,
        "difference": None,
        "changed": [],
    }
    for name in ("question", "system", "seed", "temperature", "rounds", "max_output_tokens"):
        assert replayed[name] == original[name]
    assert original["replay"] is None
    assert f"\nreplay:    of {job_id}: identical\n" in jobs("show", listed["id"]).output


def test_a_replay_of_another_models_job_says_so_where_its_texts_are_the_same(
    web: Client,
    database: Database,
    jobs: Command,
    tokenizer_json: str,
    request: pytest.FixtureRequest,
) -> None:
    adapters = {"actor": {"name": "models/a", "digest": "sha256:a"}}
    runtime = Runtime({"engine": "none", "adapters": adapters}, 4096, tokenizer_json)
    workers.register(database, "other-worker", "localhost", 1, runtime)
    job_id = ask(web)["id"]
    for stage_index in range(3):
        claim = stages.claim(database, job_id, stage_index, "other-worker", job_timeout=60)
        assert claim is not None
        stages.record(database, claim, OUTPUT)
    request.getfixturevalue("work")
    result = jobs("replay", job_id)
    assert result.exit_code == 0
    assert "identical, and the worker differs in: adapters.actor" in result.output


def test_an_interrupted_replay_names_those_that_go_on(
    web: Client, database: Database, jobs: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    originals = [ask(web)["id"] for _ in range(2)]
    for job_id in originals:
        finish(database, job_id)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt  # As Ctrl-C does, at a moment that a signal would seldom meet.

    monkeypatch.setattr(HTTPClient, "events", interrupt)
    result = jobs("replay", *originals)
    assert result.exit_code == 130
    replays = {j["id"] for j in web.get("/api/jobs").json["data"] if j["replay_of"]}
    assert "Interrupted; 2 replays go on" in result.output
    assert set(result.output.split()[-2:]) == replays


def test_a_replay_with_another_text_says_where_it_differs(
    web: Client, jobs: Command, work: Callable[..., None]
) -> None:
    job_id = ask(web)["id"]
    wait_for(web, job_id)
    work({1: Output("A test.", [2, 5], 20, 3, "stop", 1024, 0.0)})
    result = jobs("replay", "--since", "2020-01-01", "--sample", "5")
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(job_id)
    assert (
        'the output of the critic differs from character 4 on: "A text." became "A test."' in line
    )
    assert line.endswith("the worker differs in: nothing")


@pytest.mark.usefixtures("work")
def test_a_replay_of_a_deleted_job_is_not_compared(web: Client) -> None:
    job_id = ask(web)["id"]
    wait_for(web, job_id)
    replay_id = web.post(f"/api/jobs/{job_id}/replay").json["id"]
    wait_for(web, replay_id)
    web.delete(f"/v1/responses/{job_id}")
    assert web.get(f"/api/jobs/{replay_id}").json["replay"] == {
        "of": job_id,
        "identical": None,
        "difference": None,
        "changed": [],
    }


def test_a_job_without_texts_cannot_be_replayed(web: Client, jobs: Command) -> None:
    job_id = ask(web)["id"]
    result = jobs("replay", job_id)
    assert result.exit_code == 1
    assert f"No stage of {job_id} has finished" in result.output
    assert web.post(f"/api/jobs/{job_id}/replay").status_code == 422
    assert web.post("/api/jobs/resp_none/replay").status_code == 404
    assert len(web.get("/api/jobs").json["data"]) == 1


def test_a_replay_needs_ids_or_times(jobs: Command) -> None:
    for arguments in ([], ["resp_1", "--since", "2020-01-01"], ["resp_1", "--sample", "2"]):
        assert jobs("replay", *arguments).exit_code == 2


def wait_for(web: Client, job_id: str) -> None:
    """Wait until a job has ended."""
    reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=30"})
    while reply.json["status"] != "completed":
        reply = web.get(f"/v1/responses/{job_id}", headers={"Prefer": "wait=30"})
