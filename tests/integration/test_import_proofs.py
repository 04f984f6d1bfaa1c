"""The proofs that imported histories came with: they are kept, passed on, and cannot be changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import methodcaller
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import NotImportedError, TamperedError
from jobs.importer import ImportRefusedError
from jobs.models import Erasure, Job, Review
from jobs.protocol.history import history
from jobs.use_cases import proving, verifying
from jobs.use_cases.proving import Part
from tests.conftest import new_database
from tests.integration import tampering
from tests.integration.moving import (
    Change,
    changed,
    erase,
    export,
    histories,
    load,
    read,
    review,
    seal_all,
)
from tests.integration.sealed import end, seal


@pytest.fixture
def third(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A third database, beside `database` and `elsewhere`."""
    folder = tmp_path / "third"
    folder.mkdir()
    database = Database(new_database("sqlite", request, folder))
    yield database
    database.close()


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


def test_a_history_is_checked_only_if_all_of_its_first_logs_are(
    database: Database, elsewhere: Database, third: Database
) -> None:
    """The signature of the last one that was looked at says nothing about those before."""
    job = end(database)
    seal(database)
    erase(database, job.id, "/system")
    seal_all(database)
    load(export(database), elsewhere)
    seal_all(elsewhere)
    review(elsewhere, job.id)
    seal_all(elsewhere)
    load(export(elsewhere), third)
    seal_all(third)
    data = export(third)
    [first], [second], [own] = map(proving.list_keys, (database, elsewhere, third))
    # The job and its erasure came from the first log, and its review from the second.
    for trusted, signed in (
        ([own, first, second], True),
        ([own, first], False),
        ([own, second], False),
        ([own], False),
    ):
        [line] = read(data, *trusted)
        assert line.checked is not None
        assert line.checked.origin_signed is signed, trusted


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
            with pytest.raises(ImportRefusedError) as caught:
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


def test_the_proof_that_a_job_came_with_cannot_be_changed(
    database: Database, elsewhere: Database
) -> None:
    """Else a history could claim another origin, or that of its own log had been checked."""
    job, other = end(database), end(database)
    seal(database)
    data, [first] = export(database), proving.list_keys(database)
    load(data, elsewhere, first)
    seal(elsewhere)
    passed_on, [own] = export(elsewhere), proving.list_keys(elsewhere)
    [origin] = [h["proof"] for h in map(json.loads, data.splitlines()) if h["id"] == other.id]
    [told] = [h for h in map(json.loads, passed_on.splitlines()) if h["id"] == job.id]
    assert told["origin_proof"] not in (None, origin)
    for wrong in (None, 7, "", "x", origin, told["proof"], f"{told['origin_proof']}\n"):
        for trusted in ([], [own], [own, first]):
            with pytest.raises(ImportRefusedError) as caught:
                read(changed(passed_on, 1, methodcaller("update", origin_proof=wrong)), *trusted)
            assert str(caught.value) == (
                f"line 1: the history of {job.id}: the proof that it was imported with is not the one that its "
                "entry names"
            )


def _put(name: str, proof: object, number: int = 0) -> Change:
    """Return what puts a proof in the place of another."""
    return lambda history: history[name].__setitem__(number, proof)


def test_a_change_of_an_origin_proof_is_noticed(database: Database, elsewhere: Database) -> None:
    end(database)
    seal(database)
    load(export(database), elsewhere)
    seal(elsewhere)
    with elsewhere.write() as connection:
        connection.execute(sa.update(Job).values(origin_proof="x"))
    with pytest.raises(TamperedError, match="proof that it was imported with"):
        verifying.verify(elsewhere, history)
