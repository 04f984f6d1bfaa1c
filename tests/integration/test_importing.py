"""Histories that were exported are restored in another database, with their proofs, or refused by line."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import migrations
from jobs.database import Database
from jobs.enums import Shape
from jobs.errors import ErasedError, NotImportedError
from jobs.formats.compression import BrokenFileError, Compression, compressor
from jobs.formats.writing import FileKind, Format, to_json, writing
from jobs.importer import Line, RefusedError, Report, import_file, read_histories
from jobs.models import Erasure, Job, Review, Worker, WorkerState
from jobs.pipeline import Turn
from jobs.protocol.history import history
from jobs.protocol.shapes import COLUMNS, rows
from jobs.tlog.entry import parse_entry
from jobs.tlog.exported import PROOFS
from jobs.tlog.note import Signer, Verifier
from jobs.tlog.record import review_digest, review_texts, texts
from jobs.tlog.salted import salts_of
from jobs.use_cases import (
    cancellation,
    deletion,
    erasing,
    exporting,
    importing,
    indexing,
    proving,
    queries,
    retention,
    reviewing,
    stages,
    statistics,
    verifying,
    workers,
)
from jobs.use_cases.proving import Part
from jobs.use_cases.replaying import replay_of
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.stages import Output
from tests.conftest import RUNTIME, WORKER, new_database
from tests.integration import tampering
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal


@pytest.fixture
def elsewhere(
    database_url: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Database]:
    """Another database of the same kind, without workers."""
    kind = database_url.partition(":")[0].partition("+")[0]
    yield from another(kind, request, tmp_path / "elsewhere")


@pytest.fixture
def third(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A third one."""
    yield from another("sqlite", request, tmp_path / "third")


def another(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Database]:
    folder.mkdir()
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
    lines = [json.loads(line) for line in export(database).splitlines()]
    for line in lines:
        for name in ("log", "origin", "proof", "origin_proof", *PROOFS):
            line.pop(name)
        for added in (*line["reviews"], *line["erasures"]):
            added["log"].pop("index")
    return lines


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(Job)) or 0


def review(database: Database, job_id: str, reviewer: str = "ann", **verdict: Any) -> None:
    new = NewReview(**verdict or {"regeneration": -1, "note": "No.\0", "tags": ("a", "b")})
    reviewing.add(database, None, job_id, new, reviewer=reviewer, key_id="key_1")


def erase(database: Database, job_id: str, *texts: str) -> list[str]:
    return erasing.erase(database, None, job_id, history, texts or None, erased_by="bob")


def seal_all(database: Database) -> None:
    while seal(database):
        pass


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
    seal_all(database)
    erase(database, lost.id, "/turns", "/attempts/1/output")
    review(database, failed.id, critique=1, corrected_answer="Because.")
    review(database, failed.id)
    review(database, lost.id, note="Who?", tags=("x",))
    erase(database, lost.id, "/reviews/0/tags")
    review(database, cancelled.id)
    erase(database, cancelled.id)
    seal_all(database)


def test_histories_are_restored_with_their_proofs(database: Database, elsewhere: Database) -> None:
    some_jobs(database)
    submit(database)
    data, [key] = export(database), proving.list_keys(database)
    assert load(data, elsewhere, key) == Report(5, 0, 1, {key.name})
    own = end_one_here(elsewhere)
    assert verifying.verify(elsewhere, history).unsealed == 6
    assert seal(elsewhere) == 6, "jobs come first"
    assert seal(elsewhere) == 4 + 3, "and reviews and erasures follow them"
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
    found = verifying.verify(elsewhere, history)
    assert (found.jobs, found.reviews, found.erasures, found.entries) == (6, 4, 3, 13)


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
    counts = []
    for side in (database, elsewhere):
        indexing.put(side, indexing.prepare(side))
        counts.append(statistics.read(side, None, statistics.Query()).total.counts)
    assert counts[0] == counts[1]
    assert (counts[0]["jobs"], counts[0]["reviewed"]) == (5, 3)
    assert load(data, database) == Report(0, 5, 0, {first.name}), "also where they ended"
    seal_all(elsewhere)
    passed_on, [second] = export(elsewhere), proving.list_keys(elsewhere)
    assert [
        line.checked and (line.checked.signed, line.checked.origin_signed)
        for line in read_histories(io.BytesIO(passed_on), [second])
    ] == [(True, False)] * 5
    for line in read_histories(io.BytesIO(passed_on), [first, second]):
        assert line.checked is not None
        assert line.checked.origin_signed
        assert line.checked.origin.log == first.name


def test_reviews_and_erasures_keep_the_proofs_of_their_first_logs(
    database: Database, elsewhere: Database, third: Database
) -> None:
    job = end(database)
    seal(database)
    review(database, job.id)
    seal_all(database)
    erase(database, job.id, "/system")
    seal_all(database)
    [first] = proving.list_keys(database)
    load(export(database), elsewhere, first)
    seal_all(elsewhere)
    review(elsewhere, job.id, critique=1)
    erase(elsewhere, job.id, "/metadata")
    seal_all(elsewhere)
    [second] = proving.list_keys(elsewhere)
    passed_on = export(elsewhere)
    load(passed_on, third, first, second)
    assert verifying.verify(third, history).unsealed == 1
    seal_all(third)
    found = verifying.verify(third, history)
    assert (found.jobs, found.reviews, found.erasures) == (1, 2, 2)
    assert histories(third) == histories(elsewhere)
    for part in (Part.REVIEW, Part.ERASURE):
        for number, (side, key) in enumerate([(database, first), (elsewhere, second)]):
            proof = proving.origin_proof(third, None, job.id, part, number)
            assert proof.text == proving.prove(side, None, job.id, part, number).text
            assert proof.extra is not None
            proof.verify(proof.extra, [key])
        with pytest.raises(NotImportedError, match=f"The {part} 1 of {job.id} was not imported"):
            proving.origin_proof(elsewhere, None, job.id, part, 1)
    # What is passed on once more has them still. Their signatures are checked with the keys of their logs.
    last, keys = export(third), [*proving.list_keys(third), second, first]
    for trusted, signed in ((keys, True), (keys[:2], False), ([keys[0], first], False)):
        [line] = read(last, *trusted)
        assert line.checked is not None
        assert (line.checked.origin_signed, line.checked.unproved) == (signed, 0)
    before, told = json.loads(passed_on), json.loads(last)
    for name in ("review", "erasure"):
        assert before[f"{name}_origin_proofs"][1] is None
        assert told[f"{name}_origin_proofs"] == [
            before[f"{name}_origin_proofs"][0],
            before[f"{name}_proofs"][1],
        ]


def test_proofs_that_reviews_came_with_cannot_be_changed(
    database: Database, elsewhere: Database
) -> None:
    job = end(database)
    seal(database)
    review(database, job.id)
    review(database, job.id, critique=0)
    erase(database, job.id, "/metadata")
    seal_all(database)
    data, [first] = export(database), proving.list_keys(database)
    load(data, elsewhere)
    unsealed = None
    while True:  # The entry of the job comes first.
        exported = export(elsewhere)
        if json.loads(exported)["log"]["index"] is not None and unsealed is None:
            unsealed = exported
        if not seal(elsewhere):
            break
    assert unsealed is not None
    [own] = proving.list_keys(elsewhere)
    names = "is not the one that its entry names"
    changes: list[tuple[bytes, Change, str]] = []
    for name, kind in (
        ("review_origin_proofs", "review 0"),
        ("erasure_origin_proofs", "erasure 0"),
    ):
        was = f"the proof that its {kind} was imported with"
        other = json.loads(exported)["review_origin_proofs"][1]
        wrong: list[Change] = [_put(name, there) for there in (None, 7, "x", other)]
        wrong.append(methodcaller("pop", name))
        changes += [(exported, each, f"{was} {names}") for each in wrong]
        # Before they have entries here, nothing but the digests says what the proofs are of.
        changes.append((unsealed, _put(name, other), f"{was} is of another entry"))
        changes.append((unsealed, _put(name, json.loads(data)["proof"]), f"{was} is of another"))
        changes.append((unsealed, _put(name, other[:-90]), "its proof is wrong"))
        # And one that was made there came with none.
        changes.append((data, _put(name, json.loads(data)["proof"]), f"{was} {names}"))
    changes.append((exported, _put("review_origin_proofs", None, 1), "review 1 was imported with"))
    for whole, change, reason in changes:
        for trusted in ([], [own, first]):
            with pytest.raises(RefusedError) as caught:
                read(changed(whole, 1, change), *trusted)
            assert str(caught.value).startswith(f"line 1: the history of {job.id}: ")
            assert reason in str(caught.value)
    assert [line.checked and line.checked.unproved for line in read(unsealed, own, first)] == [0]
    assert [line.checked and line.checked.unproved for line in read(unsealed, own)] == [3]
    for table in (Review, Erasure):
        with pytest.raises(sa.exc.IntegrityError, match="never changes"), elsewhere.write() as to:
            to.execute(sa.update(table).values(origin_proof="x"))
    for statement, name in (
        ("UPDATE reviews SET origin_proof = 'x'", "review "),
        ("UPDATE reviews SET origin_proof = NULL WHERE number = 1", "review "),
        ("UPDATE erasures SET origin_proof = NULL", "an erasure of texts of job "),
    ):
        said = tampering.change(elsewhere, statement)
        assert said.startswith(name)
        assert said.endswith("was changed: the proof that it was imported with differs")
    verifying.verify(elsewhere, history)


def _put(name: str, proof: object, number: int = 0) -> Change:
    """Return what puts a proof in the place of another."""
    return lambda history: history[name].__setitem__(number, proof)


def test_a_review_may_be_older_than_those_that_were_given_here(
    database: Database, elsewhere: Database
) -> None:
    job = end(database)
    review(database, job.id)
    seal_all(database)
    own = end_one_here(elsewhere)
    seal(elsewhere)
    review(elsewhere, own)
    seal(elsewhere)
    moved = json.loads(export(database))
    moved["reviews"][0]["created_at"] = "2020-01-02T03:04:05.678Z"
    salt = bytes.fromhex(moved["reviews"][0]["log"]["salt"])
    moved["reviews"][0]["digest"] = review_digest(job.id, moved["reviews"][0], salt)
    moved["review_proofs"] = [None]  # As if it was exported before the review had its entry.
    load(to_json(moved).encode(), elsewhere)
    verifying.verify(elsewhere, history)
    assert seal(elsewhere) == 1
    assert verifying.verify(elsewhere, history).reviews == 1, "before the review has its entry"
    seal(elsewhere)
    assert verifying.verify(elsewhere, history).reviews == 2


def test_an_imported_job_is_reviewed_erased_and_replayed_as_any(
    database: Database, elsewhere: Database
) -> None:
    jobs = [end(database) for _ in range(3)]
    review(database, jobs[0].id)
    seal_all(database)
    erase(database, jobs[1].id, "/question")
    seal(database)
    whole = export(database)
    load(whole, elsewhere)
    seal_all(elsewhere)
    review(elsewhere, jobs[0].id, regeneration=1)
    assert "/reviews/0/note" in erase(elsewhere, jobs[0].id)
    assert "/system" in erase(elsewhere, jobs[1].id, "/system")
    seal_all(elsewhere)
    found = verifying.verify(elsewhere, history)
    assert (found.jobs, found.reviews, found.erasures) == (3, 2, 3)
    kept = queries.get_job(elsewhere, None, jobs[2].id, with_history=True)
    assert replay_of(kept).question == jobs[2].question
    for job in jobs[:2]:
        with pytest.raises(ErasedError):
            replay_of(queries.get_job(elsewhere, None, job.id, with_history=True))
    [first], [second] = proving.list_keys(database), proving.list_keys(elsewhere)
    lines = list(read_histories(io.BytesIO(export(elsewhere)), [first, second]))
    assert [bool(line.checked and line.checked.erased) for line in lines] == [True, True, False]
    assert all(line.checked and line.checked.origin_signed for line in lines)
    # What was added here is kept, and what was erased here does not come back.
    before = histories(elsewhere)
    assert load(whole, elsewhere) == Report(0, 3, 0, {first.name})
    assert histories(elsewhere) == before
    # And nothing is added to a job that is there.
    says = rf"line 1: {jobs[0].id} is there already, and lacks the file's `/reviews/1`"
    with pytest.raises(RefusedError, match=says):
        load(export(elsewhere), database)
    erase(elsewhere, jobs[2].id, "/metadata")
    seal_all(elsewhere)
    third = export(elsewhere).splitlines()[2]
    with pytest.raises(RefusedError, match="lacks the file's `/erasures/0`"):
        load(third, database)


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


def _forge_review(history: dict[str, Any]) -> None:
    """Change a review as whoever computes its digest again."""
    forged = history["reviews"][1]
    forged["note"] = "A lie."
    forged["digest"] = review_digest(history["id"], forged, salts_of(forged["log"]))


def _remove_last_review(history: dict[str, Any]) -> None:
    history["reviews"].pop()


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
    "note": (lambda h: h["reviews"][0].update(note="Yes."), "the digest of its review 0 should be"),
    "rating": (lambda h: h["reviews"][0].update(regeneration=1), "the digest of its review 0"),
    "reviewer": (lambda h: h["reviews"][1].update(reviewer="me"), "the digest of its review 1"),
    "salt of a review": (
        lambda h: h["reviews"][0]["log"].update(salt="00" * 32),
        "the digest of its review 0 should be",
    ),
    "short salt of a review": (
        lambda h: h["reviews"][0]["log"].update(salt="00"),
        "the review 0's salt has 1 bytes",
    ),
    "removed review": (lambda h: h["reviews"].pop(0), "a review was removed or reordered"),
    "swapped reviews": (lambda h: h["reviews"].reverse(), "a review was removed or reordered"),
    "last rating": (lambda h: h.update(rating=1), "its rating is not that of its last review"),
    "no erasure": (lambda h: h.update(erased_at=h["created_at"]), "it was last erased None"),
    "more in a review": (lambda h: h["reviews"][0].update(x=1), "`/reviews/0/x` cannot be stored"),
    "no reviews": (lambda h: h.pop("reviews"), "it is no whole history"),
    "forged review": (_forge_review, "the proof of its review 1 is of another entry"),
    "removed last review": (_remove_last_review, "it has no proofs of its reviews and erasures"),
    "place of a review": (
        lambda h: h["reviews"][1]["log"].update(index=1),
        "the proof of its review 1 is of another entry",
    ),
    "swapped proofs of reviews": (
        lambda h: h["review_proofs"].reverse(),
        "the proof of its review 0 is of another entry",
    ),
    "proof of the job": (
        lambda h: h["review_proofs"].__setitem__(0, h["proof"]),
        "the proof of its review 0 is of another entry",
    ),
    "cut proof of a review": (
        lambda h: h["review_proofs"].__setitem__(0, h["review_proofs"][0][:-90]),
        "its proof is wrong",
    ),
    "text for proofs": (lambda h: h.update(review_proofs=7), "it has no proofs of its reviews"),
    "not even": (lambda h: h.pop("attempts"), "it is no history: export with"),
}


def _bring_back(history: dict[str, Any]) -> None:
    history["metadata"] = {"team": "red"}


#: Of a history with erased texts.
OF_ERASED: dict[str, tuple[Change, str]] = {
    "by": (lambda h: h["erasures"][0].update(by="me"), "the digest of its erasure 0 should be"),
    "at": (lambda h: h["erasures"][0].update(at=h["created_at"]), "the digest of its erasure 0"),
    "texts": (lambda h: h["erasures"][0]["texts"].pop(), "the digest of its erasure 0"),
    "removed": (lambda h: h["erasures"].clear(), "its erased texts are not those that erasures"),
    "hash": (lambda h: h["metadata"].update(hash="sha256:00"), "its digest should be"),
    "text": (_bring_back, "it is no whole history"),
    "salt": (lambda h: h["log"]["salts"].popitem(), "it is no whole history"),
    "more salts": (lambda h: h["log"]["salts"].update(x="00" * 32), "its salts are not those"),
    "note": (lambda h: h["reviews"][0]["note"].update(hash="x"), "the digest of its review 0"),
    "erased_at": (lambda h: h.update(erased_at=None), "it was last erased 20"),
    "proof": (
        lambda h: h["erasure_proofs"].__setitem__(0, h["review_proofs"][0]),
        "the proof of its erasure 0 is of another entry",
    ),
    "text without an erasure": (
        lambda h: h.update(question={"erased": True, "hash": "sha256:00"}),
        "its digest should be",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, Verifier]]:
    """Three histories, and the key of their log."""
    file = tmp_path_factory.mktemp("exported") / "jobs.sqlite3"
    database = Database(f"sqlite:///{file}")
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    jobs = [end(database) for _ in range(3)]
    review(database, jobs[1].id)
    review(database, jobs[1].id, critique=0)
    review(database, jobs[2].id)
    seal_all(database)
    erase(database, jobs[2].id, "/metadata", "/attempts/2/output", "/reviews/0/note")
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
    changes = [(2, *each) for each in CHANGES.items()] + [(3, *each) for each in OF_ERASED.items()]
    for number, name, (change, reason) in changes:
        broken = changed(data, number, change)
        for trusted in ([], [key]):
            with pytest.raises(RefusedError) as caught:
                load(broken, empty, *trusted)
            assert str(caught.value).startswith(f"line {number}: "), name
            assert reason in str(caught.value), name
            assert count(empty) == 0, name
    assert [line.checked and line.checked.unproved for line in read(data, key)] == [0, 0, 0]
    # As exported by an earlier version: then the digests of reviews and erasures are all there is.
    for number in (2, 3):
        for name in ("review_proofs", "erasure_proofs"):
            data = changed(data, number, methodcaller("pop", name))
    assert [line.checked and line.checked.unproved for line in read(data, key)] == [0, 2, 2]
    assert load(data, empty, key).imported == 3


def read(data: bytes, *trusted: Verifier) -> list[Line]:
    return list(read_histories(io.BytesIO(data), trusted))


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


@pytest.mark.parametrize("kind", [Compression.GZIP, Compression.ZSTD])
def test_a_bomb_is_not_unpacked(kind: Compression, tmp_path: Path) -> None:
    """A line without end is dropped as it comes, and nothing else is kept of it."""
    packer = compressor(kind)
    zeros = bytes(1 << 20)
    with (tmp_path / "bomb").open("wb") as file:
        for _ in range(200):
            file.write(packer.compress(zeros))
        file.write(packer.flush())
    assert (tmp_path / "bomb").stat().st_size < 1 << 20
    tracemalloc.start()
    with (tmp_path / "bomb").open("rb") as file, pytest.raises(RefusedError, match="longer than"):
        list(read_histories(file, []))
    assert tracemalloc.get_traced_memory()[1] < 160 << 20
    tracemalloc.stop()


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


REVIEW = st.builds(
    NewReview,
    critique=st.sampled_from([None, -1, 0, 1]),
    regeneration=st.sampled_from([None, -1, 0, 1]),
    corrected_answer=st.none() | TEXT,
    tags=st.lists(TEXT, max_size=2).map(tuple),
    note=st.none() | TEXT,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    jobs=st.lists(
        st.tuples(TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=2), st.lists(TEXT, min_size=3)),
        min_size=1,
        max_size=3,
    ),
    compression=st.sampled_from(Compression),
    reviews=st.lists(st.tuples(st.integers(0, 2), TEXT, REVIEW), max_size=3),
    data=st.data(),
)
def test_any_history_is_restored(
    database: Database,
    elsewhere: Database,
    jobs: list[tuple[str, str, dict[str, Any], list[str]]],
    compression: Compression,
    reviews: list[tuple[int, str, NewReview]],
    data: st.DataObject,
) -> None:
    ids = []
    for question, system, options, outputs in jobs:
        job = submit(
            database,
            question=question,
            system=system,
            options=options,
            input_items=[options],
            turns=[Turn("user", system)],
        )
        ids.append(job.id)
        for index in range(3):
            text = outputs[index]
            output = Output(text, [len(text)], 1, 1, "stop", 8, 0.0)
            assert stages.record(database, claim(database, job, index), output)
    for number, reviewer, new in reviews:
        job_id = ids[number % len(ids)]
        reviewing.add(database, None, job_id, new, reviewer=reviewer)
    seal(database)
    for job_id in data.draw(st.lists(st.sampled_from(ids), max_size=3)):
        told = history(queries.get_job(database, None, job_id, with_history=True))
        pointers = sorted({**texts(told), **review_texts(told)})
        erase(database, job_id, *data.draw(st.lists(st.sampled_from(pointers), max_size=3)))
    if data.draw(st.booleans()):
        seal(database)
    file, [key] = export(database, compression), proving.list_keys(database)
    report = load(file, elsewhere, key)
    assert report.imported == len(jobs)
    seal_all(elsewhere)
    assert histories(elsewhere) == histories(database)
    verified = verifying.verify(elsewhere, history)
    assert verified.jobs + verified.reviews + verified.erasures == verified.entries
    [own] = proving.list_keys(elsewhere)
    lines = read(export(elsewhere, compression), own, key)
    assert all(line.checked and line.checked.origin_signed for line in lines)
    assert not any(line.checked and line.checked.unproved for line in lines)
