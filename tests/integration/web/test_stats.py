"""Statistics over HTTP, and their page."""

from __future__ import annotations

import datetime as dt
import json
import re
import time
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result

from jobs.database import Database
from jobs.models import Job, Scope
from jobs.protocol.history import history
from jobs.protocol.schemas import Statistics
from jobs.use_cases import cancellation, indexing, sealing, stages, statistics, workers
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.stages import Output
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.web.client import Client, ask, finish
from tests.integration.web.with_keys import code, program

VERSIONS = ("v1", "v2")
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def hour() -> dt.datetime:
    """The beginning of this hour, which does not end before the test: then its jobs would be of two hours."""
    now = dt.datetime.now(dt.UTC)
    begun = now.replace(minute=0, second=0, microsecond=0)
    if (left := (begun + HOUR - now).total_seconds()) > 60:
        return begun
    time.sleep(left)
    return begun + HOUR


def count(database: Database) -> None:
    """Count what has ended, as the duty does."""
    while prepared := indexing.prepare(database):
        indexing.put(database, prepared)


def stats(web: Client, **query: str) -> dict[str, Any]:
    reply = web.get("/api/stats", query_string=query)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json
    Statistics.model_validate(found)
    return found


def text(words: str) -> Output:
    return Output(words, [len(words)], 20, 3, "stop", 1024, 0.0)


def test_figures_follow_the_jobs(web: Client, database: Database, hour: dt.datetime) -> None:
    job_id = ask(web, metadata={"team": "a"})["id"]
    assert stats(web)["open"] == {"queued": 1, "in_progress": 0}
    finish(database, job_id, 2, text("one two three four"))
    waiting = stats(web)
    assert waiting["open"] == {"queued": 0, "in_progress": 1}
    assert (waiting["total"]["jobs"], waiting["current"]) == (0, True)
    run(database, job_id, 2, WORKER, "one two three five")
    assert not stats(web)["current"], "the duty has yet to count it"
    web.post(f"/v1/responses/{ask(web)['id']}/cancel")
    count(database)
    found = stats(web, by="hour")
    assert found["current"]
    total = found["total"]
    assert total["statuses"] == {"completed": 1, "failed": 0, "cancelled": 1, "incomplete": 0}
    assert [group["jobs"] for group in found["groups"]] == [2]
    assert found["groups"][0]["key"] == {
        "start": hour.isoformat(timespec="milliseconds")[:-6] + "Z"
    }
    actor = total["stages"]["actor"]
    assert (actor["prompt_tokens"]["total"], actor["output_tokens"]["p50"]) == (20, 3)
    assert actor["time"]["count"] == actor["first_token"]["count"] == 1
    assert total["changed"]["mean"] == pytest.approx(0.25)
    assert total["queue_wait"]["count"] == 1
    assert total["duration"]["count"] == 2

    # A later review changes the hour of its job.
    for rating in (-1, 1):
        verdict = {"critique": rating, "regeneration": rating, "corrected_answer": "six"}
        web.post(f"/api/jobs/{job_id}/reviews", json=verdict)
    count(database)
    reviewed = stats(web, by="hour")["groups"][0]["reviews"]
    assert reviewed["regeneration"] == reviewed["critique"] == {"-1": 0, "0": 0, "1": 1}
    assert (reviewed["reviews"], reviewed["jobs"], reviewed["corrected"]) == (2, 1, 1)

    # Erased texts leave the numbers, and a deleted job takes its own with it.
    before = stats(web)["total"]
    prepared = sealing.prepare(database, history)
    sealing.append(database, prepared, Signing())
    assert web.post(f"/api/jobs/{job_id}/erase", json={"texts": "all"}).status_code == 200
    count(database)
    assert stats(web)["total"] == before
    web.delete(f"/api/jobs/{job_id}")
    assert stats(web)["total"]["jobs"] == 1
    assert stats(web)["total"]["changed"]["count"] == 0


def fill(
    web: Client, database: Database, tokenizer_json: str, name: str = "models/{role}-{version}"
) -> None:
    """Add jobs of two versions of an adapter, the second one better, in this hour and the last one."""
    for version in VERSIONS:
        adapters = {
            role: {
                "name": name.format(role=role, version=version),
                "digest": f"sha256:{version}{role}",
            }
            for role in ("actor", "critic", "regenerator")
        }
        base = {"name": "base", "digest": "sha256:00"}
        runtime = Runtime(
            {"engine": "none", "base": base, "adapters": adapters}, 4096, tokenizer_json
        )
        workers.register(database, version, "localhost", 1, runtime)
        for number in range(8):
            job_id = ask(web, metadata={"team": f"<b>{number % 2}"})["id"]
            for stage_index in range(3):
                run(database, job_id, stage_index, version, f"one two {version} {stage_index}")
            better = (version == "v2") == (number < 6)
            web.post(f"/api/jobs/{job_id}/reviews", json={"regeneration": 1 if better else -1})
            if number % 2:
                with database.write() as connection:
                    moved = sa.update(Job).where(Job.id == job_id)
                    connection.execute(moved.values(created_at=dt.datetime.now(dt.UTC) - HOUR))
    count(database)


def run(database: Database, job_id: str, stage_index: int, worker: str, words: str) -> None:
    claim = stages.claim(database, job_id, stage_index, worker, job_timeout=60)
    assert claim is not None
    stages.record(database, claim, text(words))


@pytest.mark.usefixtures("hour")
def test_groups_and_a_comparison(web: Client, database: Database, tokenizer_json: str) -> None:
    fill(web, database, tokenizer_json)
    models = stats(web, by="model")["groups"]
    assert {model["key"]["adapters"]["actor"]["name"] for model in models} == {
        "models/actor-v1",
        "models/actor-v2",
    }
    assert [model["jobs"] for model in models] == [8, 8]
    adapters = stats(web, by="adapter")["groups"]
    assert {tuple(group["key"].values()) for group in adapters} == {
        (role, f"models/{role}-{version}", f"sha256:{version}{role}")
        for role in ("actor", "critic", "regenerator")
        for version in VERSIONS
    }
    teams = stats(web, by="metadata.team")
    assert [group["key"] for group in teams["groups"]] == [{"value": "<b>0"}, {"value": "<b>1"}]
    assert (teams["total"]["jobs"], teams["others"]) == (16, None)
    assert [group["jobs"] for group in stats(web, by="hour", adapter="actor-v1")["groups"]] == [
        4,
        4,
    ]
    assert stats(web, model=models[0]["key"]["model"])["total"]["jobs"] == 8

    compared = stats(web, compare="actor-v1,sha256:v2actor")["comparison"]
    assert [compared[side]["jobs"] for side in ("first", "second")] == [8, 8]
    measures = {measure["measure"]: measure for measure in compared["measures"]}
    better = measures["regeneration_better"]
    assert (better["first"]["value"], better["second"]["value"]) == (0.25, 0.75)
    assert better["difference"]["value"] == 0.5
    assert better["difference"]["low"] < 0.5 < better["difference"]["high"]
    taken = measures["actor.time"]["first"]
    assert taken["low"] <= taken["value"] <= taken["high"]
    assert measures["critique_right"]["difference"] is None

    sent = web.get("/stats?by=metadata&key=team&compare=actor-v1&with=actor-v2&since=")
    assert sent.status_code == 303
    assert sent.location == "/stats?by=metadata.team&compare=actor-v1,actor-v2"
    page = web.get(sent.location).text
    assert "<b>0" not in page
    assert "25 % [" in page
    spaced = web.get("/stats?compare=actor-v1,%20actor-v2").text
    assert "Second: actor-v2, 8 jobs" in " ".join(spaced.split())
    for by in ("hour", "day", "model", "adapter"):
        page = web.get(f"/stats?by={by}")
        assert page.text.count("<svg") == 5
        assert "-1 / 0 / +1" in page.text, "as ratings are entered"
        # Percentiles of tokens are whole, their means need not be.
        percentiles = re.findall(
            r'(?:tokens written|prompt tokens)</th>.*?data-label="Median">([^<]*)<', page.text
        )
        assert percentiles
        assert all(re.fullmatch(r"[\d,]+|–", value) for value in percentiles)
        assert len(page.data) < 60_000


@pytest.mark.usefixtures("hour")
def test_names_of_folders_are_short_and_their_versions_are_told_apart(
    web: Client, database: Database, tokenizer_json: str
) -> None:
    folder = "/srv/a/very/long/path/of/a/team/and/its/models"
    # The same folder, whose files changed between two runs of the worker.
    fill(web, database, tokenizer_json, f"{folder}/july/{{role}}")
    page = web.get("/stats?by=adapter").text
    shown, _, whole = page.partition("<summary>Whole names and digests")
    assert folder not in shown
    for version in VERSIONS:
        digest = f"{version}actor"
        assert f">Actor: july/actor ({digest})<" in shown, "in the table"
        assert f'<option value="sha256:{digest}">Actor: july/actor ({digest})<' in shown
        assert f"<code>sha256:{digest}</code>" in whole
    assert f"{folder}/july/actor<" in whole
    by_model = web.get("/stats?by=model").text
    digests = [group["key"]["model"][7:19] for group in stats(web, by="model")["groups"]]
    for digest in digests:
        assert f">{digest} (july/actor, july/critic, july/regenerator)<" in by_model
        assert re.search(f"<text[^>]*>{digest} [(]july/", by_model), (
            "a label that is cut off has it"
        )
    for name in ("july/actor", f"{folder}/july/actor"):
        assert stats(web, adapter=name)["total"]["jobs"] == 16
    assert stats(web, adapter="sha256:v2actor")["total"]["jobs"] == 8
    compared = " ".join(web.get("/stats?compare=sha256:v1actor,sha256:v2actor").text.split())
    assert "Second: Actor: july/actor (v2actor), 8 jobs." in compared


def test_values_of_metadata_show_what_deceives(web: Client, database: Database) -> None:
    finish(database, ask(web, metadata={"team": "\u202egreen"})["id"])
    count(database)
    page = web.get("/stats?by=metadata.team").text
    assert "⟨RLO⟩green" in page
    assert "\u202e" not in page


def test_what_is_wrong_is_named(web: Client) -> None:
    for query, expected in (
        ("by=week", "invalid_value"),
        ("by=metadata", "invalid_value"),
        ("compare=2026-01-01/2026-01-02,2026-01-03/2026-01-03", "invalid_value"),
        ("compare=2026-01-01/2026-01-02,2026-01-03/2026-01-99", "invalid_value"),
        ("compare=2026-01-01/2026-01-02,actor-v1", "invalid_value"),
        ("color=red", "unknown_parameter"),
        ("by=hour&by=day", "invalid_value"),
        ("since=2026-01-02&until=2026-01-01", "invalid_value"),
        ("by=hour&since=2020-01-01", "range_too_long"),
        ("by=day&since=0001-01-01&until=9999-12-31T23:59:59", "range_too_long"),
        ("compare=one", "invalid_value"),
        ("compare=one,two", "invalid_value"),
        ("model=x", "invalid_value"),
        ("owner=%00", "invalid_value"),
    ):
        assert code(web.get(f"/api/stats?{query}")) == (400, expected), query
        page = web.get(f"/stats?{query}")
        assert page.status_code == 400, query
        assert 'role="alert"' in page.text, query
        assert 'name="since"' in page.text, query
        assert len(re.findall("<(?:input|select)[^>]* aria-invalid", page.text)) >= (
            query.split("=")[0] in ("since", "until", "compare", "by")
        ), query


def test_a_wrong_range_names_both_fields_by_their_labels(web: Client) -> None:
    earlier = "Created since (UTC) must be earlier than Created before (UTC)"
    for query, said in (
        ("since=2026-01-02&until=2026-01-01", earlier),
        ("since=2100-01-01", f"{earlier}, which is now by default"),
        ("since=2020-01-01", "From Created since (UTC) to Created before (UTC) are more than"),
    ):
        page = web.get(f"/stats?{query}").text
        assert said in page.split('role="alert">')[1].split("</p>")[0], query


def test_the_figures_lead_to_the_jobs_that_they_count(web: Client, database: Database) -> None:
    done, worse, wrong = (ask(web, input=f"Question {number}?")["id"] for number in range(3))
    for job_id in (done, worse, wrong):
        finish(database, job_id)
    cancelled = ask(web, input="Another?")["id"]
    web.post(f"/v1/responses/{cancelled}/cancel")
    web.post(f"/api/jobs/{worse}/reviews", json={"regeneration": -1})
    web.post(f"/api/jobs/{wrong}/reviews", json={"critique": -1})
    count(database)
    page = web.get("/stats?owner=anonymous").text
    lists = dict(re.findall(r'<a href="(/jobs\?[^"]*)">([^<]*)</a>', page))
    found = {
        name: set(re.findall(r"href=/jobs/(resp_\w+)", web.get(unescape(url)).text))
        for url, name in lists.items()
    }
    everything = {done, worse, wrong, cancelled}
    assert found == {
        "Completed: 3": everything - {cancelled},
        "Cancelled: 1": {cancelled},
        "Regeneration rated -1: 1": {worse},
        "Critique rated -1: 1": {wrong},
        "Most changed": everything - {cancelled},
        "Longest": everything,
    }
    assert all("owner=anonymous" in unescape(url) for url in lists)


def test_the_owner_is_a_filter_where_there_are_several(web: Client, database: Database) -> None:
    def has_filter(query: str = "") -> bool:
        return 'name="owner"' in web.get(f"/stats{query}").text

    assert not has_filter()
    own = ask(web)["id"]
    web.post(f"/v1/responses/{own}/cancel")
    count(database)
    assert not has_filter()
    assert has_filter("?owner=alice"), "what is given can be changed"
    # As an import has it, or from the time when keys were required.
    for name in ("alice", "zoe"):
        other = ask(web)["id"]
        with database.engine.begin() as connection:
            connection.execute(sa.update(Job).where(Job.id == other).values(owner=name))
        cancellation.cancel(database, name, other)
        count(database)
        assert has_filter()
        assert stats(web, owner=name)["total"]["jobs"] == 1
        web.delete(f"/v1/responses/{other}")
        assert not has_filter()


def test_too_many_jobs_and_too_many_values_of_metadata(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        web.post(f"/v1/responses/{ask(web, metadata={'n': str(number)})['id']}/cancel")
    count(database)
    monkeypatch.setattr(statistics, "MAX_VALUES", 1)
    found = stats(web, by="metadata.n")
    assert (len(found["groups"]), found["others"]["values"], found["others"]["jobs"]) == (1, 3, 3)
    read = statistics.read
    monkeypatch.setattr(
        statistics, "read", lambda *given, **limits: read(*given, max_jobs=3, **limits)
    )
    assert code(web.get("/api/stats?by=metadata.n")) == (400, "too_many_jobs")


def test_the_largest_owners_are_groups_and_the_others_a_sum(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, number in (("ann", 3), ("bob", 2), ("eve", 1)):
        for _ in range(number):
            job_id = ask(web)["id"]
            with database.engine.begin() as connection:
                connection.execute(sa.update(Job).where(Job.id == job_id).values(owner=owner))
            if owner == "bob":
                finish(database, job_id)
            else:
                cancellation.cancel(database, owner, job_id)
    count(database)
    found = stats(web, by="owner")
    assert [(g["key"]["owner"], g["jobs"]) for g in found["groups"]] == [
        ("ann", 3),
        ("bob", 2),
        ("eve", 1),
    ]
    assert found["others"] is None
    assert stats(web, by="owner", model=job_model(web, "bob"))["groups"][0]["jobs"] == 2
    monkeypatch.setattr(statistics, "MAX_VALUES", 1)
    found = stats(web, by="owner")
    assert [group["key"] for group in found["groups"]] == [{"owner": "ann"}]
    others = found["others"]
    assert (others["values"], others["jobs"], others["statuses"]["completed"]) == (2, 3, 2)
    assert others["stages"]["actor"]["time"]["count"] == 2
    page = web.get("/stats?by=owner").text
    assert "And 2 more with fewer jobs." in page
    assert '<option value="owner" selected>' in page


def job_model(web: Client, owner: str) -> str:
    """Return the model of an owner's newest job."""
    model: str = web.get(f"/api/jobs?owner={owner}").json["data"][0]["model"]
    return model


@pytest.mark.usefixtures("hour")
def test_statistics_on_a_terminal(
    web: Client, database: Database, tokenizer_json: str, program: Callable[..., Result]
) -> None:
    fill(web, database, tokenizer_json)
    told, heads, *rows, total = program("stats", "--by", "adapter").output.splitlines()
    assert told.endswith(": 16 jobs ended")
    assert heads.split() == [
        *("adapter", "ended", "completed", "failed", "wait", "duration", "changed"),
        *("-1/0/+1", "rated", "-1"),
    ]
    assert len(rows) == 6
    # Of the first version, six of eight regenerations were rated -1.
    [worse] = [row for row in rows if row.startswith("actor models/actor-v1 v1actor")]
    assert worse.split()[3:6] == ["8", "8", "0"]
    assert worse.split()[-2:] == ["6/0/2", "75.0%"]
    assert total.split()[:2] == ["total", "16"]
    compared = program("stats", "--compare", "actor-v1,actor-v2").output
    assert re.search(r"regeneration_better +25.0% \(n=8\) +75.0% \(n=8\) +50.0% \[", compared)
    for by, label in (
        ("hour", r"20\d\d-\d\d-\d\d \d\d:00Z"),
        ("day", r"20\d\d-\d\d-\d\d"),
        ("owner", "anonymous"),
        ("metadata.team", "<b>0.*"),
        ("model", "[0-9a-f]{8}"),
    ):
        rows = program("stats", "--by", by).output.splitlines()[2:-1]
        assert re.match(rf"{label}  +\d", rows[0]), by
    assert json.loads(program("stats", "--json", "total").output)["total"]["jobs"] == 16
    assert "`by` must be one of" in program("stats", "--by", "week").output


@pytest.mark.usefixtures("hour")
def test_two_periods_are_compared(web: Client, database: Database, tokenizer_json: str) -> None:
    fill(web, database, tokenizer_json)
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    before, this, end = (f"{now + n * HOUR:%Y-%m-%dT%H:%MZ}" for n in (-1, 0, 1))
    compare = f"{before}/{this},{this}/{end}"
    found = stats(web, compare=compare)["comparison"]
    assert [found[side]["jobs"] for side in ("first", "second")] == [8, 8]
    assert found["first"]["name"] == f"{before}/{this}"
    assert len(found["first"]["models"]) == 2
    # A model or an adapter narrows both.
    of_one = stats(web, compare=compare, adapter="actor-v2")["comparison"]
    assert [of_one[side]["jobs"] for side in ("first", "second")] == [4, 4]
    empty = stats(web, compare=f"2020-01-01/2020-01-08,{before}/{end}")["comparison"]
    assert [empty[side]["jobs"] for side in ("first", "second")] == [0, 16]

    page = web.get(f"/stats?by=hour&since={this}&until={end}").text
    [link] = re.findall(r'<a href="([^"]*)">Compare with the hour before</a>', page)
    compared = web.get(unescape(link)).text
    assert f"First: {before} to {this}, 8 jobs." in compared
    assert f"Second: {this} to {end}, 8 jobs." in compared
    assert "Compare with the 30 days before" in web.get("/stats").text


def test_owners_see_their_own_jobs_and_auditors_all(app: Any, tokenizer_json: str) -> None:
    database: Database = app.extensions["helixq"].database
    runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
    workers.register(database, "stats-worker", "localhost", 1, runtime)
    mine, other = program(app), program(app)
    auditor, admin = program(app, Scope.AUDIT), program(app, Scope.ADMIN)
    for client in (mine, mine, other):
        reply = client.post("/v1/responses", json={"input": "Why?", "background": True})
        client.post(f"/v1/responses/{reply.json['id']}/cancel")
    count(database)
    owner = mine.key.owner
    assert stats(mine)["total"]["jobs"] == 2
    assert stats(other)["total"]["jobs"] == 1
    for client in (auditor, admin):
        assert stats(client)["total"]["jobs"] == 3
        assert stats(client, owner=owner, by="metadata.x")["total"]["jobs"] == 2
    for query in ({}, {"by": "hour"}, {"by": "metadata.x"}, {"by": "model"}, {"by": "owner"}):
        found = stats(other, owner=owner, **query)
        assert (found["total"]["jobs"], found["groups"]) == (0, [])
    by_owner = [(owner, 2), (other.key.owner, 1)]
    for client, expected in ((auditor, by_owner), (mine, by_owner[:1]), (other, by_owner[1:])):
        groups = stats(client, by="owner")["groups"]
        assert [(group["key"]["owner"], group["jobs"]) for group in groups] == expected
    assert app.test_client().get("/api/stats").status_code == 401
    assert app.test_client().get("/stats").location.startswith("/login")
