"""Cosignatures: those that a library of others makes, and what is wrong with others."""

from __future__ import annotations

import aics_tlog
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobs.tlog.checkpoint import Checkpoint
from jobs.tlog.cosignature import Cosigner, read_reply, request, require
from jobs.tlog.note import NoteError, Signer, encode

# The example of c2sp.org/tlog-witness.
EXAMPLE = """old 20852014
PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=
jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=

example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=
"""
LOG = Signer.generate("example.com/log")
NOTE = Checkpoint("example.com/log", 3, bytes(32)).sign(LOG)
PRIVATE = Ed25519PrivateKey.generate()
KEY = Cosigner("w.example", b"\4", PRIVATE.public_key().public_bytes_raw())


def line(time: int = 1_790_000_000, name: str = "w.example", size: int = 3) -> str:
    """Return a cosignature of the checkpoint, or of another one, as others make it."""
    _, signature = aics_tlog.sign_cosignature(
        PRIVATE, name, time, "example.com/log", size, bytes(32)
    )
    return f"— {name} {encode(signature.key_id + signature.signature)}\n"


def test_requests_are_the_specifications() -> None:
    head, note = EXAMPLE.split("\n\n", 1)
    hashes = [aics_tlog.note.b64_decode(text) for text in head.split("\n")[1:]]
    assert request(20852014, hashes, note).decode() == EXAMPLE
    assert request(0, [], note).decode() == f"old 0\n\n{note}"


def test_keys_are_those_of_others() -> None:
    vkey = aics_tlog.cosignature_vkey(KEY.name, KEY.public)
    assert str(KEY) == aics_tlog.format_vkey(vkey)
    assert Cosigner.parse(str(KEY)) == KEY
    with pytest.raises(NoteError, match="one for cosignatures"):
        Cosigner.parse(str(LOG.verifier))
    with pytest.raises(NoteError, match="does not belong"):
        Cosigner.parse(f"other{KEY}")
    for wrong in ("", "w.example", f"{KEY.label}+", f"{KEY}!"):
        with pytest.raises(NoteError, match="should be `NAME"):
            Cosigner.parse(wrong)


def test_cosignatures_of_others_verify() -> None:
    assert require(NOTE + line(), [KEY]) == {"w.example": 1_790_000_000}
    assert require(NOTE, []) == {}
    # Their order is free, and signatures of others are ignored.
    stranger = line(name="stranger.example")
    assert read_reply(NOTE, stranger + line(), KEY) == line()
    assert require(NOTE + stranger + line() + stranger, [KEY])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "no cosignature"),
        (line(size=4), "no cosignature"),
        (line(time=0), "no cosignature"),
        (line(time=2**63), "no cosignature"),
        (line(name="stranger.example"), "no cosignature"),
        (line()[:-8] + "\n", "malformed"),
        ("\n" + line(), "more than signatures"),
        ("nonsense", "not a signed note"),
    ],
)
def test_other_replies_are_refused(reply: str, message: str) -> None:
    with pytest.raises(NoteError, match=message):
        read_reply(NOTE, reply, KEY)


def test_missing_and_wrong_cosignatures_are_named() -> None:
    with pytest.raises(NoteError, match=r"the witness w.example has not cosigned"):
        require(NOTE, [KEY])
    with pytest.raises(NoteError, match=r"the cosignature of the witness w.example is wrong"):
        require(NOTE + line(size=4), [KEY])
