"""Tells readers what happens to the jobs that run here, all of them together.

A thread of its own, so that the threads of the stages wait for their ends alone, and neither they
nor the engine are held up by a Redis that is slow.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from jobs.progress import Progress, TextDeltas
from worker.engine.interface import Generation

log = logging.getLogger(__name__)

#: Seconds between two messages with new text.
TEXT_INTERVAL = 0.1
#: Seconds between any two messages: with many jobs, a lot happens in them.
INTERVAL = 0.02


@dataclass
class _Followed:
    generation: Generation
    told: int = 0


class Reporter:
    """Sends texts while they are written, and what else happens to jobs. Threads may share it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._news = threading.Condition()
        #: By job and attempt.
        self._followed: dict[tuple[str, int], _Followed] = {}
        #: Jobs whose rows changed, in that order; the values mean nothing.
        self._changed: dict[str, None] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="reporter", daemon=True)
        self._thread.start()

    def follow(self, job_id: str, attempt_id: int, generation: Generation) -> None:
        """Tell the text of an attempt from now on."""
        with self._news:
            self._followed[job_id, attempt_id] = _Followed(generation)
            self._news.notify()

    def changed(self, job_id: str) -> None:
        """Tell that a job's rows changed, after the text that there is."""
        with self._news:
            self._changed[job_id] = None
            self._news.notify()

    def stop(self) -> None:
        """Tell what there is, and stop."""
        with self._news:
            self._stopped = True
            self._news.notify()
        self._thread.join()

    # --- the reporter's thread --------------------------------------------------------

    def _serve(self) -> None:
        stopped = False
        while not stopped:
            with self._news:
                self._news.wait_for(lambda: self._changed or self._followed or self._stopped)
                self._news.wait_for(lambda: self._changed or self._stopped, TEXT_INTERVAL)
                changed, self._changed = self._changed, {}
                stopped = self._stopped
                followed = dict(self._followed)
            try:
                if news := [*self._texts(followed), *((job_id, None) for job_id in changed)]:
                    self._progress.publish(news)
            except Exception:
                # Whatever it is: without this thread nobody would see a text before its end.
                log.exception("news were not told")
            if not stopped:
                time.sleep(INTERVAL)  # what happens meanwhile goes into the same message

    def _texts(
        self, followed: dict[tuple[str, int], _Followed]
    ) -> list[tuple[str, TextDeltas | None]]:
        """Take the new pieces of all texts; those that ended are no longer followed."""
        texts: list[tuple[str, TextDeltas | None]] = []
        for (job_id, attempt_id), one in followed.items():
            ended = one.generation.finished  # asked first: nothing comes after it
            if deltas := one.generation.deltas_from(one.told):
                texts.append((job_id, TextDeltas(attempt_id, one.told, deltas)))
                one.told += len(deltas)
            if ended:
                with self._news:
                    del self._followed[job_id, attempt_id]
        return texts
