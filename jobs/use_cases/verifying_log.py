"""Verifying the log itself: whether its tree has the stored tiles, and the roots that were signed and cosigned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from jobs.errors import TamperedError
from jobs.models import LogKind
from jobs.statements import log, log_checkpoints
from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint, open_checkpoint
from jobs.tlog.cosignature import Cosigner, require
from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import NoteError, Verifier
from jobs.tlog.tiles import WIDTH

#: Checkpoints that are read at once.
PAGE = WIDTH


class Head(NamedTuple):
    """A root that the tree must have at a size."""

    size: int
    root: bytes
    #: Where it comes from, for messages.
    name: str


def open_head(note: str, keys: Sequence[Verifier], origin: str | None, name: str) -> Head:
    """Open a checkpoint.

    Args:
        note: the checkpoint.
        keys: that may have signed it.
        origin: the name of the log that it must be of.
        name: of the checkpoint, for messages.

    Raises:
        TamperedError: none of the keys has signed it, or it is another log's.
    """
    try:
        checkpoint: Checkpoint = open_checkpoint(note, keys)
    except NoteError as error:
        raise TamperedError(f"{name} is not trusted: {error}") from error
    if checkpoint.origin != origin:
        raise TamperedError(f"{name} is of the log {checkpoint.origin}, and this log is {origin}")
    return Head(checkpoint.size, checkpoint.root, name)


class Tree:
    """The tree of the entries so far, compared with the stored tiles."""

    def __init__(self, connection: sa.Connection) -> None:
        self.size = 0
        self._connection = connection
        #: The tiles at the right edge. The others are full, and were compared.
        self._edge: dict[tuple[int, int], bytes] = {}
        #: The stored tile with the hash of the next leaf.
        self._stored = b""
        self._signed = 0

    def append(self, row: sa.Row[int, LogKind, str, bytes]) -> None:
        """Add an entry, which should be the next one."""
        if row.entry_index != self.size:
            raise TamperedError(f"entry {self.size} was removed")
        offset = self.size % WIDTH
        if not offset:
            self._stored = log.get_tile(self._connection, 0, self.size // WIDTH)
        # SQLite takes text in a column of bytes.
        leaf = merkle.leaf_hash(row.entry) if isinstance(row.entry, bytes) else b""
        if leaf != self._stored[offset * HASH_SIZE : (offset + 1) * HASH_SIZE]:
            raise TamperedError(
                f"entry {self.size}, of job {row.job_id}, is not the one that was recorded there: "
                "it was changed, reordered or added"
            )
        for (level, index), hashes in tiles.append(self.size, [leaf], self._read).items():
            self._edge[level, index] = hashes
            if len(hashes) == WIDTH * HASH_SIZE:
                self._compare(level, index)
        self.size += 1
        for level, index in [
            key for key in self._edge if len(self._edge[key]) == WIDTH * HASH_SIZE
        ]:
            del self._edge[level, index]

    def check(self, head: Head) -> None:
        """Compare the root with a checkpoint's."""
        root = merkle.EMPTY_ROOT
        if head.size:
            root = merkle.root(self.size, tiles.nodes(self._read))
        if root != head.root:
            raise TamperedError(
                f"the log is not the one of {head.name}, with {head.size} entries: one of the entries "
                f"{self._signed} to {head.size - 1} was changed, removed, added or reordered"
            )
        self._signed = head.size

    def finish(self) -> None:
        """Compare the partial tiles; all entries must be signed."""
        if self._signed != self.size:
            raise TamperedError(f"entry {self._signed} is in no checkpoint: it was added")
        for level, index in self._edge:
            self._compare(level, index)

    def _read(self, level: int, index: int) -> bytes:
        return self._edge[level, index]

    def _compare(self, level: int, index: int) -> None:
        if log.get_tile(self._connection, level, index) != self._edge[level, index]:
            raise TamperedError(f"tile {index} of level {level} was changed")


class StoredCheckpoints:
    """The checkpoints that the database keeps, and the cosignatures of witnesses on them."""

    def __init__(
        self,
        connection: sa.Connection,
        keys: Sequence[Verifier],
        origin: str | None,
        witnesses: Sequence[Cosigner],
    ) -> None:
        """
        Args:
            connection: of a unit of work that reads.
            keys: that may have signed.
            origin: the log's name.
            witnesses: that must have cosigned.
        """
        self._connection = connection
        self._keys = keys
        self._origin = origin
        self._witnesses = {witness.label: witness for witness in witnesses}
        self._cosignatures = {
            (size, label): line
            for size, label, line in log_checkpoints.list_cosignatures(
                connection, list(self._witnesses)
            )
        }
        #: How many checkpoints `heads` has yielded.
        self.count = 0
        #: How many entries each witness has cosigned, by its name.
        self.witnessed: dict[str, int] = {}

    def heads(self) -> Iterator[Head]:
        """Yield the heads of the checkpoints, the smallest first."""
        size = -1
        while rows := log_checkpoints.list_checkpoints(self._connection, size, PAGE):
            for size, note in rows:
                head = open_head(note, self._keys, self._origin, f"checkpoint {size}")
                if head.size != size:
                    raise TamperedError(
                        f"checkpoint {size} was changed: its note has {head.size} entries"
                    )
                self.count += 1
                self._check_cosignatures(size, note)
                yield head

    def finish(self) -> None:
        """Each witness must have cosigned; there must be no cosignature of a checkpoint that is not there."""
        for size, label in self._cosignatures:
            name = self._witnesses[label].name
            raise TamperedError(f"checkpoint {size} was removed: {name} has cosigned it")
        for witness in self._witnesses.values():
            if witness.name not in self.witnessed:
                raise TamperedError(
                    f"the witness {witness.name} has cosigned no checkpoint of the log"
                )

    def _check_cosignatures(self, size: int, note: str) -> None:
        for label, witness in self._witnesses.items():
            line = self._cosignatures.pop((size, label), None)
            if line is None:
                continue
            try:
                require(note + line, [witness])
            except NoteError as error:
                raise TamperedError(f"checkpoint {size}: {error}") from error
            self.witnessed[witness.name] = size
