"""How many threads compute a step on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

#: A small model computes batches of fewer tokens on one thread.
MIN_PARALLEL_TOKENS = 32
#: A step by a team of threads loses what it takes longer than this many times a step on one thread.
TOLERANCE = 1.2
#: Seconds that the team may lose before steps are computed by one thread.
MAX_LOST_SECONDS = 0.1
#: The team is tried again after this many times what it lost, so that tries cost a tenth at most. Each failed try
#: also doubles the pause, up to a maximum of seconds.
PAUSE_PER_LOST_SECOND = 10.0
MAX_PAUSE_SECONDS = 30.0
#: Steps of about the same number of tokens after which one of them is computed by one thread, to measure it again.
STEPS_BETWEEN_MEASUREMENTS = 64
#: Weight of a new step in the average of earlier ones.
SMOOTHING = 0.5


class IntraOpThreads:
    """Chooses the number of intra-op threads for each step. Use it on the thread that computes.

    An operation of a small model takes microseconds. With few tokens, waking a team of threads for each takes as
    long, so one thread computes small steps. With many, a team is faster, as long as it has the processors for
    itself: each operation waits for the last thread of the team, and where other processes compute, too, that
    thread may wait for a processor for milliseconds. A step has hundreds of operations. So larger steps are computed
    by the team unless measurements say that one thread is faster (`TeamTrial`).
    """

    def __init__(
        self, *, small_model: bool, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Start from PyTorch's current number of threads.

        Args:
            small_model: whether the weights stay in the processor's caches. Those of larger models are
                read from memory, whose bandwidth one thread cannot use up, and their operations take so long
                that waiting for a processor matters less: a team computes all their steps.
            clock: the time in seconds.
        """
        self._max = self._current = torch.get_num_threads()
        self._trial = TeamTrial() if small_model and self._max > 1 else None
        self._clock = clock

    @contextmanager
    def computing(self, num_tokens: int) -> Iterator[None]:
        """Set the number of threads for a step of ``num_tokens`` tokens, which the ``with`` block computes."""
        if self._trial is None or num_tokens < MIN_PARALLEL_TOKENS:
            self._set(self._max if self._trial is None else 1)
            yield
            return
        start = self._clock()
        by_team = self._trial.wants_team(num_tokens, start)
        self._set(self._max if by_team else 1)
        yield
        end = self._clock()
        self._trial.record(num_tokens, end - start, end, by_team=by_team)

    def reset(self) -> None:
        """Set the original number again: new threads inherit the number that was set last."""
        self._set(self._max)

    def _set(self, num_threads: int) -> None:
        if num_threads != self._current:
            torch.set_num_threads(num_threads)
            self._current = num_threads


@dataclass
class _OneThread:
    """How long steps of about the same number of tokens take on one thread."""

    seconds_per_token: float
    #: Steps by the team since this was measured.
    steps: int = 0


class TeamTrial:
    """Decides from the times of steps whether a team of threads computes the next one, or one thread alone.

    The time that the team loses against one thread is added up, and what it gains is taken off, down to zero. Once
    the sum passes a limit, one thread computes for a while; then the team is tried again. Times are compared
    for steps of about the same number of tokens.
    """

    def __init__(self) -> None:
        self._one_thread: dict[int, _OneThread] = {}
        #: Seconds that the team has lost lately.
        self._lost = 0.0
        #: Until when one thread computes, and for how long it has or had to.
        self._paused_until = float("-inf")
        self._pause = 0.0

    def wants_team(self, num_tokens: int, now: float) -> bool:
        """Return whether the team computes a step of ``num_tokens`` tokens that begins now (seconds)."""
        one_thread = self._one_thread.get(_size(num_tokens))
        return (
            now >= self._paused_until
            and one_thread is not None
            and one_thread.steps < STEPS_BETWEEN_MEASUREMENTS
        )

    def record(self, num_tokens: int, seconds: float, now: float, *, by_team: bool) -> None:
        """Learn how long a step took that has ended now."""
        size = _size(num_tokens)
        one_thread = self._one_thread.get(size)
        if by_team and one_thread:
            one_thread.steps += 1
            allowed = TOLERANCE * one_thread.seconds_per_token * num_tokens
            self._lost = max(0.0, self._lost + seconds - allowed)
            if self._lost > MAX_LOST_SECONDS:
                self._stop_trying(now)
            return
        per_token = seconds / num_tokens
        average = one_thread.seconds_per_token if one_thread else per_token
        average += SMOOTHING * (per_token - average)
        self._one_thread[size] = _OneThread(average)

    def _stop_trying(self, now: float) -> None:
        """Have one thread compute for a while."""
        has_held = now - self._paused_until > self._pause
        doubled = 0.0 if has_held else 2 * self._pause
        self._pause = min(max(doubled, PAUSE_PER_LOST_SECOND * self._lost), MAX_PAUSE_SECONDS)
        self._paused_until = now + self._pause
        self._lost = 0.0


def _size(num_tokens: int) -> int:
    """Return what steps of about the same number of tokens have in common: four of it to an octave."""
    return round(4 * math.log2(num_tokens))
