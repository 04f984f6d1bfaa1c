"""Signals that reach a program at an unlucky moment: it ends soon, with a status that says how, and no traceback."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from jobs.database import Database
from tests.conftest import migrate
from tests.integration.rows import submit
from tests.servers import PATIENCE, RedisServer, forked, settings_for

ECHO_WORKER = (sys.executable, "-m", "tests.acceptance.echo_worker")
#: Fakes for a fault: what a thread does when a program is told to end at once. It adds functions that Python calls at its
#: end, as SQLAlchemy does for each new kind of statement.
BUSY = """
import sys, weakref
class Thing:
    pass
kept = []
def work():
    print("busy", flush=True)
    while True:
        kept.append(Thing())
        weakref.finalize(kept[-1], int)
"""
BUSY_WEB = f"""{BUSY}
from cli.main import main
from web import serve
create_app = serve.create_app
def create_busy_app(settings):
    app = create_app(settings)
    app.wsgi_app = lambda environ, start_response: work()
    return app
serve.create_app = create_busy_app
main()
"""
BUSY_MAINTAIN = f"""{BUSY}
from cli.main import main
from jobs.maintenance import Maintenance
Maintenance.seal = lambda self: work()
main()
"""
#: A worker that stops itself while its engine hangs.
HANGING = """
import sys, threading, time
from jobs import logs, settings
from tests.acceptance.echo_worker import EchoEngine, make_engine
from worker import consumer, main, own_stop
consumer.GRACE_PERIOD = consumer.STOP_TIMEOUT = 0.1
EchoEngine.close = lambda self: threading.Event().wait()
set_state = main.workers.set_state
def set_and_stop(database, worker_id, state):
    set_state(database, worker_id, state)
    if state == "ready":
        own_stop.stop("a test says so")
main.workers.set_state = set_and_stop
logs.configure("text", "worker")
sys.exit(main.run(settings.load(), make_engine, time.monotonic()))
"""

#: A worker that gets a signal when it is connected, before it says that it is ready.
SIGNALLED = """
import os, signal, sys, time
from celery.signals import worker_ready
from jobs import logs, settings
from tests.acceptance.echo_worker import make_engine
from worker import main
worker_ready.connect(lambda **_: os.kill(os.getpid(), signal.SIGHUP), weak=False)
logs.configure("text", "worker")
sys.exit(main.run(settings.load(), make_engine, time.monotonic()))
"""
#: The names of the roles' models at a server that nobody asks.
ADAPTERS = "actor=a,critic=c,regenerator=r"
#: A worker whose engine never ends a text.
ENDLESS = """
from cli.main import main
from tests.acceptance.echo_worker import EchoEngine, make_engine
from worker import remote_engine
from worker.engine.interface import Generation
EchoEngine.submit = lambda self, request: Generation(request)
remote_engine.make_engine = lambda settings, register: make_engine(register)
main()
"""


@pytest.fixture
def environ(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    migrate(url)
    return settings_for(url, redis_server.url, tmp_path)


def until_stopped(pid: int) -> None:
    """Wait until SIGSTOP has had its effect on a process."""
    give_up = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < give_up
        time.sleep(0.01)  # nothing tells of it


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_process_that_is_stopped_counts_when_it_goes_on(
    environ: dict[str, str], number: signal.Signals
) -> None:
    """As after Ctrl-Z, or when a debugger held it: any of its threads may get the signal."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        number = signal.SIGTERM  # Under `nohup`, nobody minds the other one.
    processes = {
        "running the background duties": forked("maintain", environ=environ),
        "ready: ": forked(environ=environ, program=ECHO_WORKER),
        "listening": forked("web", environ=environ),
    }
    for ready, process in processes.items():
        process.wait_for(ready)
    for process in processes.values():
        process.signal(signal.SIGSTOP)
        until_stopped(process.popen.pid)
        process.signal(number)
        process.signal(signal.SIGCONT)
    assert [process.wait() for process in processes.values()] == [0, 0, 0]


def test_a_second_signal_ends_a_busy_web_without_a_traceback(environ: dict[str, str]) -> None:
    web = forked("web", environ=environ, program=(sys.executable, "-c", BUSY_WEB))
    web.wait_for("listening")
    with socket.create_connection(("127.0.0.1", int(environ["HELIXQ_PORT"]))) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        web.wait_for("busy")
        web.signal(signal.SIGTERM)
        web.signal(signal.SIGTERM)
        assert web.wait() == 0
    assert "Traceback" not in web.output


def test_a_second_signal_ends_a_busy_maintain_without_a_traceback(environ: dict[str, str]) -> None:
    maintain = forked("maintain", environ=environ, program=(sys.executable, "-c", BUSY_MAINTAIN))
    maintain.wait_for("busy")
    maintain.signal(signal.SIGTERM)
    maintain.wait_for("stopping")
    maintain.signal(signal.SIGINT)
    assert maintain.wait() == 0
    assert "Traceback" not in maintain.output


def test_a_worker_that_stops_itself_and_hangs_says_so_with_its_status(
    environ: dict[str, str],
) -> None:
    worker = forked(environ=environ, program=(sys.executable, "-c", HANGING))
    assert worker.wait() == os.EX_TEMPFAIL
    assert "exiting: the stop takes too long" in worker.output


def test_a_hangup_of_a_worker_that_is_about_to_be_ready_ends_it(environ: dict[str, str]) -> None:
    """Celery's own handler of it would start the program again, as another process of the same worker."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("under `nohup`, nobody minds the signal")
    worker = forked(environ=environ, program=(sys.executable, "-c", SIGNALLED))
    assert worker.wait() == 0
    assert "Restarting" not in worker.output


def test_sigusr1_logs_what_the_threads_are_doing_and_no_values(environ: dict[str, str]) -> None:
    question = "Who has the key to the cellar?"
    database = Database(environ["HELIXQ_DATABASE_URL"])
    submit(database, question=question)
    database.close()
    environ |= {"HELIXQ_ENGINE": "openai", "HELIXQ_ENGINE_URL": "http://127.0.0.1:1/v1"}
    environ |= {"HELIXQ_ENGINE_API_KEY": "sk-secret", "HELIXQ_ADAPTERS": ADAPTERS}
    worker = forked("worker", environ=environ, program=(sys.executable, "-c", ENDLESS))
    processes = {
        "running the background duties": forked("maintain", environ=environ),
        "actor starts": worker,
        "listening": forked("web", environ=environ),
    }
    for ready, process in processes.items():
        process.wait_for(ready)
        process.signal(signal.SIGUSR1)
        process.wait_for("INFO    MainThread: .* < .* run < ")
    for process in processes.values():
        process.kill()
        assert question not in process.output
        assert "sk-secret" not in process.output
