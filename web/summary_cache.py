"""The figures in the footer of the pages, cached for a few seconds, so that most pages cost no query for them."""

from __future__ import annotations

import logging
import math
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from jobs import transient
from jobs.database import Database
from jobs.use_cases import system
from jobs.use_cases.system import Summary

log = logging.getLogger(__name__)

#: Seconds after which a page asks again.
MAX_AGE = 5.0


class SummaryCache:
    """The last summary of a process. Threads share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        #: None if the database did not respond.
        self.summary: Summary | None = None

    def forget(self) -> None:
        """Let the next page ask again: what it says has changed."""
        self._asked_at = -math.inf

    def refresh(self) -> None:
        """Ask for a summary if the last one is old, and no other thread is asking."""
        if time.monotonic() - self._asked_at < MAX_AGE or not self._lock.acquire(blocking=False):
            return
        try:
            self.summary = system.summarize(self._database)
        except SQLAlchemyError as error:
            self.summary = None
            log.warning("the footer has no figures: %s", transient.reason(error))
        finally:
            self._asked_at = time.monotonic()
            self._lock.release()
