"""`helixq webhooks`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from jobs.database import Database
from jobs.models import DeliveryStatus
from jobs.use_cases import cancellation, submission
from tests.conftest import give_schema
from tests.integration.rows import QUESTION
from tests.integration.webhooks.conftest import all_are, sending, wait_for
from tests.receiver import Receiver, status

# It needs no second database: the use cases are tested on both.


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("HELIXQ_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HELIXQ_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8")
    database = Database(f"sqlite:///{tmp_path}/helixq.sqlite3")
    give_schema(database.engine)
    return database


def run(*arguments: str, exit_status: int = 0) -> Any:
    found = CliRunner().invoke(main, ["webhooks", *arguments])
    assert found.exit_code == exit_status, found.output
    return found


def test_the_webhooks_commands(stored: Database, receiver: Receiver) -> None:
    made = run("create", receiver.url, "--owner", "alice", "--events", "response.cancelled")
    assert re.fullmatch(r"whsec_\S+\n", made.stdout), "for SECRET=$(helixq webhooks create …)"
    [endpoint_id] = re.findall(r"we_\w+", made.stderr)
    assert run("ping", endpoint_id).stdout.startswith("204 after ")
    receiver.received[0].unwrap(made.stdout.strip())
    pinged = json.loads(run("ping", endpoint_id, "--json", "status_code,event_type").stdout)
    assert pinged == {"status_code": 204, "event_type": "response.completed"}

    table = run("list").stdout
    assert all(text in table for text in (endpoint_id, "alice", receiver.url, "enabled"))
    assert run("list", "--owner", "bob", "--json").stdout.strip() == "[]"
    shown = json.loads(run("show", endpoint_id, "--json").stdout)
    assert (shown["event_types"], shown["owner"]) == (["response.cancelled"], "alice")
    assert made.stdout.strip() not in run("show", endpoint_id).stdout

    job, _ = submission.submit(stored, "alice", QUESTION, max_queued=9)
    cancellation.cancel(stored, "alice", job.id)
    receiver.reply = status(500)
    with sending(stored):
        endpoint = type("Endpoint", (), {"id": endpoint_id})
        wait_for(stored, endpoint, lambda found: found[0].failures)  # type: ignore[arg-type]  # a fake
        listed = run("deliveries", endpoint_id).stdout
        assert all(text in listed for text in ("pending", job.id, "replied with 500"))
        [delivery] = json.loads(run("deliveries", endpoint_id, "--json").stdout)
        assert delivery["attempts"][0]["status_code"] == 500
        receiver.reply = status(204)
        assert "is pending" in run("redeliver", delivery["id"]).stdout
        wait_for(stored, endpoint, all_are(DeliveryStatus.DELIVERED))  # type: ignore[arg-type]  # a fake
    assert run("deliveries", endpoint_id, "--status", "failed", "--json").stdout.strip() == "[]"

    updated = run("update", endpoint_id, "--name", "renamed", "--json").stdout
    assert json.loads(updated)["name"] == "renamed"
    rotated = run("rotate", endpoint_id, "--keep-old").stdout
    assert rotated.startswith("whsec_")
    assert rotated != made.stdout
    assert "is deleted" in run("delete", endpoint_id).stdout
    assert "No such webhook endpoint" in run("show", endpoint_id, exit_status=1).stderr
    wrong = run("create", "https://10.0.0.1/", exit_status=1).stderr
    assert "not a public address" in wrong
    assert "'x' is not a type" in run("create", receiver.url, "--events", "x", exit_status=1).stderr
    stored.close()


def test_ping_says_what_is_wrong(stored: Database, receiver: Receiver) -> None:
    made = json.loads(run("create", receiver.url, "--json").stdout)
    receiver.reply = status(404)
    assert "replied with 404" in run("ping", made["id"], exit_status=1).stderr
    deleted = json.loads(run("delete", made["id"], "--json").stdout)
    assert (deleted["id"], deleted["deleted"]) == (made["id"], True)
    stored.close()
