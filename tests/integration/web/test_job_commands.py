"""`helixq jobs` against a server that listens."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from cli.main import main
from jobs.database import Database
from tests.integration.web.client import Client, ask, finish

Command = Callable[..., Result]


@pytest.fixture
def jobs(web: Client) -> Iterator[Command]:
    """Run `helixq jobs` with arguments."""
    server = make_server("127.0.0.1", 0, web.application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    yield lambda *arguments: CliRunner().invoke(main, ["jobs", *arguments, "--url", url])
    server.shutdown()
    thread.join()
    server.server_close()


def test_jobs_are_listed_in_lines(web: Client, database: Database, jobs: Command) -> None:
    done, waiting = ask(web, input="Why is\nthe sky blue?")["id"], ask(web, input="Why?")["id"]
    finish(database, done)
    first, second = jobs("list").output.splitlines()
    assert first.split()[:2] == [waiting, "queued"]
    assert second.split()[:2] == [done, "completed"]
    assert second.endswith(" s  Why is the sky blue?")
    assert jobs("list", "--status", "completed").output.split()[0] == done
    listed = [json.loads(line)["id"] for line in jobs("list", "--json").output.splitlines()]
    assert listed == [waiting, done]


def test_a_list_has_as_many_jobs_as_were_asked_for(web: Client, jobs: Command) -> None:
    ids = [ask(web)["id"] for _ in range(103)]
    lines = jobs("list", "--limit", "102").output.splitlines()
    assert [line.split()[0] for line in lines] == ids[:0:-1]


def test_a_job_is_shown_with_its_texts(web: Client, database: Database, jobs: Command) -> None:
    job_id = ask(web, input="What does \x1b[2J do?")["id"]
    finish(database, job_id)
    shown = jobs("show", job_id).output
    assert shown.startswith(f"id:        {job_id}\nstatus:    completed\n")
    assert "QUESTION: What does �[2J do?" in shown
    for heading in ("ACTOR", "CRITIQUE", "REGENERATION"):
        assert f"\n{heading}, 3 tokens\nA text.\n" in shown
    history = json.loads(jobs("show", job_id, "--json").output)
    assert history == web.get(f"/api/jobs/{job_id}").json


def test_jobs_are_cancelled(web: Client, database: Database, jobs: Command) -> None:
    done, waiting = ask(web)["id"], ask(web)["id"]
    finish(database, done)
    assert jobs("cancel", waiting, done).output == (
        f"{waiting} is cancelled.\n{done} is completed.\n"
    )
    assert web.get(f"/v1/responses/{waiting}").json["status"] == "cancelled"


def test_a_job_that_has_ended_is_watched_to_its_end(
    web: Client, database: Database, jobs: Command
) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)
    watched = jobs("watch", job_id)
    assert watched.exit_code == 0
    assert "ACTOR: A text." in watched.output


def test_an_unknown_job_is_an_error_in_one_sentence(jobs: Command) -> None:
    for command in ("show", "cancel"):
        result = jobs(command, "resp_none")
        assert result.exit_code == 1
        assert "resp_none" in result.output
        assert "Traceback" not in result.output
