"""One job is compared with the log, as the page of a job does: whatever was changed is named."""

from __future__ import annotations

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Review
from jobs.protocol.history import history
from jobs.tlog.note import Signer
from jobs.use_cases import proving
from jobs.use_cases.verifying_jobs import Verdict, verify_job
from tests.integration.moving import erase, review, seal_all
from tests.integration.sealed import end, seal
from tests.integration.tampering import changed


def test_whatever_was_changed_of_a_job_is_named(database: Database) -> None:
    other, job = end(database), end(database)
    seal(database)
    review(database, job.id)
    review(database, job.id, critique=1)
    seal_all(database)
    erase(database, job.id, "/metadata")
    seal_all(database)
    [key] = proving.list_keys(database)
    right = Verdict("verified", None, key.name, 5, compared=3, pending=0)
    assert verify_job(database, None, job.id, history) == right
    with database.read() as connection:
        [first, last] = connection.scalars(sa.select(Review.id).order_by(Review.number))
    foreign = Signer.generate(key.name).verifier
    of_job = f"WHERE job_id = '{job.id}'"
    copied = "(SELECT entry FROM log_entries WHERE entry_index = 0)"
    unfit = "The log itself does not fit: "
    for statement, reason in (
        ("UPDATE jobs SET question = 'How?'", "The job was changed: entry 1 differs."),
        (f"UPDATE attempts SET output = 'x' {of_job}", "The job was changed: entry 1 differs."),
        ("UPDATE jobs SET log_index = 1 - log_index", "The job was changed: entry 0 differs."),
        (
            f"UPDATE reviews SET note = 'x' WHERE id = '{last}'",
            f"Review {last} was changed: entry 3 differs.",
        ),
        (
            "UPDATE reviews SET log_index = 5 - log_index",
            f"Review {first} was changed: entry 3 differs.",
        ),
        (
            f"DELETE FROM reviews WHERE id = '{first}'",
            "The job was changed: a review was removed or reordered.",
        ),
        ("UPDATE erasures SET erased_by = 'x'", "The erasure of "),
        ("DELETE FROM erasures", "The job was changed: its erased texts are not those that"),
        ("UPDATE jobs SET erased_at = NULL", "The job was changed: it was last erased "),
        (
            "DELETE FROM log_entries WHERE entry_index = 1",
            "The log has no entry 1, which the job claims.",
        ),
        (
            "DELETE FROM log_entries WHERE entry_index = 2",
            f"The log has no entry 2, which review {first} claims.",
        ),
        (f"UPDATE log_entries SET entry = {copied} WHERE entry_index = 1", f"{unfit}the inclusion"),
        (f"UPDATE log_tiles SET hashes = {copied}", f"{unfit}tile 0 of level 0 is too short"),
        (f"UPDATE log_keys SET verifier = '{foreign}'", f"{unfit}none of the given keys signed"),
        (
            "UPDATE log_checkpoints SET note = replace(note, '5', '4') WHERE size = 5",
            f"{unfit}",
        ),
    ):
        with changed(database, statement) as shared:
            verdict = verify_job(shared, None, job.id, history)
        assert verdict.outcome == "differs", statement
        assert str(verdict.reason).startswith(reason), (statement, verdict.reason)
    assert verify_job(database, None, other.id, history).compared == 0
    assert verify_job(database, None, job.id, history) == right


def test_what_has_no_entry_yet_is_counted(database: Database) -> None:
    job = end(database)
    assert verify_job(database, None, job.id, history) == Verdict("unsealed")
    seal(database)
    review(database, job.id)
    erase(database, job.id, "/metadata")
    [key] = proving.list_keys(database)
    found = verify_job(database, None, job.id, history)
    assert found == Verdict("verified", None, key.name, 1, compared=0, pending=2)
