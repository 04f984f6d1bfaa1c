"""How many lines of which batch are submitted: equal shares of what may be queued."""

from __future__ import annotations

import dataclasses

from jobs.batch_runner import MIN_WINDOW, WINDOW_PER_RUNNING, share
from jobs.models import BatchStatus
from jobs.use_cases.batch_work import Work

BIG = Work(
    batch_id="big",
    owner="a",
    status=BatchStatus.IN_PROGRESS,
    expired=False,
    taken=False,
    pending=50_000,
    queued=0,
    running=0,
    ended=0,
)


def work(batch_id: str, owner: str, **changes: int) -> Work:
    return dataclasses.replace(BIG, batch_id=batch_id, owner=owner, **changes)  # type: ignore[arg-type]  # its numbers


def test_a_single_batch_has_a_few_lines_queued() -> None:
    assert share([BIG]) == {"big": MIN_WINDOW}
    assert share([work("big", "a", queued=MIN_WINDOW - 1)]) == {"big": 1}
    assert share([work("big", "a", queued=MIN_WINDOW)]) == {}


def test_more_lines_are_queued_where_more_are_running() -> None:
    running = work("big", "a", running=16, queued=5)
    assert share([running]) == {"big": MIN_WINDOW + 16 * WINDOW_PER_RUNNING - 5}


def test_no_more_lines_than_there_are() -> None:
    assert share([work("small", "a", pending=3)]) == {"small": 3}
    assert share([work("done", "a", pending=0)]) == {}


def test_owners_share_equally_however_many_batches_they_have() -> None:
    shares = share([work("1", "a"), work("2", "a"), work("3", "a"), work("4", "b")])
    assert shares["4"] == shares["1"] + shares["2"] + shares["3"] == MIN_WINDOW // 2


def test_an_owner_that_comes_later_gets_its_share_at_once() -> None:
    assert share([work("big", "a", queued=MIN_WINDOW), work("late", "b")]) == {
        "late": MIN_WINDOW // 2
    }


def test_batches_of_an_owner_share_equally() -> None:
    shares = share([work("1", "a", queued=4), work("2", "a")])
    assert shares == {"2": MIN_WINDOW - 4}


def test_an_owner_without_pending_lines_leaves_its_share_to_others() -> None:
    assert share([work("1", "a", pending=0, queued=2), work("2", "b")]) == {"2": MIN_WINDOW}


def test_many_owners_get_a_line_each() -> None:
    owners = [work(str(number), str(number)) for number in range(100)]
    assert set(share(owners).values()) == {1}


def test_batches_that_are_not_in_progress_get_none() -> None:
    validating = dataclasses.replace(BIG, status=BatchStatus.VALIDATING)
    expired = dataclasses.replace(BIG, expired=True)
    assert share([validating, expired]) == {}
