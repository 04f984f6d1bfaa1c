"""Whose jobs are meant, given whose may be."""

from __future__ import annotations

import pytest

from jobs.use_cases.owners import narrow


@pytest.mark.parametrize(
    ("allowed", "wanted", "found"),
    [
        (None, None, (True, None)),
        (None, "ann", (True, "ann")),
        ("ann", None, (True, "ann")),
        ("ann", "ann", (True, "ann")),
    ],
)
def test_what_is_allowed_and_wanted_is_meant(
    allowed: str | None, wanted: str | None, found: tuple[bool, str | None]
) -> None:
    assert narrow(allowed, wanted) == found


def test_nothing_of_another_owner_is_meant() -> None:
    assert not narrow("ann", "bob")[0]
