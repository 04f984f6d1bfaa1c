"""The newest checkpoint of the log that a machine knows, in a file beside its data.

A database that was restored from an older backup has an older log. If it went on under the same name, there would be two
logs with one name: others hold checkpoints that the second one does not continue. The file is no part of the database,
so it shows that this happened. It is an ordinary checkpoint: `helixq jobs verify --checkpoint` takes it too.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from jobs.errors import LogKeyError
from jobs.settings import DATA_DIR_MODE
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.note import Note, NoteError

log = logging.getLogger(__name__)

#: The file's name in `HELIXQ_DATA_DIR`.
NAME = "log-checkpoint"


class KeptCheckpoint:
    """The file in one folder. Several processes may use it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._is_writable = True

    def read(self) -> Checkpoint | None:
        """Return the checkpoint; None if none is kept.

        Raises:
            LogKeyError: the file is no checkpoint, or cannot be read.
        """
        try:
            return Checkpoint.parse(Note.parse(self.file.read_text(encoding="utf-8")).text)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, NoteError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a checkpoint"
            raise LogKeyError(
                f"{self.file} cannot be read ({reason}): delete it once `helixq jobs verify "
                "--checkpoint` has accepted a checkpoint that you kept elsewhere"
            ) from error

    def keep(self, note: str) -> None:
        """Keep a checkpoint instead of an older one, or of one of another log.

        If the file cannot be written, a warning is logged once, and nothing is kept.
        """
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        part = self.file.with_name(f".{NAME}-{os.getpid()}-{threading.get_ident()}")
        try:
            known = self.read()
            if known and known.origin == checkpoint.origin and known.size >= checkpoint.size:
                return
            self.file.parent.mkdir(mode=DATA_DIR_MODE, parents=True, exist_ok=True)
            part.write_text(note, encoding="utf-8")
            part.replace(self.file)
        except (OSError, LogKeyError) as error:
            if self._is_writable:
                log.warning(
                    "the log's newest checkpoint cannot be kept in %s: %s", self.file, error
                )
            self._is_writable = False
