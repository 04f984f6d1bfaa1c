"""The number of threads that compute a step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.engine.intra_op_threads import (
    MAX_LOST_SECONDS,
    MIN_PARALLEL_TOKENS,
    STEPS_BETWEEN_MEASUREMENTS,
    IntraOpThreads,
    TeamTrial,
)
from worker.engine.threads import run_in_fresh_thread


@pytest.fixture(autouse=True)
def _restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Machine:
    """A simulated machine, on which steps take as long as one says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.by_team = 0.020
        self.alone = 0.030
        #: Seconds of steps.
        self.times: list[float] = []

    def compute(self, threads: IntraOpThreads, seconds: float, num_tokens: int = 64) -> None:
        """Compute steps of so many tokens for some seconds."""
        self.times = []
        end = self.now + seconds
        while self.now < end:
            with threads.computing(num_tokens):
                taken = self.by_team if torch.get_num_threads() > 1 else self.alone
                self.now += taken * num_tokens / 64
            self.times.append(taken)


def threads_of(machine: Machine, *, small_model: bool = True) -> IntraOpThreads:
    torch.set_num_threads(2)
    return IntraOpThreads(small_model=small_model, clock=lambda: machine.now)


def average(times: list[float]) -> float:
    return sum(times) / len(times)


@pytest.mark.parametrize(("small", "tokens"), [(True, MIN_PARALLEL_TOKENS - 1), (False, 1)])
def test_small_steps_of_small_models_use_one_thread(small: bool, tokens: int) -> None:
    def measure() -> tuple[int, int]:
        torch.set_num_threads(3)
        threads = IntraOpThreads(small_model=small)
        with threads.computing(tokens):
            during = torch.get_num_threads()
        threads.reset()
        return during, torch.get_num_threads()

    assert run_in_fresh_thread(measure) == (1 if small else 3, 3)


def test_new_threads_use_all_intra_op_threads() -> None:
    before = torch.get_num_threads()

    def serve() -> None:
        threads = IntraOpThreads(small_model=True)
        with threads.computing(1):
            pass
        threads.reset()

    run_in_fresh_thread(serve)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before


def test_a_team_computes_where_it_is_faster() -> None:
    machine = Machine()
    machine.compute(threads_of(machine), 60)
    assert average(machine.times) < 1.01 * machine.by_team


def test_one_thread_computes_while_the_team_waits_for_processors() -> None:
    """Other processes compute: a team's step takes a hundred times as long, and one thread's as long as before."""
    machine = Machine()
    threads = threads_of(machine)
    machine.compute(threads, 10)
    machine.by_team = 2.4
    machine.compute(threads, 300)
    assert machine.times.count(machine.by_team) * machine.by_team < 0.1 * 300
    assert machine.times.count(machine.alone) * machine.alone > 0.9 * 300


def test_a_team_that_is_a_little_slower_is_found_out_too() -> None:
    machine = Machine()
    machine.by_team = 1.5 * machine.alone
    machine.compute(threads_of(machine), 60)
    assert average(machine.times) < 1.1 * machine.alone


def test_the_team_computes_again_once_it_has_the_processors_for_itself() -> None:
    machine = Machine()
    threads = threads_of(machine)
    machine.by_team = 2.4
    machine.compute(threads, 60)
    machine.by_team = 0.020
    machine.compute(threads, 31)
    machine.compute(threads, 10)
    assert average(machine.times) < 1.01 * machine.by_team


def test_a_short_disturbance_costs_little() -> None:
    """One step waits; the team is back within two seconds."""
    machine = Machine()
    threads = threads_of(machine)
    machine.compute(threads, 10)
    machine.by_team = MAX_LOST_SECONDS + 0.1
    machine.compute(threads, machine.by_team)
    machine.by_team = 0.020
    machine.compute(threads, 3)
    assert machine.times.count(machine.alone) * machine.alone < 2.0
    machine.compute(threads, 3)
    assert average(machine.times) < 1.02 * machine.by_team


def test_one_thread_is_measured_again_on_a_machine_that_became_slower() -> None:
    """Both take twice as long, so the team is still the faster one."""
    machine = Machine()
    threads = threads_of(machine)
    machine.compute(threads, 10)
    machine.by_team, machine.alone = 0.040, 0.060
    machine.compute(threads, 60)
    machine.compute(threads, 10)
    assert average(machine.times) < 1.02 * machine.by_team


def test_steps_are_compared_with_steps_of_their_size() -> None:
    """A token of a large step takes less time; that is no gain of the team's."""
    trial = TeamTrial()
    trial.record(512, 0.040, 1.0, by_team=False)
    assert not trial.wants_team(64, 1.0)
    trial.record(64, 0.011, 1.0, by_team=False)
    for _ in range(STEPS_BETWEEN_MEASUREMENTS - 1):
        assert trial.wants_team(64, 1.0)
        trial.record(64, 0.009, 1.0, by_team=True)
    assert trial.wants_team(512, 1.0)


def test_longer_texts_are_no_loss_of_the_teams() -> None:
    """Attention takes longer with each token: one thread is measured again."""
    machine = Machine()
    threads = threads_of(machine)
    for _ in range(2000):
        with threads.computing(64):
            machine.now += machine.by_team if torch.get_num_threads() > 1 else machine.alone
        machine.by_team *= 1.001
        machine.alone *= 1.001
    machine.compute(threads, 10)
    assert average(machine.times) < 1.02 * machine.by_team


def test_a_step_that_fails_says_nothing_about_time() -> None:
    machine = Machine()
    threads = threads_of(machine)
    machine.compute(threads, 1)

    def fail() -> None:
        with threads.computing(64):
            machine.now += 1.0
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    with threads.computing(64):
        assert torch.get_num_threads() == 2
