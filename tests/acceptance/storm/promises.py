"""What is promised about jobs, and holds after a storm: compared with what the clients were told."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import httpx2
import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import OPEN
from jobs.models import Batch, Erasure, Job, Review, WebhookDelivery
from jobs.protocol.history import history
from jobs.use_cases import verifying
from tests.acceptance.conftest import ENDED
from tests.acceptance.storm.clients import LAST_EVENTS, QUESTIONS, Asked, Client
from tests.acceptance.storm.service import StormyService
from tests.acceptance.storm.worker import KILLS
from tests.integration.batch_api.service import RESPONSES
from tests.integration.test_rollups import check
from tests.polling import poll
from tests.receiver import Webhook

#: Lost attempts at a stage after which its job fails.
MOST_LOST = 3
#: What is left to do while jobs run, and then until everything about them is recorded.
RUNNING = {
    "open jobs": sa.select(Job.id, Job.status).where(Job.status.in_(OPEN)),
    "leases": sa.select(Job.id, Job.worker_id).where(Job.lease_expires_at.is_not(None)),
    "batches": sa.select(Batch.id, Batch.status).where(Batch.ended_at.is_(None)),
}
RECORDING = {
    "jobs without an entry in the log": sa.select(Job.id).where(Job.log_index.is_(None)),
    "reviews without one": sa.select(Review.id).where(Review.log_index.is_(None)),
    "erasures without one": sa.select(Erasure.id).where(Erasure.log_index.is_(None)),
    "jobs that are not indexed": sa.select(Job.id).where(Job.unindexed > 0),
    "webhooks": sa.select(WebhookDelivery.id, WebhookDelivery.attempts).where(
        WebhookDelivery.next_attempt_at.is_not(None)
    ),
}


class Promises:
    """What a service has after a storm, when nothing is left to do."""

    def __init__(self, service: StormyService, database: Database, clients: list[Client]) -> None:
        self._service = service
        self._database = database
        self._clients = clients
        self._wait_for(RUNNING)
        #: The texts of each question in quiet, and their jobs.
        self._quiet, self._quiet_ids = self._ask_in_quiet()
        self._wait_for(RECORDING)
        with database.read() as connection:
            self._jobs = {
                row.id: row
                for row in connection.execute(sa.select(Job.id, Job.batch_id, Job.replay_of))
            }
        with service.http() as http:
            self.histories = {
                job_id: self._get(http, f"/api/jobs/{job_id}").json() for job_id in self._jobs
            }

    def check(self, webhooks: Iterable[Webhook]) -> None:
        """Check all of them.

        Args:
            webhooks: all that were received.
        """
        self.check_that_each_accepted_job_is_there_once()
        for found in self.histories.values():
            check_that_it_ended_once(found)
        self.check_what_clients_were_told()
        self.check_texts()
        self.check_batches()
        self.check_webhooks(webhooks)
        self.check_records()

    def check_that_each_accepted_job_is_there_once(self) -> None:
        kept = [asked for asked in self._asked() if not asked.is_deleted]
        ids = [asked.id for asked in self._asked()]
        assert len(ids) == len(set(ids)), "each key has a job of its own"
        replays = {job_id for client in self._clients for job_id in client.replays}
        assert {job.id for job in self._jobs.values() if job.batch_id is None} == {
            *(asked.id for asked in kept),
            *replays,
            *self._quiet_ids,
        }
        with self._service.http() as http:
            for asked in self._asked():
                if asked.is_deleted:
                    assert http.get(f"{RESPONSES}/{asked.id}").status_code == 404
                elif not asked.is_erased and not asked.body.get("stream"):
                    headers = {"Idempotency-Key": asked.key}
                    reply = http.post(RESPONSES, json=asked.body, headers=headers)
                    assert reply.json()["id"] == asked.id, reply.text

    def check_what_clients_were_told(self) -> None:
        """A final status stays, and a stream has the same events whenever it is read."""
        with self._service.http() as http:
            for asked in self._asked():
                if asked.is_deleted:
                    continue
                found = self.histories[asked.id]
                if not found["retries"]:
                    assert asked.ends <= {found["status"]}, asked
                if KILLS in asked.body["input"]:
                    check_that_it_failed_with_its_workers(found)
                if asked.events and not asked.is_erased:
                    reply = self._get(http, f"{RESPONSES}/{asked.id}?stream=true")
                    lines = reply.text.splitlines()
                    events = [json.loads(x[6:]) for x in lines if x.startswith("data: {")]
                    check_that_streams_are_equal(found, asked.events, events)

    def check_texts(self) -> None:
        """Each text is the one that the question gets in quiet."""
        for found in self.histories.values():
            if not found["erased_at"] and (expected := self._quiet.get(found["question"])):
                texts = [attempt["output"] for attempt in finished(found)]
                assert texts == expected[: len(texts)], found["id"]
            if found["replay"]:
                assert found["replay"]["identical"] is not False, found["replay"]

    def check_batches(self) -> None:
        sizes = {batch: size for client in self._clients for batch, size in client.batches.items()}
        with self._database.read() as connection:
            assert set(connection.scalars(sa.select(Batch.id))) == set(sizes)
        with self._service.http() as http:
            for batch_id, size in sizes.items():
                batch = self._get(http, f"/v1/batches/{batch_id}").json()
                counts = batch["request_counts"]
                answers = Counter[str]()
                for name in ("output_file_id", "error_file_id"):
                    if batch[name]:
                        content = self._get(http, f"/v1/files/{batch[name]}/content")
                        answers.update(
                            json.loads(line)["custom_id"] for line in content.text.splitlines()
                        )
                assert counts["completed"] + counts["failed"] == counts["total"], batch
                assert sum(answers.values()) == counts["total"], batch
                if batch["status"] == "completed":
                    assert answers == Counter({f"c{n}": 1 for n in range(size)}), batch
                else:
                    assert batch["status"] == "cancelled", batch
                    assert max(answers.values(), default=1) == 1, answers
                jobs = [job for job in self._jobs.values() if job.batch_id == batch_id]
                assert len(jobs) <= size

    def check_webhooks(self, webhooks: Iterable[Webhook]) -> None:
        """Each end was sent at least once, always with the same id."""
        ids: dict[tuple[str, str], set[str]] = defaultdict(set)
        for webhook in webhooks:
            event = json.loads(webhook.body)
            assert event["id"] == webhook.id
            ids[event["data"]["id"], event["type"]].add(webhook.id)
        for found in self.histories.values():
            ends = Counter([f"response.{found['status']}"])
            ends["response.failed"] += len(found["retries"])
            for status in ENDED:
                event = f"response.{status}"
                assert len(ids[found["id"], event]) == ends[event], (found["id"], event)
        with self._database.read() as connection:
            for batch_id, status in connection.execute(sa.select(Batch.id, Batch.status)):
                assert len(ids[batch_id, f"batch.{status}"]) == 1

    def check_records(self) -> None:
        """The log has all jobs, and the statistics count each of them once."""
        reviews = {review for client in self._clients for review in client.reviews}
        kept = [review["id"] for found in self.histories.values() for review in found["reviews"]]
        assert len(kept) == len(set(kept))
        assert set(kept) <= reviews
        check(self._database)
        report = verifying.verify(self._database, history)
        with self._database.read() as connection:
            jobs = connection.scalar(sa.select(sa.func.count()).select_from(Job))
        assert report.jobs == jobs
        assert report.unsealed == 0

    def tell(self) -> str:
        """Return a summary."""
        ends = Counter(found["status"] for found in self.histories.values())
        attempts = Counter(
            attempt["status"] for found in self.histories.values() for attempt in found["attempts"]
        )
        codes = Counter(
            found["error"]["code"] for found in self.histories.values() if found["error"]
        )
        return (
            f"{len(self.histories)} jobs: {dict(ends)}; attempts: {dict(attempts)}; "
            f"errors: {dict(codes)}"
        )

    def _asked(self) -> list[Asked]:
        return [asked for client in self._clients for asked in (*client.asked, *client.killing)]

    def _wait_for(self, what: dict[str, Any]) -> None:
        poll(lambda: self._left(what), lambda left: not left, interval=0.2)

    def _left(self, what: dict[str, Any]) -> dict[str, list[Any]]:
        with self._database.read() as connection:
            found = {name: connection.execute(query).all() for name, query in what.items()}
        return {name: list(rows[:5]) for name, rows in found.items() if rows}

    def _get(self, http: httpx2.Client, path: str) -> httpx2.Response:
        reply = http.get(path)
        assert reply.status_code == 200, reply.text
        return reply

    def _ask_in_quiet(self) -> tuple[dict[str, list[str]], list[str]]:
        """Return the texts of each question, and the ids of the jobs."""
        with self._service.http() as http:
            bodies = [{**body, "background": True} for body in QUESTIONS]
            ids = [http.post(RESPONSES, json=body).json()["id"] for body in bodies]
            self._wait_for(RUNNING)
            histories = [self._get(http, f"/api/jobs/{job_id}").json() for job_id in ids]
        for found in histories:
            check_that_it_ended_once(found)
        texts = {found["question"]: [a["output"] for a in finished(found)] for found in histories}
        return texts, ids


def check_that_streams_are_equal(
    found: dict[str, Any], live: list[dict[str, Any]], late: list[dict[str, Any]]
) -> None:
    """Check that a stream has the same events when it is read again, unless a text was lost with Redis.

    Args:
        found: the history of the job.
        live: the events that were read while the job ran.
        late: those that are read later.
    """
    assert late[-1]["type"] in LAST_EVENTS
    if any(attempt["output"] is None for attempt in found["attempts"]):
        return  # Redis lost a text that readers may have got.
    for event, again in itertools.zip_longest(live, late):
        assert again == event, (event, again, found)
    assert [event["sequence_number"] for event in late] == list(range(len(late)))


def check_that_it_failed_with_its_workers(found: dict[str, Any]) -> None:
    """Check the end of a job whose second stage kills its workers."""
    lost = [a for a in found["attempts"] if (a["position"], a["status"]) == (1, "lost")]
    assert found["status"] == "failed", found
    assert found["error"]["code"] == "worker_lost", found
    assert len(lost) == MOST_LOST, found


def finished(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for attempt in found["attempts"] if attempt["status"] == "finished"]


def check_that_it_ended_once(found: dict[str, Any]) -> None:
    """Check the status of a history, and that each stage finished once."""
    outcomes = [(a["position"], a["status"]) for a in found["attempts"]]
    positions = [attempt["position"] for attempt in finished(found)]
    assert found["status"] in ENDED, found
    assert (found["run"], found["restarts"]) == (1, []), found
    assert positions == list(range(len(positions))), outcomes
    allowed = {"finished", "lost", "released"}
    if found["status"] == "cancelled":
        allowed.add("cancelled")
    elif found["status"] == "failed":
        # Clients retry what the engine fails at, unless they have erased it before.
        is_broken = found["erased_at"] and (len(positions), "failed") in outcomes
        assert is_broken or Counter(outcomes)[len(positions), "lost"] >= MOST_LOST, found
        allowed.add("failed")
    else:
        assert len(positions) == 1 + 2 * found["rounds"], outcomes
    failures = [outcome for outcome in outcomes if outcome[1] not in allowed]
    assert len(failures) <= len(found["retries"]), outcomes
