"""`helixq up` with everything on one disk, which fills up while jobs run: SQLite, Redis, its log and the folder of data."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.acceptance.conftest import ENDED
from tests.acceptance.small_disk import ISOLATE, Disk
from tests.polling import poll
from tests.servers import NO_TLS, PATIENCE, free_port, start, works

#: The size of the disk in bytes: room for an empty database and some jobs.
SIZE = 2**26


def test_everything_on_a_full_disk_loses_no_job(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not works(*ISOLATE, "sh", "-c", f"mount -t tmpfs none {folder}"):
        pytest.skip("no mount namespaces here")
    mount = f"mount -t tmpfs -o size={SIZE} none {folder}"
    up = f"{mount} && exec {sys.executable} -m cli up"
    port = str(free_port())
    environ = {**os.environ, "HELIXQ_DATA_DIR": str(folder), "HELIXQ_PORT": port}
    process = start([*ISOLATE, "sh", "-c", up], {**environ, "HELIXQ_SLOTS": "2"})
    try:
        process.wait_for(f"http://127.0.0.1:{port}")
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False, verify=NO_TLS
        ) as http:
            ask = Asking(http)
            poll(lambda: http.get("/readyz").status_code, lambda status: status == 200)
            for _ in range(6):
                assert ask(200) == 202
            poll(ask.statuses, lambda statuses: statuses["in_progress"] == 2)
            disk = Disk(Path(f"/proc/{process.popen.pid}/root{folder}"))
            disk.fill()
            poll(lambda: ask(3), lambda status: status == 503, interval=0.5)
            process.wait_for("database or disk is full")
            process.wait_for("No space left on device")  # Redis refuses messages and live text.
            disk.free()
            poll(lambda: ask(3), lambda status: status == 202, interval=0.5)
            poll(ask.statuses, lambda statuses: set(statuses) <= set(ENDED))
            assert set(ask.statuses()) <= {"completed", "incomplete"}
            for job_id in ask.ids:
                attempts = http.get(f"/api/jobs/{job_id}").json()["attempts"]
                assert [(a["position"], a["status"]) for a in attempts] == [
                    (position, "finished") for position in range(3)
                ]
        assert "Traceback" not in process.output
    finally:
        process.stop()


class Asking:
    """Asks questions, and remembers those that were accepted."""

    def __init__(self, http: httpx2.Client) -> None:
        self._http = http
        self.ids: list[str] = []

    def __call__(self, max_output_tokens: int) -> int:
        """Ask; return the status of the reply."""
        body = {"input": "Why?", "background": True, "max_output_tokens": max_output_tokens}
        reply = self._http.post("/v1/responses", json=body)
        if reply.status_code == 202:
            self.ids.append(reply.json()["id"])
        return reply.status_code

    def statuses(self) -> Counter[str]:
        """Count the statuses of the jobs that were accepted."""
        replies = (self._http.get(f"/v1/responses/{job_id}") for job_id in self.ids)
        return Counter(reply.json()["status"] for reply in replies)
