"""A witness: the counterpart of `jobs.witnessing`, a real HTTP server written to c2sp.org/tlog-witness.

What it checks, it checks with a library of others (aics-tlog), which signs for it too; ML-DSA-44 that has not, and
its message is written out here.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import aics_tlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from tests.receiver import Receiver
from tests.servers import PATIENCE

#: When it cosigns, in seconds since 1970.
NOW = 1_790_000_000


class Witness:
    """Cosigns the checkpoints of one log."""

    def __init__(
        self, name: str, *, post_quantum: bool = False, certificate: Path | None = None
    ) -> None:
        self.name = name
        #: The log's verifier key. Others are not known to it.
        self.log_key: str | None = None
        #: What it has cosigned last.
        self.size, self.root = 0, hashlib.sha256(b"").digest()
        #: The number of hashes of each proof that it has checked.
        self.proofs: list[int] = []
        #: What it has replied with.
        self.statuses: list[int] = []
        #: A reply instead of its own: a status, and a body.
        self.told: tuple[int, bytes] | None = None
        #: It replies once this is set.
        self.awake = threading.Event()
        self.awake.set()
        self._private: Any = (MLDSA44PrivateKey if post_quantum else Ed25519PrivateKey).generate()
        public = self._private.public_key().public_bytes_raw()
        kind = b"\x06" if post_quantum else b"\x04"
        self._id = hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]
        #: Its verifier key.
        self.key = f"{name}+{self._id.hex()}+{base64.b64encode(kind + public).decode()}"
        self._receiver = Receiver(certificate=certificate)
        self._receiver.reply = self._reply
        self.url = self._receiver.url.removesuffix("/hook")

    @property
    def setting(self) -> str:
        """What `HELIXQ_LOG_WITNESSES` has of it."""
        return f"{self.key} {self.url}/"

    def wait_for(self, count: int) -> None:
        """Wait until so many requests have come."""
        self._receiver.wait_for(count)

    def close(self) -> None:
        self.awake.set()
        self._receiver.close()

    def _reply(self, handler: BaseHTTPRequestHandler) -> None:
        assert self.awake.wait(PATIENCE)
        assert handler.path == "/add-checkpoint"
        code, body = self.told or self._add_checkpoint(self._receiver.received[-1].body)
        self.statuses.append(code)
        handler.send_response(code)
        if code == 409:
            handler.send_header("Content-Type", "text/x.tlog.size")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _add_checkpoint(self, body: bytes) -> tuple[int, bytes]:
        head, signed = body.decode().split("\n\n", 1)
        first, *proof = head.split("\n")
        word, old = first.split(" ")
        assert word == "old"
        assert len(proof) <= 63
        hashes = [base64.b64decode(line, validate=True) for line in proof]
        note = aics_tlog.parse_note(signed)
        checkpoint = aics_tlog.parse_checkpoint(note.text)
        key: Any = None if self.log_key is None else aics_tlog.parse_vkey(self.log_key)
        if key is None or key.name != checkpoint.origin:
            return 404, b""
        if not aics_tlog.verify_checkpoint(note, key).ok:
            return 403, b""
        if int(old) > checkpoint.size:
            return 400, b""
        if int(old) != self.size:
            return 409, b"%d\n" % self.size
        if not aics_tlog.verify_consistency(
            self.size, checkpoint.size, self.root, checkpoint.root, hashes
        ):
            return 422, b""
        self.proofs.append(len(hashes))
        self.size, self.root = checkpoint.size, checkpoint.root
        data = base64.b64encode(self._id + self.cosign(checkpoint)).decode()
        return 200, f"— {self.name} {data}\n".encode()

    def cosign(self, checkpoint: Any) -> bytes:
        """Return the cosignature of a checkpoint, with its timestamp."""
        if isinstance(self._private, Ed25519PrivateKey):
            return aics_tlog.sign_cosignature(
                self._private, self.name, NOW, checkpoint.origin, checkpoint.size, checkpoint.root
            )[0]
        name, origin = self.name.encode(), checkpoint.origin.encode()
        message = (
            b"subtree/v1\n\0"
            + bytes([len(name)])
            + name
            + NOW.to_bytes(8)
            + bytes([len(origin)])
            + origin
            + bytes(8)
            + checkpoint.size.to_bytes(8)
            + checkpoint.root
        )
        return NOW.to_bytes(8) + bytes(self._private.sign(message))
