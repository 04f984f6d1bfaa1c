"""A verifier that others wrote, aics-tlog, accepts what /log and proofs say, and refuses what was changed.

It knows the public key and what HTTP replies, and nothing of HelixQ. It reads checkpoints, tiles and entries by
itself. Of a proof it checks the contents; the lines of the file (c2sp.org/tlog-proof) are split here.
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple

import aics_tlog
import pytest
import sqlalchemy as sa
from aics_tlog import cli

from jobs.database import Database
from jobs.models import LogEntry
from jobs.statements import log
from jobs.use_cases import proving, sealing
from jobs.use_cases.log_signing import Signing
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish

#: Entries: a full tile, and a part of the next one.
SIZE = 300
#: The number of hashes of a proof in a tree of that size.
PATH = 9


def checked(note: bytes, key: Any) -> Any:
    """Return what the verifier says of a checkpoint."""
    return aics_tlog.verify_checkpoint(aics_tlog.parse_note(note), key)


class File(NamedTuple):
    """A tlog-proof file, split into its parts."""

    entry: bytes
    number: int
    hashes: list[bytes]
    note: bytes

    @classmethod
    def split(cls, file: bytes) -> File:
        head, note = file.split(b"\n\n", 1)
        first, extra, index, *hashes = head.decode().split("\n")
        assert first == "c2sp.org/tlog-proof@v1"
        return cls(
            base64.b64decode(extra.removeprefix("extra "), validate=True),
            int(index.removeprefix("index ")),
            [base64.b64decode(line, validate=True) for line in hashes],
            note,
        )

    def accepted(self, key: Any) -> bool:
        """Return whether the verifier accepts the proof."""
        result = checked(self.note, key)
        return bool(result.ok) and aics_tlog.verify_leaf_inclusion(
            self.entry, self.number, result.size, self.hashes, result.root
        )


@pytest.fixture
def job_id(web: Client, database: Database) -> str:
    """A job in a log that then grew to `SIZE` entries. The others are of deletions, which are the cheapest."""
    job_id = str(ask(web)["id"])
    finish(database, job_id)
    seal(database)
    with database.write() as connection:
        log.note_deletions(connection, ((f"resp_{n}", n) for n in range(1, SIZE)))
    assert sealing.append(database, [], Signing(), limit=SIZE) == SIZE - 1
    return job_id


@pytest.fixture
def key(job_id: str, database: Database) -> Any:
    """The public key of the log, read by the verifier."""
    assert job_id
    [key] = proving.list_keys(database)
    return aics_tlog.parse_vkey(str(key))


def flipped(data: bytes, at: int) -> bytes:
    """Return data with another bit in one byte."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_proofs(web: Client, job_id: str, key: Any) -> None:
    file = web.get(f"/api/jobs/{job_id}/proof").data
    proof = File.split(file)
    assert proof.accepted(key)
    assert len(proof.hashes) == PATH
    assert json.loads(proof.entry)["digest"] == web.get(f"/api/jobs/{job_id}").json["digest"]
    changed = [
        proof._replace(entry=flipped(proof.entry, 10)),
        proof._replace(number=1),
        *(
            proof._replace(hashes=[*proof.hashes[:n], flipped(h, 5), *proof.hashes[n + 1 :]])
            for n, h in enumerate(proof.hashes)
        ),
        proof._replace(note=proof.note.replace(b"\n300\n", b"\n301\n")),
    ]
    assert not any(one.accepted(key) for one in changed)
    other = aics_tlog.vkey_from_ed25519(key.name, b"\x07" * 32)
    assert not proof.accepted(other)


def test_checkpoints_tiles_and_entries(
    address: str,
    web: Client,
    database: Database,
    job_id: str,
    key: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    command = ["verify-inclusion", "--tiles", f"{address}/log", "--index", "17"]
    vkey = aics_tlog.format_vkey(key)
    assert cli.main([*command, "--log-key", vkey]) == 0
    early = aics_tlog.parse_note(web.get("/log/checkpoint").data)
    reader = aics_tlog.HttpTileReader(f"{address}/log", proxies={})
    head = checked(reader.read_checkpoint(), key)
    assert (head.ok, head.size, head.origin) == (True, SIZE, key.name)
    audited = aics_tlog.audit_tiles(reader, head.size, head.root)
    assert (audited.tiles, audited.bundles) == (3, 2)
    verified = aics_tlog.VerifiedTileReader(reader, head.size, head.root)
    assert verified.entry(0) == File.split(web.get(f"/api/jobs/{job_id}/proof").data).entry
    # The log grows, and the verifier finds the new tree consistent with the one before.
    finish(database, ask(web)["id"])
    seal(database)
    grown = checked(reader.read_checkpoint(), key)
    assert grown.size == SIZE + 1
    proof = aics_tlog.consistency_proof_from_tiles(reader, SIZE, grown.size)
    assert aics_tlog.verify_consistency(SIZE, grown.size, head.root, grown.root, proof)
    with pytest.raises(aics_tlog.TileVerificationError):
        aics_tlog.audit_tiles(reader, SIZE, flipped(head.root, 3))
    wrong = early.text.replace("\n300\n", "\n299\n")
    assert not aics_tlog.verify_checkpoint(aics_tlog.Note(wrong, early.signatures), key).ok


def test_a_changed_entry_and_a_changed_tile_are_refused(
    address: str, database: Database, key: Any
) -> None:
    reader = aics_tlog.HttpTileReader(f"{address}/log", proxies={})
    head = checked(reader.read_checkpoint(), key)
    with database.write() as connection:
        [row] = log.get_entries(connection, [7])
        forged = row.entry.replace(b'"entry":7', b'"entry":8')
        assert forged != row.entry
        connection.execute(
            sa.update(LogEntry).where(LogEntry.entry_index == 7).values(entry=forged)
        )
    with pytest.raises(aics_tlog.TileVerificationError):
        aics_tlog.audit_tiles(reader, head.size, head.root)
    with database.write() as connection:
        log.set_tile(connection, 0, 1, flipped(log.get_tile(connection, 0, 1), 40))
    with pytest.raises(aics_tlog.TileVerificationError):
        aics_tlog.audit_tiles(reader, head.size, head.root, entries=False)
