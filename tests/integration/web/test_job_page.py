"""A job's page: answer first, changes, evidence, record, actions, and what it costs."""

from __future__ import annotations

import datetime as dt
import re
from html import unescape
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Attempt, Job, LogTile, Worker, WorkerState
from jobs.use_cases import stages, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.tampering import drop_triggers
from tests.integration.web.client import Client, ask, finish
from web import summary_cache

DRAFT, CRITIQUE = "The sum is **five**.", "Four, not five."
FINAL = "The sum is **four**.\n\n[proof](javascript:alert(1)) <b>x</b>"


def answer(database: Database, job_id: str, *texts: str) -> None:
    """Run a job's stages with these texts."""
    for index, text in enumerate(texts):
        claim = stages.claim(database, job_id, index, WORKER, job_timeout=60)
        assert claim is not None
        stages.record(database, claim, Output(text, [len(text)], 20, 3, "stop", 1024, 0.0))


def part(page: str, name: str) -> str:
    """Return the part of a page with an id that the script updates, up to the next one."""
    return re.split("<[^>]* data-live", page.split(f'id="{name}" data-live>')[1])[0]


def text_of(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", html))


def job_of(web: Client, reply: Any) -> dict[str, Any]:
    """Return the history of the job whose page a reply leads to."""
    history: dict[str, Any] = web.get(
        reply.headers["Location"].replace("/jobs/", "/api/jobs/")
    ).json
    return history


def test_the_answer_comes_first_and_changes_are_marked(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    assert "Final answer" not in web.get(f"/jobs/{job_id}").text
    answer(database, job_id, DRAFT, CRITIQUE, FINAL)
    page = web.get(f"/jobs/{job_id}").text
    assert page.index("Final answer") < page.index("Answer, critique and regeneration")
    assert "<p>The sum is <strong>four</strong>.</p>" in page
    assert "[proof](javascript:alert(1)) &lt;b&gt;x&lt;/b&gt;</p>" in page
    for form in ("<del>**five**.</del>", "<ins>**four**.", "−1", "+3"):
        assert form in page
    inline = web.get(f"/jobs/{job_id}?diff=inline").text
    assert "<del>**five**.</del><ins>**four**." in inline
    assert "<del>" not in web.get(f"/jobs/{job_id}?diff=off").text
    assert "<strong>" not in web.get(f"/jobs/{job_id}?text=exact").text
    # Whatever the address says otherwise is the default.
    assert web.get(f"/jobs/{job_id}?diff=x&text=y&verify=2").text.count("<del>") == 1


def test_each_round_shows_what_it_removed_beside_the_next(web: Client, database: Database) -> None:
    job_id = ask(web, rounds=2)["id"]
    answer(database, job_id, "one two three", "No.", "one four three five", "No.", "one four six")
    page = web.get(f"/jobs/{job_id}?diff=side").text
    texts = [
        re.sub(r"</?bdi[^>]*>", "", text)
        for text in re.findall(r'<div class="text" id="text-[^>]*>(.*?)</div>', page)
    ]
    assert texts[0] == "one <del>two </del>three"
    # Of the words that the second round removed, one came with the first.
    assert texts[2] == "one <ins>four </ins><del>three </del><ins><del>five</del></ins>"
    assert texts[4] == "one four <ins>six</ins>"
    # On a narrow screen the last one that has begun is shown, and the others behind tabs.
    tabs = re.findall(r'<input class="tab"[^>]*?(checked)?><label[^>]*>([^<]*)<', page)
    assert tabs == [
        ("", "Answer"),
        ("", "Critique 1"),
        ("", "Regeneration 1"),
        ("", "Critique 2"),
        ("checked", "Regeneration 2"),
    ]


def test_a_text_that_ended_at_a_stop_string_says_so(web: Client, database: Database) -> None:
    job_id = ask(web, stop=["\n\n", "Q:"])["id"]
    answer(database, job_id, DRAFT, CRITIQUE)
    claim = stages.claim(database, job_id, 2, WORKER, job_timeout=60)
    assert claim is not None
    stages.record(database, claim, Output("Four.", [5], 20, 3, "stop_string", 1024, 0.0))
    page = text_of(web.get(f"/jobs/{job_id}").text)
    assert r'The text ends before the first of the stop strings "\n\n", "Q:"' in page
    assert page.count("ended at a stop string") == 1
    assert page.count("Finished at a stop string.") == 2
    # To clients it is a whole text.
    body = web.get(f"/v1/responses/{job_id}").json
    assert (body["status"], body["output"][-1]["status"]) == ("completed", "completed")
    events = web.get(f"/v1/responses/{job_id}?stream=true").text
    assert '"status":"incomplete"' not in events
    seal(database)
    assert web.post(f"/api/jobs/{job_id}/erase", json={"texts": ["/stop"]}).status_code == 200
    page = text_of(web.get(f"/jobs/{job_id}").text)
    assert "The text ends before a stop string, which was erased." in page
    assert "Q:" not in page
    assert 'name="stop" value=""' in web.get(f"/?from={job_id}").text


def test_texts_that_deceive_are_marked_everywhere(
    web: Client, database: Database, tokenizer_json: str
) -> None:
    text = "evil \u202etxt.exe"
    runtime = Runtime({"engine": text, "base": {"name": text}}, 4096, tokenizer_json)
    workers.set_runtime(database, WORKER, runtime)
    job_id = ask(web, input=text, metadata={"a": text})["id"]
    answer(database, job_id, text, text, text)
    pages = [
        web.get(path).text for path in ("/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}?text=exact")
    ]
    pages.append(web.get(f"/compare?left={job_id}&right={job_id}").text)
    pages.append(web.get(f"/jobs/{job_id}/attempts/0").text)
    for page in pages:
        assert "\u202e" in page
        # Each override is isolated within its mark.
        assert page.count("\u202e") == page.count('data-name="RLO"')
        assert page.count("\u202e") == page.count("\u202e</bdi>")
    assert "<title>Completed: evil ⟨RLO⟩txt.exe" in pages[1]
    assert 'data-name="ZWSP"' not in pages[1]
    other = ask(web, input="a\u200bb")["id"]
    assert 'data-name="ZWSP"' in web.get(f"/jobs/{other}?invisible=1").text


def test_the_evidence_has_what_each_attempt_was_given(web: Client, database: Database) -> None:
    runtime = Runtime({"cuda": {"graphs": True}, "quantization": None, "rank": 1}, 4096, "{}")
    workers.set_runtime(database, WORKER, runtime)
    job_id = ask(web, input="Why <b>?", seed=7)["id"]
    lost = stages.claim(database, job_id, 0, WORKER, job_timeout=60)
    assert lost is not None
    stages.release(database, lost, "the worker shut down")
    long = "word " * 20_000
    answer(database, job_id, long, "Too long.", "Short.")
    page = web.get(f"/jobs/{job_id}").text
    history = web.get(f"/api/jobs/{job_id}").json
    assert "Answer, attempt 2: Finished." in page
    assert "Released: the worker shut down" in page
    assert 'fill="url(#hatch)"' in page
    for attempt in history["attempts"]:
        assert str(attempt["seed"]) in page
        assert attempt["started_at"] in page
        assert attempt["worker"]["model"] in page
    facts = dict(re.findall("<dt>([^<]*)</dt><dd[^>]*>([^<]*)</dd>", page))
    assert [facts[name] for name in ("cuda graphs", "quantization", "rank")] == ["yes", "none", "1"]
    # The prompts with the long text are on pages of their own.
    assert len(re.findall("(?:word ){20000}", page)) == 1
    assert len(page) < len(long) + 45_000
    second = web.get(f"/jobs/{job_id}/attempts/2")
    assert text_of(second.text).count(history["attempts"][2]["prompt"]) == 1
    assert web.get(f"/jobs/{job_id}/attempts/4").status_code == 404


def test_verify_says_whether_the_record_is_the_logs(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)

    def verdict() -> str:
        return " ".join(text_of(part(web.get(f"/jobs/{job_id}?verify=1").text, "record")).split())

    assert "Not sealed yet" in verdict()
    seal(database)
    web.post(f"/jobs/{job_id}/review", data={"critique": "1"})
    assert "✓ Verified" in verdict()
    assert "1 review or erasure is not sealed yet" in verdict()
    seal(database)
    assert "The record and 1 review or erasure are as the log" in verdict()
    assert "entry 0" in verdict()
    assert web.get(f"/api/jobs/{job_id}").json["digest"] in verdict()
    with database.write() as connection:
        drop_triggers(connection)
        connection.execute(
            sa.update(Attempt).where(Attempt.stage_index == 1).values(output="Fine.")
        )
    assert "✗ Does not match. The job was changed: entry 0 differs." in verdict()
    with database.write() as connection:
        connection.execute(sa.update(LogTile).values(hashes=b""))
    assert "The log itself does not fit: tile 0 of level 0 is too short" in verdict()


def test_where_a_job_stands(web: Client, database: Database) -> None:
    def standing(job_id: str) -> str:
        page = web.get(f"/jobs/{job_id}").text
        news = web.get(f"/jobs/{job_id}/news").json["sentence"]
        # A second may pass between them.
        assert re.sub(r"\d+ s\b", "", news) in re.sub(r"\d+ s\b", "", text_of(page))
        return str(news)

    first, second = ask(web)["id"], ask(web)["id"]
    now = dt.datetime.now(dt.UTC)
    assert re.fullmatch(r"No worker is ready \(last seen \d\d:\d\d UTC\)\.", standing(first))
    workers.set_state(database, WORKER, WorkerState.READY)
    assert standing(first) == "1st of 2; 1 worker ready."
    assert standing(second) == "2nd of 2; 1 worker ready."
    urgent = ask(web, priority=9)["id"]
    assert standing(urgent) == "1st of 3; 1 worker ready."
    for _ in range(3):
        ended = ask(web, priority=0)["id"]
        finish(database, ended)
    assert re.fullmatch(r"3rd of 3, about \d+ s; 1 worker ready\.", standing(second))

    claim = stages.claim(database, first, 0, WORKER, job_timeout=60)
    assert claim is not None
    assert re.fullmatch(r"Answer on localhost, last heartbeat \d+ s ago\.", standing(first))
    news = web.get(f"/jobs/{first}/news").json
    assert [stage["state"] for stage in news["stages"].values()] == [
        "writing",
        "waiting",
        "waiting",
    ]
    with database.write() as connection:
        connection.execute(sa.update(Worker).values(seen_at=now - dt.timedelta(seconds=60)))
        connection.execute(sa.update(Job).where(Job.id == first).values(lease_expires_at=now))
    assert re.fullmatch(
        r"The worker localhost is silent: its last heartbeat was \d+ s ago. It is about to be tried again.",
        standing(first),
    )
    states = [s["state"] for s in web.get(f"/jobs/{first}/news").json["stages"].values()]
    assert states == ["worker silent", "waiting", "waiting"]
    assert web.get(f"/jobs/{ended}/news").json["sentence"] == ""


def test_actions_lead_back_to_the_page(web: Client, database: Database) -> None:
    stop = ["\n\n", ' "Q" ', "\\\0\u202e", "☕"]
    job_id = ask(
        web, input="Why?\nHow?", seed=5, temperature=0, instructions="Be brief.", stop=stop
    )["id"]
    assert "Replay" not in web.get(f"/jobs/{job_id}").text
    answer(database, job_id, DRAFT, CRITIQUE, FINAL)
    page = web.get(f"/jobs/{job_id}").text

    again = web.get(unescape(re.findall(r'href="(/\?from=[^"]*)"', page)[0])).text
    for field in (
        'name="seed" value="5"',
        'name="temperature" value="0"',
        "\nBe brief.<",
        "\nWhy?\nHow?<",
    ):
        assert field in again
    [given] = re.findall(r'name="stop" value="([^"]*)"', again)
    asked_again = web.post("/", data={"question": "Why?", "stop": unescape(given)})
    assert job_of(web, asked_again)["stop"] == stop
    for name, value, reason in (
        ("temperature", "hot", "Invalid type for Temperature: expected a number."),
        ("stop", "hot", "Write each of the stop strings in straight quotation marks"),
        ("stop", '"hot", 5', "Write each of the stop strings in straight quotation marks"),
        ("stop", '"a","b","c","d","e"', "Invalid value for Stop strings: it has more than 4"),
    ):
        refused = web.post("/", data={"question": "Why?", name: value, "seed": "3"})
        assert refused.status_code == 400
        [error] = re.findall(r'id="error" role="alert">(.*?)</p>', refused.text)
        assert reason in unescape(error)
        [wrong] = re.findall(r"<[^>]*aria-invalid[^>]*>", refused.text)
        assert f'name="{name}" value="{value}"' in unescape(wrong)
        assert refused.text.count("autofocus") == wrong.count("autofocus") == 1
    changed = web.post(
        "/", data={"question": "Why?", "temperature": "0.5", "seed": "", "rounds": "2"}
    )
    asked = job_of(web, changed)
    assert (asked["temperature"], asked["rounds"], asked["top_k"]) == (0.5, 2, 50)

    replayed = web.post(f"/jobs/{job_id}/replay")
    assert replayed.status_code == 303
    replay_id = replayed.headers["Location"].rsplit("/", 1)[1]
    answer(database, replay_id, DRAFT, CRITIQUE, "The sum is **4**.")
    replay = text_of(part(web.get(f"/jobs/{replay_id}").text, "replay"))
    assert (
        "The texts differ, first in the output of stage 3 (regenerator), at character 14." in replay
    )
    same_id = web.post(f"/jobs/{job_id}/replay").headers["Location"].rsplit("/", 1)[1]
    original = " ".join(text_of(part(web.get(f"/jobs/{job_id}").text, "replay")).split())
    assert re.search(
        r"Replays of this job .* Queued not compared yet .* ✗ The texts differ Compare", original
    )
    told = web.get(f"/api/jobs/{job_id}").json["replays"]
    assert [(each["id"], each["status"], each["identical"]) for each in told] == [
        (same_id, "queued", None),
        (replay_id, "completed", False),
    ]
    assert web.get(f"/api/jobs/{replay_id}").json["replays"] == []
    comparison = web.get(f"/compare?left={job_id}&right={replay_id}").text
    assert "Nothing differs" in comparison
    assert comparison.count("✓ The texts are the same.") == 2
    assert comparison.count("✗ The texts differ.") == 1
    assert "<ins>**4**.</ins>" in comparison

    review = {
        "critique": "1",
        "regeneration": "-1",
        "note": "a\r\nb",
        "tags": "x, y",
        "reviewer": "Ann",
    }
    saved = web.post(f"/jobs/{job_id}/review", data=review)
    assert saved.headers["Location"] == f"/jobs/{job_id}#reviews"
    [stored] = web.get(f"/api/jobs/{job_id}/reviews").json["data"]
    assert (stored["critique"], stored["regeneration"], stored["note"]) == (1, -1, "a\nb")
    assert (stored["tags"], stored["reviewer"]) == (["x", "y"], "Ann")
    assert "Ann" in web.get(f"/jobs/{job_id}").text
    assert web.post(f"/jobs/{job_id}/review", data={"note": " "}).status_code == 400

    file = web.get(f"/jobs/{job_id}/markdown")
    assert file.mimetype == "text/markdown"
    assert "attachment" in file.headers["Content-Disposition"]
    for text in ("Why?\nHow?", DRAFT, CRITIQUE, FINAL):
        assert f"\n\n{text}\n" in file.text


def test_erased_texts_stay_away(web: Client, database: Database) -> None:
    job_id = ask(web, input="A secret?")["id"]
    answer(database, job_id, "secret draft", "secret critique", "secret final")
    web.post(f"/jobs/{job_id}/review", data={"note": "secret note"})
    seal(database)
    assert "Ask again with changes" in web.get(f"/jobs/{job_id}").text
    assert web.post(f"/api/jobs/{job_id}/erase", json={"texts": ["/system"]}).status_code == 200
    assert "Ask again with changes" in web.get(f"/jobs/{job_id}").text
    assert "Texts of that job that were erased are left out." in web.get(f"/?from={job_id}").text
    assert web.post(f"/api/jobs/{job_id}/erase", json={"texts": "all"}).status_code == 200
    page = web.get(f"/jobs/{job_id}?verify=1").text
    assert "secret" not in page
    assert "Ask again with changes" not in page, "there is no question to ask"
    assert "Erased question" in page
    assert "✓ Verified" in page
    assert re.search(
        r"Erased[-:.\dTZ]+ by anonymous: /question, .*, /reviews/0/note\n", text_of(page)
    )
    for path in ("attempts/0", "markdown"):
        assert "secret" not in web.get(f"/jobs/{job_id}/{path}").text
    assert "secret" not in web.get(f"/compare?left={job_id}&right={job_id}").text
    assert "secret" not in web.get(f"/?from={job_id}").text


def test_an_imported_job_says_where_it_ended(web: Client, database: Database) -> None:
    first, other = ask(web)["id"], ask(web)["id"]
    finish(database, first)
    finish(database, other)
    seal(database)
    assert "Imported from" not in web.get(f"/jobs/{other}").text
    proof = web.get(f"/api/jobs/{first}/proof").text
    with database.write() as connection:
        connection.execute(sa.update(Job).where(Job.id == other).values(origin_proof=proof))
    origin = web.get(f"/api/jobs/{other}").json["origin"]
    page = web.get(f"/jobs/{other}").text
    assert f"Imported fromentry {origin['index']} of {origin['log']} (proof)" in text_of(page)
    (path,) = re.findall(r'href="(/api/jobs/[^"]*/proof[?][^"]*)"', page)
    assert web.get(unescape(path)).text == proof


def test_a_page_is_small_and_costs_few_queries(
    web: Client, database: Database, selects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The footer of all pages costs three queries every few seconds: here once.
    monkeypatch.setattr(summary_cache, "MAX_AGE", 3600)
    web.get("/jobs")
    small, large = ask(web)["id"], ask(web, rounds=5)["id"]
    assert selects(lambda: web.get(f"/jobs/{small}")) <= 12
    assert selects(lambda: web.get(f"/jobs/{small}/news")) <= 7
    finish(database, small)
    finish(database, large, count=11)
    for number in range(3):
        web.post(f"/jobs/{large}/review", data={"note": str(number)})
    seal(database)
    counts = [selects(lambda job=job: web.get(f"/jobs/{job}?verify=1")) for job in (small, large)]
    assert counts[0] == counts[1] <= 19
    page = web.get(f"/jobs/{small}")
    addresses = {*re.findall(r'(?:href|src)="(/assets/[^"]*)"', page.text)}
    assert len(addresses) == 4
    size = len(page.data)
    for address in {*addresses, "/assets/keys.js", "/assets/times.js"}:
        with web.get(address) as file:
            size += len(file.data)
    assert size <= 60_000
