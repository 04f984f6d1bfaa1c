"""Histories that were exported are restored in another database, with their proofs, or refused by line."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import migrations
from jobs.database import Database
from jobs.formats.compression import BrokenFileError, Compression
from jobs.formats.writing import FileKind, Format, to_json, writing
from jobs.importer import RefusedError, Report, import_file, read_histories
from jobs.models import Job, Worker, WorkerState
from jobs.pipeline import Turn
from jobs.protocol.history import history
from jobs.protocol.shapes import COLUMNS, Shape, rows
from jobs.tlog.entry import parse_entry
from jobs.tlog.note import Signer, Verifier
from jobs.use_cases import (
    cancellation,
    deletion,
    exporting,
    importing,
    proving,
    queries,
    retention,
    stages,
    verifying,
    workers,
)
from jobs.use_cases.stages import Output
from tests.conftest import RUNTIME, WORKER, new_database
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal


@pytest.fixture
def elsewhere(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Database]:
    """Another database of the same kind, without workers."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    kind = database_url.partition(":")[0].partition("+")[0]
    database = Database(new_database(kind, request, folder))
    migrations.migrate(database.engine)
    yield database
    database.close()


def export(database: Database, compression: Compression = Compression.NONE) -> bytes:
    """Export all histories as the API does."""
    pages = exporting.pages(database, None, exporting.Filters(), with_proofs=True)
    made = ([r for each in page for r in rows(Shape.HISTORY, each)] for page in pages)
    return b"".join(writing(FileKind(Format.JSONL, compression), COLUMNS[Shape.HISTORY])(made))


def load(data: bytes, database: Database, *trusted: Verifier, check_first: bool = True) -> Report:
    return import_file(lambda: io.BytesIO(data), database, trusted, check_first=check_first)


def histories(database: Database) -> list[dict[str, Any]]:
    """Return all histories, but for what differs between logs."""
    lines = map(json.loads, export(database).splitlines())
    return [
        {k: v for k, v in line.items() if k not in ("log", "origin", "proof", "origin_proof")}
        for line in lines
    ]


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(Job)) or 0


def some_jobs(database: Database) -> None:
    """End jobs in every way, with all that a history can have."""
    end(database, question="Why?\0␛\u2028é𝄞", metadata={"team": "blue"}, input_items=[{"a": [1.5]}])
    end(database, batch_id="batch_1", custom_id="line-1", options={"x": None}, replay_of="resp_0")
    cancelled = submit(database)
    claimed = claim(database, cancelled)
    cancellation.cancel(database, None, cancelled.id)
    stages.keep_partial(
        database, claimed, replace(OUTPUT, text="Half a", finish_reason="cancelled")
    )
    lost = submit(database, rounds=2, turns=[Turn("user", "How?")])
    stages.release(database, claim(database, lost), "it stopped")
    for index in range(5):
        assert stages.record(database, claim(database, lost, index), OUTPUT)
    failed = end(database)
    with database.write() as connection:
        restart = {
            "run": 2,
            "at": "2026-01-02T03:04:05.678+00:00",
            "model": "ef",
            "reason": "gone",
        }
        connection.execute(
            sa.update(Job)
            .where(Job.id == failed.id)
            .values(
                status="failed",
                error_code="server_error",
                error_message="It\0.",
                restarts=[restart],
            )
        )
    while seal(database):
        pass


def test_histories_are_restored_with_their_proofs(database: Database, elsewhere: Database) -> None:
    some_jobs(database)
    submit(database)
    data, [key] = export(database), proving.list_keys(database)
    assert load(data, elsewhere, key) == Report(5, 0, 1, {key.name})
    own = end_one_here(elsewhere)
    assert verifying.verify(elsewhere, history).unsealed == 6
    assert seal(elsewhere) == 6
    restored = [h for h in histories(elsewhere) if h["id"] != own]
    assert restored == [h for h in histories(database) if h["digest"]]
    for line in map(json.loads, data.splitlines()[:5]):
        proof = proving.origin_proof(elsewhere, None, line["id"])
        assert proof.text == line["proof"]
        assert proof.extra is not None
        proof.verify(proof.extra, [key])
        [own_key] = proving.list_keys(elsewhere)
        here = proving.prove(elsewhere, None, line["id"])
        assert here.extra is not None
        here.verify(here.extra, [own_key])
        assert parse_entry(here.extra)["type"] == "helixq/import/v1"
        job = queries.get_job(elsewhere, None, line["id"], with_history=True)
        assert history(job)["origin"] == {"log": key.name, "index": line["log"]["index"]}
    assert verifying.verify(elsewhere, history).jobs == 6


def end_one_here(database: Database) -> str:
    workers.register(database, "worker-here", "localhost", 1, RUNTIME)
    job = submit(database)
    for index in range(3):
        assert stages.record(database, claim(database, job, index, "worker-here"), OUTPUT)
    return job.id


def test_an_import_may_be_repeated_and_passed_on(database: Database, elsewhere: Database) -> None:
    some_jobs(database)
    data, [first] = export(database), proving.list_keys(database)
    load(data, elsewhere)
    assert load(data, elsewhere) == Report(0, 5, 0, {first.name})
    assert load(data, database) == Report(0, 5, 0, {first.name}), "also where they ended"
    seal(elsewhere)
    passed_on, [second] = export(elsewhere), proving.list_keys(elsewhere)
    assert [
        line.checked and (line.checked.signed, line.checked.origin_signed)
        for line in read_histories(io.BytesIO(passed_on), [second])
    ] == [(True, False)] * 5
    for line in read_histories(io.BytesIO(passed_on), [first, second]):
        assert line.checked is not None
        assert line.checked.origin_signed
        assert line.checked.origin.log == first.name


def test_deleting_an_imported_job_is_recorded_and_final(
    database: Database, elsewhere: Database
) -> None:
    job = end(database)
    seal(database)
    data = export(database)
    load(data, elsewhere)
    seal(elsewhere)
    deletion.delete(elsewhere, None, job.id)
    with pytest.raises(RefusedError, match=rf"line 1: {job.id} was deleted from this database"):
        load(data, elsewhere)
    seal(elsewhere)
    assert verifying.verify(elsewhere, history).deleted == 1


def test_a_change_of_an_origin_proof_is_noticed(database: Database, elsewhere: Database) -> None:
    end(database)
    seal(database)
    load(export(database), elsewhere)
    seal(elsewhere)
    with elsewhere.write() as connection:
        connection.execute(sa.update(Job).values(origin_proof="x"))
    with pytest.raises(verifying.TamperedError, match="proof that it was imported with"):
        verifying.verify(elsewhere, history)


def test_workers_of_imported_jobs_serve_nothing_and_go_with_them(
    database: Database, elsewhere: Database
) -> None:
    end(database), end(database)
    seal(database)
    load(export(database), elsewhere)
    assert workers.list_serving(elsewhere) == []
    with elsewhere.read_session() as session:
        [worker] = session.scalars(sa.select(Worker))
    assert (worker.id, worker.state) == (WORKER, WorkerState.STOPPED)
    workers.register(elsewhere, "worker-here", "localhost", 1, RUNTIME)
    with elsewhere.write() as connection:
        connection.execute(sa.delete(Job))
    retention.delete_workers(elsewhere)
    with elsewhere.read_session() as session:
        assert [worker.id for worker in session.scalars(sa.select(Worker))] == ["worker-here"]


# What is refused.

Change = Callable[[dict[str, Any]], object]


def changed(data: bytes, number: int, change: Change) -> bytes:
    """Change a line of a file."""
    lines = [json.loads(line) for line in data.splitlines()]
    change(lines[number - 1])
    return "".join(f"{to_json(line)}\n" for line in lines).encode()


CHANGES: dict[str, tuple[Change, str]] = {
    "question": (lambda h: h.update(question="How?"), "its digest should be sha256:"),
    "owner": (lambda h: h.update(owner="me"), "its digest should be"),
    "output": (lambda h: h["attempts"][1].update(output="Right."), "its digest should be"),
    "worker": (lambda h: h["attempts"][1]["worker"].update(x=1), "its digest should be"),
    "digest": (lambda h: h.update(digest="sha256:00"), "its digest should be"),
    "salt": (lambda h: h["log"].update(salt="00" * 32), "its digest should be"),
    "short salt": (lambda h: h["log"].update(salt="00"), "its salt has 1 bytes"),
    "index": (lambda h: h["log"].update(index=7), "it claims entry 7, and its proof is of entry 1"),
    "no proof": (lambda h: h.update(proof=None), "it has no proof"),
    "cut proof": (lambda h: h.update(proof=h["proof"][:-90]), "its proof is wrong"),
    "origin proof": (lambda h: h.update(origin_proof=h["proof"]), "it ended in this log"),
    "origin": (lambda h: h.update(origin={"log": "a", "index": 1}), "`origin` is not that of"),
    "no log": (lambda h: h.update(log=None), "it is no whole history"),
    "more": (lambda h: h.update(more=1), "`/more` cannot be stored as it is"),
    "less": (lambda h: h.pop("status"), "it is no whole history"),
    "not even": (lambda h: h.pop("attempts"), "it is no history: export with"),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, Verifier]]:
    """Three histories, and the key of their log."""
    file = tmp_path_factory.mktemp("exported") / "jobs.sqlite3"
    database = Database(f"sqlite:///{file}")
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    for _ in range(3):
        end(database)
    seal(database)
    yield export(database), proving.list_keys(database)[0]
    database.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    migrations.migrate(database.engine)
    yield database
    database.close()


def test_a_file_with_one_change_is_refused_by_line(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    data, key = exported
    for name, (change, reason) in CHANGES.items():
        broken = changed(data, 2, change)
        for trusted in ([], [key]):
            with pytest.raises(RefusedError) as caught:
                load(broken, empty, *trusted)
            assert str(caught.value).startswith("line 2: "), name
            assert reason in str(caught.value), name
            assert count(empty) == 0, name
    assert load(data, empty, key).imported == 3


def test_a_proof_of_another_key_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    data, key = exported
    other = Signer.generate(key.name).verifier
    for wrong in (other, Signer.generate("example.com/log").verifier):
        with pytest.raises(RefusedError, match=r"line 1: .* its proof is wrong: "):
            load(data, empty, wrong)
    swapped = json.loads(data.splitlines()[1])
    swapped["proof"] = json.loads(data.splitlines()[0])["proof"]
    swapped["log"]["index"] = 0
    with pytest.raises(RefusedError, match="it was changed: its digest is"):
        load(to_json(swapped).encode(), empty, key)


def test_a_job_that_is_there_and_differs_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    data, _ = exported
    load(data, empty)
    job_id = json.loads(data.splitlines()[2])["id"]
    with empty.write() as connection:
        connection.execute(sa.update(Job).where(Job.id == job_id).values(question="How?"))
    with pytest.raises(
        RefusedError, match=rf"line 3: {job_id} is there already, and its `/question` differs"
    ):
        load(data, empty)


def test_a_worker_that_is_there_and_differs_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    workers.register(empty, WORKER, "elsewhere", 1, RUNTIME)
    with pytest.raises(RefusedError, match=rf"line 1: a worker {WORKER} is there already"):
        load(exported[0], empty)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 4: it is no JSON"),
        (b"\xff", "line 4: it is no JSON"),
        (b"[" * 100_000, "line 4: it is no JSON"),
        (b"[]", "line 4: it is no history"),
        (b'{"prompt": "a", "completion": "b"}', "line 4: it is no history: export with"),
    ],
)
def test_a_line_that_is_no_history_is_refused(
    exported: tuple[bytes, Verifier], empty: Database, line: bytes, reason: str
) -> None:
    with pytest.raises(RefusedError, match=reason):
        load(exported[0] + line + b"\n", empty)
    assert count(empty) == 0


def test_a_file_that_ends_early_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    data, _ = exported
    packed = {
        "gzip": gzip.compress(data),
        "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(data),
    }
    for name, whole in packed.items():
        for cut in (whole[:-1], whole[: len(whole) // 2], whole[:20]):
            with pytest.raises(BrokenFileError, match=f"it is {name}, and its end is missing"):
                load(cut, empty)
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        with pytest.raises((BrokenFileError, RefusedError)):
            load(bytes(flipped), empty)
    with pytest.raises(RefusedError, match="line 3: it is no JSON"):
        load(data[:-100], empty)
    assert count(empty) == 0
    # Frames and members may follow each other.
    lines = data.splitlines(keepends=True)
    parts = [gzip.compress(line) for line in lines]
    assert load(b"".join(parts), empty).imported == 3
    parts = [zstandard.ZstdCompressor().compress(line) for line in lines]
    assert load(b"".join(parts), empty).present == 3


def test_an_import_that_broke_off_is_run_again(
    exported: tuple[bytes, Verifier], empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = exported
    monkeypatch.setattr("jobs.importer.BATCH", 1)
    calls = []
    original = importing.add

    def break_off(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(importing, "add", break_off)
        with pytest.raises(KeyboardInterrupt):
            load(data, empty)
    assert count(empty) == 2
    report = load(data, empty)
    assert (report.imported, report.present) == (1, 2)


def test_a_stream_keeps_the_batches_before_a_wrong_line(
    exported: tuple[bytes, Verifier], empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.importer.BATCH", 1)
    broken = changed(exported[0], 3, CHANGES["question"][0])
    with pytest.raises(RefusedError, match="line 3"):
        load(broken, empty, check_first=False)
    assert count(empty) == 2


# Random histories.

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    jobs=st.lists(
        st.tuples(TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=2), st.lists(TEXT, min_size=3)),
        min_size=1,
        max_size=3,
    ),
    compression=st.sampled_from(Compression),
)
def test_any_history_is_restored(
    database: Database,
    elsewhere: Database,
    jobs: list[tuple[str, str, dict[str, Any], list[str]]],
    compression: Compression,
) -> None:
    for question, system, options, texts in jobs:
        job = submit(
            database,
            question=question,
            system=system,
            options=options,
            input_items=[options],
            turns=[Turn("user", system)],
        )
        for index in range(3):
            text = texts[index]
            output = Output(text, [len(text)], 1, 1, "stop", 8, 0.0)
            assert stages.record(database, claim(database, job, index), output)
    seal(database)
    data, [key] = export(database, compression), proving.list_keys(database)
    report = load(data, elsewhere, key)
    assert report.imported == len(jobs)
    seal(elsewhere)
    assert histories(elsewhere) == histories(database)
    verified = verifying.verify(elsewhere, history)
    assert verified.jobs == verified.entries
    [own] = proving.list_keys(elsewhere)
    lines = list(read_histories(io.BytesIO(export(elsewhere, compression)), [own, key]))
    assert all(line.checked and line.checked.origin_signed for line in lines)
