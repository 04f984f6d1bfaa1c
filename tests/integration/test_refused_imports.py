"""Files that are not imported: with a change, a wrong proof, a broken line, or no end."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import zstandard

from jobs.database import Database
from jobs.formats.compression import BrokenFileError, Compression, compressor
from jobs.formats.writing import to_json
from jobs.importer import ImportRefusedError, read_histories
from jobs.models import Attempt, Job
from jobs.tlog import merkle
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.entry import job_entry
from jobs.tlog.note import Signer, Verifier
from jobs.tlog.proof import Proof
from jobs.tlog.record import digest, review_digest
from jobs.tlog.salted import salts_of
from jobs.use_cases import importing, proving, workers
from tests.conftest import RUNTIME, WORKER, new_database
from tests.integration.moving import (
    Change,
    changed,
    count,
    erase,
    export,
    load,
    read,
    review,
    seal_all,
)
from tests.integration.sealed import end, seal
from tests.integration.tampering import drop_triggers


def _forge_review(history: dict[str, Any]) -> None:
    """Change a review as whoever computes its digest again."""
    forged = history["reviews"][1]
    forged["note"] = "A lie."
    forged["digest"] = review_digest(history["id"], forged, salts_of(forged["log"]))


def _remove_last_review(history: dict[str, Any]) -> None:
    history["reviews"].pop()


def _renumber_reviews(history: dict[str, Any]) -> None:
    """Exchange two reviews with all that they have: the last rating is the one that counts."""
    for name in ("reviews", "review_proofs"):
        history[name].reverse()
    for number, each in enumerate(history["reviews"]):
        each["number"] = number


CHANGES: dict[str, tuple[Change, str]] = {
    "question": (lambda h: h.update(question="How?"), "its digest should be sha256:"),
    "owner": (lambda h: h.update(owner="me"), "its digest should be"),
    "output": (lambda h: h["attempts"][1].update(output="Right."), "its digest should be"),
    "worker": (lambda h: h["attempts"][1]["worker"].update(x=1), "its digest should be"),
    "digest": (lambda h: h.update(digest="sha256:00"), "its digest should be"),
    "salt": (lambda h: h["log"].update(salt="00" * 32), "its digest should be"),
    "short salt": (
        lambda h: h["log"].update(salt="00"),
        "its salt has 1 bytes, and should have 32",
    ),
    "no salt": (lambda h: h["log"].update(salt="x"), "it is not the complete history"),
    "index": (lambda h: h["log"].update(index=7), "it claims entry 7, and its proof is of entry 1"),
    "no proof": (lambda h: h.update(proof=None), "it has no proof"),
    "cut proof": (lambda h: h.update(proof=h["proof"][:-90]), "its proof is wrong"),
    "origin proof": (lambda h: h.update(origin_proof=h["proof"]), "it ended in this log"),
    "origin": (lambda h: h.update(origin={"log": "a", "index": 1}), "`origin` is not that of"),
    "no log": (lambda h: h.update(log=None), "it is not the complete history"),
    "more": (lambda h: h.update(more=1), "`/more` cannot be stored as it is"),
    "less": (lambda h: h.pop("status"), "it is not the complete history"),
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
    "renumbered reviews": (_renumber_reviews, "the digest of its review 0 should be"),
    "last rating": (lambda h: h.update(rating=1), "its rating is not that of its last review"),
    "no erasure": (lambda h: h.update(erased_at=h["created_at"]), "it was last erased None"),
    "more in a review": (lambda h: h["reviews"][0].update(x=1), "`/reviews/0/x` cannot be stored"),
    "no reviews": (lambda h: h.pop("reviews"), "it is not the complete history"),
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
    "not even": (lambda h: h.pop("attempts"), "it is not a history: export with"),
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
    "text": (_bring_back, "it is not the complete history"),
    "salt": (lambda h: h["log"]["salts"].popitem(), "it is not the complete history"),
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


def _of_attempt(**values: Any) -> Change:
    return lambda h: h["attempts"][0].update(values)


#: Of a history with a right digest and a right proof, by whoever has a log of their own.
FORGED: dict[str, tuple[Change, str]] = {
    "rounds without end": (lambda h: h.update(rounds=10**9), "`/rounds` has a wrong type or value"),
    "another type": (lambda h: h.update(top_k=True), "`/top_k` has a wrong type or value"),
    "a text as a number": (lambda h: h.update(priority="5"), "`/priority` has a wrong type"),
    "no time": (lambda h: h.update(created_at=None), "`/created_at` has a wrong type or value"),
    "no end": (lambda h: h.update(finished_at=None), "`/finished_at` has a wrong type or value"),
    "a rating": (lambda h: h.update(rating=7), "its rating is not that of its last review"),
    "metadata": (lambda h: h.update(metadata={"team": 5}), "`/metadata` has a wrong type or value"),
    "adapters": (
        lambda h: [each["worker"].update(adapters=["x"]) for each in h["attempts"]],
        "`/attempts/0/worker/adapters` has a wrong type or value",
    ),
    "a stage": (_of_attempt(position=7), "`/attempts/0` is of a stage that the job does not have"),
    "a role": (_of_attempt(role="critic"), "`/attempts/0` is of a stage that the job does not"),
    "a run": (_of_attempt(run=2), "`/attempts/0` is of a run that the job does not have"),
    "twice": (
        lambda h: h["attempts"].append({**h["attempts"][0], "number": 2}),
        "`/attempts/3` finished a stage that was finished before",
    ),
}


def _sign(history: dict[str, Any]) -> None:
    """Give a history the digest that it should have, and a proof of a log with nothing else."""
    history["digest"] = digest(history, salts_of(history["log"]))
    entry = job_entry(history["digest"], history["created_at"] or "")
    root = merkle.leaf_hash(entry)
    note = Checkpoint("example.com/forged", 1, root).sign(Signer.generate("example.com/forged"))
    history["log"]["index"] = 0
    history["proof"] = Proof(0, [], note, entry).text


@pytest.fixture(scope="module")
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[bytes, Verifier]]:
    """Three histories, and the key of their log."""
    database = Database(new_database("sqlite", request, tmp_path_factory.mktemp("exported")))
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
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = Database(new_database("sqlite", request, tmp_path))
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
            with pytest.raises(ImportRefusedError) as caught:
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


def test_a_proof_of_another_key_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    data, key = exported
    other = Signer.generate(key.name).verifier
    for wrong in (other, Signer.generate("example.com/log").verifier):
        with pytest.raises(ImportRefusedError, match=r"line 1: .* its proof is wrong: "):
            load(data, empty, wrong)
    swapped = json.loads(data.splitlines()[1])
    swapped["proof"] = json.loads(data.splitlines()[0])["proof"]
    swapped["log"]["index"] = 0
    with pytest.raises(ImportRefusedError, match="it was changed: its digest is"):
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
        ImportRefusedError, match=rf"line 3: {job_id} is there already, and its `/question` differs"
    ):
        load(data, empty)
    with empty.write() as connection:
        drop_triggers(connection)
        connection.execute(sa.delete(Attempt).where(Attempt.stage_index == 2))
    with pytest.raises(
        ImportRefusedError, match=r"line 1: \w+ is there already, and its `/attempts` differs"
    ):
        load(data, empty)


def test_a_worker_that_is_there_and_differs_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    workers.register(empty, WORKER, "elsewhere", 1, RUNTIME)
    with pytest.raises(ImportRefusedError, match=rf"line 1: a worker {WORKER} is there already"):
        load(exported[0], empty)


def test_a_forged_history_that_could_not_be_shown_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    """A proof says that it was recorded, and not that a HelixQ recorded it. One job would stop duties for all others."""
    for name, (change, reason) in FORGED.items():

        def forge(history: dict[str, Any], change: Change = change) -> None:
            change(history)
            _sign(history)

        with pytest.raises(ImportRefusedError) as caught:
            load(changed(exported[0], 1, forge), empty)
        assert str(caught.value).startswith("line 1: "), name
        assert reason in str(caught.value), name
        assert count(empty) == 0, name
    assert load(changed(exported[0], 1, _sign), empty).imported == 3, "a right one is imported"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 4: it is not JSON"),
        (b"\xff", "line 4: it is not JSON"),
        (b"[" * 100_000, "line 4: it is not JSON"),
        (b"[]", "line 4: it is not a history"),
        (b'{"prompt": "a", "completion": "b"}', "line 4: it is not a history: export with"),
    ],
)
def test_a_line_that_is_no_history_is_refused(
    exported: tuple[bytes, Verifier], empty: Database, line: bytes, reason: str
) -> None:
    with pytest.raises(ImportRefusedError, match=reason):
        load(exported[0] + line + b"\n", empty)
    assert count(empty) == 0


def test_a_line_with_a_name_twice_is_refused(
    exported: tuple[bytes, Verifier], empty: Database
) -> None:
    """The last value is the one that was recorded, and some programs read the first."""
    for name in (b'{"id"', b'{"position"'):
        line = exported[0].replace(name, b'{"status": "failed", ' + name[1:], 1)
        with pytest.raises(
            ImportRefusedError, match=r"^line 1: an object has the name 'status' twice"
        ):
            load(line, empty)
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
    with (
        (tmp_path / "bomb").open("rb") as file,
        pytest.raises(ImportRefusedError, match="longer than"),
    ):
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
        with pytest.raises((BrokenFileError, ImportRefusedError)):
            load(bytes(flipped), empty)
    with pytest.raises(ImportRefusedError, match="line 3: it is not JSON"):
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
    with pytest.raises(ImportRefusedError, match="line 3"):
        load(broken, empty, check_first=False)
    assert count(empty) == 2
