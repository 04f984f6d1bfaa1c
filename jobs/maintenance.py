"""The background duties that may take a while: seal and index ended jobs, work on batches, delete what is old.

They run in every worker, and without one as `helixq maintain`. Several processes may run them at once.
"""

from __future__ import annotations

import datetime as dt
import logging
import time

from jobs.batch_runner import BatchRunner
from jobs.database import Database
from jobs.duties import JITTER, Duty, DutyThread
from jobs.errors import LogKeyError
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.queue import Publisher
from jobs.use_cases import (
    batch_answers,
    batches,
    files,
    indexing,
    log_signing,
    requests,
    retention,
    sealing,
)
from jobs.use_cases.log_signing import Signing

log = logging.getLogger(__name__)

CLEANUP_INTERVAL = 3600.0
#: Seconds between two checks for ended jobs that the log does not have.
SEAL_INTERVAL = 1.0
#: Seconds between two checks for a checkpoint that another machine signed.
CHECKPOINT_INTERVAL = 60.0
#: Seconds between two checks for ended jobs that the search index does not have.
INDEX_INTERVAL = 1.0
#: Seconds between two checkpoints of SQLite's write-ahead log.
WAL_INTERVAL = 1.0
#: Seconds between two checks for files to delete, and for something to do for a batch.
FILES_INTERVAL = 60.0
BATCHES_INTERVAL = 1.0
#: Seconds between two checks for lines of batches that have waited long.
WAITING_INTERVAL = 15.0
#: The maximum number of seconds of one cleanup: other duties run in between.
CLEANUP_TIME = 1.0


class Maintenance(DutyThread):
    """These duties of one process, one after another on a thread of their own."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        progress: Progress,
        *,
        retention_days: int,
        signing: Signing = Signing(),  # noqa: B008 (it never changes)
    ) -> None:
        """
        Args:
            database: of the jobs.
            publisher: publishes the lines of batches.
            progress: gets the changes of jobs.
            retention_days: how long jobs are kept; 0 means forever.
            signing: signs the log.
        """
        self._database = database
        self._retention_days = retention_days
        self._signing = signing
        #: Why the log cannot be signed, so that it is said once.
        self._unsigned: str | None = None
        #: Where `retention.delete_workers` continues.
        self._workers_until: dt.datetime | None = None
        duties = [
            Duty(CHECKPOINT_INTERVAL, self.keep_checkpoint),
            Duty(SEAL_INTERVAL, self.seal),
            Duty(INDEX_INTERVAL, self.index),
            Duty(WAL_INTERVAL, database.checkpoint_wal),
            Duty(BATCHES_INTERVAL, self.work_on_batches),
            Duty(WAITING_INTERVAL, self.raise_waiting_lines),
            Duty(FILES_INTERVAL, self.sweep_files),
            Duty(CLEANUP_INTERVAL, self.clean_up),
        ]
        super().__init__("maintenance", duties, jitter=JITTER)
        self._batches = BatchRunner(database, publisher, progress, self.stopped)

    def seal(self) -> bool:
        """Append ended jobs, reviews, erasures and deletions to the log, and sign it.

        Returns:
            whether to call it again at once.
        """
        if not sealing.any_pending(self._database):
            return False
        try:
            prepared = sealing.prepare(self._database, history)
            appended = sealing.append(self._database, prepared, self._signing)
        except LogKeyError as error:
            self._say_unsigned(error)
            return False
        self._unsigned = None
        return max(len(prepared), appended) >= sealing.MAX_JOBS  # Deletions are not prepared.

    def keep_checkpoint(self) -> None:
        """Keep the log's newest checkpoint on this machine; say so if the log was set back."""
        if self._signing.kept is not None:
            try:
                log_signing.keep_newest(self._database, self._signing.kept)
            except LogKeyError as error:
                self._say_unsigned(error)

    def _say_unsigned(self, error: LogKeyError) -> None:
        """Say why the log cannot be signed, once."""
        if str(error) != self._unsigned:
            log.error("ended jobs do not get into the log: %s", error)
        self._unsigned = str(error)

    def index(self) -> bool:
        """Put ended jobs, and what changed of them, into the search index.

        Returns:
            whether to call it again at once.
        """
        if not indexing.any_pending(self._database):
            return False
        prepared = indexing.prepare(self._database)
        indexing.put(self._database, prepared)
        indexing.merge(self._database)
        return len(prepared) == indexing.MAX_JOBS

    def work_on_batches(self) -> bool:
        """Validate, submit and answer lines of batches; see `BatchRunner.run`."""
        return self._batches.run()

    def raise_waiting_lines(self) -> None:
        """Let lines of batches that have waited long take their turn among single questions."""
        if count := batch_answers.raise_waiting_lines(self._database):
            log.info("%d lines of batches have waited long and get the default priority", count)

    def sweep_files(self) -> bool:
        """Delete files that have expired, were lost or were deleted, a piece at a time.

        Returns:
            whether more is left to delete.
        """
        return files.sweep_files(self._database, self._retention_days)

    def clean_up(self) -> bool:
        """Delete old jobs, batches, workers and requests with an idempotency key, a few at a time.

        Returns:
            whether more is left to delete.
        """
        deadline = time.monotonic() + CLEANUP_TIME
        deleted, has_more = 0, bool(self._retention_days)
        while has_more and time.monotonic() < deadline and not self.stopped.is_set():
            start = time.monotonic()
            count = retention.delete_jobs(self._database, self._retention_days)
            deleted += count
            if has_more := count > 0:
                self.stopped.wait(time.monotonic() - start)  # Others can write meanwhile.
        if deleted:
            log.info("deleted %d jobs older than %d days", deleted, self._retention_days)
        if not has_more and self._retention_days:
            has_more = batches.delete_batches(self._database, self._retention_days) > 0
        if not has_more:
            self._workers_until = retention.delete_workers(self._database, self._workers_until)
            has_more = self._workers_until is not None
        return requests.delete_requests(self._database) > 0 or has_more
