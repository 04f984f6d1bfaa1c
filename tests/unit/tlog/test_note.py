"""Notes, checkpoints and proofs: those of the specifications, and what is wrong with others."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.tlog import merkle, tiles
from jobs.tlog.checkpoint import Checkpoint, open_checkpoint
from jobs.tlog.merkle import ProofError
from jobs.tlog.note import Note, NoteError, Signer, Verifier
from jobs.tlog.proof import Proof

# The example of c2sp.org/signed-note.
VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = """This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""
# The example of golang.org/x/mod/sumdb/note.
SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SIGNER = Signer.generate("example.com/log")
CHECKPOINT = Checkpoint("example.com/log", 3, bytes(32))


def test_the_specifications_example_verifies() -> None:
    note = Note.parse(NOTE)
    assert note.verified([Verifier.parse(VKEY)]) == [Verifier.parse(VKEY)]
    assert note.text == "This is an example message.\n"
    assert str(Verifier.parse(VKEY)) == VKEY


def test_keys_are_those_of_go() -> None:
    signer = Signer.parse(SKEY)
    assert (str(signer.verifier), signer.to_text()) == (PETER, SKEY)
    note = Note.parse(signer.sign("If you think cryptography is the answer.\n"))
    assert note.verified([Verifier.parse(PETER)])


def test_a_key_shows_its_public_part_only() -> None:
    assert str(SIGNER.verifier) in repr(SIGNER)
    # The key itself, in Base64, may have a + too.
    assert SIGNER.to_text().split("+", 4)[4] not in repr(SIGNER)


def test_a_changed_note_is_refused() -> None:
    key = Verifier.parse(VKEY)
    with pytest.raises(NoteError, match=r"signature of example.com/foo is wrong"):
        Note.parse(NOTE.replace("an example", "no example")).verified([key])
    with pytest.raises(NoteError, match="none of the given keys"):
        Note.parse(NOTE).verified([SIGNER.verifier])


def test_unknown_signatures_are_ignored() -> None:
    other = Signer.generate("witness.example").sign(Note.parse(NOTE).text).split("\n\n")[1]
    assert Note.parse(NOTE + other).verified([Verifier.parse(VKEY)])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        NOTE[:-1],
        NOTE.replace("— ", "- "),
        NOTE.replace("Uw2Q", "U=2Q"),
        NOTE.replace("example.com/foo ", "example.com/foo+x "),
        "a\tb" + NOTE,
        NOTE + "\n",
        NOTE + NOTE.split("\n\n")[1] * 100,
        "x" * (1 << 20) + NOTE,
        "\ud800" + NOTE,
    ],
)
def test_what_is_no_note_is_refused(note: str) -> None:
    with pytest.raises(NoteError):
        Note.parse(note)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "name",
        VKEY.replace("530d903a", "530d903b"),
        VKEY.replace("+Aeky", "+Beky"),
        VKEY.replace("foo", "f o"),
        VKEY[:-4],
    ],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(NoteError):
        Verifier.parse(key)
    with pytest.raises(NoteError):
        Signer.parse(key)
    with pytest.raises(NoteError):
        Signer.parse("PRIVATE+KEY+" + key)


def test_a_key_of_another_kind_is_named_as_such() -> None:
    """A public key is no signing key, a private one no verifier key, and a witness's is neither."""
    witness = VKEY.replace("+Aeky", "+Beky")
    for key in (SKEY, witness):
        with pytest.raises(NoteError, match="a verifier key should be"):
            Verifier.parse(key)
    wrong = [Signer("f o", SIGNER.private).to_text(), f"{SKEY}AAAA", f"{SKEY[:-4]}****"]
    for key in (VKEY, SKEY.removeprefix("PRIVATE+KEY+"), SKEY.replace("+AY", "+BY"), *wrong):
        with pytest.raises(NoteError, match="a signing key should be"):
            Signer.parse(key)


@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]))))
def test_any_text_can_be_signed(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines) + "end\n"
    note = Note.parse(SIGNER.sign(text))
    assert note.text == text
    assert note.verified([SIGNER.verifier])


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    note = CHECKPOINT.sign(SIGNER)
    assert note.startswith(
        f"example.com/log\n3\n{base64.b64encode(bytes(32)).decode()}\n\n— example.com/log "
    )
    assert open_checkpoint(note, [SIGNER.verifier]) == CHECKPOINT
    extended = replace(CHECKPOINT, extensions=("more",))
    assert open_checkpoint(extended.sign(SIGNER), [SIGNER.verifier]) == extended


def test_a_key_signs_for_the_log_of_its_name_only() -> None:
    other = replace(CHECKPOINT, origin="example.com/other")
    with pytest.raises(NoteError, match=r"no key for the log 'example.com/other'"):
        open_checkpoint(other.sign(SIGNER), [SIGNER.verifier])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n",
        "a\n1\n",
        "a\n01\n" + CHECKPOINT.text.split("\n")[2] + "\n",
        "a\n-1\n" + CHECKPOINT.text.split("\n")[2] + "\n",
        "a\n1\nAAAA\n",
        CHECKPOINT.text + "\n",
        CHECKPOINT.text[:-1],
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


def proof_of(index: int, entries: list[bytes], extra: bytes | None = None) -> Proof:
    stored = tiles.append(0, [merkle.leaf_hash(entry) for entry in entries], lambda *_: b"")
    nodes = tiles.nodes(lambda *key: stored[key])
    size = len(entries)
    checkpoint = Checkpoint(SIGNER.name, size, merkle.root(size, nodes)).sign(SIGNER)
    return Proof(index, merkle.inclusion_proof(index, size, nodes), checkpoint, extra)


@given(entries=st.lists(st.binary(), min_size=1, max_size=40), data=st.data())
def test_a_proof_is_read_as_it_was_written(entries: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(entries) - 1))
    proof = proof_of(index, entries, data.draw(st.none() | st.binary()))
    assert Proof.parse(proof.text) == proof
    assert proof.verify(entries[index], [SIGNER.verifier]).size == len(entries)
    with pytest.raises(ProofError):
        proof.verify(entries[index] + b"!", [SIGNER.verifier])


def test_a_proof_has_the_lines_of_the_specification() -> None:
    lines = proof_of(1, [b"a", b"b", b"c"], b"extra data").text.split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra ZXh0cmEgZGF0YQ==", "index 1"]
    assert (len(lines[3]), len(lines[4]), lines[5:8]) == (44, 44, ["", "example.com/log", "3"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("extra Z", "extra !"),
        ("index 1", "index 01"),
        ("index 1", "number 1"),
        ("\n\nexample", "\nexample"),
        ("index 1\n", "index 1\nAAAA\n"),
    ],
)
def test_what_is_no_proof_is_refused(old: str, new: str) -> None:
    text = proof_of(1, [b"a", b"b", b"c"], b"extra data").text
    assert Proof.parse(text)
    with pytest.raises(NoteError):
        Proof.parse(text.replace(old, new, 1))
