"""The size of steps shrinks when memory runs out, and grows again later."""

from __future__ import annotations

from worker.engine.batching.adaptive_limit import (
    BASE_BACKOFF_STEPS,
    MAX_BACKOFF_STEPS,
    AdaptiveLimit,
)


def run(limit: AdaptiveLimit, steps: int, fits: int) -> int:
    """Take steps of the full size; return how many ran out of memory."""
    failures = 0
    for _ in range(steps):
        if limit.current > fits:
            limit.halve(limit.current)
            failures += 1
        else:
            limit.on_success(limit.current)
    return failures


def test_the_limit_grows_when_memory_is_free_again() -> None:
    limit = AdaptiveLimit(64)
    run(limit, 20, fits=5)
    assert limit.current == 4
    assert run(limit, 5 * BASE_BACKOFF_STEPS, fits=64) == 0
    assert limit.current == 64


def test_the_limit_stays_between_one_and_its_initial_value() -> None:
    limit = AdaptiveLimit(5)
    for _ in range(9):
        limit.halve(5)
    assert limit.current == 1
    run(limit, 9 * BASE_BACKOFF_STEPS, fits=9)
    assert limit.current == 5


def test_a_limit_that_keeps_failing_is_retried_less_often() -> None:
    limit = AdaptiveLimit(64)
    run(limit, 20 * BASE_BACKOFF_STEPS, fits=20)
    run(limit, 2 * MAX_BACKOFF_STEPS, fits=20)
    assert run(limit, 20 * MAX_BACKOFF_STEPS, fits=20) <= 20
    # After enough successful steps the backoff is reset.
    run(limit, 10 * MAX_BACKOFF_STEPS, fits=64)
    limit.halve(64)
    run(limit, BASE_BACKOFF_STEPS, fits=64)
    assert limit.current == 64


def test_a_limit_that_fails_now_and_then_is_retried_less_often() -> None:
    """Steps of the full size fit sometimes."""
    limit, failures = AdaptiveLimit(64), 0
    for step in range(20 * MAX_BACKOFF_STEPS):
        if limit.current == 64 and step % 8 == 0:
            limit.halve(64)
            failures += 1
        else:
            limit.on_success(64)
    assert failures <= 30


def test_partial_steps_do_not_raise_the_limit() -> None:
    limit = AdaptiveLimit(8)
    limit.halve(8)
    assert not any(limit.on_success(3) for _ in range(3 * BASE_BACKOFF_STEPS))
