"""The transparency log over HTTP, as outsiders read it, and the commands that check it."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from cli.main import main
from jobs.database import Database
from jobs.models import Job
from jobs.tlog.checkpoint import open_checkpoint
from jobs.tlog.note import Note, Signer, Verifier
from jobs.tlog.proof import Proof
from jobs.use_cases import deletion, proving
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish
from tests.unit.tlog import rfc6962

Command = Callable[..., Result]


@pytest.fixture
def sealed(web: Client, database: Database) -> list[str]:
    """Three jobs in the log."""
    ids = [
        ask(web, input=f"Question {number}?", metadata={"team": "blue"})["id"]
        for number in range(3)
    ]
    for job_id in ids:
        finish(database, job_id)
    seal(database)
    return ids


def test_an_outsider_checks_a_job_with_http_and_the_rfc_alone(
    web: Client, database: Database, sealed: list[str]
) -> None:
    reply = web.get("/log/checkpoint")
    assert reply.content_type == "text/plain; charset=utf-8"
    assert reply.cache_control.max_age == 1
    origin, size, _ = Note.parse(reply.text).text.splitlines()
    assert size == "3"
    tile = web.get("/log/tile/0/000.p/3")
    assert tile.content_type == "application/octet-stream"
    assert (tile.cache_control.immutable, tile.cache_control.max_age) == (True, 31_536_000)
    leaves = [tile.data[i : i + 32] for i in range(0, 96, 32)]
    bundle, entries = web.get("/log/tile/entries/000.p/3").data, []
    while bundle:
        length = int.from_bytes(bundle[:2])
        entries.append(bundle[2 : 2 + length])
        bundle = bundle[2 + length :]
    assert leaves == [hashlib.sha256(b"\0" + entry).digest() for entry in entries]
    checkpoint = open_checkpoint(reply.text, proving.list_keys(database))
    assert (checkpoint.origin, checkpoint.root) == (origin, rfc6962.mth(leaves))
    for number, job_id in enumerate(sealed):
        told = web.get(f"/api/jobs/{job_id}").json
        assert told["digest"] == json.loads(entries[number])["digest"]
        assert told["log"]["index"] == number


def test_a_proof_is_a_file(web: Client, database: Database, sealed: list[str]) -> None:
    reply = web.get(f"/api/jobs/{sealed[1]}/proof")
    assert reply.content_type == "text/plain; charset=utf-8"
    assert f"{sealed[1]}.tlog-proof" in reply.headers["Content-Disposition"]
    proof = Proof.parse(reply.text)
    assert proof.extra is not None
    assert proof.verify(proof.extra, proving.list_keys(database)).size == 3


def test_a_job_without_an_entry_has_no_proof_yet(web: Client) -> None:
    job_id = ask(web)["id"]
    reply = web.get(f"/api/jobs/{job_id}/proof")
    assert (reply.status_code, reply.json["code"]) == (409, "not_sealed")
    assert reply.json["detail"].endswith("It gets its entry once the job has ended.")
    assert web.get("/api/jobs/resp_none/proof").status_code == 404
    history = web.get(f"/api/jobs/{job_id}").json
    assert (history["digest"], history["log"]) == (None, None)


def test_what_the_log_does_not_have_is_not_found(web: Client, database: Database) -> None:
    assert web.get("/log/checkpoint").status_code == 404
    finish(database, ask(web)["id"])
    seal(database)
    assert web.get("/log/tile/0/000.p/1").status_code == 200
    for path in (
        "0/000",
        "0/000.p/2",
        "0/001",
        "1/000.p/1",
        "64/000",
        "entries/000",
        "x/000",
        "0/0",
        "0/a/b",
    ):
        reply = web.get(f"/log/tile/{path}")
        assert (reply.status_code, reply.mimetype) == (404, "text/plain"), path
    assert web.get("/log/tile/0/" + "x999/" * 20 + "999").status_code == 404
    assert web.post("/log/checkpoint").status_code == 405


def test_bundles_are_compressed_for_who_takes_it(web: Client, sealed: list[str]) -> None:
    assert len(sealed) == 3
    plain = web.get("/log/tile/entries/000.p/3")
    packed = web.get("/log/tile/entries/000.p/3", headers={"Accept-Encoding": "gzip"})
    assert packed.content_encoding == "gzip"
    assert gzip.decompress(packed.data) == plain.data
    assert "Accept-Encoding" in packed.headers["Vary"]


# The commands.


def test_a_history_is_verified_without_us(sealed: list[str], jobs: Command, tmp_path: Path) -> None:
    proof, history = tmp_path / "job.tlog-proof", tmp_path / "history.json"
    assert jobs("proof", sealed[1], "-o", proof).exit_code == 0
    assert jobs("proof", sealed[1]).output == proof.read_text()
    history.write_text(jobs("show", sealed[1], "--json").output)
    key = jobs("log-key").output.strip()
    done = jobs("verify", proof, "--key", key, "--history", history)
    assert (done.exit_code, done.output.split(",")[0]) == (
        0,
        f"Verified: the history of {sealed[1]} is entry 1 of {Verifier.parse(key).name}",
    )
    as_json = json.loads(jobs("verify", proof, "--key", key, "--json").output)
    assert (as_json["verified"], as_json["index"], as_json["size"]) == (True, 1, 3)

    def refused(*arguments: Any) -> str:
        done = jobs("verify", *arguments)
        assert done.exit_code == 1
        assert done.output.startswith("NOT VERIFIED: ")
        return done.output

    changed = tmp_path / "changed.json"
    changed.write_text(history.read_text().replace("A text.", "A lie.", 1))
    assert f"history of {sealed[1]} is not the one" in refused(
        proof, "--key", key, "--history", changed
    )
    changed.write_text(history.read_text().replace("{", '{"question": "A lie.",', 1))
    assert "an object has the name 'question' twice" in refused(
        proof, "--key", key, "--history", changed
    )
    changed.write_text("[]")
    assert "not the complete history" in refused(proof, "--key", key, "--history", changed)
    other = Signer.generate(Verifier.parse(key).name)
    assert "none of the given keys" in refused(proof, "--key", other.verifier)
    wrong = tmp_path / "wrong.tlog-proof"
    wrong.write_text(proof.read_text().replace("index 1", "index 0"))
    assert "does not lead to the root" in refused(wrong, "--key", key)
    assert "give an export as JSON Lines" in refused(history, "--key", key)
    assert json.loads(jobs("verify", wrong, "--key", key, "--json").output)["verified"] is False


def test_reviews_and_erasures_have_proofs_of_their_own(
    web: Client, database: Database, sealed: list[str], jobs: Command, tmp_path: Path
) -> None:
    job_id = sealed[1]
    path = f"/api/jobs/{job_id}/proof"
    for note in ("First.", "Second."):
        assert web.post(f"/api/jobs/{job_id}/reviews", json={"note": note}).status_code == 201
    reply = web.get(f"{path}?review=1")
    assert (reply.status_code, reply.json["code"]) == (409, "not_sealed")
    assert f"The review 1 of {job_id} is not in the log yet" in reply.json["detail"]
    assert web.post(f"/api/jobs/{job_id}/erase", json={"texts": ["/metadata"]}).status_code == 200
    seal(database)
    for query in ("review=2", "erasure=1", "review=2&origin=true"):
        reply = web.get(f"{path}?{query}")
        assert (reply.status_code, reply.json["code"]) == (404, "not_found")
    for query in (
        "review=-1",
        "review=x",
        "review=0&erasure=0",
        "erasure=0&origin=maybe",
        "reviev=0",
    ):
        assert web.get(f"{path}?{query}").status_code == 400, query
    key = jobs("log-key").output.strip()
    history, proof = tmp_path / "history.json", tmp_path / "a.tlog-proof"
    history.write_text(jobs("show", job_id, "--json").output)
    told = json.loads(history.read_text())
    for option, number, records in (
        ("--review", 0, "reviews"),
        ("--review", 1, "reviews"),
        ("--erasure", 0, "erasures"),
    ):
        assert jobs("proof", job_id, option, number, "-o", proof).exit_code == 0
        part = option.removeprefix("--")
        reply = web.get(f"{path}?{part}={number}")
        assert f"{job_id}-{part}-{number}.tlog-proof" in reply.headers["Content-Disposition"]
        assert reply.text == proof.read_text()
        parsed = Proof.parse(reply.text)
        assert parsed.index == told[records][number]["log"]["index"]
        done = jobs("verify", proof, "--key", key, "--history", history)
        assert done.exit_code == 0
        assert done.output.startswith(f"Verified: the {part} {number} of {job_id} is entry ")
    changed = tmp_path / "changed.json"
    changed.write_text(history.read_text().replace('"erasures": [', '"erasures": [], "x": ['))
    assert jobs("verify", proof, "--key", key, "--history", changed).exit_code == 1
    jobs("proof", job_id, "--review", 1, "-o", proof)
    changed.write_text(history.read_text().replace("Second.", "Another."))
    done = jobs("verify", proof, "--key", key, "--history", changed)
    assert (done.exit_code, "is not the one that was recorded" in done.output) == (1, True)
    assert jobs("proof", job_id, "--review", 0, "--erasure", 0).exit_code == 2
    refused = jobs("proof", job_id, "--review", 0, "--origin")
    assert (refused.exit_code, "has no proof of another log" in refused.output) == (1, True)


def test_the_database_is_verified(
    web: Client, database: Database, sealed: list[str], jobs: Command, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(web.get("/log/checkpoint").text)
    key = jobs("log-key").output.strip()
    deletion.delete(database, None, sealed[0])
    finish(database, ask(web)["id"])
    done = jobs("verify", "--key", key, "--checkpoint", checkpoint)
    assert done.exit_code == 0
    assert done.output.startswith("Verified: 2 jobs are as they were recorded in ")
    assert done.output.endswith(
        ", 1 deleted; 1 checkpoint on 3 entries agrees. 1 ended job is not in it yet.\n"
    )
    assert json.loads(jobs("verify", "--json").output)["jobs"] == 2
    with database.write() as connection:
        connection.execute(sa.update(Job).where(Job.id == sealed[2]).values(question="Other?"))
    done = jobs("verify")
    assert (done.exit_code, done.output) == (
        1,
        f"NOT VERIFIED: job {sealed[2]} (entry 2) was changed.\n",
    )


def test_an_empty_log_is_verified(jobs: Command) -> None:
    assert jobs("verify").output == "The log is empty.\n"
    done = jobs("log-key")
    assert (done.exit_code, done.output) == (
        1,
        "Error: the log has no key yet: it gets one when the first job has ended.\n",
    )


def test_keys_are_made_and_rotated(sealed: list[str], jobs: Command) -> None:
    assert len(sealed) == 3
    first = jobs("log-key").output.strip()
    second, again = jobs("log-key", "--rotate").output.splitlines()
    assert again == first
    both = jobs("log-key").output
    # As in `VKEY=$(helixq jobs log-key)`, which the documentation uses.
    assert jobs("verify", "--key", both.rstrip("\n")).exit_code == 0
    for nothing in ("", " "):
        assert jobs("verify", "--key", nothing).exit_code == 2
    assert Verifier.parse(second).name == Verifier.parse(first).name
    made = CliRunner().invoke(main, ["jobs", "log-key", "--new", "example.com/log"])
    assert Signer.parse(made.stdout.strip()).name == "example.com/log"
    assert str(Signer.parse(made.stdout.strip()).verifier) in made.stderr
    listed = json.loads(jobs("log-key", "--json").output)
    assert listed == [{"public_key": second}, {"public_key": first}]
    pair = json.loads(jobs("log-key", "--new", "example.com/log", "--json").output)
    assert str(Signer.parse(pair["private_key"]).verifier) == pair["public_key"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--key", "nonsense"),
        ("verify", "--history", __file__),
        ("verify", __file__),
        ("log-key", "--new", "a b"),
        ("log-key", "--new", "a", "--rotate"),
    ],
)
def test_wrong_arguments_are_refused(jobs: Command, arguments: tuple[str, ...]) -> None:
    assert jobs(*arguments).exit_code == 2
