"""Pausing and resuming over HTTP, on the pages and with the command line; what all of them say meanwhile."""

from __future__ import annotations

import json
import re
from typing import Any

from click.testing import CliRunner, Result

from cli.main import main
from jobs.database import Database
from jobs.models import Scope, WorkerState
from jobs.protocol import schemas
from jobs.use_cases import stages, workers
from tests.conftest import WORKER
from tests.integration.web.client import OUTPUT, Client, ask, finish
from tests.integration.web.test_system_page import told
from tests.integration.web.with_keys import browser, code, program

NOTE = "New GPU <b>\x1b[2J."


def text(web: Client, path: str) -> str:
    reply = web.get(path)
    assert reply.status_code == 200
    return " ".join(re.sub("<[^>]*>", " ", reply.text).split())


def test_all_say_that_the_queue_is_paused(web: Client, database: Database, address: str) -> None:
    workers.set_state(database, WORKER, WorkerState.READY)
    running, begun, waiting = (ask(web)["id"] for _ in range(3))
    finish(database, begun, 1)
    claim = stages.claim(database, running, 0, WORKER, job_timeout=60)
    assert claim is not None
    for path in ("/", "/system", f"/jobs/{waiting}"):
        assert "paused" not in told(web, path)

    def helixq(*arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--url", address])

    paused = helixq("pause", "--note", NOTE)
    assert re.fullmatch(
        r"The queue has been paused since [-\d]+ [:\d]+ UTC by anonymous: New GPU <b>�\[2J\.\n",
        paused.output,
    )
    again = json.loads(helixq("pause", "--note", "other", "--json").output)
    assert (again["changed"], again["pause"]["note"]) == (False, NOTE)
    late = ask(web)["id"]

    since = r"[Tt]he queue has been paused since \d\d:\d\d UTC: New GPU &lt;b&gt;\S*\[2J\."
    for path, rest in (
        ("/", "Questions are accepted, and wait."),
        (f"/jobs/{waiting}", "2 questions wait."),
        (f"/jobs/{begun}", "The next stage waits."),
        (f"/jobs/{running}", ""),
    ):
        found = re.sub(r"<[^>]*>", "", web.get(path).text)
        assert re.search(f"{since} ?{rest}", re.sub(r"\s+", " ", found)), (path, found)
        assert "1 worker ready 3 queued" not in text(web, path)
    assert re.search(r"2 queued paused since \d\d:\d\d UTC", text(web, "/jobs"))
    place: Any = web.get(f"/api/jobs/{late}/place").json
    assert (place["place"], place["wait"], place["queued"]) == (None, None, 2)
    assert (place["paused"]["note"], set(place["paused"])) == (NOTE, {"paused_at", "note"})
    ready = web.get("/readyz")
    assert (ready.status_code, ready.json["queue"]) == (200, "paused")
    assert "\nhelixq_queue_paused 1.0\n" in web.get("/metrics").text
    system = web.get("/api/system").json
    assert system["queue"]["paused"] == system["pauses"][0] == again["pause"]
    # They are as they are described.
    schemas.PauseChange.model_validate(again)
    schemas.SystemState.model_validate(system)
    schemas.QueuePlace.model_validate(place)
    schemas.Readiness.model_validate(ready.json)
    status = helixq("status").output
    assert re.search(
        r"\nqueue    paused, 2 queued, the oldest for \d+ s\n         The queue has been paused since",
        status,
    )
    assert stages.claim(database, waiting, 0, WORKER, job_timeout=60) is None
    assert stages.record(database, claim, OUTPUT)

    resumed = helixq("resume").output
    assert resumed.startswith("The queue is resumed. It had been paused since ")
    assert helixq("resume").output == "The queue was not paused.\n"
    assert web.get("/readyz").json["queue"] == "open"
    assert web.get(f"/api/jobs/{waiting}/place").json["paused"] is None
    schemas.PauseChange.model_validate(web.post("/api/system/resume").json)
    (kept,) = web.get("/api/system").json["pauses"]
    assert (kept["paused_by"], kept["resumed_by"]) == ("anonymous", "anonymous")
    assert kept["resumed_at"] > kept["paused_at"]
    finish(database, waiting)


def test_buttons_pause_and_resume_without_a_script(web: Client) -> None:
    assert 'action="/system/pause"' in web.get("/system").text
    foreign = {"Origin": "https://evil.example"}
    assert web.post("/system/pause", headers=foreign).status_code == 403
    reply = web.post("/system/pause", data={"note": "\u202eevil"})
    assert (reply.status_code, reply.headers["Location"]) == (303, "/system#queue-title")
    page = web.get("/system").text
    assert "\u202e</bdi>evil" in page, "directions are shown and not followed"
    assert 'action="/system/resume"' in page
    assert 'action="/system/pause"' not in page
    assert "paused since" in page.split("<footer>")[1], "at once, although the footer is kept"
    assert web.post("/system/resume").status_code == 303
    assert "resumed_by" not in page
    assert "paused since" not in web.get("/system").text.split("<footer>")[1]
    assert re.search(r"\d+ s ago anonymous \S evil \d+ s ago , by anonymous", told(web))


def test_only_administrators_pause(app: Any) -> None:
    admin, auditor, asker = program(app, Scope.ADMIN), program(app, Scope.AUDIT), program(app)
    for path in ("/api/system/pause", "/api/system/resume"):
        body: dict[str, Any] = {"json": {}} if path.endswith("pause") else {}
        assert code(auditor.post(path, **body)) == (403, "insufficient_scope")
        assert code(asker.post(path, **body)) == (403, "insufficient_scope")
        assert code(app.test_client().post(path, **body)) == (401, "missing_api_key")
    reply = admin.post("/api/system/pause", json={"note": " "})
    assert (reply.status_code, reply.json["changed"]) == (200, True)
    assert (reply.json["pause"]["paused_by"], reply.json["pause"]["note"]) == (
        admin.key.owner,
        None,
    )
    assert code(admin.post("/api/system/pause", json={"note": "n" * 501}))[0] == 400
    assert code(admin.post("/api/system/pause", json={"until": "noon"}))[0] == 400
    # An asker is told since when and why, and not by whom.
    job_id = asker.post("/v1/responses", json={"input": "Why?", "background": True}).json["id"]
    assert admin.key.owner not in asker.get(f"/api/jobs/{job_id}/place").text
    reader, operator = browser(app, Scope.AUDIT), browser(app, Scope.ADMIN)
    page = reader.get("/system").text
    assert admin.key.owner in page
    assert "/system/resume" not in page
    assert reader.post("/system/resume").status_code == 403
    assert operator.post("/system/resume").status_code == 303
    assert admin.post("/api/system/resume").json["changed"] is False


def test_what_workers_use_is_told(web: Client, database: Database, address: str) -> None:
    workers.set_state(database, WORKER, WorkerState.READY)
    (worker,) = web.get("/api/system").json["workers"]
    assert set(worker["usage"].values()) == {None}
    assert "not known" in told(web)
    usage = {
        "resident_memory_bytes": 3 << 29,
        "gpu_memory_bytes": 80 << 30,
        "gpu_memory_used_bytes": 20 << 30,
        "num_requests_running": 3,
        "num_requests_waiting": 1,
        "kv_cache_blocks": 4096,
        "kv_cache_blocks_used": 17,
    }
    workers.heartbeat(database, WORKER, [], usage)
    (worker,) = web.get("/api/system").json["workers"]
    assert worker["usage"] == usage
    assert "1.5 GiB GPU 20.0 GiB of 80.0 GiB KV cache: 17 of 4096 blocks" in told(web)
    told_in_terminal = CliRunner().invoke(main, ["status", "--url", address]).output
    assert (
        "\n         1.5 GiB of memory, 20.0 GiB of 80.0 GiB of GPU memory, 17 of 4096 blocks of the KV cache\n"
        in told_in_terminal
    )
