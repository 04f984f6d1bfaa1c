"""Publishes the progress of all jobs that run in this worker.

It has its own thread. So a slow Redis delays neither the engine nor the threads that run stages, and these
wake up only once a stage has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

from jobs.progress import Progress, TextDeltas
from worker.engine.interface import Generation

log = logging.getLogger(__name__)

#: Seconds between two requests to Redis with new text.
TEXT_INTERVAL = 0.1
#: The minimum number of seconds between any two requests to Redis. It bounds their rate with many jobs.
INTERVAL = 0.02


@dataclass
class _Stream:
    """A generation whose text is published."""

    generation: Generation
    #: The number of deltas that are published.
    published: int = 0
    #: Whether it is published that it has begun: without a beginning, a text counts as lost.
    has_begun: bool = False


class ProgressPublisher:
    """Publishes text while it is generated, and that jobs have changed. Thread-safe."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._condition = threading.Condition()
        #: By job and text (`Claim.text_id`).
        self._streams: dict[tuple[str, str], _Stream] = {}
        #: The ids of jobs whose rows have changed, in this order, and whether they have ended.
        self._changed: dict[str, bool] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)
        self._thread.start()

    def publish_text(self, job_id: str, text_id: str, generation: Generation) -> None:
        """Publish the text of an attempt until its generation ends. Returns at once."""
        with self._condition:
            self._streams[job_id, text_id] = _Stream(generation)
            self._condition.notify()

    def publish_change(self, job_id: str, *, ended: bool = False) -> None:
        """Publish that a job's rows have changed, after the text generated so far. Returns at once.

        Args:
            job_id: of the job.
            ended: whether it has ended.
        """
        with self._condition:
            self._changed[job_id] = ended
            self._condition.notify()

    def stop(self) -> None:
        """Publish what is left, and stop."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        self._thread.join()

    # --- on the thread ----------------------------------------------------------------

    def _loop(self) -> None:
        stopped = False
        while not stopped:
            with self._condition:
                self._condition.wait_for(lambda: self._changed or self._streams or self._stopped)
                self._condition.wait_for(lambda: self._changed or self._stopped, TEXT_INTERVAL)
                changed, self._changed = self._changed, {}
                stopped = self._stopped
                streams = dict(self._streams)
            try:
                updates = [*self._take_deltas(streams), *((job_id, None) for job_id in changed)]
                if updates:
                    ended = [job_id for job_id, has_ended in changed.items() if has_ended]
                    self._progress.publish(updates, ended)
            except Exception:
                # Whatever it is, the thread must go on: without it, no text is streamed.
                log.exception("progress was not published")
            if not stopped:
                time.sleep(INTERVAL)  # Later updates share the next request.

    def _take_deltas(
        self, streams: dict[tuple[str, str], _Stream]
    ) -> list[tuple[str, TextDeltas | None]]:
        """Return the new deltas of all streams. Remove the streams that have ended."""
        updates: list[tuple[str, TextDeltas | None]] = []
        for (job_id, text_id), stream in streams.items():
            # Read before the deltas: none follow once the generation has finished.
            finished = stream.generation.finished
            deltas = stream.generation.deltas_from(stream.published)
            if deltas or not stream.has_begun:
                updates.append((job_id, TextDeltas(text_id, stream.published, deltas)))
                stream.published += len(deltas)
                stream.has_begun = True
            if finished:
                with self._condition:
                    del self._streams[job_id, text_id]
        return updates
