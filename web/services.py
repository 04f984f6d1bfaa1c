"""What requests use: the store, the queue, live progress and the token counter."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask, current_app
from tokenizers import Tokenizer

from jobs.models import Job
from jobs.progress import Progress
from jobs.queue import Doorbell, QueueUnavailableError, make_app
from jobs.settings import Settings
from jobs.store import NewJob, Store
from web.errors import RequestError

log = logging.getLogger(__name__)

#: Requests that may wait for jobs at the same time, streams included.
WAITING = 200
#: Seconds between looks at the row of a job that Redis tells nothing of: news can be lost.
LOOK = 1.0
#: Seconds without an event after which a stream shows that it is alive.
KEEPALIVE = 15.0


class TokenCounter:
    """Counts tokens as the newest worker's tokenizer does, without the model."""

    #: Seconds between looks at which worker is the newest.
    REFRESH = 5.0

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._looked = -self.REFRESH
        self._digest = ""
        self._tokenizer: Tokenizer | None = None
        self._context = 0

    def count(self, texts: list[str]) -> tuple[list[int], int] | None:
        """Return each text's number of tokens, and the model's context.

        None before the first worker ever started: nobody knows the model yet.
        """
        with self._lock:
            if time.monotonic() - self._looked >= self.REFRESH:
                self._look()
            tokenizer, context = self._tokenizer, self._context
        if tokenizer is None:
            return None
        return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)], context

    def _look(self) -> None:
        serving = self._store.serving()
        if serving is None:
            return
        if serving.tokenizer_digest != self._digest:
            body = self._store.tokenizer(serving.tokenizer_digest)
            self._tokenizer, self._digest = Tokenizer.from_str(body), serving.tokenizer_digest
        if self._tokenizer is not None:
            self._tokenizer.encode_special_tokens = serving.split_special_tokens
        self._context, self._looked = serving.context, time.monotonic()


class Services:
    """One of each for an application; made at once, connected when used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.database)
        self.progress = Progress(settings.redis)
        self.doorbell = Doorbell(make_app(settings.redis))
        self.tokens = TokenCounter(self.store)
        #: Whether the server shuts down: waiting replies and streams should end.
        self.stopping: Callable[[], bool] = lambda: False
        self.keepalive = KEEPALIVE
        self._places = threading.BoundedSemaphore(WAITING)

    def init_app(self, app: Flask) -> None:
        app.extensions["helixq"] = self

    def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Accept a job and ring the doorbell; see `Store.submit`.

        The job counts from the commit on. When Redis is away the sweep publishes it later.
        """
        job, created = self.store.submit(new, max_queued=self.settings.max_queued)
        if created:
            self._publish(job)
        return job, created

    def _publish(self, job: Job) -> None:
        """Hand a job to Redis, or to the sweep; no client must hear that it was refused."""
        try:
            try:
                self.doorbell.publish(job.id, position=0, rounds=job.rounds, priority=job.priority)
            except QueueUnavailableError as error:
                log.warning("%s: accepted, and published later: %s", job.id, error)
                self.store.unpublish(job.id, 0)
        except Exception:  # whatever it is: a message that is missed long enough is sent again
            log.exception("%s: accepted, and published later", job.id)

    def cancel(self, job_id: str) -> Job:
        """End a job; see `Store.cancel`."""
        job = self.store.cancel(job_id)
        self.progress.changed(job_id)
        return job

    @contextmanager
    def waiting_room(self) -> Iterator[None]:
        """Count a request that will wait for a job: some threads stay free for the others.

        Raises:
            RequestError: too many wait already.
        """
        if not self._places.acquire(blocking=False):
            raise RequestError(
                503,
                "Too many clients wait for jobs at once; ask with background and poll.",
                code="too_many_waiting",
                kind="server_error",
            )
        try:
            yield
        finally:
            self._places.release()

    def wait(
        self,
        job_id: str,
        until: Callable[[Job], bool],
        seconds: float,
        gone: Callable[[], bool] = lambda: False,
    ) -> Job:
        """Read a job again whenever it changes.

        Args:
            job_id: which.
            until: ends the wait when it holds.
            seconds: the most to wait.
            gone: says that nobody waits for the answer any more.
        """
        give_up = time.monotonic() + seconds
        with self.progress.follow(job_id) as follower:
            standing = self.store.standing(job_id)
            job = self.store.job(job_id)
            looked = time.monotonic()
            while not (until(job) or time.monotonic() >= give_up or self.stopping() or gone()):
                left = max(give_up - time.monotonic(), 0.001)
                news = follower.read(min(left, 1.0))
                # News can be lost: without any, look at the database all the same.
                if news.changed or time.monotonic() - looked >= LOOK:
                    looked = time.monotonic()
                    if (now := self.store.standing(job_id)) != standing:
                        standing, job = now, self.store.job(job_id)
        return job


def services() -> Services:
    """Return the current application's services."""
    found: Services = current_app.extensions["helixq"]
    return found
