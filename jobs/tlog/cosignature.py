"""Cosignatures of checkpoints by witnesses (c2sp.org/tlog-cosignature), and how one is asked for (c2sp.org/tlog-witness).

A witness signs only trees that continue the one that it signed before. So a log cannot show two histories to two people
who both require its cosignature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.note import ID_SIZE, Note, NoteError, Signature, decode, encode, is_name

#: The signature types of cosignatures, and the bytes of a public key of each.
ED25519, ML_DSA_44 = b"\4", b"\6"
KEY_SIZES = {ED25519: 32, ML_DSA_44: 1312}
TIMESTAMP_SIZE = 8
MAX_TIMESTAMP = 2**63 - 1


@dataclass(frozen=True)
class Cosigner:
    """A witness's key."""

    name: str
    #: `ED25519` or `ML_DSA_44`.
    kind: bytes
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a verifier key (``NAME+ID+KEY``).

        Raises:
            NoteError: it is none, or of a log.
        """
        name, _, rest = text.partition("+")
        key_id, _, key = rest.partition("+")
        data = decode(key) or b""
        if not is_name(name) or len(data) - 1 != KEY_SIZES.get(data[:1]):
            raise NoteError(
                "a witness's key should be `NAME+ID+KEY`, and its key one for cosignatures: Ed25519 or ML-DSA-44"
            )
        cosigner = cls(name, data[:1], data[1:])
        if key_id != cosigner.id.hex():
            raise NoteError("the id of the witness's key does not belong to its name and key")
        return cosigner

    def __str__(self) -> str:
        return f"{self.label}+{encode(self.kind + self.public)}"

    @property
    def label(self) -> str:
        """Name and id, which are short."""
        return f"{self.name}+{self.id.hex()}"

    @cached_property
    def id(self) -> bytes:
        """The key's id: 4 bytes."""
        identity = self.name.encode() + b"\n" + self.kind + self.public
        return hashlib.sha256(identity).digest()[:ID_SIZE]

    def verify(self, text: str, signature: bytes) -> bool:
        """Return whether a cosignature of a checkpoint's text, with its timestamp, is this key's."""
        time = timestamp(signature)
        if not 0 < time <= MAX_TIMESTAMP:
            return False
        try:
            if self.kind == ED25519:
                message = f"cosignature/v1\ntime {time}\n{text}".encode()
                key = Ed25519PublicKey.from_public_bytes(self.public)
                key.verify(signature[TIMESTAMP_SIZE:], message)
            else:
                message = _cosigned_message(self.name, time, Checkpoint.parse(text))
                MLDSA44PublicKey.from_public_bytes(self.public).verify(
                    signature[TIMESTAMP_SIZE:], message
                )
        except (InvalidSignature, ValueError):
            return False
        return True


def timestamp(signature: bytes) -> int:
    """Return when a cosignature was made, as POSIX time."""
    return int.from_bytes(signature[:TIMESTAMP_SIZE])


def require(note: str, witnesses: Iterable[Cosigner]) -> dict[str, int]:
    """Check that witnesses have cosigned a checkpoint; return when each did, as POSIX time, by their names.

    Raises:
        NoteError: one of them has not, or its cosignature is wrong.
    """
    parsed, times = Note.parse(note), {}
    for witness in witnesses:
        signatures = _of(parsed, witness)
        if not signatures:
            raise NoteError(f"the witness {witness.name} has not cosigned the checkpoint")
        if not all(witness.verify(parsed.text, signature.data) for signature in signatures):
            raise NoteError(f"the cosignature of the witness {witness.name} is wrong")
        times[witness.name] = max(timestamp(signature.data) for signature in signatures)
    return times


def request(old_size: int, proof: Sequence[bytes], note: str) -> bytes:
    """Return the body of a request for a cosignature (``add-checkpoint``).

    Args:
        old_size: the size of the tree that the witness has cosigned last; 0 if it has none.
        proof: that the tree of the checkpoint continues it.
        note: the checkpoint, signed by the log.
    """
    lines = [f"old {old_size}", *map(encode, proof), "", note]
    return "\n".join(lines).encode()


def read_reply(note: str, reply: str, witness: Cosigner) -> str:
    """Return the line of a witness's cosignature, from its reply to a request.

    Raises:
        NoteError: the reply has no cosignature of the checkpoint by this key, or a wrong one.
    """
    parsed = Note.parse(note + reply)
    if parsed.text != Note.parse(note).text:
        raise NoteError("the reply of the witness is more than signatures")
    found = [s for s in _of(parsed, witness) if witness.verify(parsed.text, s.data)]
    if not found:
        raise NoteError(f"the reply has no cosignature of the checkpoint by {witness.label}")
    return f"— {witness.name} {encode(found[0].key_id + found[0].data)}\n"


def _of(note: Note, witness: Cosigner) -> list[Signature]:
    return [s for s in note.signatures if (s.name, s.key_id) == (witness.name, witness.id)]


def _cosigned_message(name: str, time: int, checkpoint: Checkpoint) -> bytes:
    """Return what an ML-DSA-44 cosignature of a whole tree signs: a ``cosigned_message``."""
    parts = [
        b"subtree/v1\n\0",
        _short(name),
        time.to_bytes(8),
        _short(checkpoint.origin),
        (0).to_bytes(8),
        checkpoint.size.to_bytes(8),
        checkpoint.root,
    ]
    return b"".join(parts)


def _short(text: str) -> bytes:
    data = text.encode()
    if not 0 < len(data) < 256:
        raise ValueError("a name has 1 to 255 bytes")
    return bytes([len(data)]) + data
