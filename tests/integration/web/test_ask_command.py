"""`helixq ask`, `chat` and `jobs watch` against a server whose jobs run when a test says so."""

from __future__ import annotations

import json
import os
import re
import shlex
import threading
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from cli import client
from cli.main import main
from cli.screen import ERASE_LINE
from cli.statuses import ExitStatus
from jobs.database import Database
from jobs.models import Job, Status, WorkerState
from jobs.page_request import PageRequest
from jobs.pipeline import stages as pipeline_stages
from jobs.progress import Progress, TextDeltas
from jobs.use_cases import cancellation, queries, stages, workers
from tests.conftest import WORKER
from tests.integration.web.client import OUTPUT, register_worker, services_of, serving
from tests.joining import join, shut_down
from tests.proxy import Proxy
from tests.servers import PATIENCE, PROGRAM, RedisServer
from tests.terminal import CTRL_C, CTRL_D, ENTER, LEFT, PASTE_BEGINS, PASTE_ENDS, Terminal

Command = Callable[..., Result]


class Server:
    """A server behind a connection that can be cut, and a worker that does as it is told."""

    def __init__(self, database: Database, progress: Progress, proxy: Proxy) -> None:
        self.database = database
        self.progress = progress
        self.proxy = proxy
        self.url = f"127.0.0.1:{proxy.port}"
        #: Called with each job that is submitted, in a thread.
        self.work: Callable[[str], None] = self.finish
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self, job_id: str) -> None:
        """Run all stages of a job."""
        job = queries.get_job(self.database, None, job_id)
        for stage in pipeline_stages(job.rounds):
            claim = stages.claim(self.database, job_id, stage.index, WORKER, job_timeout=60)
            assert claim is not None
            stages.record(self.database, claim, OUTPUT)
            self.progress.publish_change(job_id)

    def fail(self, job_id: str) -> None:
        """Let a job fail in its first stage."""
        claim = stages.claim(self.database, job_id, 0, WORKER, job_timeout=60)
        assert claim is not None
        stages.fail(self.database, claim, "server_error", "it broke", OUTPUT)

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        cancellation.cancel(self.database, None, job_id)
        self.progress.publish_change(job_id)

    def stop(self) -> None:
        self._stopped.set()
        join(self._thread)

    def _run(self) -> None:
        seen = set()
        while not self._stopped.wait(0.02):
            jobs, _ = queries.list_jobs(self.database, None, PageRequest(10), status=Status.QUEUED)
            for job in jobs:
                if job.id not in seen:
                    seen.add(job.id)
                    self.work(job.id)


@pytest.fixture(scope="module")
def running(
    redis_server: RedisServer,
    tokenizer_json: str,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("db")
    with serving(f"sqlite:///{folder / 'jobs.sqlite3'}", redis_server.url) as web:
        database = services_of(web).database
        register_worker(web, tokenizer_json)
        workers.set_state(database, WORKER, WorkerState.READY)
        socket = socket_folder / "ask.sock"
        listening: Any = make_server(f"unix://{socket}", 0, web.application, threaded=True)
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
        thread.start()
        proxy = Proxy(socket)
        server = Server(database, services_of(web).progress, proxy)
        yield server
        server.stop()
        proxy.close()
        shut_down(listening, thread)


@pytest.fixture
def server(running: Server) -> Server:
    running.work = running.finish
    return running


@pytest.fixture
def helixq(server: Server) -> Command:
    """Run a command of the program against the server."""
    return lambda *arguments, **options: CliRunner().invoke(
        main, [*arguments, "--url", server.url], **options
    )


def test_a_question_is_read_from_a_pipe(helixq: Command, server: Server) -> None:
    asked = helixq("ask", "--final", input="Why?\n")
    assert (asked.exit_code, asked.stdout) == (ExitStatus.DONE, "A text.\n"), asked.output
    job, page = asked.stderr.splitlines()
    job_id = job.removeprefix("job ")
    assert page == f"page http://{server.url}/jobs/{job_id}", "there is no live line in a pipe"
    assert queries.get_job(server.database, None, job_id).question == "Why?"
    assert helixq("ask", "-", input="Why?\nHow?\n").stdout.startswith(
        "ACTOR: A text.\n\n\nCRITIQUE: "
    )
    watched = helixq("jobs", "watch", job_id, "--final")
    assert (watched.exit_code, watched.stdout) == (ExitStatus.DONE, "A text.\n")


def test_stop_strings_are_sent_as_they_are(helixq: Command, server: Server) -> None:
    def kept(*options: str) -> list[str] | None:
        job = json.loads(helixq("ask", "Why?", "--no-wait", "--json", "id", *options).stdout)
        return queries.get_job(server.database, None, job["id"]).stop

    assert kept("--stop", "\n\n", "--stop", r"\n, ", "--stop", "") == ["\n\n", r"\n, "]
    assert kept() is None
    refused = helixq("ask", "Why?", "--stop", "x" * 257)
    assert (refused.exit_code, "at most 256 characters" in refused.stderr) == (1, True)


def test_several_rounds_are_numbered(helixq: Command) -> None:
    asked = helixq("ask", "Why?", "--rounds", "2").stdout
    labels = [line.partition(":")[0] for line in asked.splitlines() if line]
    assert labels == ["ACTOR", "CRITIQUE 1", "REGENERATION 1", "CRITIQUE 2", "REGENERATION 2"]


def test_the_exit_status_says_how_it_ended(
    helixq: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.work = server.fail
    failed = helixq("ask", "Why?", "--json")
    assert (failed.exit_code, json.loads(failed.stdout)["status"]) == (ExitStatus.FAILED, "failed")
    assert failed.stderr.endswith("The job failed: it broke.\n")
    server.work = server.cancel
    assert helixq("ask", "Why?").exit_code == ExitStatus.CANCELLED
    assert helixq("ask", "--temperature", "hot", "Why?").exit_code == ExitStatus.USAGE
    assert helixq("ask", input=" \n").exit_code == ExitStatus.USAGE
    assert helixq("ask", input=b"\xff").exit_code == ExitStatus.USAGE
    refused = helixq("ask", "--temperature", "9", "Why?")
    assert (refused.exit_code, "temperature" in refused.stderr) == (ExitStatus.FAILED, True)
    following = note_when_following(monkeypatch)

    def cut(job_id: str) -> None:
        assert following.wait(PATIENCE)
        server.proxy.cut()
        server.finish(job_id)

    server.work = cut
    monkeypatch.setattr(client, "RECONNECT_TIMEOUT", 0.1)
    lost = helixq("ask", "Why?")
    assert (lost.exit_code, "no server answers" in lost.stderr) == (ExitStatus.UNREACHABLE, True)
    assert helixq("ask", "Why?").exit_code == ExitStatus.UNREACHABLE
    server.proxy.mend()


def note_when_following(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when the command begins to follow a job."""
    following, page = threading.Event(), client.Client.page

    def note_and_return(self: client.Client, job_id: str) -> str:
        following.set()
        return page(self, job_id)

    monkeypatch.setattr(client.Client, "page", note_and_return)
    return following


def note_when_lost(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set when the command has told that the connection is lost."""
    lost, events = threading.Event(), client.Client.events

    def noted(
        self: client.Client, job_id: str, *, on_loss: Callable[[float], None], **options: Any
    ) -> Iterator[dict[str, Any]]:
        def tell(seconds: float) -> None:
            on_loss(seconds)
            lost.set()

        return events(self, job_id, on_loss=tell, **options)

    monkeypatch.setattr(client.Client, "events", noted)
    return lost


def test_a_lost_connection_is_told_and_mended(
    helixq: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RECONNECT_DELAY", 0.1)
    following, lost = note_when_following(monkeypatch), note_when_lost(monkeypatch)

    def cut(job_id: str) -> None:
        assert following.wait(PATIENCE)
        server.proxy.cut()
        assert lost.wait(PATIENCE)
        server.finish(job_id)
        server.proxy.mend()

    server.work = cut
    asked = helixq("ask", "Why?")
    assert asked.exit_code == ExitStatus.DONE
    assert asked.stderr.endswith(
        "The connection is lost; reconnecting for up to 60 s.\nReconnected.\n"
    )
    assert asked.stdout.endswith("REGENERATION: A text.\n")


def test_a_lost_reply_asks_only_once(helixq: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RECONNECT_DELAY", 0.1)
    request, sent = client.Client._request, []

    def lose_first_reply(self: client.Client, method: str, path: str, **options: Any) -> Any:
        reply = request(self, method, path, **options)
        sent.append(reply.json()["id"])
        if len(sent) == 1:
            raise httpx2.ReadError("the connection broke")
        return reply

    monkeypatch.setattr(client.Client, "_request", lose_first_reply)
    assert helixq("ask", "Why?", "--no-wait").stdout == f"{sent[0]}\n"
    assert sent == sent[:1] * 2
    monkeypatch.undo()
    assert helixq("jobs", "watch", sent[0]).exit_code == ExitStatus.DONE


def test_status_says_what_runs(helixq: Command, server: Server) -> None:
    workers.heartbeat(server.database, WORKER, [])
    helixq("ask", "Why?")
    status = helixq("status")
    assert re.search(r"\nattempts none of the last \d+ lost or given back\n", status.output)
    assert (status.exit_code, status.output[:29]) == (
        0,
        f"web      ready: http://{server.url}"[:29],
    )
    assert f"worker   {WORKER}: ready, 0 running, none on " in status.output
    told = json.loads(helixq("status", "--json").output)
    assert (told["ready"]["status"], told["workers"][0]["id"]) == ("ok", WORKER)
    workers.set_state(server.database, WORKER, WorkerState.LOADING)
    status = helixq("status")
    assert (status.exit_code, "worker: a worker loads its model" in status.output) == (1, True)
    workers.set_state(server.database, WORKER, WorkerState.READY)


def test_the_page_is_opened(
    helixq: Command, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    asked = helixq("ask", "Why?", "--no-wait", "--open")
    assert opened == [f"http://{server.url}/jobs/{asked.stdout.strip()}"]
    assert "No browser could be started" in asked.stderr, "append returns None"
    assert helixq("jobs", "watch", asked.stdout.strip()).exit_code == ExitStatus.DONE


@pytest.fixture
def open_terminal(server: Server, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start a command of the program on a terminal."""
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    environ.pop("NO_COLOR", None)

    started = []

    def start(*arguments: str, then: str = "", columns: int = 80) -> Terminal:
        command = [*PROGRAM, *arguments, "--url", server.url]
        if then:
            command = ["sh", "-c", f"{shlex.join(command)} {then}"]
        started.append(Terminal(command, environ, columns))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def test_a_terminal_shows_one_live_line(
    open_terminal: Callable[..., Terminal], server: Server
) -> None:
    may_start, may_end = threading.Event(), threading.Event()

    def work(job_id: str) -> None:
        may_start.wait(PATIENCE)
        claim = stages.claim(server.database, job_id, 0, WORKER, job_timeout=60)
        assert claim is not None
        texts = [TextDeltas(claim.text_id, 2 * n, ["\x1b[2J", "text "]) for n in range(20)]
        server.progress.publish([(job_id, None), *((job_id, text) for text in texts)])
        may_end.wait(PATIENCE)

    server.work = work
    terminal = open_terminal("ask", "Why?")
    terminal.wait_for("queued, 1st of 1")
    may_start.set()
    terminal.wait_for("\x1b[1;36mACTOR:\x1b[0m")
    terminal.wait_for("�[2J")
    terminal.wait_for("actor 180 characters")
    terminal.type(CTRL_C)
    told = terminal.wait_for("helixq jobs cancel resp_")
    assert f" --url http://{server.url}`" in told, "the command can be copied as it is"
    assert "\x1b[2J" not in told
    assert terminal.wait() == ExitStatus.INTERRUPTED
    jobs, _ = queries.list_jobs(server.database, None, PageRequest(10), status=Status.IN_PROGRESS)
    assert len(jobs) == 1, "the job goes on"
    server.cancel(jobs[0].id)
    may_end.set()


def test_the_live_line_leaves_a_text_alone_that_comes_through_a_pipe(
    open_terminal: Callable[..., Terminal], server: Server
) -> None:
    may_start, may_write, may_go_on = threading.Event(), threading.Event(), threading.Event()

    def work(job_id: str) -> None:
        may_start.wait(PATIENCE)
        for index in range(2):
            claim = stages.claim(server.database, job_id, index, WORKER, job_timeout=60)
            assert claim is not None
            pieces = ["One ", "line.\nAnd ", "two."]
            output = replace(OUTPUT, text="".join(pieces), delta_lengths=list(map(len, pieces)))
            for number, piece in enumerate(pieces):
                text = TextDeltas(claim.text_id, number, [piece])
                server.progress.publish([(job_id, None), (job_id, text)])
                if index == number == 0:
                    may_write.wait(PATIENCE)
            if index:
                may_go_on.wait(PATIENCE)
            stages.record(server.database, claim, output)
            server.progress.publish_change(job_id)
        server.cancel(job_id)

    server.work = work
    terminal = open_terminal("ask", "Why?", then="| cat", columns=30)
    terminal.wait_for("queued, 1st of 1")
    may_start.set()
    terminal.wait_for("actor 4 characters")
    may_write.set()
    terminal.wait_for("critic 18 characters · ")
    may_go_on.set()
    terminal.wait_for("The job was cancelled.")
    terminal.wait()
    lines = terminal.output.replace("\r\n", "\n").split("\n")
    last = [line.split(ERASE_LINE)[-1] for line in lines]
    for text in ("ACTOR: One line.", "And two.", "CRITIQUE: One line."):
        assert any(line.endswith(text) for line in last), (text, last)
    live = [
        re.sub(r"\x1b\[\d*m", "", part) for line in lines for part in line.split(ERASE_LINE)[1:]
    ]
    assert any("critic 18 characters" in line for line in live)
    assert max(len(line) for line in live if "characters" in line) < 30


def test_chat_on_a_terminal(
    open_terminal: Callable[..., Terminal], server: Server, tmp_path: Path
) -> None:
    def asked() -> Job:
        jobs, _ = queries.list_jobs(server.database, None, PageRequest(1))
        return jobs[0]

    terminal = open_terminal("chat")
    terminal.wait_for("You:")
    terminal.type(f"Wy?{2 * LEFT}h{ENTER}")
    terminal.wait_for("REGENERATION")
    terminal.wait_for("You:")
    assert asked().question == "Why?", "the line was edited"
    terminal.type(f"{PASTE_BEGINS}One\ntwo{PASTE_ENDS}")
    terminal.wait_for("two")
    terminal.type(ENTER)
    terminal.wait_for("REGENERATION")
    terminal.wait_for("You:")
    assert asked().question == "One\ntwo"
    terminal.type(f"/rounds 9{ENTER}")
    terminal.wait_for("/rounds: set the rounds of critique and regeneration, 1 to 5: /rounds 2")
    terminal.wait_for("You:")
    terminal.type(f"/rounds 2{ENTER}")
    terminal.wait_for("rounds: 2")
    terminal.wait_for("You:")
    terminal.type(f'"""{ENTER}Three{ENTER}four"""{ENTER}')
    terminal.wait_for("REGENERATION 2")
    terminal.wait_for("You:")
    assert (asked().question, asked().rounds) == ("Three\nfour", 2)
    terminal.type(f"/last{ENTER}")
    terminal.wait_for(f"A text.\r\nhttp://{server.url}/jobs/{asked().id}")
    terminal.wait_for("You:")
    terminal.type(f"/none{ENTER}")
    terminal.wait_for("/none: no such command; /help lists them")
    terminal.wait_for("You:")
    server.work = lambda _job_id: None
    terminal.type(f"How?{ENTER}")
    terminal.wait_for("queued")
    terminal.type(CTRL_C)
    terminal.wait_for("cancelled")
    terminal.wait_for("You:")
    assert asked().status is Status.CANCELLED
    terminal.type(f"A line{CTRL_C}")
    terminal.wait_for("(Ctrl-D ends the chat)")
    terminal.wait_for("You:")
    terminal.type(CTRL_D)
    assert terminal.wait() == ExitStatus.DONE
    history = tmp_path / "helixq" / "chat-history"
    assert (history.stat().st_mode & 0o777, "+two" in history.read_text()) == (0o600, True)


def test_chat_in_a_pipe(helixq: Command, server: Server) -> None:
    chat = helixq("chat", input='Why?\n\n"""\nOne\ntwo\n"""\n/last\n/quit\nnot asked\n')
    assert chat.exit_code == ExitStatus.DONE
    assert chat.stdout.startswith("You: ACTOR: A text.\n\n\nCRITIQUE: A text.\n\n\nREGENERATION: ")
    jobs, _ = queries.list_jobs(server.database, None, PageRequest(2))
    assert [job.question for job in jobs] == ["One\ntwo", "Why?"]
    server.work = server.fail
    assert helixq("chat", input="Why?\n").exit_code == ExitStatus.FAILED
