"""Event streams of jobs that have ended. ``test_live_streams`` has those of running jobs."""

from __future__ import annotations

import pytest

from jobs.database import Database
from jobs.models import ANONYMOUS
from jobs.use_cases import cancellation, stages
from tests.conftest import WORKER
from tests.event_types import BEGIN, MESSAGE, REASONING
from tests.integration.web.client import Client, ask, finish, stream
from web.v1 import feeds


def test_the_events_of_a_finished_job(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    finish(database, job_id)
    events = stream(web, job_id)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    types = [event["type"] for event in events]
    assert types == [*BEGIN, *REASONING, *REASONING, *MESSAGE, "response.completed"]
    assert events[-1]["response"] == web.get(f"/v1/responses/{job_id}").json
    assert events[0]["response"]["status"] == "queued"
    assert [e["delta"] for e in events if e["type"] == "response.output_text.delta"] == [
        "A ",
        "text.",
    ]
    assert stream(web, job_id) == events
    assert stream(web, job_id, starting_after=9) == events[10:]
    assert web.get(f"/v1/responses/{job_id}?stream=true&starting_after=x").status_code == 400
    assert web.get(f"/v1/responses/{job_id}?starting_after=x").status_code == 400


def test_the_events_of_a_cancelled_job_end(web: Client, database: Database) -> None:
    job_id = ask(web)["id"]
    cancellation.cancel(database, ANONYMOUS, job_id)
    events = stream(web, job_id)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["status"] == "cancelled"


def test_a_stream_ends_even_if_its_text_was_lost(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that was streamed live was lost with its worker: fewer events are left than were sent. Nothing sweeps."""
    monkeypatch.setattr(feeds, "PARTIAL_TEXT_TIMEOUT", feeds.PARTIAL_TEXT_EXPECTED)
    job_id = ask(web)["id"]
    assert stages.claim(database, job_id, 0, WORKER, job_timeout=60) is not None
    cancellation.cancel(database, ANONYMOUS, job_id)
    [last] = stream(web, job_id, starting_after=40)
    assert (last["type"], last["sequence_number"]) == ("response.incomplete", 41)
