"""Entries of the log."""

from __future__ import annotations

from jobs.tlog import entry


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
    odd = (b"", b"[]", b'{"type": 1}', b'{"type": []}', b"\xff", b'{"type": "helixq/job/v1"}')
    assert [entry.parse_entry(other) for other in odd] == [{}] * len(odd)
    review = entry.review_entry(3, "sha256:0", at)
    assert entry.parse_entry(review)["entry"] == 3
    assert entry.parse_entry(review.replace(b'"entry":3', b'"entry":"3"')) == {}
