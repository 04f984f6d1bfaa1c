"""The event streams of jobs: each message is made once, for all of its readers in this process.

A reader that waits for the next message reads it for all, unless another thread is reading the job already:
it waits for news from Redis, reads the rows if they may have changed, and appends the new messages to
the list that all readers share. So a message costs each further reader only its sending, and the work
for it does not grow with the text before it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from flask import Flask, current_app

from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.models import AttemptStatus
from jobs.progress import Follower, Progress
from jobs.protocol.events import Event, RunningText, events, running_text
from jobs.timing import LEASE, SWEEP_INTERVAL
from jobs.use_cases import queries
from jobs.use_cases.queries import JobVersion
from web.v1 import sse

#: Seconds without a message after which a stream sends a comment.
KEEPALIVE_INTERVAL = 15.0
#: The maximum number of seconds to block, so that a stream notices when it should end.
MAX_BLOCK = 1.0
#: Seconds without news from Redis after which a job's row is checked, since news can be lost, and the maximum
#: number of seconds between two checks.
CHECK_INTERVAL = 1.0
MAX_CHECK_INTERVAL = 5.0
#: Seconds to wait for the end of the attempt whose job was cancelled or failed: its worker hands in the partial text at
#: once, and if it was lost, a sweep ends the attempt when the lease has run out. If nothing sweeps, nobody will.
PARTIAL_TEXT_TIMEOUT = LEASE + 2 * SWEEP_INTERVAL
#: Seconds between checks at first, and seconds after which they are as rare as others.
PARTIAL_TEXT_INTERVAL, PARTIAL_TEXT_EXPECTED = 0.2, 2.0


class Feed:
    """The messages of one job so far. Threads share it."""

    def __init__(
        self,
        database: Database,
        owner: str | None,
        job_id: str,
        follower: Follower,
        resources: ExitStack,
    ) -> None:
        """
        Args:
            database: has the job.
            owner: of the job; None for any.
            job_id: of an existing job.
            follower: gets the job's news.
            resources: to close when the feed has no readers any more.
        """
        self._database = database
        self._owner = owner
        self._job_id = job_id
        self._follower = follower
        self.resources = resources
        #: Guards the attributes up to ``_reading``, and is notified when they change.
        self._changed = threading.Condition()
        self._messages: list[bytes] = []
        #: The last event of the stream, once the job has ended.
        self._final_event: Event | None = None
        #: Whether a thread is reading the job.
        self._reading = False
        #: How many readers share the feed; guarded by `Feeds`.
        self.readers = 0
        # The rest belongs to the thread that is reading.
        self._version: JobVersion | None = None
        self._checked_at = 0.0
        #: When text of a known attempt arrived last.
        self._heard_at = 0.0
        #: When to stop waiting for a partial text; 0 while nothing is missing.
        self._partial_text_deadline = 0.0
        #: The pieces so far of attempts that are running or not yet seen in the rows, by the id of the text.
        self._live: dict[str, list[str]] = {}
        #: The ids of the texts of attempts that were seen in the rows.
        self._seen_texts: set[str] = set()
        #: The text of the running attempt, and the index of the message with the first piece of its item.
        self._running: tuple[RunningText, int] | None = None

    @property
    def ended(self) -> bool:
        return self._final_event is not None

    def after(self, count: int, timeout: float) -> tuple[Sequence[bytes], bool]:
        """Return the messages after the first ``count``, and whether the stream has ended.

        It waits for a message if there is none.

        Args:
            count: the number of messages that the reader has, or skips.
            timeout: in seconds.

        Raises:
            JobNotFoundError: the job was deleted.
        """
        with self._changed:
            if self._nothing_after(count) and self._reading:
                self._changed.wait(timeout)
            if not self._nothing_after(count) or self._reading:
                return self._messages[count:], self.ended
            self._reading = True
            before = len(self._messages)
        try:
            self._read(min(timeout, MAX_BLOCK))
        finally:
            with self._changed:
                self._reading = False
                if self._nothing_after(before):
                    self._changed.notify()  # Another thread may read now.
                else:  # The reader that read them may skip them.
                    self._changed.notify_all()
        with self._changed:
            return self._messages[count:], self.ended

    def final_message(self, sequence_number: int) -> bytes:
        """Return the last message under another number, for a reader who has all messages and more.

        Text that was streamed can be lost with its worker. Then fewer events are left than were sent,
        and the reader must still get the last one.
        """
        assert self._final_event is not None  # noqa: S101 (the caller knows that the stream ended)
        return sse.message(self._final_event, sequence_number)

    @property
    def count(self) -> int:
        return len(self._messages)

    def _nothing_after(self, count: int) -> bool:
        return count >= len(self._messages) and not self.ended

    # --- the thread that reads --------------------------------------------------------

    def _read(self, timeout: float) -> None:
        """Wait for news, and append the new messages."""
        expected = self._partial_text_deadline - PARTIAL_TEXT_TIMEOUT + PARTIAL_TEXT_EXPECTED
        awaits_partial_text = time.monotonic() < expected
        if awaits_partial_text:
            timeout = min(timeout, PARTIAL_TEXT_INTERVAL)
        first = self._version is None
        update = self._follower.read(0 if first else timeout)
        unseen = False
        for text in update.texts:
            pieces = self._live.setdefault(text.text_id, [])
            if text.start == len(pieces):  # Else some are missing; the finished text will have all.
                pieces += text.deltas
            unseen |= text.text_id not in self._seen_texts
        now = time.monotonic()
        if update.texts and not unseen:
            self._heard_at = now
        due = (
            now - max(self._checked_at, self._heard_at) >= CHECK_INTERVAL
            or now - self._checked_at >= MAX_CHECK_INTERVAL
        )
        if first or update.changed or unseen or due or awaits_partial_text:
            self._check_rows()
        self._append_live_text()

    def _check_rows(self) -> None:
        """Read the job if it has changed, and append the new messages."""
        self._checked_at = time.monotonic()
        version = queries.get_version(self._database, self._owner, self._job_id)
        if version == self._version and not self._partial_text_deadline:
            return
        job = queries.get_job(self._database, self._owner, self._job_id)
        self._version = version
        self._seen_texts = {attempt.text_id for attempt in job.attempts}
        if job.awaits_partial_text:
            if not self._partial_text_deadline:
                self._partial_text_deadline = time.monotonic() + PARTIAL_TEXT_TIMEOUT
            if time.monotonic() < self._partial_text_deadline:
                return
        running_ids = {a.text_id for a in job.attempts if a.status is AttemptStatus.RUNNING}
        self._live = {
            text_id: pieces
            for text_id, pieces in self._live.items()
            if text_id in running_ids or text_id not in self._seen_texts
        }
        current = list(events(job, self._live))
        self._running = None
        if job.status.final:
            self._end(current)
            return
        if text := running_text(job, self._live):
            self._running = text, len(current) - text.num_pieces * len(text.pieces)
        self._append(current[len(self._messages) :])

    def _append_live_text(self) -> None:
        """Append the new pieces of the running attempt.

        An attempt that follows a lost one generates the same text: it continues where that one stopped.
        """
        if self._running is None:
            return
        running, first = self._running
        messages: list[bytes] = []
        number = len(self._messages)  # Only this thread appends to it.
        for piece in self._live.get(running.text_id, ())[running.num_taken :]:
            running.num_taken += 1
            new = running.continuation.take(piece)
            if running.continuation.differs:
                break
            if new is None:
                continue
            # Messages are appended a piece at a time. An attempt that is lost may have sent this one, if nobody
            # knows any more what it sent.
            if first + running.num_pieces * len(running.pieces) >= number + len(messages):
                messages += sse.piece_messages(running.pieces, new, number + len(messages))
            running.num_pieces += 1
        self._extend(messages)
        if running.continuation.differs:
            self._version = None
            self._check_rows()  # The text has an item of its own.

    def _append(self, new: Sequence[Event | None]) -> None:
        self._extend(
            [_message(event, number) for number, event in enumerate(new, len(self._messages))]
        )

    def _extend(self, messages: list[bytes]) -> None:
        with self._changed:
            self._messages += messages

    def _end(self, current: Sequence[Event | None]) -> None:
        count = len(self._messages)
        # If more was streamed than is left, the messages are other ones.
        keep = count if count < len(current) else 0
        messages = [_message(event, number) for number, event in enumerate(current)][keep:]
        with self._changed:
            self._messages[keep:] = messages
            self._final_event = current[-1]


class Feeds:
    """The feeds of all jobs that are read in this process."""

    def __init__(self, database: Database, progress: Progress) -> None:
        self._database = database
        self._progress = progress
        self._lock = threading.Lock()
        self._feeds: dict[tuple[str | None, str], Feed] = {}
        self.keepalive_interval = KEEPALIVE_INTERVAL

    def init_app(self, app: Flask) -> None:
        """Make them the feeds of an application."""
        app.extensions["helixq.feeds"] = self

    @contextmanager
    def follow(self, owner: str | None, job_id: str) -> Iterator[Feed]:
        """Read a job's feed, together with its other readers."""
        with self._lock:
            feed = self._feeds.get((owner, job_id))
            if feed is None or feed.ended:  # A job that has ended may continue later.
                resources = ExitStack()
                follower = resources.enter_context(self._progress.follow(job_id))
                feed = self._feeds[owner, job_id] = Feed(
                    self._database, owner, job_id, follower, resources
                )
            feed.readers += 1
        try:
            yield feed
        finally:
            with self._lock:
                feed.readers -= 1
                if not feed.readers:
                    feed.resources.close()
                    if self._feeds.get((owner, job_id)) is feed:
                        del self._feeds[owner, job_id]

    def stream(
        self, owner: str | None, job_id: str, after: int, stop: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Yield a job's messages until the job has ended.

        Args:
            owner: of the job; None for any.
            job_id: of an existing job.
            after: the last sequence number that the client has; -1 for all events.
            stop: returns whether the stream should end before the job does.
        """
        count = after + 1
        waited = False
        sent_at = time.monotonic()
        with self.follow(owner, job_id) as feed:
            while not stop():
                try:
                    messages, ended = feed.after(count, min(MAX_BLOCK, self.keepalive_interval))
                except JobNotFoundError:
                    return  # The job was deleted.
                if text := b"".join(messages):
                    yield text
                    sent_at = time.monotonic()
                count += len(messages)
                if ended:
                    if not messages and (waited or count > feed.count):
                        yield feed.final_message(count)
                    return
                waited = True
                if time.monotonic() - sent_at > self.keepalive_interval:
                    yield sse.KEEPALIVE
                    sent_at = time.monotonic()


def get_feeds() -> Feeds:
    """Return the feeds of the current application."""
    feeds: Feeds = current_app.extensions["helixq.feeds"]
    return feeds


def _message(event: Event | None, sequence_number: int) -> bytes:
    return b"" if event is None else sse.message(event, sequence_number)
