"""Witnesses cosign the log: what they are asked, what becomes of their replies, and who sees it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import aics_tlog
import pytest
import sqlalchemy as sa
from click.testing import Result

from jobs import setting_values
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import LogCheckpoint, LogCosignature, LogWitness
from jobs.protocol.history import history
from jobs.statements import log, log_checkpoints
from jobs.use_cases import proving, sealing, verifying_jobs, witnessing
from jobs.use_cases.log_signing import Signing
from jobs.witnessing import Witnessing, WitnessThread
from tests.certificates import make_server_file
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish
from tests.witness import Witness

Command = Callable[..., Result]


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness("witness.example/w1")
    yield witness
    witness.close()


@pytest.fixture
def second() -> Iterator[Witness]:
    witness = Witness("other.example", post_quantum=True)
    yield witness
    witness.close()


@pytest.fixture
def job_id(web: Client, database: Database, witness: Witness, second: Witness) -> str:
    """A job in the log, whose key the witnesses know."""
    job_id = str(ask(web)["id"])
    finish(database, job_id)
    seal(database)
    witness.log_key = second.log_key = str(proving.list_keys(database)[0])
    return job_id


def grow(database: Database, count: int) -> None:
    """Append so many entries, and sign the log."""
    with database.read() as connection:
        size = log.state(connection)[1]
    with database.write() as connection:
        log.note_deletions(connection, ((f"resp_{n}", n) for n in range(size, size + count)))
    assert sealing.append(database, [], Signing(), limit=count) == count


def thread_of(database: Database, witness: Witness) -> WitnessThread:
    """Return what asks a witness; `ask` is what its thread calls."""
    return WitnessThread(database, setting_values.witnesses(witness.setting)[0])


def let_ask_again(database: Database, seconds: float = -1) -> None:
    """Let the time after a failure pass, or set the clock back: then it would be over in some seconds."""
    with database.write() as connection:
        connection.execute(sa.update(LogWitness).values(next_at=utcnow(seconds)))


def cosigned_by(note: str, *witnesses: Witness) -> bool:
    """Return whether a checkpoint has cosignatures, as others check it; those of Ed25519 only."""
    parsed = aics_tlog.parse_note(note)
    [log_key] = {witness.log_key for witness in witnesses}
    keys = [aics_tlog.parse_vkey(witness.key) for witness in witnesses]
    assert log_key is not None
    result = aics_tlog.verify_checkpoint(
        parsed, aics_tlog.parse_vkey(log_key), keys, quorum=len(keys)
    )
    assert result.log_ok
    return result.ok


def with_wrong_cosignature(text: str, witness: Witness) -> str:
    """Return a text with another digit in the cosignature of a witness."""
    before, dash, after = text.partition(f"— {witness.name} ")
    return f"{before}{dash}{after[:40]}{'B' if after[40] == 'A' else 'A'}{after[41:]}"


def test_a_witness_with_a_certificate_of_its_own(
    web: Client, database: Database, job_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_id
    certificate, file = make_server_file(tmp_path / "tls")
    witness = Witness("secure.example", certificate=file)
    witness.log_key = str(proving.list_keys(database)[0])
    thread_of(database, witness).ask()
    assert not cosigned_by(web.get("/log/checkpoint").text, witness), "it is not trusted"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    let_ask_again(database)
    thread_of(database, witness).ask()
    witness.close()
    assert cosigned_by(web.get("/log/checkpoint").text, witness)


def test_checkpoints_and_proofs_are_cosigned(
    web: Client, database: Database, job_id: str, witness: Witness, second: Witness
) -> None:
    threads = [thread_of(database, each) for each in (witness, second)]
    assert not cosigned_by(web.get("/log/checkpoint").text, witness)
    for thread in threads:
        thread.ask()
    for count in (1, 5, 300):
        grow(database, count)
        for thread in threads:
            thread.ask()
            thread.ask()  # Nothing new: it is not asked.
    assert witness.statuses == second.statuses == [200] * 4
    assert (witness.size, second.size) == (307, 307)
    assert witness.proofs[0] == 0
    assert all(witness.proofs[1:]), "proofs of consistency were needed, and right"
    note = web.get("/log/checkpoint").text
    assert note.count("\n— ") == 3
    assert cosigned_by(note, witness)
    proof = web.get(f"/api/jobs/{job_id}/proof").text
    assert proof.endswith(note)


def test_verify_requires_cosignatures(
    web: Client,
    database: Database,
    job_id: str,
    witness: Witness,
    second: Witness,
    jobs: Command,
    tmp_path: Path,
) -> None:
    proof, bare, export = (tmp_path / name for name in ("a.tlog-proof", "b.tlog-proof", "c.jsonl"))
    bare.write_text(web.get(f"/api/jobs/{job_id}/proof").text)
    for each in (witness, second):
        thread_of(database, each).ask()
    proof.write_text(web.get(f"/api/jobs/{job_id}/proof").text)
    export.write_bytes(web.get("/api/jobs/export").data)
    key = ("--key", witness.log_key)
    both = ("--witness", witness.key, "--witness", second.key)
    done = jobs("verify", proof, *key, *both)
    assert done.exit_code == 0
    times = "witness.example/w1 at 2026-09-21T14:13:20Z, other.example at 2026-09-21T14:13:20Z"
    assert done.output.endswith(f" Cosigned by {times}.\n")
    told = json.loads(jobs("verify", proof, *key, *both, "--json").output)
    assert set(told["witnesses"]) == {witness.name, second.name}
    assert jobs("verify", export, *key, *both).exit_code == 0
    done = jobs("verify", *key, *both)
    assert done.exit_code == 0
    assert "other.example has cosigned 1 of them." in done.output

    def refused(*arguments: object) -> str:
        done = jobs("verify", *key, *arguments)
        assert done.exit_code == 1
        return done.output

    said = "NOT VERIFIED: the witness other.example has not cosigned the checkpoint.\n"
    assert refused(bare, "--witness", second.key) == said
    for each in (witness, second):
        changed = tmp_path / "changed"
        changed.write_text(with_wrong_cosignature(proof.read_text(), each))
        assert f"cosignature of the witness {each.name} is wrong" in refused(changed, *both)
    stranger = Witness("stranger.example")
    try:
        assert "stranger.example has not cosigned" in refused(export, "--witness", stranger.key)
        assert "stranger.example has cosigned no checkpoint" in refused("--witness", stranger.key)
    finally:
        stranger.close()
    with database.write() as connection:
        of_witness = LogCosignature.witness.startswith(witness.name)
        line = connection.scalar(sa.select(LogCosignature.line).where(of_witness))
        assert line is not None
        wrong = with_wrong_cosignature(line, witness)
        connection.execute(sa.update(LogCosignature).where(of_witness).values(line=wrong))
    assert "checkpoint 1: the cosignature of the witness" in refused(*both)
    with database.write() as connection:
        connection.execute(sa.update(LogCosignature).values(size=2))
    assert "checkpoint 2 was removed: " in refused(*both)
    assert jobs("verify", "--witness", witness.log_key).exit_code == 2


def test_a_witness_that_has_cosigned_another_tree_is_asked_again(
    database: Database, job_id: str, witness: Witness
) -> None:
    """As after a reply that was lost: the witness says what it has cosigned."""
    assert job_id
    thread = thread_of(database, witness)
    thread.ask()
    grow(database, 3)
    with database.write() as connection:
        connection.execute(sa.update(LogWitness).values(size=0))
    thread.ask()
    assert witness.statuses == [200, 409, 200]
    assert witness.size == 4


def test_failures_are_said_once_and_delay_nothing(
    web: Client,
    database: Database,
    job_id: str,
    witness: Witness,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "jobs.witnessing")
    thread = thread_of(database, witness)
    name = f"the witness {witness.name}"
    said = {
        (
            404,
            b"",
        ): f"{name} does not know this log: let its operator add the log's name and public key",
        (403, b""): f"{name} does not trust the key that signs this log",
        (422, b""): f"{name} found that the log does not continue what it has cosigned before",
        (500, b""): f"{name} replied with the status 500",
        (302, b""): f"{name} replied with the status 302",
        (409, b"many"): f"{name} replied with the status 409",
        (409, b"9\n"): f"{name} has cosigned 9 entries, and the log has 1: it was set back",
        (409, b"0\n"): f"{name} changes its mind about what it has cosigned",
        (200, b""): f"{name} cannot be trusted: ",
        (200, b"x" * 100_000): f"{name} sends a reply without end",
        (200, web.get("/log/checkpoint").text.partition("\n\n")[2].encode()): (
            f"{name} cannot be trusted: the reply has no cosignature of the checkpoint by {name[12:]}"
        ),
    }
    for told, message in said.items():
        witness.told = told
        caplog.clear()
        for seconds in (-1, 7200):
            let_ask_again(database, seconds)
            thread.ask()
        [record] = caplog.records
        assert record.getMessage().startswith(message), told
        asked = len(witness.statuses)
        thread.ask()  # Too early.
        assert len(witness.statuses) == asked, told
    assert not cosigned_by(web.get("/log/checkpoint").text, witness)
    witness.told = None
    caplog.clear()
    let_ask_again(database)
    thread.ask()
    assert [r.getMessage() for r in caplog.records] == [f"{name} cosigns the log again"]
    assert cosigned_by(web.get("/log/checkpoint").text, witness)
    with database.read() as connection:
        assert connection.scalar(sa.select(LogWitness.failures)) == 0
    assert job_id


def test_a_witness_that_is_away_delays_nothing(
    database: Database, job_id: str, witness: Witness, second: Witness
) -> None:
    assert job_id
    witness.awake.clear()
    asking = Witnessing(database, setting_values.witnesses(f"{witness.setting}, {second.setting}"))
    asking.start()
    witness.wait_for(1)
    second.wait_for(1)
    grow(database, 3)
    second.wait_for(2)
    # Another process asks neither meanwhile.
    thread_of(database, witness).ask()
    assert witness.statuses == []
    assert not asking.stop(timeout=0.01)
    witness.awake.set()
    assert asking.stop()
    assert (witness.size, second.size) == (1, 4)


def test_nobody_there(
    database: Database, job_id: str, witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    assert job_id
    thread = thread_of(database, witness)
    witness.close()
    thread.ask()
    assert "does not respond" in caplog.text
    with database.read() as connection:
        assert connection.scalar(sa.select(LogWitness.failures)) == 1


def test_a_cosigned_checkpoint_is_shown_rather_than_a_newer_one(
    web: Client, database: Database, job_id: str, witness: Witness, second: Witness
) -> None:
    """A busy log grows while witnesses are asked."""
    first, other = thread_of(database, witness), thread_of(database, second)
    first.ask()
    other.ask()
    grow(database, 1)
    first.ask()
    grow(database, 1)
    shown = web.get("/log/checkpoint").text
    assert shown.split("\n")[1] == "1"
    assert cosigned_by(shown, witness)
    new = ask(web)["id"]
    finish(database, new)
    seal(database)
    # Its entry is in the newest checkpoint only.
    assert "\n4\n" in web.get(f"/api/jobs/{new}/proof").text
    verdict = verifying_jobs.verify_job(database, None, new, history)
    assert (verdict.outcome, verdict.size) == ("verified", 4)
    assert web.get(f"/api/jobs/{job_id}/proof").text.endswith(shown)
    proofs = [json.loads(line)["proof"] for line in web.get("/api/jobs/export").text.splitlines()]
    assert [proof.endswith(shown) for proof in proofs] == [True, False]
    old = sa.update(LogCheckpoint).where(LogCheckpoint.size == 1)
    with database.write() as connection:
        connection.execute(old.values(created_at=utcnow(-proving.MAX_AGE - 1)))
    assert web.get("/log/checkpoint").text.split("\n")[1] == "2", "one of two has cosigned it"


def test_the_newest_cosignatures_are_kept(
    database: Database, job_id: str, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job_id
    monkeypatch.setattr(log_checkpoints, "MAX_COSIGNATURES", 2)
    thread = thread_of(database, witness)
    for _ in range(4):
        grow(database, 1)
        thread.ask()
    with database.read() as connection:
        kept = connection.scalars(sa.select(LogCosignature.size).order_by(LogCosignature.size))
        assert list(kept) == [4, 5]
    assert witness.statuses == [200] * 4


def test_what_a_witness_is_asked_is_taken_once(database: Database, job_id: str) -> None:
    asking = witnessing.begin_asking(database, "w+00000000", 60)
    assert asking is not None
    assert (asking.size, asking.old_size, asking.failures) == (1, 0, 0)
    assert witnessing.begin_asking(database, "w+00000000", 60) is None
    witnessing.failed(database, "w+00000000", 0, 1)
    assert witnessing.begin_asking(database, "w+00000000", 60) is None, (
        "not before the delay has passed"
    )
    assert job_id
