"""Signed notes (c2sp.org/signed-note) with Ed25519: text, and signatures of named keys.

Keys are texts, as Go's ``golang.org/x/mod/sumdb/note`` writes them: a verifier key is
``NAME+ID+base64(1, public key)``, a signing key ``PRIVATE+KEY+NAME+ID+base64(1, private key)``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: The signature type of Ed25519.
ED25519 = b"\1"
KEY_SIZE = 32
ID_SIZE = 4
PRIVATE = "PRIVATE+KEY+"
#: The maximum number of bytes and of signatures of a note that is read.
MAX_NOTE, MAX_SIGNATURES = 1 << 20, 100


class NoteError(ValueError):
    """A note or a key is malformed, or no trusted key has signed the note."""


def is_name(text: str) -> bool:
    """Return whether a text can be a key's name: no white space, no plus, no control characters."""
    return bool(text) and "+" not in text and text.isprintable() and not any(map(str.isspace, text))


@dataclass(frozen=True)
class Verifier:
    """A key that checks signatures."""

    name: str
    #: The 32 bytes of the public key.
    public: bytes

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a verifier key.

        Raises:
            NoteError: it is none.
        """
        name, _, rest = text.partition("+")
        key_id, _, key = rest.partition("+")
        data = decode(key)
        if not is_name(name) or data is None or len(data) != 1 + KEY_SIZE or data[:1] != ED25519:
            raise NoteError("a verifier key should be `NAME+ID+KEY`, and its key Ed25519")
        verifier = cls(name, data[1:])
        if key_id != verifier.id.hex():
            raise NoteError("the verifier key's id does not belong to its name and key")
        return verifier

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{encode(ED25519 + self.public)}"

    @cached_property
    def id(self) -> bytes:
        """The key's id: 4 bytes."""
        identity = self.name.encode() + b"\n" + ED25519 + self.public
        return hashlib.sha256(identity).digest()[:ID_SIZE]

    def verify(self, text: str, signature: bytes) -> bool:
        """Return whether a signature of a text is this key's."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class Signer:
    """A key that signs."""

    name: str
    #: The 32 bytes of the private key.
    private: bytes

    def __repr__(self) -> str:
        return f"Signer({self.verifier})"

    @classmethod
    def generate(cls, name: str) -> Self:
        """Make a new key."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a signing key.

        Raises:
            NoteError: it is none. The message does not have it.
        """
        name, _, rest = text.removeprefix(PRIVATE).partition("+")
        key_id, _, key = rest.partition("+")
        data = decode(key)
        if (
            not text.startswith(PRIVATE)
            or not is_name(name)
            or data is None
            or len(data) != 1 + KEY_SIZE
            or data[:1] != ED25519
        ):
            raise NoteError(f"a signing key should be `{PRIVATE}NAME+ID+KEY`, and its key Ed25519")
        signer = cls(name, data[1:])
        if key_id != signer.verifier.id.hex():
            raise NoteError("the signing key's id does not belong to its name and key")
        return signer

    def to_text(self) -> str:
        """Return the key as `parse` reads it."""
        return f"{PRIVATE}{self.name}+{self.verifier.id.hex()}+{encode(ED25519 + self.private)}"

    @cached_property
    def verifier(self) -> Verifier:
        """The key that checks this key's signatures."""
        key = Ed25519PrivateKey.from_private_bytes(self.private)
        return Verifier(self.name, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return a text as a note with this key's signature.

        Raises:
            NoteError: the text cannot be a note's.
        """
        if not _is_text(text):
            raise NoteError("a note's text ends in a newline and has no other control characters")
        signature = Ed25519PrivateKey.from_private_bytes(self.private).sign(text.encode())
        return f"{text}\n— {self.name} {encode(self.verifier.id + signature)}\n"


@dataclass(frozen=True)
class Signature:
    """A signature of a note, by whatever key and algorithm."""

    name: str
    key_id: bytes
    data: bytes


@dataclass(frozen=True)
class Note:
    """A note that is read. Its text says nothing before `verified` has returned."""

    text: str
    signatures: Sequence[Signature]

    @classmethod
    def parse(cls, note: str) -> Self:
        """Read a note.

        Raises:
            NoteError: it is malformed.
        """
        text, separator, lines = note.rpartition("\n\n")
        text += "\n"
        if len(note.encode(errors="replace")) > MAX_NOTE:
            raise NoteError("the note is too long")
        if not separator or not _is_text(text) or not lines.endswith("\n"):
            raise NoteError(
                "this is not a signed note, which has a text, an empty line and signatures"
            )
        signatures = [_signature(line) for line in lines[:-1].split("\n")]
        if len(signatures) > MAX_SIGNATURES:
            raise NoteError("the note has too many signatures")
        return cls(text, signatures)

    def verified(self, verifiers: Iterable[Verifier]) -> list[Verifier]:
        """Return those of some keys that signed the note: at least one.

        Raises:
            NoteError: none of them signed it, or a signature of one of them is wrong.
        """
        known = {(key.name, key.id): key for key in verifiers}
        signers = []
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is None:
                continue
            if not key.verify(self.text, signature.data):
                raise NoteError(f"the signature of {key.name} is wrong")
            signers.append(key)
        if not signers:
            names = ", ".join(sorted({signature.name for signature in self.signatures}))
            raise NoteError(
                f"none of the given keys signed the note; its signatures are of {names}"
            )
        return signers


def encode(data: bytes) -> str:
    """Return bytes as base64 (RFC 4648, section 4)."""
    return base64.b64encode(data).decode()


def decode(text: str) -> bytes | None:
    """Return the bytes of a base64 text; None if it is not spelled as `encode` does."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if encode(data) == text else None


def _signature(line: str) -> Signature:
    dash, _, rest = line.partition(" ")
    name, _, encoded = rest.partition(" ")
    data = decode(encoded)
    if dash != "—" or not is_name(name) or data is None or len(data) <= ID_SIZE:
        raise NoteError("a signature of the note is malformed")
    return Signature(name, data[:ID_SIZE], data[ID_SIZE:])


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return text.endswith("\n") and not any(c < " " and c != "\n" for c in text)
