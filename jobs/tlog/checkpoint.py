"""Checkpoints (c2sp.org/tlog-checkpoint): the signed size and root of a log's tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from jobs.tlog.merkle import HASH_SIZE
from jobs.tlog.note import Note, NoteError, Signer, Verifier, decode, encode


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a checkpoint's text, without its signatures.

        Raises:
            NoteError: it is none.
        """
        lines = text.split("\n")
        root = decode(lines[2]) if len(lines) > 3 else None
        if (
            root is None
            or len(root) != HASH_SIZE
            or "" in lines[:-1]
            or lines[-1]
            or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1])
        ):
            raise NoteError("this is not a checkpoint: its lines should be origin, size and root")
        return cls(lines[0], int(lines[1]), root, tuple(lines[3:-1]))

    @property
    def text(self) -> str:
        """The checkpoint's text, without signatures."""
        lines = [self.origin, str(self.size), encode(self.root), *self.extensions]
        return "".join(f"{line}\n" for line in lines)

    def sign(self, signer: Signer) -> str:
        """Return the checkpoint as a signed note."""
        return signer.sign(self.text)


def open_checkpoint(note: str, verifiers: Iterable[Verifier]) -> Checkpoint:
    """Return the checkpoint of a signed note.

    Args:
        note: the note.
        verifiers: keys of logs. A key counts only for the log whose origin is the key's name.

    Raises:
        NoteError: it is no checkpoint, or none of the keys signed it.
    """
    parsed = Note.parse(note)
    checkpoint = Checkpoint.parse(parsed.text)
    of_origin = [key for key in verifiers if key.name == checkpoint.origin]
    if not of_origin:
        raise NoteError(f"no key for the log {checkpoint.origin!r} was given")
    parsed.verified(of_origin)
    return checkpoint
