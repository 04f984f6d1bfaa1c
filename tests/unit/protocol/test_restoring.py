"""Where a history of a file differs from the one that would be stored."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.protocol.restoring import difference

HISTORY = {
    "id": "resp_1",
    "log": {"index": 7},
    "stages": [{"text": "a", "worker": {"id": "w"}}, {"text": "b", "worker": None}],
    "reviews": [{"log": {"index": 9, "salt": "b"}}],
    "rating": float("nan"),
}


def changed(pointer: str, value: Any) -> dict[str, Any]:
    """Return the history with another value at a JSON pointer; without it if that is ``...``."""

    def change(old: Any, names: list[str]) -> Any:
        if not names:
            return value
        name, *below = names
        if isinstance(old, list):
            return [change(v, below) if str(i) == name else v for i, v in enumerate(old)]
        new = {**old, name: change(old.get(name), below)}
        return {key: value for key, value in new.items() if value is not ...}

    result: dict[str, Any] = change(HISTORY, pointer.split("/")[1:])
    return result


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/id", "resp_2"),
        ("/id", ...),
        ("/added", None),
        ("/stages/1/text", "c"),
        ("/stages/0/worker/id", ...),
        ("/stages/0/worker", None),
        ("/stages/1/worker", {"id": "w"}),
        ("/stages/0/text", ["a"]),
        ("/stages", []),
        ("/stages", [*HISTORY["stages"], None]),  # type: ignore[misc]  # a list
        ("/stages", {"0": None}),
        ("/rating", 1.0),
    ],
)
def test_the_first_difference_is_named_whichever_history_has_it(pointer: str, value: Any) -> None:
    other = changed(pointer, value)
    assert difference(HISTORY, other) == difference(other, HISTORY) == pointer


def test_a_place_in_another_log_is_no_difference() -> None:
    assert difference(HISTORY, changed("/id", "resp_1")) is None
    assert difference(HISTORY, changed("/log/index", 8)) is None
    assert difference(HISTORY, changed("/reviews/0/log/index", 8)) is None
    assert difference(HISTORY, changed("/reviews/0/log/salt", "a")) == "/reviews/0/log/salt"
