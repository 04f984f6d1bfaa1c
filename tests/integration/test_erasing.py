"""Erased texts are gone with their copies, and what remains still verifies."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.errors import (
    ErasedError,
    JobNotFoundError,
    NotEndedError,
    NotSealedError,
    TextNotFoundError,
)
from jobs.models import ANONYMOUS, Attempt, Erasure, Job
from jobs.page_request import PageRequest
from jobs.pipeline import Sampling, Turn
from jobs.protocol.events import events
from jobs.protocol.history import history
from jobs.protocol.input_items import input_item_list
from jobs.protocol.replay import report
from jobs.protocol.response import response
from jobs.statements import erasures, log
from jobs.tlog.record import digest, review_digest
from jobs.tlog.salted import salts_of
from jobs.use_cases import cancellation, deletion, erasing, queries, reviewing, stages, sweeping
from jobs.use_cases.replaying import replay_of
from jobs.use_cases.requests import Keyed
from jobs.use_cases.reviewing import NewReview
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.integration.sealed import end, seal
from tests.integration.tampering import change, drop_triggers, is_as_recorded, new_value

SECRET = "Mr. Smith's number is 5551234"
ITEMS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SECRET}]


def erase(database: Database, job: Job, *texts: str, owner: str | None = None) -> list[str]:
    return erasing.erase(database, owner, job.id, history, texts or None, erased_by="ann")


def get(database: Database, job: Job) -> Job:
    return queries.get_job(database, None, job.id, with_history=True)


def everything(database: Database) -> str:
    """Return all that the tables of jobs have, as text."""
    names = ("jobs", "attempts", "reviews", "erasures", "file_chunks", "webhook_deliveries")
    found: list[str] = []
    with database.read() as connection:
        for name in names:
            rows = connection.execute(sa.select(sa.text("*")).select_from(sa.table(name)))
            found += [repr(tuple(row)) for row in rows]
    return "\n".join(found)


def test_an_erased_question_is_gone_everywhere_and_the_job_still_verifies(
    database: Database,
) -> None:
    job = end(database, question=SECRET, input_items=ITEMS, keyed=Keyed(ANONYMOUS, "k", "d" * 64))
    other = end(database)
    with database.write() as connection:
        traced = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "x=5551234"}
        connection.execute(sa.update(Job).where(Job.id == job.id).values(**traced))
    seal(database)
    before = history(get(database, job))
    assert SECRET in everything(database)
    prompts = [f"/attempts/{number}/prompt" for number in range(3)]
    assert erase(database, job, "/question") == ["/question", "/input_items", *prompts]
    assert "5551234" not in everything(database)
    assert "d" * 64 not in everything(database), "a digest of the request would confirm a guess"
    after = history(get(database, job))
    assert after["digest"] == before["digest"]
    assert after["traceparent"] == before["traceparent"] == traced["traceparent"]
    assert after["question"] == {"erased": True, "hash": after["question"]["hash"]}
    assert after["attempts"][0]["prompt"]["erased"] is True
    assert (after["system"], after["attempts"][0]["output"]) == ("Be brief.", "Because.")
    [erasure] = after["erasures"]
    assert (erasure["by"], erasure["texts"]) == ("ann", ["/question", "/input_items", *prompts])
    assert is_as_recorded(database).jobs == 2, "also before the log says so"
    assert seal(database) == 1
    found = is_as_recorded(database)
    assert (found.jobs, found.erasures) == (2, 1)
    assert history(get(database, other))["digest"] is not None


def test_an_erased_text_cannot_be_guessed_from_what_is_left(database: Database) -> None:
    job = end(database, question="yes")
    seal(database)
    erase(database, job, "/question")
    told = history(get(database, job))
    assert "salt" not in told["log"]
    assert set(told["log"]["salts"]) == {
        "/system",
        "/options",
        "/metadata",
        *(f"/attempts/{number}/output" for number in range(3)),
    }
    erase(database, job)
    assert history(get(database, job))["log"]["salts"] == {}
    assert get(database, job).log_salt is None


def test_an_exported_history_verifies_with_texts_erased(database: Database) -> None:
    job = end(database, question=SECRET)
    request = Keyed(ANONYMOUS, "k", "e" * 64)
    reviewing.add(database, None, job.id, NewReview(note=SECRET), reviewer="ann", keyed=request)
    seal(database), seal(database)
    whole = json.loads(json.dumps(history(get(database, job))))
    erase(database, job, "/question", "/reviews/0/note")
    told = json.loads(json.dumps(history(get(database, job))))
    assert digest(told, salts_of(told["log"])) == whole["digest"]
    [review] = told["reviews"]
    assert review["note"]["erased"] is True
    assert review_digest(job.id, review, salts_of(review["log"])) == review["digest"]
    assert review["digest"] == whole["reviews"][0]["digest"]
    assert "e" * 64 not in everything(database), "a digest of the request would confirm a guess"
    told["attempts"][0]["output"] = "A lie."
    assert digest(told, salts_of(told["log"])) != whole["digest"]


def test_the_entry_of_an_erasure_names_the_texts(database: Database) -> None:
    job = end(database)
    seal(database)
    erase(database, job, "/metadata")
    seal(database)
    with database.read() as connection:
        [row] = log.list_entries(connection, 1, 2)
    said = json.loads(row.entry)
    told = history(get(database, job))
    assert set(said) == {"type", "at", "entry", "texts", "digest"}
    assert (said["type"], said["entry"], said["texts"]) == (
        "helixq/erasure/v1",
        0,
        ["/metadata"],
    )
    assert said["digest"] == told["erasures"][0]["digest"]
    assert told["erasures"][0]["log"] == {"index": 1}


def test_texts_are_erased_once(database: Database) -> None:
    job = end(database)
    seal(database)
    assert erase(database, job, "/system", "/system")[0] == "/system"
    assert erase(database, job, "/system") == []
    assert "/system" not in erase(database, job)
    assert erase(database, job) == []
    assert len(get(database, job).erasures) == 2
    seal(database)
    assert is_as_recorded(database).erasures == 2


def test_an_output_is_erased_with_the_prompts_that_have_it(database: Database) -> None:
    job = end(database, rounds=1)
    seal(database)
    assert erase(database, job, "/attempts/1/output") == [
        "/attempts/1/output",
        "/attempts/2/prompt",
    ]
    stored = get(database, job)
    assert [a.output for a in stored.attempts] == ["Because.", "", "Because."]
    assert [a.delta_lengths for a in stored.attempts] == [[4, 4], None, [4, 4]]


def test_an_output_is_erased_with_what_an_interrupted_attempt_had_of_it(
    database: Database,
) -> None:
    job = submit(database)
    lost = claim(database, job)
    let_leases_run_out(database)
    sweeping.sweep(database)
    with database.write() as connection:
        drop_triggers(connection)
        partial = sa.update(Attempt).where(Attempt.id == lost.attempt_id)
        connection.execute(partial.values(output="Becau"))
    for stage_index in range(3):
        assert stages.record(database, claim(database, job, stage_index), OUTPUT)
    seal(database)
    erased = erase(database, job, "/attempts/1/output")
    assert {"/attempts/0/output", "/attempts/1/output", "/attempts/2/prompt"} < set(erased)
    assert "/attempts/0/prompt" not in erased


def test_the_error_of_a_job_is_erased_with_that_of_its_attempt(database: Database) -> None:
    job = submit(database)
    assert stages.fail(database, claim(database, job), "server_error", SECRET)
    seal(database)
    assert erase(database, job, "/attempts/0/error") == ["/error/message", "/attempts/0/error"]
    assert "5551234" not in everything(database)
    told = history(get(database, job))
    assert (told["error"]["code"], told["error"]["message"]["erased"]) == ("server_error", True)


def test_turns_and_items_are_erased_with_their_copies(database: Database) -> None:
    turns = [Turn("user", SECRET), Turn("assistant", "No.")]
    job = end(database, turns=turns, input_items=ITEMS)
    again = end(database, turns=turns, input_items=ITEMS)
    seal(database)
    assert erase(database, job, "/turns")[:2] == ["/turns", "/input_items"]
    assert "/question" not in get(database, job).erased  # type: ignore[operator]  # it is set
    assert get(database, job).context == "turns"
    erased = erase(database, again, "/input_items")
    assert {"/question", "/turns", "/input_items", "/system", "/attempts/2/prompt"} <= set(erased)
    assert is_as_recorded(database).jobs == 2
    assert "5551234" not in everything(database)


def test_all_texts_of_a_job_and_its_reviews_are_erased(database: Database) -> None:
    job = end(
        database,
        question=SECRET,
        system=SECRET,
        metadata={"name": SECRET},
        options={"user": SECRET},
        sampling=Sampling(stop=(SECRET,)),
        input_items=ITEMS,
        custom_id=SECRET,
        batch_id="batch_1",
    )
    new = NewReview(critique=1, corrected_answer=SECRET, tags=(SECRET,), note=SECRET)
    reviewing.add(database, None, job.id, new, reviewer=SECRET)
    seal(database), seal(database)
    erase(database, job)
    assert "5551234" not in everything(database)
    assert "Because" not in everything(database)
    seal(database)
    found = is_as_recorded(database)
    assert (found.jobs, found.reviews, found.erasures) == (1, 1, 1)
    [review] = history(get(database, job))["reviews"]
    assert (review["critique"], review["reviewer"]["erased"]) == (1, True)


def test_stop_strings_are_erased(database: Database) -> None:
    job, other = end(database, sampling=Sampling(stop=(SECRET, "\n"))), end(database)
    seal(database)
    assert history(get(database, job))["stop"] == [SECRET, "\n"]
    assert erase(database, job, "/stop") == ["/stop"]
    with pytest.raises(TextNotFoundError):
        erase(database, other, "/stop")
    assert "5551234" not in everything(database)
    told = get(database, job)
    assert history(told)["stop"]["erased"] is True
    assert response(told)["stop"] is None
    seal(database)
    assert is_as_recorded(database).erasures == 1
    with pytest.raises(ErasedError):
        replay_of(told)


def test_what_cannot_be_erased_is_refused(database: Database) -> None:
    waiting, job = submit(database), end(database)
    with pytest.raises(NotEndedError):
        erase(database, waiting)
    with pytest.raises(NotSealedError, match="within seconds"):
        erase(database, job)
    seal(database)
    for pointer in ("/attempts/9/output", "/turns", "/id", "question", "/options/user", ""):
        with pytest.raises(TextNotFoundError):
            erase(database, job, "/question", pointer)
    assert get(database, job).erased is None, "all or nothing"
    for owner, other in (("somebody", job.id), (None, "resp_none")):
        with pytest.raises(JobNotFoundError):
            erasing.erase(database, owner, other, history, None, erased_by="ann")


def test_a_job_that_ends_while_an_erasure_begins_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line may have been written to its batch's file since the erasure has looked for it."""
    job, find_lines = submit(database), erasing.find_lines

    def find_and_wait(*arguments: Any) -> list[tuple[str, int, int]]:
        found = find_lines(*arguments)
        cancellation.cancel(database, None, job.id)
        seal(database)
        return found

    monkeypatch.setattr(erasing, "find_lines", find_and_wait)
    with pytest.raises(NotEndedError):
        erase(database, job)


def test_clients_get_an_erased_job_without_its_texts(database: Database) -> None:
    job = end(database, question=SECRET, input_items=ITEMS)
    seal(database)
    version = queries.get_version(database, None, job.id)
    erase(database, job)
    assert queries.get_version(database, None, job.id) != version, "kept replies are not current"
    stored = get(database, job)
    told = response(stored)
    assert told["status"] == "completed"
    assert [item["content"][0]["text"] for item in told["output"]] == ["", "", ""]
    assert (told["instructions"], told["metadata"]) == ("", {})
    assert told["erased_at"] >= told["completed_at"]
    last = list(events(stored, {}))[-1]
    assert last is not None
    assert last["response"] == told
    items = input_item_list(stored, PageRequest(10))
    assert [item["content"][0]["text"] for item in items["data"]] == [""]
    with pytest.raises(ErasedError):
        replay_of(stored)


def test_a_replay_is_not_compared_with_erased_texts(database: Database) -> None:
    job = end(database)
    replay = end(database, replay_of=job.id)
    seal(database)
    assert report(get(database, job), get(database, replay))["identical"] is True
    erase(database, job, "/attempts/0/output")
    compared = report(get(database, job), get(database, replay))
    assert (compared["identical"], compared["difference"]) == (None, None)


def test_an_erased_note_of_a_review_changes_nothing_for_clients(database: Database) -> None:
    job = end(database)
    reviewing.add(database, None, job.id, NewReview(note="x"), reviewer="ann")
    seal(database), seal(database)
    erase(database, job, "/reviews/0/note")
    assert response(get(database, job))["erased_at"] is None
    assert replay_of(get(database, job)).question == "Why?"
    assert get(database, job).log_salt is not None


@pytest.mark.parametrize("point", ["add", "update_attempt", "update_review", "update_job"])
def test_an_erasure_that_breaks_off_erases_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    job = end(database)
    reviewing.add(database, None, job.id, NewReview(note="x"), reviewer="ann")
    seal(database), seal(database)
    before = history(get(database, job))
    original = getattr(erasures, point)

    def crash(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(erasures, point, crash)
        with pytest.raises(CrashError):
            erase(database, job)
    assert history(get(database, job)) == before
    assert is_as_recorded(database).jobs == 1
    assert erase(database, job)


class CrashError(Exception):
    """Stands for the end of the process: what was not committed is gone."""


def test_two_at_once_erase_a_text_once(database: Database) -> None:
    job = end(database)
    seal(database)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: erase(database, job, "/question", "/system"), range(4)))
    assert len([erased for erased in done if erased]) == 1
    seal(database)
    assert is_as_recorded(database).erasures == 1


def test_the_database_lets_only_erasures_pass(database: Database) -> None:
    job = end(database)
    seal(database)
    dialect = database.engine.dialect

    def refused(statement: Any, says: str) -> None:
        with pytest.raises(sa.exc.IntegrityError, match=says), database.write() as connection:
            connection.execute(statement if not isinstance(statement, str) else sa.text(statement))

    ended = "has ended never changes"
    refused("UPDATE attempts SET output = ''", ended)  # No erasure says so.
    erase(database, job, "/metadata")
    for column in Attempt.__table__.columns:
        if column.name not in ("id", "job_id", "worker_id"):
            refused(
                f"UPDATE attempts SET {column.name} = {new_value(column, dialect)}",
                ended,
            )
    refused("UPDATE attempts SET delta_lengths = NULL", ended)
    refused("UPDATE attempts SET output = '', finish_reason = 'length'", ended)
    for column in Erasure.__table__.columns:
        if column.name not in ("id", "job_id", "log_index"):
            refused(
                f"UPDATE erasures SET {column.name} = {new_value(column, dialect)}",
                "an erasure never changes",
            )
    refused(sa.delete(Erasure), "an erasure never changes")
    seal(database)
    refused("UPDATE erasures SET log_index = NULL", "an erasure never changes")
    deletion.delete(database, None, job.id)
    seal(database)
    assert is_as_recorded(database).deleted == 1


def test_a_change_of_any_column_of_an_erasure_is_noticed(database: Database) -> None:
    job, other = end(database), end(database)
    seal(database)
    erase(database, job, "/metadata", "/attempts/2/output")
    seal(database)
    for column in Erasure.__table__.columns:
        if column.name == "id":
            continue
        value = new_value(column, database.engine.dialect)
        if column.name == "job_id":
            value = f"'{other.id}'"
        said = change(database, f"UPDATE erasures SET {column.name} = {value}")
        assert job.id in said or other.id in said, (column.name, said)
    for statement in (
        "DELETE FROM erasures",
        "UPDATE jobs SET erased = NULL",
        "UPDATE jobs SET erased = replace(erased, 'sha256:', 'sha256:0')",
        "UPDATE jobs SET erased_at = NULL",
        "UPDATE jobs SET erased_at = created_at",
        "UPDATE jobs SET log_salts = NULL",
        """UPDATE jobs SET log_salts = replace(log_salts, '{"', '{"/metadata":"00","')""",
        "UPDATE attempts SET output = '' WHERE stage_index = 1",
    ):
        said = change(
            database,
            f"{statement} {'AND' if 'WHERE' in statement else 'WHERE'} "
            f"{'id' if 'jobs' in statement else 'job_id'} = '{job.id}'",
        )
        assert job.id in said, (statement, said)
    # A text that was erased without a word.
    more = """replace(erased, '{"', '{"/system":"sha256:00","')"""
    assert job.id in change(database, f"UPDATE jobs SET erased = {more} WHERE id = '{job.id}'")
    columns = "job_id, texts, erased_by, key_id, created_at, log_index"
    copied = f"INSERT INTO erasures ({columns}) SELECT {columns} FROM erasures"
    assert job.id in change(database, copied)
    # One that names no text, and the entry of the job as its own.
    empty = columns.replace("texts", "'[]'").replace("log_index", "0")
    said = change(database, f"INSERT INTO erasures ({columns}) SELECT {empty} FROM erasures")
    assert said == (
        f"an erasure of texts of job {job.id} was added: the entry that it claims is not its own"
    )
    assert is_as_recorded(database).erasures == 1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_happens_to_random_histories_they_verify(
    database: Database, data: st.DataObject
) -> None:
    jobs = []
    for _ in range(data.draw(st.integers(1, 3))):
        text = data.draw(texts)
        items = data.draw(st.none() | st.just([{"role": "user", "content": text}]))
        job = submit(database, question=text, system=data.draw(texts), input_items=items)
        for stage_index in range(3):
            output = data.draw(texts)
            made = replace(OUTPUT, text=output, delta_lengths=[len(output)])
            assert stages.record(database, claim(database, job, stage_index), made)
        jobs.append(job)
    seal(database)
    for step in data.draw(
        st.lists(st.sampled_from(["review", "erase", "all", "delete", "seal"]), max_size=8)
    ):
        job = data.draw(st.sampled_from(jobs))
        try:
            if step == "review":
                new = NewReview(
                    critique=data.draw(st.sampled_from([None, -1, 0, 1])),
                    regeneration=data.draw(st.sampled_from([None, -1, 0, 1])),
                    corrected_answer=data.draw(st.none() | texts),
                    tags=tuple(data.draw(st.lists(texts, max_size=2))),
                    note=data.draw(st.none() | texts),
                )
                reviewing.add(database, None, job.id, new, reviewer=data.draw(texts))
            elif step == "erase":
                told = history(get(database, job))
                chosen = ["/question", "/system", "/metadata", "/attempts/1/output"]
                chosen += [f"/reviews/{n}/tags" for n in range(len(told["reviews"]))]
                erase(database, job, *data.draw(st.sets(st.sampled_from(chosen), min_size=1)))
            elif step == "all":
                erase(database, job)
            elif step == "delete":
                deletion.delete(database, None, job.id)
            else:
                seal(database)
        except JobNotFoundError:
            assert job.id not in {row.id for row in _stored(database)}
        is_as_recorded(database)
    seal(database), seal(database)
    found = is_as_recorded(database)
    assert found.unsealed == 0
    for stored in _stored(database):
        told = json.loads(json.dumps(history(get(database, stored))))
        assert digest(told, salts_of(told["log"])) == told["digest"]


def _stored(database: Database) -> list[Job]:
    page, _ = queries.list_jobs(database, None, PageRequest(1000))
    return page
