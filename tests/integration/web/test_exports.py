"""Exports: every shape in every format, streamed in the order of creation, and what a client can get wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import zstandard

from jobs.database import Database
from jobs.enums import Shape
from jobs.formats.compression import Compression, decompressed
from jobs.formats.writing import FileKind, Format, kind_of, to_json
from jobs.models import Job, Scope
from jobs.protocol.shapes import COLUMNS
from jobs.tlog.proof import Proof
from jobs.use_cases import deletion, exporting, indexing, keys, proving, stages, workers
from jobs.use_cases.stages import Output
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER, new_database
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish, services_of, serving
from tests.integration.web.with_keys import program
from tests.servers import RedisServer
from web import key_cache


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    tokenizer_json: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """A client of one application on each database: to make one takes longer than these tests."""
    url = new_database(request.param, request, tmp_path_factory.mktemp("db"))
    with serving(url, redis_server.url) as client:
        runtime = Runtime({"engine": "none"}, 4096, tokenizer_json)
        workers.register(services_of(client).database, WORKER, "localhost", 1, runtime)
        yield client


@pytest.fixture
def web(served: Client) -> Client:
    """The client, with no jobs in the database."""
    with services_of(served).database.write() as connection:
        connection.execute(sa.delete(Job))
    return served


FINISHED = [
    Output(text, [len(text)], 20, 3, "stop", 1024, 0.0)
    for text in ("=1+1", "Wrong: 2\u2028é\0.", "@SUM(1)")
]


def end(web: Client, database: Database, *outputs: Output, **body: Any) -> str:
    """Ask, and run the stages with these texts; return the job's id."""
    job_id: str = ask(web, **body)["id"]
    for index, output in enumerate(outputs or FINISHED):
        claim = stages.claim(database, job_id, index, WORKER, job_timeout=60)
        assert claim is not None
        stages.record(database, claim, output)
    return job_id


def review(web: Client, job_id: str, **verdict: Any) -> None:
    reply = web.post(f"/api/jobs/{job_id}/reviews", json=verdict)
    assert reply.status_code == 201, reply.text


def erase(web: Client, job_id: str, *texts: str) -> None:
    reply = web.post(f"/api/jobs/{job_id}/erase", json={"texts": texts or "all"})
    assert reply.status_code == 200, reply.text


def lines(web: Client, query: str = "") -> list[dict[str, Any]]:
    reply = web.get(f"/api/jobs/export?{query}")
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.data.splitlines()]


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
    filters = exporting.Filters(worker=WORKER)
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
    pages = exporting.pages(database, None, exporting.Filters(), size=2)
    seen = [exported.job.id for exported in next(pages)]
    deletion.delete(database, None, seen[-1])  # The place where the next page begins.
    ask(web)
    seen += [exported.job.id for page in pages for exported in page]
    assert seen == ids


def test_a_reader_holds_no_connection_between_pages(web: Client, database: Database) -> None:
    for _ in range(3):
        ask(web)
    pages = exporting.pages(database, None, exporting.Filters(), size=1)
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


# Formats.


def parquet(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def from_csv(data: bytes) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.mark.parametrize("shape", Shape)
def test_all_formats_say_the_same(web: Client, database: Database, shape: Shape) -> None:
    reviewed = end(web, database, metadata={"team": "=cmd()"})
    end(web, database)
    seal(database)
    review(web, reviewed, critique=-1, regeneration=-1, tags=["=a", "b"], note="@SUM(2)")
    rows = lines(web, f"shape={shape}")
    assert len(rows) in (2, 6)
    stored = parquet(web.get(f"/api/jobs/export?shape={shape}&format=parquet").data)
    cells = from_csv(web.get(f"/api/jobs/export?shape={shape}&format=csv").data)
    assert len(stored) == len(cells) == len(rows)
    for row, typed, texts in zip(rows, stored, cells, strict=True):
        assert list(row) == list(typed) == list(texts) == list(COLUMNS[shape])
        for name, kind in COLUMNS[shape].items():
            value, cell = typed[name], texts[name]
            if kind == "json":
                assert (None if value is None else json.loads(value)) == row[name]
                assert (json.loads(cell) if cell else None) == row[name]
            else:
                assert value == row[name]
                written = "" if value is None else str(value)
                if kind == "texts" and value is not None:
                    written = to_json(value)
                if kind == "boolean":
                    written = written.lower()
                assert cell.removeprefix("'") == written


@pytest.mark.parametrize("shape", Shape)
def test_no_cell_of_a_csv_is_executed(web: Client, database: Database, shape: Shape) -> None:
    for start in ("=", "+", "-", "@", "\t", "\r", "\n=", "'=", "＝"):
        text = f'{start}HYPERLINK("http://example.com";"a,b")'
        output = Output(text, [len(text)], 20, 3, "stop", 1024, 0.0)
        end(web, database, output, output, replace(output, text=f"{text}."), input=text)
    reply = web.get(f"/api/jobs/export?shape={shape}&format=csv")
    assert reply.content_type == "text/csv; charset=utf-8"
    cells = [cell for row in from_csv(reply.data) for cell in row.values()]
    assert not [c for c in cells if c and c[0] in "=+-@\t\r\n＝＋－＠"]
    # In quotes, so that a spreadsheet whose separator is `;` finds no cells in them.
    assert '"\'=HYPERLINK(""http' in reply.text


@pytest.mark.parametrize("format_", [Format.JSONL, Format.CSV])
def test_a_file_may_be_compressed(web: Client, database: Database, format_: Format) -> None:
    end(web, database)
    seal(database)
    path = f"/api/jobs/export?format={format_}"
    plain = web.get(path)
    assert plain.content_encoding is None
    for compression in ("gzip", "zstd"):
        reply = web.get(f"{path}&compression={compression}", headers={"Accept-Encoding": "gzip"})
        assert (reply.mimetype, reply.content_encoding) == (f"application/{compression}", None)
        kind = FileKind(format_, Compression(compression))
        name = f"helixq-history{kind.suffix}"
        assert reply.headers["Content-Disposition"] == f"attachment; filename={name}"
        assert kind_of(name) == kind
        assert b"".join(decompressed(io.BytesIO(reply.data))) == plain.data
    for accepted, used in (("gzip, zstd", "zstd"), ("gzip, zstd;q=0", "gzip"), ("br", None)):
        reply = web.get(path, headers={"Accept-Encoding": accepted})
        assert (reply.content_encoding, reply.content_type) == (used, plain.content_type)
        data = reply.data
        if used:
            data = b"".join(decompressed(io.BytesIO(data)))
        assert data == plain.data
        assert "Accept-Encoding" in reply.headers["Vary"]


@pytest.mark.parametrize("compression", Compression)
def test_parquet_is_compressed_inside(
    web: Client, database: Database, compression: Compression
) -> None:
    end(web, database)
    reply = web.get(
        f"/api/jobs/export?format=parquet&compression={compression}",
        headers={"Accept-Encoding": "gzip"},
    )
    assert (reply.mimetype, reply.content_encoding) == ("application/vnd.apache.parquet", None)
    column = pq.ParquetFile(io.BytesIO(reply.data)).metadata.row_group(0).column(0)
    expected = "UNCOMPRESSED" if compression is Compression.NONE else compression.upper()
    assert column.compression == expected


def test_an_empty_export_is_a_file_too(web: Client) -> None:
    for shape in Shape:
        assert web.get(f"/api/jobs/export?shape={shape}").data == b""
        packed = web.get(f"/api/jobs/export?shape={shape}&compression=gzip").data
        assert gzip.decompress(packed) == b""
        packed = web.get(f"/api/jobs/export?shape={shape}&compression=zstd").data
        assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == b""
        assert from_csv(web.get(f"/api/jobs/export?shape={shape}&format=csv").data) == []
        table = pq.read_table(
            io.BytesIO(web.get(f"/api/jobs/export?shape={shape}&format=parquet").data)
        )
        assert (table.num_rows, table.column_names) == (0, list(COLUMNS[shape]))


def test_parquet_has_many_row_groups(web: Client, database: Database) -> None:
    job_id = end(web, database)
    names = ", ".join(c.name for c in Job.__table__.columns if c.name != "id")
    with database.write() as connection:
        connection.execute(
            sa.text(
                f"INSERT INTO jobs (id, {names}) SELECT 'resp_' || n, {names} FROM jobs, "  # noqa: S608 (of this file's own words)
                "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
                "WHERE n < 1500) SELECT n FROM numbers) AS numbers WHERE id = :id"
            ),
            {"id": job_id},
        )
    file = pq.ParquetFile(io.BytesIO(web.get("/api/jobs/export?format=parquet").data))
    assert [file.metadata.row_group(i).num_rows for i in range(2)] == [1000, 501]


# What can be wrong.


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("format=xml", "`format` must be one of: jsonl, csv, parquet"),
        ("shape=odd", "`shape` must be one of: history, preference, sft"),
        ("shape=sft&role=judge", "`role` must be one of: all, actor, critic, regenerator"),
        ("role=actor", "`role` is a parameter of the shape `sft`"),
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


def test_an_owner_exports_its_own_jobs_and_an_auditor_all(app: Any) -> None:
    mine, other = program(app), program(app)
    asked = [ask(client)["id"] for client in (mine, other)]
    assert [row["id"] for row in lines(mine)] == asked[:1]
    assert lines(mine, f"owner={other.key.owner}") == []
    auditor = program(app, Scope.AUDIT)
    assert {row["id"] for row in lines(auditor)} >= set(asked)
    assert [row["id"] for row in lines(auditor, f"owner={other.key.owner}")] == asked[1:]
    reply = app.test_client().get("/api/jobs/export")
    assert (reply.status_code, reply.mimetype) == (401, "application/problem+json")


def test_an_export_ends_when_its_key_is_revoked(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cache, "TTL", 0.0)
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", {"with_proofs": False, "size": 1})
    client = program(app)
    ask(client), ask(client)
    reply = client.get("/api/jobs/export", buffered=False)  # The first page is made.
    keys.revoke(app.extensions["helixq"].database, client.key.id)
    with pytest.raises(ConnectionAbortedError):
        _ = reply.data
