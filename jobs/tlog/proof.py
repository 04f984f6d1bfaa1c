"""Proofs as files (c2sp.org/tlog-proof): an entry's place in the tree of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from jobs.tlog import merkle
from jobs.tlog.checkpoint import Checkpoint, open_checkpoint
from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import NoteError, Verifier, decode, encode

HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
class Proof:
    """A proof that an entry is in a log."""

    index: int
    #: The inclusion proof, from the leaf's sibling up.
    hashes: Sequence[bytes]
    #: The signed checkpoint, as the log issued it.
    checkpoint: str
    #: Of the application; not authenticated. HelixQ's proofs have the entry here.
    extra: bytes | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a proof.

        Raises:
            NoteError: it is malformed.
        """
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        extra: bytes | None = None
        if lines.pop(0) != HEADER:
            raise NoteError(f"this is not a proof: its first line should be {HEADER}")
        if lines and lines[0].startswith("extra "):
            extra = decode(lines.pop(0).removeprefix("extra "))
            if extra is None:
                raise NoteError("the proof's `extra` line is not base64")
        index = _INDEX.fullmatch(lines.pop(0)) if lines else None
        hashes = [decode(line) for line in lines]
        found = [h for h in hashes if h is not None and len(h) == HASH_SIZE]
        if index is None or not separator or len(found) != len(hashes):
            raise NoteError("the proof has no index, hashes and checkpoint as it should")
        return cls(int(index[1]), found, checkpoint, extra)

    @property
    def log(self) -> str:
        """The name of the log, as the checkpoint has it."""
        return self.checkpoint.partition("\n")[0]

    @property
    def text(self) -> str:
        """The proof as a file has it."""
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {encode(self.extra)}")
        lines += [f"index {self.index}", *map(encode, self.hashes), ""]
        return "".join(f"{line}\n" for line in lines) + self.checkpoint

    def verify(self, entry: bytes, verifiers: Iterable[Verifier]) -> Checkpoint:
        """Check that an entry is in the log; return the log's checkpoint.

        Args:
            entry: the entry.
            verifiers: keys of logs that are trusted.

        Raises:
            NoteError: none of the keys signed the checkpoint.
            ProofError: the entry is not where the proof says.
        """
        checkpoint = open_checkpoint(self.checkpoint, verifiers)
        merkle.verify_inclusion(
            merkle.leaf_hash(entry), self.index, checkpoint.size, self.hashes, checkpoint.root
        )
        return checkpoint
