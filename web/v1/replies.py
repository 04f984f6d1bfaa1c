"""Responses as JSON, kept while they are current: most polls find nothing new.

A response is a function of its job's rows, and the job's version changes with them. So a poll of a job that
this process has shown in the same version before costs a query of one row.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from flask import Flask, current_app

from jobs.database import Database
from jobs.models import Job
from jobs.protocol.response import response
from jobs.use_cases import queries
from jobs.use_cases.queries import JobVersion

#: The maximum number of bytes of all texts that are kept.
MAX_BYTES = 1 << 25
#: Seconds for which a reply is kept that nobody asks for. Clients poll more often, and then no more.
MAX_AGE = 120.0
#: Seconds between two polls: a share of the time for which nothing has changed, between a minimum and a maximum. So the
#: clients of a long queue do not take the processors that could shorten it, and who polls sees an end late by that
#: share of the time at most.
POLL_SHARE, MIN_POLL_INTERVAL, MAX_POLL_INTERVAL = 0.1, 1, 15


@dataclass(frozen=True)
class Reply:
    """A response as it is sent."""

    version: JobVersion
    body: bytes
    etag: str
    #: When the job's current stage became ready, or the job started if that was later. A job that is taken back from a
    #: worker keeps its version, and then this may be an earlier time.
    unchanged_since: dt.datetime

    def poll_interval(self, now: dt.datetime) -> int | None:
        """Return the seconds after which to poll again; None if the job has ended.

        Args:
            now: the database's time.
        """
        if self.version.status.final:
            return None
        seconds = (now - self.unchanged_since).total_seconds() * POLL_SHARE
        return int(min(max(seconds, MIN_POLL_INTERVAL), MAX_POLL_INTERVAL))


class Replies:
    """The replies of a process that were sent last. Threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        #: Each with the time at which it was last asked for, the longest ago first.
        self._kept: OrderedDict[str, tuple[Reply, float]] = OrderedDict()
        self._bytes = 0

    def init_app(self, app: Flask) -> None:
        """Make them the replies of an application."""
        app.extensions["helixq.replies"] = self

    def get(self, owner: str | None, job_id: str) -> tuple[Reply, dt.datetime]:
        """Return the current reply about an owner's job (None: of any owner), and the database's time.

        Raises:
            JobNotFoundError: the owner has no such job.
        """
        # The version is read first: if the job changes in between, the newer text is kept under a version
        # that never comes back.
        _, version, now = queries.find_version(self._database, owner, job_id)
        with self._lock:
            kept, _ = self._kept.get(job_id, (None, 0.0))
            if kept is not None and kept.version == version:
                self._kept[job_id] = kept, time.monotonic()
                self._kept.move_to_end(job_id)
                return kept, now
        job = queries.get_job(self._database, owner, job_id)
        body = to_json(response(job))
        reply = Reply(version, body, etag_of(body), _unchanged_since(job))
        self._keep(job_id, reply)
        return reply, now

    def _keep(self, job_id: str, reply: Reply) -> None:
        now = time.monotonic()
        with self._lock:
            before, _ = self._kept.pop(job_id, (None, 0.0))
            self._kept[job_id] = reply, now
            self._bytes += len(reply.body) - (0 if before is None else len(before.body))
            while self._kept:
                oldest, asked_at = next(iter(self._kept.values()))
                if self._bytes <= MAX_BYTES and asked_at >= now - MAX_AGE:
                    break
                self._kept.popitem(last=False)
                self._bytes -= len(oldest.body)


def _unchanged_since(job: Job) -> dt.datetime:
    return max(job.ready_at, job.started_at or job.ready_at)


def get_replies() -> Replies:
    """Return the replies of the current application."""
    replies: Replies = current_app.extensions["helixq.replies"]
    return replies


def to_json(data: Any) -> bytes:
    """Return a JSON value as it is sent."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def etag_of(body: bytes) -> str:
    """Return the ``ETag`` of a body."""
    return hashlib.sha256(body).hexdigest()[:32]
