"""The parsers of untrusted input, each as a function of bytes that may raise its documented errors alone."""

from __future__ import annotations

import contextlib
import datetime as dt
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask
from werkzeug.exceptions import RequestEntityTooLarge

from jobs.formats.compression import BrokenFileError, decompressed
from jobs.importer import ImportRefusedError, read_histories
from jobs.jsonl import read_lines
from jobs.models import Status
from jobs.protocol import batch_lines, body
from jobs.protocol.batches import parse_batch
from jobs.protocol.errors import ProtocolError
from jobs.protocol.history import history
from jobs.protocol.removal import DeleteJobs, EraseJobs, EraseTexts
from jobs.protocol.request import CreateResponse
from jobs.protocol.restoring import restore
from jobs.protocol.reviews import CreateReview
from jobs.protocol.validation import parse, validate, validate_chat
from jobs.search import query
from jobs.tlog import entry, exported, merkle, tiles
from jobs.tlog.canonical import canonical
from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.cosignature import Cosigner, read_reply
from jobs.tlog.exported import HistoryError
from jobs.tlog.merkle import ProofError
from jobs.tlog.note import Note, NoteError, Signer, Verifier, encode
from jobs.tlog.proof import Proof
from jobs.tlog.record import digest
from jobs.webhooks import retries
from jobs.webhooks import targets as webhook_targets
from jobs.webhooks.targets import TargetError
from tests.unit.protocol.rows import add_attempt, make_job
from web.errors import HTTPError
from web.multipart import read_form
from web.request_body import read_json
from worker.remote.errors import message_of

SALT = bytes(range(32))
SIGNER = Signer.generate("example.com/log")
APP = Flask(__name__)


@dataclass(frozen=True)
class Target:
    """A parser."""

    run: Callable[[bytes], object]
    #: What it may raise.
    errors: tuple[type[Exception], ...]
    #: Inputs from which others are made. It accepts the first.
    seeds: tuple[bytes, ...]

    def __call__(self, data: bytes) -> None:
        """Parse some bytes; raise what the parser should not."""
        with contextlib.suppress(*self.errors):
            self.run(data)


def sealed(told: dict[str, Any]) -> dict[str, Any]:
    """Return a history as a line of an export, with the proof of a log of one entry."""
    told = {
        **told,
        "log": {"index": 0, "salt": SALT.hex()},
        "origin_proof": None,
        "review_proofs": [],
        "erasure_proofs": [],
        "review_origin_proofs": [],
        "erasure_origin_proofs": [],
    }
    told["digest"] = digest(told, SALT)
    appended = entry.job_entry(told["digest"], "2026-01-02T03:04:05Z")
    checkpoint = Checkpoint(SIGNER.name, 1, merkle.leaf_hash(appended)).sign(SIGNER)
    told["proof"] = Proof(0, [], checkpoint, appended).text
    return told


def _history() -> dict[str, Any]:
    job = make_job(Status.COMPLETED, owner="anonymous", metadata_={"team": "blue"}, model="ab" * 32)
    for position in range(3):
        add_attempt(job, position)
    return history(job)


HISTORY = _history()
LINE = json.dumps(sealed(HISTORY)).encode()
REQUEST = {
    "model": "helixnet",
    "input": [
        {"role": "system", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": []},
    ],
    "metadata": {"a": "b"},
    "temperature": 0.5,
    "tools": [],
    "reasoning": {"effort": None},
    "rounds": 2,
}
CHAT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
    "stop": None,
    "n": 1,
    "response_format": {"type": "text"},
}
BATCH_LINE = {"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"input": "Why?"}}
BATCH = {
    "input_file_id": "file-1",
    "endpoint": "/v1/responses",
    "completion_window": "24h",
    "output_expires_after": {"anchor": "created_at", "seconds": 3600},
}
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
    b"Content-Type: text/plain\r\n\r\n{}\n\r\n--x--\r\n"
)
PROOF = json.loads(LINE)["proof"]
NOTE = Proof.parse(PROOF).checkpoint
_WITNESS = Ed25519PrivateKey.from_private_bytes(SALT)
WITNESS = Cosigner("w.example", b"\4", _WITNESS.public_key().public_bytes_raw())
_SIGNED = f"cosignature/v1\ntime 1790000000\n{Note.parse(NOTE).text}".encode()
COSIGNATURE = (
    f"— {WITNESS.name} "
    f"{encode(WITNESS.id + (1_790_000_000).to_bytes(8) + _WITNESS.sign(_SIGNED))}\n"
)


def dumped(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def text(run: Callable[[str], object]) -> Callable[[bytes], object]:
    """Return a parser of text as one of bytes: of any text, broken surrogates among them."""
    return lambda data: run(data.decode(errors="surrogateescape"))


def _responses(data: bytes) -> None:
    validate(body.parse(data))


def _chat(data: bytes) -> None:
    request = validate_chat(body.parse(data))
    for context in ("question", "turns"):
        kind: Literal["question", "turns"] = "turns" if context == "turns" else "question"
        request.to_response(kind)


def _other_bodies(data: bytes) -> None:
    parsed = body.parse(data)
    body.digest(parsed)
    for model in (CreateReview, EraseTexts, EraseJobs, DeleteJobs, CreateResponse):
        with contextlib.suppress(ProtocolError):
            parse(model, parsed)
    parse_batch(parsed, chat_context="question", keyed=None)


def _batch(data: bytes) -> None:
    for line in read_lines(pieces(data), 0, max_length=1000):
        if line.text is None:
            continue
        with contextlib.suppress(ProtocolError):
            parsed = batch_lines.parse_line(line.text)
            batch_lines.custom_id_of(parsed)
            for endpoint in batch_lines.ENDPOINTS:
                with contextlib.suppress(ProtocolError):
                    batch_lines.to_request(
                        batch_lines.body_of(parsed, endpoint), endpoint, "question"
                    )


def pieces(data: bytes) -> Callable[[int], bytes]:
    return lambda position: data[position : position + 7]


def _canonical(data: bytes) -> None:
    """What is canonical is JSON, says the same, and is canonical."""
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return
    spelled = canonical(value)
    assert canonical(json.loads(spelled)) == spelled


def _entry(data: bytes) -> None:
    assert isinstance(entry.parse_entry(data), dict)


def _proof(given: str) -> None:
    proof = Proof.parse(given)
    assert Proof.parse(proof.text) == proof
    proof.verify(proof.extra or b"", [SIGNER.verifier])


def _note(given: str) -> None:
    note = Note.parse(given)
    note.verified([SIGNER.verifier])


def _tile(given: str) -> None:
    for name in given.split("\0"):
        tiles.parse_path(name)
        tiles.parse_level(name)


def _import(data: bytes) -> None:
    for line in read_histories(io.BytesIO(data), []):
        if line.checked is not None:
            restore(line.history, line.checked)


def _history_of_another(data: bytes) -> None:
    """A history whose digest and proof are right, whatever it says: anybody can make a log."""
    try:
        told = sealed(json.loads(data))
    except Exception as error:
        raise HistoryError("no log records it") from error
    restore(told, exported.check(told, []))


def _decompress(data: bytes) -> None:
    for _ in zip(range(100), decompressed(io.BytesIO(data)), strict=False):
        pass


def _form(data: bytes) -> None:
    with APP.test_request_context(
        "/v1/files",
        method="POST",
        data=data,
        content_type="multipart/form-data; boundary=x",
    ):
        read_form("file", lambda _name, _fields: lambda _data: None)


def _gzipped(data: bytes) -> None:
    with APP.test_request_context(
        "/v1/responses",
        method="POST",
        data=data,
        content_type="application/json",
        headers={"Content-Encoding": "gzip"},
    ) as context:
        context.request.max_content_length = 1 << 20
        read_json()


def _retry_after(given: str) -> None:
    seconds = retries.parse_retry_after(given, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert seconds is None or seconds >= 0
    assert retries.delay(1, seconds) >= 0


def _cosignature(given: str) -> None:
    read_reply(NOTE, given, WITNESS)


def _keys(given: str) -> None:
    for kind in (Verifier, Signer, Cosigner):
        with contextlib.suppress(NoteError):
            kind.parse(given)


JSON_BODIES = dumped(REQUEST, CHAT, {"critique": 1, "note": "x"}, {"texts": ["/question"]})
HTTP_ERRORS = (ProtocolError, HTTPError, RequestEntityTooLarge)
TARGETS: Mapping[str, Target] = {
    "responses": Target(_responses, (ProtocolError,), JSON_BODIES),
    "chat": Target(_chat, (ProtocolError,), dumped(CHAT, REQUEST)),
    "bodies": Target(_other_bodies, (ProtocolError,), (*dumped(BATCH), *JSON_BODIES)),
    "gzipped": Target(_gzipped, HTTP_ERRORS, tuple(gzip.compress(b, mtime=0) for b in JSON_BODIES)),
    "form": Target(_form, HTTP_ERRORS, (FORM,)),
    "batch": Target(
        _batch,
        (),
        (
            *dumped(BATCH_LINE, {**BATCH_LINE, "url": "/v1/chat/completions", "body": CHAT}),
            b"\n".join(dumped(BATCH_LINE, BATCH_LINE)),
        ),
    ),
    "query": Target(
        text(query.parse), (query.QueryError,), (b'"two words" -no beg* one OR two AND NOT "x',)
    ),
    "canonical": Target(_canonical, (), (LINE, b'{"b":1e400,"a":[1.0,-0.0,12345678901234567890]}')),
    "entry": Target(_entry, (), (Proof.parse(PROOF).extra or b"",)),
    "note": Target(text(_note), (NoteError,), (NOTE.encode(),)),
    "checkpoint": Target(text(Checkpoint.parse), (NoteError,), (Note.parse(NOTE).text.encode(),)),
    "proof": Target(text(_proof), (NoteError, ProofError), (PROOF.encode(),)),
    "cosignature": Target(text(_cosignature), (NoteError,), (COSIGNATURE.encode(),)),
    "keys": Target(
        text(_keys),
        (),
        (str(SIGNER.verifier).encode(), SIGNER.to_text().encode(), str(WITNESS).encode()),
    ),
    "tile": Target(text(_tile), (), (b"x001/234", b"x999/x999/001.p/255\x000\x0063")),
    "import": Target(
        _import,
        (ImportRefusedError, BrokenFileError, HistoryError),
        (LINE, LINE + b"\n" + LINE, gzip.compress(LINE, mtime=0)),
    ),
    "restore": Target(_history_of_another, (HistoryError,), dumped(HISTORY)),
    "decompress": Target(
        _decompress,
        (BrokenFileError,),
        (
            gzip.compress(LINE * 3, mtime=0),
            zstandard.ZstdCompressor(write_checksum=True).compress(LINE),
        ),
    ),
    "webhook-url": Target(
        text(webhook_targets.parse),
        (TargetError,),
        (b"https://example.com:8443/a?b=c", b"http://[::1]/"),
    ),
    "retry-after": Target(
        text(_retry_after),
        (),
        (b"120", b"Wed, 21 Oct 2026 07:28:00 GMT", b"Wed, 21 Oct 2026 07:28:00 +0100"),
    ),
    "engine-error": Target(
        lambda data: message_of(data, "secret"),
        (),
        dumped({"error": {"message": "x"}}, {"detail": [{"loc": ["a"], "msg": "b"}]}),
    ),
}
