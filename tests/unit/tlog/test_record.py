"""Records and their digests: every field counts, texts only by their salted hashes."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.models import AttemptStatus, Status
from jobs.protocol.history import history
from jobs.tlog.record import digest, record
from tests.unit.protocol.rows import add_attempt, make_job

SALT = bytes(range(32))


def make_history() -> dict[str, Any]:
    """Return a history in which no field is empty."""
    restart = {"run": 2, "at": "2026-01-02T03:04:05.678+00:00", "model": "ef", "reason": "gone"}
    job = make_job(
        Status.FAILED,
        owner="anonymous",
        key_id="key_1",
        input_items=[{"role": "user", "content": "Why?"}],
        turns=[{"role": "user", "text": "Hello"}],
        previous_response_id="resp_1",
        options={"truncation": "auto"},
        stop=["\n"],
        batch_id="batch_1",
        custom_id="line-1",
        replay_of="resp_2",
        model="ab" * 32,
        restarts=[restart],
        error_code="server_error",
        error_message="It broke.",
        deadline_at=make_job(Status.COMPLETED).finished_at,
    )
    add_attempt(job, 0)
    add_attempt(
        job, 1, AttemptStatus.FAILED, output="One", error="It broke.", finish_reason="error"
    )
    return history(job)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value in a JSON value that has no parts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from fields(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from fields(item, (*path, number))
    else:
        yield path


#: What a history says beside its record.
BESIDE = {"digest", "log", "origin", "erased_at", "rating"}


@pytest.mark.parametrize(
    "path",
    [p for p in fields(make_history()) if p[0] not in BESIDE],
    ids=lambda p: "/".join(map(str, p)),
)
def test_a_change_of_any_field_changes_the_digest(path: tuple[Any, ...]) -> None:
    original = make_history()
    changed = copy.deepcopy(original)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = "changed"
    assert digest(changed, SALT) != digest(original, SALT)


def test_attempts_cannot_be_removed_or_swapped() -> None:
    original = make_history()
    first, second = original["attempts"]
    for attempts in ([first], [second], [second, first], [first, second, second], []):
        changed = {**original, "attempts": attempts}
        assert digest(changed, SALT) != digest(original, SALT)


def test_a_new_field_of_histories_changes_no_digest() -> None:
    original = make_history()
    assert digest({**original, "new": 1}, SALT) == digest(original, SALT)


def test_a_record_has_no_texts() -> None:
    written = json.dumps(record(make_history(), SALT))
    for text in (
        "Why?",
        "Be brief.",
        "Hello",
        "line-1",
        "It broke.",
        "One two.",
        "A prompt",
        "blue",
    ):
        assert text not in written
    assert '"gpu-1"' in written


def test_a_text_hash_can_be_computed_from_its_description() -> None:
    """The formula of docs/trust.md, with the standard library."""
    own = hmac.new(SALT, b"/attempts/0/output", hashlib.sha256).digest()
    expected = "sha256:" + hashlib.sha256(own + b'"One two."').hexdigest()
    assert record(make_history(), SALT)["attempts"][0]["output"] == expected


def test_a_history_verifies_after_a_round_trip_through_json() -> None:
    original = make_history()
    assert digest(json.loads(json.dumps(original)), SALT) == digest(original, SALT)
