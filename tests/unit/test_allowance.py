"""What a step may hold grows again after memory ran out, and does not keep failing."""

from __future__ import annotations

from worker.engine.batching.adaptive_limit import MOST_PATIENCE, PATIENCE, Allowance


def run(allowance: Allowance, steps: int, fits: int) -> int:
    """Take steps that use all that is allowed; return how many ran out of memory."""
    failures = 0
    for _ in range(steps):
        if allowance.now > fits:
            allowance.halve(allowance.now)
            failures += 1
        else:
            allowance.succeed(allowance.now)
    return failures


def test_what_memory_carries_again_is_allowed_again() -> None:
    allowance = Allowance(64)
    run(allowance, 20, fits=5)
    assert allowance.now == 4
    assert run(allowance, 5 * PATIENCE, fits=64) == 0
    assert allowance.now == 64


def test_it_never_is_less_than_one_or_more_than_at_first() -> None:
    allowance = Allowance(5)
    for _ in range(9):
        allowance.halve(5)
    assert allowance.now == 1
    run(allowance, 9 * PATIENCE, fits=9)
    assert allowance.now == 5


def test_what_keeps_failing_is_tried_ever_more_rarely() -> None:
    allowance = Allowance(64)
    run(allowance, 20 * PATIENCE, fits=20)
    run(allowance, 2 * MOST_PATIENCE, fits=20)
    assert run(allowance, 20 * MOST_PATIENCE, fits=20) <= 20
    # After a time without any trouble it is as at the beginning.
    run(allowance, 10 * MOST_PATIENCE, fits=64)
    allowance.halve(64)
    run(allowance, PATIENCE, fits=64)
    assert allowance.now == 64


def test_steps_that_are_not_full_show_nothing() -> None:
    allowance = Allowance(8)
    allowance.halve(8)
    assert not any(allowance.succeed(3) for _ in range(3 * PATIENCE))
