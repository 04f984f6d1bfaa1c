"""Exports: the rows of every shape, streamed in the order of creation, and what a client can get wrong."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from jobs.database import Database
from jobs.enums import Shape
from jobs.protocol.shapes import COLUMNS
from jobs.search.filters import Filters
from jobs.tlog.proof import Proof
from jobs.use_cases import deletion, exporting, indexing, proving
from jobs.use_cases.stages import Output
from tests.conftest import WORKER
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish, services_of
from tests.integration.web.exports import FINISHED, end, erase, from_csv, lines, parquet, review


@pytest.fixture
def web(emptied_web: Client) -> Client:
    """One client for all tests: to make one takes longer than they do."""
    return emptied_web


def test_a_history_has_everything_and_its_proof(web: Client, database: Database) -> None:
    done, waiting = end(web, database), ask(web)["id"]
    seal(database)
    first, second = lines(web)
    told = web.get(f"/api/jobs/{done}").json
    proof = first.pop("proof")
    assert first.pop("origin_proof") is None
    for proofs in ("review_proofs", "erasure_proofs"):
        assert first.pop(proofs) == first.pop(proofs.replace("_", "_origin_")) == []
    assert first == {
        name: value for name, value in told.items() if name not in ("replay", "replays")
    }
    proved = Proof.parse(proof)
    assert proved.extra is not None
    proved.verify(proved.extra, proving.list_keys(database))
    assert (second["id"], second["status"], second["proof"]) == (waiting, "queued", None)


def test_a_preference_is_the_final_text_over_the_draft(web: Client, database: Database) -> None:
    done = end(web, database)
    same = Output("Same.", [5], 20, 3, "stop", 1024, 0.0)
    end(web, database, same, FINISHED[1], same)
    cut = replace(FINISHED[2], finish_reason="length")
    end(web, database, *FINISHED[:2], cut)
    ask(web)
    [pair] = lines(web, "shape=preference")
    attempts = web.get(f"/api/jobs/{done}").json["attempts"]
    assert pair["prompt"] == attempts[0]["prompt"]
    assert (pair["chosen"], pair["rejected"]) == ("@SUM(1)", "=1+1")
    assert (pair["critique"], pair["chosen_role"]) == ("Wrong: 2\u2028é\0.", "regenerator")
    assert (pair["job_id"], pair["regeneration_rating"], pair["note"]) == (done, None, None)
    assert list(pair) == list(COLUMNS[Shape.PREFERENCE])


def test_reviews_are_columns_and_a_bad_rating_turns_a_preference_round(
    web: Client, database: Database
) -> None:
    good, bad, later = (end(web, database) for _ in range(3))
    review(web, good, critique=-1, regeneration=1, note="First.", tags=["a"])
    review(web, good, critique=1, note="Then.", corrected_answer="=SUM(1)")
    review(web, bad, regeneration=1)
    review(web, bad, regeneration=-1, corrected_answer="2.")
    review(web, bad, critique=0)
    review(web, later, regeneration=-1)
    review(web, later, regeneration=0, reviewer="bob")
    pairs = {row["job_id"]: row for row in lines(web, "shape=preference")}
    names = ("critique_rating", "regeneration_rating", "corrected_answer", "tags", "note")
    assert [pairs[good][name] for name in names] == [1, 1, "=SUM(1)", ["a"], "Then."]
    assert [pairs[bad][name] for name in names] == [0, -1, "2.", None, None]
    told = ("chosen_role", "chosen", "rejected")
    assert [pairs[good][name] for name in told] == ["regenerator", "@SUM(1)", "=1+1"]
    assert [pairs[bad][name] for name in told] == ["actor", "=1+1", "@SUM(1)"]
    assert pairs[later]["chosen_role"] == "regenerator"
    for job_id in (good, bad, later):
        rating = web.get(f"/api/jobs/{job_id}").json["rating"]
        assert pairs[job_id]["regeneration_rating"] == rating
    for row in lines(web, "shape=sft"):
        assert [row[name] for name in names] == [pairs[row["job_id"]][name] for name in names]


def test_erased_texts_are_no_examples(web: Client, database: Database) -> None:
    """Of a pair, the critique alone may be missing."""
    asked, critique, final, noted, all_of_it = ids = [end(web, database) for _ in range(5)]
    for job_id in ids:
        review(web, job_id, regeneration=-1, note="Mine.", tags=["x"], corrected_answer="2.")
    seal(database), seal(database)
    erase(web, asked, "/question")
    erase(web, critique, "/attempts/1/output")
    erase(web, final, "/attempts/2/output")
    texts = ("note", "tags", "corrected_answer")
    erase(web, noted, *(f"/reviews/0/{name}" for name in texts))
    erase(web, all_of_it)
    pairs = {row["job_id"]: row for row in lines(web, "shape=preference")}
    assert list(pairs) == [critique, noted]
    assert (pairs[critique]["critique"], pairs[critique]["note"]) == (None, "Mine.")
    assert [pairs[noted][name] for name in texts] == [None, None, None]
    assert pairs[noted]["regeneration_rating"] == -1
    roles = [(row["job_id"], row["role"]) for row in lines(web, "shape=sft")]
    assert roles == [
        (critique, "actor"),
        (final, "actor"),
        (final, "critic"),
        *((noted, role) for role in ("actor", "critic", "regenerator")),
    ]


def test_a_history_says_which_texts_were_erased(web: Client, database: Database) -> None:
    job_id = end(web, database, metadata={"team": "blue"})
    review(web, job_id, regeneration=1, note="Mine.")
    seal(database), seal(database)
    erase(web, job_id)
    [row] = lines(web)
    told = web.get(f"/api/jobs/{job_id}").json
    for name in ("question", "metadata", "attempts", "reviews", "erasures", "erased_at", "rating"):
        assert row[name] == told[name]
    assert row["question"]["erased"] is True
    assert row["reviews"][0]["note"]["erased"] is True
    [stored] = parquet(web.get("/api/jobs/export?format=parquet").data)
    [cells] = from_csv(web.get("/api/jobs/export?format=csv").data)
    # A column of texts has none; what is JSON says it.
    assert (stored["question"], cells["question"]) == (None, "")
    for values in (stored, cells):
        for name in ("metadata", "attempts", "reviews", "erasures"):
            assert json.loads(values[name]) == row[name]
    assert (stored["rating"], cells["rating"]) == (1, "1")
    assert stored["erased_at"] == cells["erased_at"] == row["erased_at"]


def test_a_text_that_a_stop_string_may_have_cut_is_no_example(
    web: Client, database: Database
) -> None:
    end(web, database, stop="\n")
    assert lines(web, "shape=preference") == []
    assert [row["role"] for row in lines(web, "shape=sft")] == ["actor", "critic"]
    assert [row["stop"] for row in lines(web)] == [["\n"]]


def test_each_role_is_shown_its_prompt_and_its_text(web: Client, database: Database) -> None:
    done = end(web, database)
    attempts = web.get(f"/api/jobs/{done}").json["attempts"]
    rows = lines(web, "shape=sft")
    assert [(r["role"], r["prompt"], r["completion"]) for r in rows] == [
        (a["role"], a["prompt"], a["output"]) for a in attempts
    ]
    [critic] = lines(web, "shape=sft&role=critic")
    assert critic == rows[1]
    assert list(critic) == list(COLUMNS[Shape.SFT])


def test_each_review_is_a_row(web: Client, database: Database) -> None:
    job_id = end(web, database)
    end(web, database)
    review(web, job_id, critique=1, reviewer="Ada", note="Fine.", corrected_answer="2")
    review(web, job_id, regeneration=-1, reviewer="Bo", tags=["unit", "sign"])
    first, second = lines(web, "shape=review")
    assert list(first) == list(COLUMNS[Shape.REVIEW])
    stored = web.get(f"/api/jobs/{job_id}").json
    for number, row in enumerate((first, second)):
        its = stored["reviews"][number]
        assert (row["job_id"], row["number"], row["review_id"]) == (job_id, number, its["id"])
        assert row["reviewed_at"] == its["created_at"]
        assert (row["question"], row["answer"]) == (stored["question"], FINISHED[2].text)
    assert (first["reviewer"], first["critique_rating"], first["note"]) == ("Ada", 1, "Fine.")
    assert (first["corrected_answer"], first["regeneration_rating"]) == ("2", None)
    assert (second["reviewer"], second["regeneration_rating"]) == ("Bo", -1)
    assert (second["tags"], second["note"]) == (["unit", "sign"], None)
    seal(database)
    erase(web, job_id)
    for row in lines(web, "shape=review"):
        assert {row[name] for name in ("reviewer", "note", "tags", "question", "answer")} == {None}


def test_a_text_that_was_cut_is_no_example(web: Client, database: Database) -> None:
    end(web, database, *FINISHED[:2], replace(FINISHED[2], finish_reason="length"))
    assert [row["role"] for row in lines(web, "shape=sft")] == ["actor", "critic"]


def test_jobs_come_in_the_order_of_creation_with_the_filters_of_the_list(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", {"with_proofs": False, "size": 2})
    ids = [ask(web)["id"] for _ in range(5)]
    finish(database, ids[2])
    assert [row["id"] for row in lines(web)] == ids
    assert [row["id"] for row in lines(web, "status=queued")] == [*ids[:2], *ids[3:]]
    assert lines(web, "owner=somebody") == []
    assert lines(web, "until=2020-01-01") == []
    assert [row["id"] for row in lines(web, "since=2020-01-01&owner=anonymous")] == ids


def test_an_export_has_the_jobs_that_the_list_finds(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", {"with_proofs": False, "size": 2})
    ids = [
        end(
            web,
            database,
            input=f"Question {n} about {'foxes' if n % 3 else 'dogs'}?",
            metadata={"team": "blue" if n % 2 else "red"},
        )
        for n in range(7)
    ]
    ask(web, input="Foxes that wait?")
    cancelled = ask(web)["id"]
    web.post(f"/v1/responses/{cancelled}/cancel")
    review(web, ids[4], regeneration=1)
    indexing.put(database, indexing.prepare(database))
    worker = quote(web.get(f"/api/jobs/{ids[0]}").json["attempts"][0]["worker"]["id"])
    model = web.get(f"/api/jobs/{ids[0]}").json["model"]
    for query, count in (
        ("q=foxes", 4),
        ("q=foxes+OR+dogs&metadata.team=blue", 3),
        ("metadata.team=red&rating=1", 1),
        ("rating=1", 1),
        (f"worker={worker}&model={model}", 7),
        ("adapter=nobody", 0),
        ("min_attempts=2", 0),
        ("min_changed=0.1&max_duration=1000", 7),
        ("min_duration=1000000", 0),
        ("status=completed,cancelled", 8),
        ("status=completed,cancelled&q=foxes&owner=anonymous", 4),
        ("q=foxes&owner=somebody", 0),
        ("q=foxes&until=2020-01-01", 0),
    ):
        found = [row["id"] for row in lines(web, query)]
        listed = web.get(f"/api/jobs?{query}&order=asc&limit=100").json["data"]
        assert found == [job["id"] for job in listed], query
        assert len(found) == count, query
    assert {row["job_id"] for row in lines(web, "shape=sft&q=foxes&role=actor")} == {
        ids[n] for n in (1, 2, 4, 5)
    }


def test_a_search_ends_with_the_job_that_was_the_newest_when_it_began(
    web: Client, database: Database
) -> None:
    def more(count: int) -> list[str]:
        new = [end(web, database) for _ in range(count)]
        indexing.put(database, indexing.prepare(database))
        return new

    ids = more(4)
    filters = Filters(worker=WORKER)
    pages = exporting.pages(database, None, filters, size=2)
    seen = [exported.job.id for exported in next(pages)]
    deletion.delete(database, None, seen[-1])  # The place where the next page begins.
    more(1)
    seen += [exported.job.id for page in pages for exported in page]
    assert seen == ids


def test_an_export_ends_with_the_job_that_was_the_newest_when_it_began(
    web: Client, database: Database
) -> None:
    ids = [ask(web)["id"] for _ in range(4)]
    pages = exporting.pages(database, None, Filters(), size=2)
    seen = [exported.job.id for exported in next(pages)]
    deletion.delete(database, None, seen[-1])  # The place where the next page begins.
    ask(web)
    seen += [exported.job.id for page in pages for exported in page]
    assert seen == ids


def test_an_export_has_no_ranges(web: Client) -> None:
    """Readers such as fsspec ask with HEAD whether they may seek."""
    ask(web)
    path = "/api/jobs/export"
    for reply in (web.head(path), web.get(path, headers={"Range": "bytes=0-3"})):
        assert (reply.status_code, reply.headers["Accept-Ranges"]) == (200, "none")
        assert "Content-Length" not in reply.headers
    assert json.loads(reply.text)["status"] == "queued"


def test_a_reader_holds_no_connection_between_pages(web: Client, database: Database) -> None:
    for _ in range(3):
        ask(web)
    pages = exporting.pages(database, None, Filters(), size=1)
    next(pages)
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


def test_a_client_that_breaks_off_ends_it(web: Client, database: Database) -> None:
    end(web, database)
    waiter = services_of(web).waiter
    free = waiter._slots._value
    reply = web.get("/api/jobs/export", buffered=False)
    assert waiter._slots._value == free - 1
    reply.close()
    assert waiter._slots._value == free
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0


def test_a_server_that_stops_does_not_pretend_that_the_file_is_whole(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    end(web, database)
    monkeypatch.setattr(services_of(web).waiter, "stopping", lambda: True)
    with pytest.raises(ConnectionAbortedError):
        web.get("/api/jobs/export")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("format=xml", "`format` must be one of: jsonl, csv, parquet"),
        ("shape=odd", "`shape` must be one of: history, preference, sft"),
        ("shape=sft&role=judge", "`role` must be one of: all, actor, critic, regenerator"),
        ("role=actor", "`role` needs the shape `sft`"),
        ("compression=bzip2", "`compression` must be one of: none, gzip, zstd"),
        ("color=red", "`color`"),
        ("status=odd", "`status`"),
        ("since=x", "`since`"),
        ("limit=5", "There is no parameter `limit`"),
        ("q=!!", "word"),
        ("min_attempts=x", "`min_attempts`"),
        ("status=failed&status=queued", "`status` must be given once"),
    ],
)
def test_a_wrong_parameter_is_named(web: Client, query: str, named: str) -> None:
    reply = web.get(f"/api/jobs/export?{query}")
    assert (reply.status_code, reply.content_type) == (400, "application/problem+json")
    assert named in reply.json["detail"]


@pytest.mark.parametrize(
    ("query", "package"), [("format=parquet", "pyarrow"), ("compression=zstd", "zstandard")]
)
def test_a_package_that_is_missing_is_named(
    web: Client, monkeypatch: pytest.MonkeyPatch, query: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    reply = web.get(f"/api/jobs/export?{query}")
    assert (reply.status_code, reply.json["code"]) == (400, "not_installed")
    assert f"needs {package}" in reply.json["detail"]
    assert "pip install 'helixq[export]'" in reply.json["detail"]
    assert lines(web) == []
