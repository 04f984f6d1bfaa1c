"""What strikes a service, and when: a plan that a seed determines."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

WORKERS = ("worker 0", "worker 1")
#: The processes that signals strike.
PROCESSES = ("web", *WORKERS, "maintain")
#: Signals that ask a process to stop.
STOPS = ("SIGTERM", "SIGINT", "SIGHUP")
#: Signals that end a process at once, but for SIGQUIT to a worker.
KILLS = ("SIGKILL", "SIGKILL", "SIGUSR2", "SIGALRM", "SIGQUIT")
#: Signals after which a process goes on. SIGUSR1 ends one that is not ready yet.
HARMLESS = ("SIGUSR1", "SIGWINCH", "SIGCHLD", "SIGPIPE", "SIGCONT")
#: Seconds between two strikes.
MIN_PAUSE, MAX_PAUSE = 0.2, 1.6
#: Seconds for which a process is stopped by SIGSTOP: for less than a lease, or for more. The latter only happens in storms
#: that are longer than `LONG`.
SHORT_STOP, LONG_STOP, LONG = (0.1, 3.0), (16.0, 22.0), 60.0


@dataclass(frozen=True, order=True)
class Step:
    """Something that happens to a process or a server at a time, in seconds from the beginning."""

    at: float
    target: str
    #: The name of a signal, or what happens to a server.
    action: str

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.target}: {self.action}"


@dataclass(frozen=True)
class _Moment:
    rng: random.Random
    at: float
    target: str
    is_long: bool

    def step(self, action: str, after: float = 0.0) -> Step:
        return Step(self.at + after, self.target, action)

    def stop_time(self) -> float:
        """Return for how long a process is stopped."""
        is_long = self.is_long and self.rng.random() < 0.25
        return self.rng.uniform(*(LONG_STOP if is_long else SHORT_STOP))


def _end(moment: _Moment) -> list[Step]:
    return [moment.step(moment.rng.choice(STOPS))]


def _kill(moment: _Moment) -> list[Step]:
    return [moment.step(moment.rng.choice(KILLS))]


def _end_twice(moment: _Moment) -> list[Step]:
    first, second = moment.rng.choice(STOPS), moment.rng.choice([*STOPS, "SIGQUIT", "SIGKILL"])
    return [moment.step(first), moment.step(second, moment.rng.choice([0.01, 0.2, 2.0]))]


def _end_often(moment: _Moment) -> list[Step]:
    count = moment.rng.randint(3, 20)
    return [moment.step(moment.rng.choice(STOPS), n / 1000) for n in range(count)]


def _end_its_successor(moment: _Moment) -> list[Step]:
    """The signal reaches the next process while it starts."""
    after = moment.rng.uniform(0.1, 3.0)
    return [moment.step("SIGKILL"), moment.step(moment.rng.choice(STOPS), after)]


def _stop_for_a_while(moment: _Moment) -> list[Step]:
    return [moment.step("SIGSTOP"), moment.step("SIGCONT", moment.stop_time())]


def _end_while_stopped(moment: _Moment) -> list[Step]:
    name = moment.rng.choice([*STOPS, "SIGKILL"])
    steps = [moment.step("SIGSTOP"), moment.step(name, 0.05)]
    return [*steps, moment.step("SIGCONT", moment.stop_time())]


def _disturb(moment: _Moment) -> list[Step]:
    return [moment.step(moment.rng.choice(HARMLESS))]


Strike = Callable[[_Moment], list[Step]]
STRIKES: tuple[Strike, ...] = (
    _end,
    _kill,
    _end_twice,
    _end_often,
    _end_its_successor,
    _stop_for_a_while,
    _end_while_stopped,
    _disturb,
)


def _happens(action: str) -> Strike:
    return lambda moment: [moment.step(action)]


#: What happens to servers: all that they do is that of `tests.acceptance.storm.service`.
SERVERS: dict[str, tuple[Strike, ...]] = {
    "redis": (
        _happens("restart"),
        _happens("flush"),
        _happens("disconnect"),
        _stop_for_a_while,
    ),
    "postgresql": (
        _happens("restart"),
        _happens("terminate"),
        _happens("crash"),
    ),
    "pgbouncer": (
        _happens("restart"),
        _stop_for_a_while,
    ),
}


def plan(seed: int, seconds: float, servers: tuple[str, ...]) -> list[Step]:
    """Return what happens in a storm, in order.

    Args:
        seed: of all that is random.
        seconds: from its beginning to the last strike.
        servers: those that it strikes, besides the processes.
    """
    rng = random.Random(f"strikes {seed}")
    strikes = _shuffled(rng, servers)
    steps, at = [], 0.0
    while (at := at + rng.uniform(MIN_PAUSE, MAX_PAUSE)) < seconds:
        target, strike = next(strikes)
        steps += strike(_Moment(rng, at, target, is_long=seconds > LONG))
    return sorted(steps)


def _shuffled(rng: random.Random, servers: tuple[str, ...]) -> Iterator[tuple[str, Strike]]:
    """Yield targets in turn, and each strike at each of them again and again, each time in another order."""

    def forever(strikes: tuple[Strike, ...]) -> Iterator[Strike]:
        while True:
            yield from rng.sample(strikes, len(strikes))

    strikes = {name: forever(STRIKES) for name in PROCESSES}
    strikes |= {name: forever(SERVERS[name]) for name in servers}
    # Without a web, nobody asks anything.
    targets = [*PROCESSES, *WORKERS, *servers]
    while True:
        for target in rng.sample(targets, len(targets)):
            yield target, next(strikes[target])
