"""A job's events as server-sent events: made once in a process, for all who read them there.

Whoever waits for the next message and finds nobody reading the job does so for all: it waits for news of
Redis, reads the rows where they may have changed, and puts the new messages on the list that the others
wait for. So a message costs a reader its sending alone, and whoever reads for all no more than the new
text, however long the text before it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from flask import Flask, current_app

from jobs.models import Attempt, AttemptStatus, Job
from jobs.progress import Follower, Progress
from jobs.store import JobNotFoundError, Store
from web.v1 import events
from web.v1.events import Event

if TYPE_CHECKING:
    from jobs.store import Standing

#: What shows that a silent stream is alive: a comment, in which every reader sees nothing. No empty line
#: follows it: that would end an event. There is none, but the official OpenAI clients hand out an event
#: without data there, once they have seen an ``id``, and fail to read it. For the same reason there is no
#: ``retry``.
WAITING = b": waiting\n"
#: The most seconds to wait for news at once: who waits looks in between whether it should end.
TURN = 1.0
#: Seconds between looks at the rows of a job that Redis tells nothing of: news can be lost.
LOOK = 1.0
#: Seconds to wait for the worker to hand in what a cancelled stage had generated, and between looks.
PARTIAL_GRACE = 2.0
PARTIAL_LOOK = 0.2


class Feed:
    """The messages of one job so far. Threads share it."""

    def __init__(self, store: Store, job_id: str, follower: Follower, leave: ExitStack) -> None:
        """
        Args:
            store: has the job.
            job_id: of a job that exists.
            follower: gets its news.
            leave: to be closed when nobody reads the feed any more.
        """
        self._store = store
        self._job_id = job_id
        self._follower = follower
        self.leave = leave
        #: Guards the following four.
        self._news = threading.Condition()
        self._messages: list[bytes] = []
        #: The last event, once there are no more.
        self._last: Event | None = None
        #: Whether a thread reads the job.
        self._reading = False
        self.readers = 0
        # The rest belongs to the thread that reads.
        self._standing: Standing | None = None
        self._looked = 0.0
        self._give_up = 0.0
        #: The pieces so far of attempts that run, or that the rows do not show yet, by attempt id.
        self._live: dict[int, list[str]] = {}
        #: The ids of the attempts that the rows showed.
        self._known: set[int] = set()
        #: The attempt whose text comes now, as (job, attempt, index of the message with its first piece).
        self._open: tuple[Job, Attempt, int] | None = None

    @property
    def ended(self) -> bool:
        return self._last is not None

    def after(self, count: int, seconds: float) -> tuple[Sequence[bytes], bool]:
        """Give the messages that follow the first ``count``, and whether the last one is among all.

        Args:
            count: how many messages the reader has, or left out.
            seconds: the most to wait for one.

        Raises:
            JobNotFoundError: the job is gone.
        """
        with self._news:
            if self._waits(count) and self._reading:
                self._news.wait(seconds)
            if not self._waits(count) or self._reading:
                return self._messages[count:], self.ended
            self._reading = True
        try:
            self._read(min(seconds, TURN))
        finally:
            with self._news:
                self._reading = False
                if self._waits(count):
                    self._news.notify()  # another may read for all
                else:
                    self._news.notify_all()
        with self._news:
            return self._messages[count:], self.ended

    def last(self, number: int) -> bytes:
        """Make the message that ends the stream of a reader who has more than the job's rows tell.

        Text that was told live can go down with its worker; the end must be told all the same.
        """
        assert self._last is not None  # noqa: S101 (who asks was told that there is one)
        return _message(number, self._last)

    @property
    def count(self) -> int:
        return len(self._messages)

    def _waits(self, count: int) -> bool:
        return count >= len(self._messages) and not self.ended

    # --- the thread that reads --------------------------------------------------------

    def _read(self, seconds: float) -> None:
        if self._give_up:
            seconds = min(seconds, PARTIAL_LOOK)
        first = self._standing is None
        news = self._follower.read(0 if first else seconds)
        unknown = False
        for text in news.texts:
            pieces = self._live.setdefault(text.attempt_id, [])
            if text.start == len(pieces):  # else some are missing; the record will have all
                pieces += text.deltas
            unknown |= text.attempt_id not in self._known
        due = time.monotonic() - self._looked >= LOOK
        if first or news.changed or unknown or due or self._give_up:
            self._look()
        self._tell_text()

    def _look(self) -> None:
        """Read the job again if it has changed, and tell what is new."""
        self._looked = time.monotonic()
        standing = self._store.standing(self._job_id)
        if standing == self._standing and not self._give_up:
            return
        job = self._store.job(self._job_id)
        self._standing = standing
        self._known = {attempt.id for attempt in job.attempts}
        if _partial_missing(job):
            self._give_up = self._give_up or time.monotonic() + PARTIAL_GRACE
            if time.monotonic() < self._give_up:
                return
        running = [a for a in job.attempts if a.status is AttemptStatus.RUNNING]
        going_on = {attempt.id for attempt in running}
        self._live = {
            attempt_id: pieces
            for attempt_id, pieces in self._live.items()
            if attempt_id in going_on or attempt_id not in self._known
        }
        told = list(events.events(job, self._live))
        self._open = None
        if job.status.final:
            self._end(told)
            return
        if running:
            attempt = running[-1]
            self._open = job, attempt, len(told) - len(self._live.get(attempt.id, []))
        self._add(told[len(self._messages) :])

    def _tell_text(self) -> None:
        """Tell the new pieces of the text that comes now.

        An attempt that follows a lost one writes the same text: it is told from where that one stopped.
        """
        if self._open is None:
            return
        job, attempt, first = self._open
        pieces = self._live.get(attempt.id, [])
        new = pieces[max(0, len(self._messages) - first) :]
        self._add([events.delta(job, attempt, piece) for piece in new])

    def _add(self, new: Sequence[Event | None]) -> None:
        start = len(self._messages)  # which this thread alone adds to
        messages = [_message(number, event) for number, event in enumerate(new, start)]
        with self._news:
            self._messages += messages

    def _end(self, told: Sequence[Event | None]) -> None:
        have = len(self._messages)
        # If more was told than is left, the rest is another.
        keep = have if have < len(told) else 0
        messages = [_message(number, event) for number, event in enumerate(told)][keep:]
        with self._news:
            self._messages[keep:] = messages
            self._last = told[-1]


class Feeds:
    """The feeds of the jobs that somebody reads in this process."""

    def __init__(self, store: Store, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self._lock = threading.Lock()
        self._feeds: dict[str, Feed] = {}

    def init_app(self, app: Flask) -> None:
        app.extensions["helixq.feeds"] = self

    @contextmanager
    def follow(self, job_id: str) -> Iterator[Feed]:
        """Share a job's feed with who reads it already."""
        with self._lock:
            feed = self._feeds.get(job_id)
            if feed is None or feed.ended:  # a job that ended may go on later
                leave = ExitStack()
                follower = leave.enter_context(self._progress.follow(job_id))
                feed = self._feeds[job_id] = Feed(self._store, job_id, follower, leave)
            feed.readers += 1
        try:
            yield feed
        finally:
            with self._lock:
                feed.readers -= 1
                if not feed.readers:
                    feed.leave.close()
                    if self._feeds.get(job_id) is feed:
                        del self._feeds[job_id]

    def stream(
        self,
        job_id: str,
        after: int,
        *,
        keepalive: float,
        done: Callable[[], bool],
    ) -> Iterator[bytes]:
        """Send a job's messages until it has ended.

        Args:
            job_id: of a job that exists.
            after: the last sequence number the client has; -1 for all events.
            keepalive: seconds without a message after which a comment is sent.
            done: says that the stream should end before the job does.
        """
        count = after + 1
        followed = False
        spoke = time.monotonic()
        with self.follow(job_id) as feed:
            while not done():
                try:
                    messages, ended = feed.after(count, min(TURN, keepalive))
                except JobNotFoundError:
                    return  # it was deleted meanwhile
                if text := b"".join(messages):
                    yield text
                    spoke = time.monotonic()
                count += len(messages)
                if ended:
                    if not messages and (followed or count > feed.count):
                        yield feed.last(count)
                    return
                followed = True
                if time.monotonic() - spoke > keepalive:
                    yield WAITING
                    spoke = time.monotonic()


def feeds() -> Feeds:
    """Return the current application's feeds."""
    found: Feeds = current_app.extensions["helixq.feeds"]
    return found


def _partial_missing(job: Job) -> bool:
    """Whether the worker has yet to hand in the text of a stage whose job has ended."""
    return job.status.final and any(a.status is AttemptStatus.RUNNING for a in job.attempts)


def _message(number: int, event: Event | None) -> bytes:
    if event is None:
        return b""
    # ASCII: some readers take U+2028 and others of its kind for the end of a line.
    data = json.dumps({**event, "sequence_number": number}, separators=(",", ":"))
    # The id lets a browser's EventSource go on by itself after a lost connection.
    return f"id: {number}\nevent: {event['type']}\ndata: {data}\n\n".encode("ascii")
