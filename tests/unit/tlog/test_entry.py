"""Records and their digests: every field counts, texts only by their salted hashes."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.models import AttemptStatus, Status
from jobs.protocol.history import history
from jobs.tlog import entry
from tests.unit.protocol.rows import add_attempt, make_job

SALT = bytes(range(32))

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1, 1)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


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
    assert entry.digest(changed, SALT) != entry.digest(original, SALT)


def test_attempts_cannot_be_removed_or_swapped() -> None:
    original = make_history()
    first, second = original["attempts"]
    for attempts in ([first], [second], [second, first], [first, second, second], []):
        changed = {**original, "attempts": attempts}
        assert entry.digest(changed, SALT) != entry.digest(original, SALT)


def test_a_new_field_of_histories_changes_no_digest() -> None:
    original = make_history()
    assert entry.digest({**original, "new": 1}, SALT) == entry.digest(original, SALT)


def test_a_record_has_no_texts() -> None:
    written = json.dumps(entry.record(make_history(), SALT))
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
    assert entry.record(make_history(), SALT)["attempts"][0]["output"] == expected


def test_a_history_verifies_after_a_round_trip_through_json() -> None:
    original = make_history()
    assert entry.digest(json.loads(json.dumps(original)), SALT) == entry.digest(original, SALT)


@settings(max_examples=150, deadline=None)
@given(value=values)
def test_canonical_json_is_that_of_the_rfc(value: Any) -> None:
    assert entry.canonical(value) == rfc8785.dumps(value)


def test_values_beyond_the_rfc_are_recorded_as_texts() -> None:
    assert entry.canonical({"a": [2**60, -(2**70), 2**53 - 1, True]}) == (
        b'{"a":["1152921504606846976","-1180591620717411303424",9007199254740991,true]}'
    )
    assert entry.canonical([float("nan"), float("-inf"), 0.5]) == b'["nan","-inf",0.5]'
    deep: Any = "x"
    for _ in range(500):
        deep = {"b": [deep]} if len(str(deep)) < 400 else [deep]
    assert entry.canonical(deep) == json.dumps(json.dumps(deep, sort_keys=True)).encode()


def test_entries_are_small_canonical_json() -> None:
    at = "2026-01-02T03:04:05.678Z"
    made = entry.job_entry("sha256:" + "0" * 64, at)
    assert made == (
        b'{"at":"2026-01-02T03:04:05.678Z","digest":"sha256:'
        + b"0" * 64
        + b'","type":"helixq/job/v1"}'
    )
    assert entry.parse_entry(made)["type"] == entry.JOB
    assert entry.parse_entry(entry.deletion_entry(3, at))["entry"] == 3
    assert [entry.parse_entry(other) for other in (b"", b"[]", b'{"type": 1}', b"\xff")] == [{}] * 4
