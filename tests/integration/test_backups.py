"""A database that was restored from a backup: what it has, what goes on, and what its log says."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

import migrations
from cli.doctor import NAMES
from cli.main import main
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import JobNotFoundError, LogKeyError, LogSetBackError, TamperedError
from jobs.kept_checkpoint import KeptCheckpoint
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status
from jobs.protocol.history import history
from jobs.setting_values import networks
from jobs.tlog.note import Note, Signer
from jobs.use_cases import (
    deliveries,
    log_signing,
    proving,
    queries,
    stages,
    submission,
    sweeping,
    verifying,
    webhooks,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.requests import Keyed
from jobs.webhooks.events import EVENT_TYPES
from jobs.webhooks.outcome import Outcome
from tests.backups import RECOVERY, SQLITE, back_up, restore
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.sealed import end, seal
from tests.integration.tampering import is_as_recorded

ROOT = Path(__file__).parent.parent.parent


def url_of(database: Database) -> str:
    return database.engine.url.render_as_string(hide_password=False)


def note_of(database: Database) -> str:
    note = proving.get_checkpoint(database)
    assert note is not None
    return note


def test_the_documented_command_is_the_one_that_is_tested() -> None:
    documented = (ROOT / "docs/backups.md").read_text(encoding="utf-8")
    assert f'"{SQLITE}"' in documented
    assert RECOVERY.format(archive="/archive", moment="2026-11-28 03:11:52.25+00") in documented


def test_a_restored_database_goes_on(
    database: Database,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    signing = Signing.of(None, None, data)
    allowed = networks("127.0.0.0/8")
    webhooks.create(
        database,
        ANONYMOUS,
        url="http://127.0.0.1:9999/",
        allowed=allowed,
        name="test",
        event_types=EVENT_TYPES,
    )
    ended = end(database)
    seal(database, signing)
    proof = proving.prove(database, ANONYMOUS, ended.id)
    old_keys, before = proving.list_keys(database), note_of(database)
    waiting, running, late = submit(database), submit(database), submit(database)
    before_key = Keyed(ANONYMOUS, "before", "x" * 64)
    after_key = Keyed(ANONYMOUS, "after", "x" * 64)
    keyed = submit(database, keyed=before_key)
    for job in (running, late):
        claim(database, job)
    with database.write() as connection:
        # Another process writes while the backup is made, and has not committed.
        of_waiting = sa.update(Job).where(Job.id == waiting.id)
        connection.execute(of_waiting.values(metadata_={"team": "late"}))
        copy = back_up(url_of(database), tmp_path, request)

    # What goes on after the backup.
    [sent] = deliveries.take(database, room=lambda _: 9, limit=9)
    deliveries.record(database, [(sent, Outcome(200, None, 0.1))])
    lost = submit(database, keyed=after_key)
    end(database)
    seal(database, signing)
    after = note_of(database)
    assert KeptCheckpoint(data).file.read_text() == after

    url = restore(copy, request)
    restored = Database(url)
    request.addfinalizer(restored.close)
    migrations.migrate(restored.engine)
    # The log is the one of the backup: it continues what was signed before, and lacks what was signed after.
    report = verifying.verify(restored, history, checkpoints=[("kept before", before)])
    assert (report.jobs, report.unsealed) == (1, 0)
    with pytest.raises(TamperedError, match=r"ends after 1 entries, and .* kept after has 2"):
        verifying.verify(restored, history, checkpoints=[("kept after", after)])
    # Jobs that were accepted later are unknown. The client that asks again with the key of one gets a new job.
    with pytest.raises(JobNotFoundError):
        queries.get_job(restored, ANONYMOUS, lost.id)
    again = submit(restored, keyed=after_key)
    assert again.id != lost.id
    known = submission.find_made(restored, before_key)
    assert known is not None
    assert known.id == keyed.id
    assert queries.get_job(restored, ANONYMOUS, waiting.id).metadata_ == {"team": "blue"}
    # What was sent after the backup is sent again, with the same id.
    [repeated] = deliveries.take(restored, room=lambda _: 9, limit=9)
    assert repeated.id == sent.id
    # As time has passed: the leases of the stages that ran, and the time limit of one of their jobs.
    let_leases_run_out(restored)
    with restored.write() as connection:
        of_late = sa.update(Job).where(Job.id == late.id)
        connection.execute(of_late.values(deadline_at=utcnow(-60)))

    swept = sweeping.sweep(restored)
    assert (set(swept.taken_back), swept.failed) == ({running.id, late.id}, [late.id])
    assert queries.get_job(restored, ANONYMOUS, late.id).error_code == "deadline_exceeded"
    for job in (waiting, running, keyed, again):
        for stage_index in range(3):
            assert stages.record(restored, claim(restored, job, stage_index), OUTPUT)
    told = queries.get_job(restored, ANONYMOUS, running.id, with_history=True)
    assert told.status is Status.COMPLETED
    assert [attempt.status for attempt in told.attempts][:2] == [
        AttemptStatus.LOST,
        AttemptStatus.FINISHED,
    ]

    # Whoever has seen more of the log does not sign it.
    with pytest.raises(LogSetBackError, match="was set back: 2 entries were signed, and the data"):
        seal(restored, signing)
    assert note_of(restored) == before
    monkeypatch.setenv("HELIXQ_DATABASE_URL", url.replace("postgresql+psycopg", "postgresql"))
    monkeypatch.setenv("HELIXQ_DATA_DIR", str(data))
    others = [name for name in NAMES if name not in ("settings", "log")]
    doctor = CliRunner().invoke(main, ["doctor", *(f"--skip={name}" for name in others)])
    assert "was set back" in doctor.output
    begun = CliRunner().invoke(main, ["jobs", "new-log"])
    assert begun.exit_code == 0, begun.output
    assert seal(restored, signing) == 5
    key = proving.list_keys(restored)[-1]
    assert begun.output.strip() == str(key)
    report = verifying.verify(restored, history, trusted=[key])
    assert (report.origin, report.jobs, report.unsealed) == (key.name, 6, 0)
    assert key.name != old_keys[0].name
    # Proofs that were handed out still verify, and the old entry is in the new log too.
    assert proof.extra is not None
    assert proof.verify(proof.extra, old_keys).size == 1
    now = proving.prove(restored, ANONYMOUS, ended.id)
    assert now.index == 0
    assert now.verify(proof.extra, [key]).size == report.entries
    assert key.name in KeptCheckpoint(data).file.read_text()


def test_a_log_that_forked_is_not_signed(database: Database, tmp_path: Path) -> None:
    """Its size does not show it where as many entries came as were lost."""
    signing = Signing.of(None, "example.com/log", tmp_path / "data")
    kept = signing.kept
    assert kept is not None
    end(database)
    seal(database, signing)
    first = note_of(database)
    log_signing.keep_newest(database, kept)
    assert kept.file.read_text() == first
    end(database)
    seal(database)  # By a process with another folder.
    log_signing.keep_newest(database, kept)
    newest = note_of(database)
    assert kept.file.read_text() == newest
    kept.keep(first)
    assert kept.file.read_text() == newest, "an older one does not replace it"

    other = newest.splitlines()
    other[2] = first.splitlines()[2]
    kept.file.write_text("\n".join(other) + "\n")
    end(database)
    with pytest.raises(LogSetBackError, match="the first 2 entries are not the ones"):
        seal(database, signing)
    kept.file.write_text("nothing")
    with pytest.raises(
        LogKeyError, match=r"log-checkpoint cannot be read \(it is not a checkpoint\)"
    ):
        seal(database, signing)
    kept.file.write_text(newest)
    assert seal(database, signing) == 1
    assert is_as_recorded(database).jobs == 3


def test_a_new_log_has_a_name_and_a_key_of_its_own(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Signer.generate("old/log"), Signer.generate("new/log")
    with pytest.raises(LogKeyError, match="no name yet"):
        log_signing.begin_new_log(database, Signing())
    end(database)
    seal(database, Signing(old))
    for wrong in (Signing(old), Signing(origin="old/log")):
        with pytest.raises(LogKeyError, match="the log is old/log already"):
            log_signing.begin_new_log(database, wrong)
    with pytest.raises(LogKeyError, match="a key of new/log, and HELIXQ_LOG_ORIGIN is other"):
        log_signing.begin_new_log(database, Signing(new, "other"))
    assert log_signing.begin_new_log(database, Signing(new)) == new.verifier
    assert Note.parse(note_of(database)).verified([new.verifier]), "at once"
    assert verifying.verify(database, history, trusted=[new.verifier]).jobs == 1
    end(database)
    with pytest.raises(LogKeyError, match="is a key of old/log, and the log is new/log"):
        seal(database, Signing(old))
    # Where nothing can be written, the log is signed all the same.
    (tmp_path / "file").touch()
    assert seal(database, Signing.of(new.to_text(), None, tmp_path / "file")) == 1
    assert "cannot be kept in" in caplog.text
    named = log_signing.begin_new_log(database, Signing(origin="third/log"))
    assert named.name == "third/log"
    end(database)
    assert seal(database) == 1
    assert is_as_recorded(database).origin == "third/log"
    made = log_signing.begin_new_log(database, Signing())
    assert is_as_recorded(database).origin == made.name
    names = [key.name for key in proving.list_keys(database)]
    assert names == ["old/log", "new/log", "third/log", made.name]
    assert len(set(names)) == 4
