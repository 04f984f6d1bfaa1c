"""`helixq jobs export`, `import` and `verify FILE`, against a server that listens and another database."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cli.main import main
from cli.statuses import ExitStatus
from jobs.database import Database
from jobs.formats.compression import decompressed
from jobs.use_cases import indexing, proving
from tests.conftest import give_schema
from tests.integration.sealed import seal
from tests.integration.web.client import Client, ask, finish, serving
from tests.receiver import Receiver, status
from tests.servers import RedisServer

Command = Callable[..., Result]


@pytest.fixture
def ended(web: Client, database: Database) -> list[str]:
    """Two jobs in the log."""
    ids = [ask(web, input=question)["id"] for question in ("Why?", "How\0\u2028?")]
    for job_id in ids:
        finish(database, job_id)
    seal(database)
    return ids


@pytest.fixture
def key(ended: list[str], database: Database) -> str:
    """The public key of the log."""
    assert ended
    return str(proving.list_keys(database)[0])


@pytest.fixture
def there(tmp_path: Path) -> str:
    """The URL of an empty database."""
    url = f"sqlite:///{tmp_path / 'there.sqlite3'}"
    database = Database(url)
    give_schema(database.engine)
    database.close()
    return url


@pytest.fixture
def run(there: str) -> Command:
    """Run `helixq jobs` with the other database."""
    env = {"HELIXQ_DATABASE_URL": there}
    return lambda *arguments, **options: CliRunner().invoke(
        main, ["jobs", *map(str, arguments)], env=env, **options
    )


def test_an_export_takes_the_place_of_a_file_and_of_nothing_else(
    jobs: Command, ended: list[str], tmp_path: Path
) -> None:
    """A pipe, a device or a link stays what it is."""
    pipe, link, linked = (tmp_path / name for name in ("pipe", "link", "linked.jsonl"))
    os.mkfifo(pipe)
    link.symlink_to(linked)
    # Opening a pipe for writing waits for a reader.
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert jobs("export", "-o", str(pipe)).exit_code == 0
        assert len(os.read(reader, 1 << 16).splitlines()) == len(ended)
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert jobs("export", "-o", str(link)).exit_code == 0
    assert link.is_symlink()
    assert len(linked.read_bytes().splitlines()) == len(ended)
    assert sorted(tmp_path.glob("*.part")) == []


def test_histories_go_from_one_server_to_another(
    web: Client,
    ended: list[str],
    key: str,
    jobs: Command,
    run: Command,
    there: str,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    for name in ("jobs.jsonl", "jobs.jsonl.gz", "jobs.jsonl.zst"):
        file = tmp_path / name
        assert jobs("export", "-o", str(file)).output == ""
        assert [path.name for path in tmp_path.glob("jobs.jsonl*")] == [name]
        verified = run("verify", file, "--key", key)
        origin = key.partition("+")[0]
        assert verified.output == f"Verified: 2 histories are as they were recorded in {origin}.\n"
        imported = run("import", file, "--key", key)
        present = name != "jobs.jsonl"
        assert imported.output == (
            f"Imported 0 jobs of {origin}. 2 jobs were there already.\n"
            if present
            else f"Imported 2 jobs of {origin}.\n"
        )
        file.unlink()
    with serving(there, redis_server.url, migrate=False) as other:
        for job_id in ended:
            before, after = (client.get(f"/api/jobs/{job_id}").json for client in (web, other))
            assert after.pop("origin") == {"log": origin, "index": before["log"]["index"]}
            for told in (before, after):
                told.pop("origin", None)
                told.pop("log"), told.pop("digest")
            assert before == after
            proof = web.get(f"/api/jobs/{job_id}/proof").text
            assert other.get(f"/api/jobs/{job_id}/proof?origin=true").text == proof
            assert other.get(f"/api/jobs/{job_id}/proof").status_code == 409
        assert [job["id"] for job in other.get("/api/jobs?order=asc").json["data"]] == ended


def test_a_job_that_was_not_imported_has_one_proof(
    web: Client, ended: list[str], jobs: Command
) -> None:
    reply = web.get(f"/api/jobs/{ended[0]}/proof?origin=true")
    assert (reply.status_code, reply.json["code"]) == (404, "not_imported")
    refused = jobs("proof", ended[0], "--origin")
    assert (refused.exit_code, "was not imported with" in refused.output) == (1, True)
    assert web.get(f"/api/jobs/{ended[0]}/proof?origin=maybe").status_code == 400


def test_the_name_of_the_file_says_what_it_is(
    web: Client, ended: list[str], jobs: Command, tmp_path: Path
) -> None:
    assert ended
    file = tmp_path / "rows.parquet"
    assert jobs("export", "-o", str(file), "--shape", "sft").exit_code == 0
    assert pq.read_table(file).num_rows == 6
    file = tmp_path / "rows.csv.gz"
    arguments = ("--shape", "sft", "--role", "critic")
    assert jobs("export", "-o", str(file), *arguments).exit_code == 0
    plain = b"".join(decompressed(io.BytesIO(file.read_bytes())))
    assert plain == web.get("/api/jobs/export?format=csv&shape=sft&role=critic").data
    file = tmp_path / "ROWS.CSV"
    assert jobs("export", "-o", str(file), *arguments).exit_code == 0
    assert file.read_bytes() == plain
    for name in ("rows.xlsx", "rows.json", "rows.csv.zip"):
        refused = jobs("export", "-o", str(tmp_path / name))
        assert refused.exit_code == 2, name
        assert "Spreadsheets open .csv." in " ".join(refused.output.split())
        assert not (tmp_path / name).exists()
    for name, named in (("rows.txt", ("--format", "jsonl")), ("rows", ()), ("rows.2026", ())):
        assert jobs("export", "-o", str(tmp_path / name), *named).exit_code == 0
        assert (tmp_path / name).read_bytes() == web.get("/api/jobs/export").data
    printed = jobs("export", "--status", "completed", "--until", "2100-01-01")
    assert printed.stdout_bytes == web.get("/api/jobs/export").data
    assert jobs("export", "--owner", "somebody").stdout_bytes == b""


def test_an_export_that_fails_leaves_the_file_as_it_was(
    ended: list[str], jobs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended
    file = tmp_path / "jobs.jsonl"
    file.write_text("before")
    refused = jobs("export", "-o", str(file), "--role", "critic")
    assert refused.exit_code == 1
    assert "`role` needs the shape `sft`" in refused.output

    def broken(*_: Any) -> Any:
        # Not a ConnectionError: after one, the server of these tests would keep the connection open.
        raise RuntimeError

    monkeypatch.setattr("web.api.exports.rows", broken)
    broken_off = jobs("export", "-o", str(file))
    assert broken_off.exit_code == ExitStatus.UNREACHABLE
    assert "Traceback" not in broken_off.output
    assert [path.name for path in tmp_path.glob("jobs.jsonl*")] == ["jobs.jsonl"]
    assert file.read_text() == "before"


def test_a_stream_is_imported(ended: list[str], jobs: Command, run: Command) -> None:
    data = jobs("export").stdout_bytes
    imported = run("import", "-", "--json", input=data)
    report = json.loads(imported.output)
    assert (report["imported"], report["present"], report["left_out"]) == (len(ended), 0, 0)
    assert "no --key was given" in run("import", "-", input=data).output


def test_what_is_wrong_with_a_file_is_said_in_one_sentence(
    ended: list[str], key: str, jobs: Command, run: Command, tmp_path: Path
) -> None:
    data = jobs("export").stdout_bytes
    packed = jobs("export", "--compression", "gzip").stdout_bytes
    second = json.loads(data.splitlines()[1])
    second["question"] = "Who?"
    changed = data.splitlines()[0] + b"\n" + json.dumps(second).encode()
    file = tmp_path / "file"
    for content, said in (
        (
            changed,
            f"line 2: the history of {ended[1]}: it was changed: its digest should be sha256:",
        ),
        (packed[:-9], "the file ends early: it is gzip, and its end is missing"),
        (b"Not a history", "line 1: it is not JSON"),
        (jobs("export", "--shape", "sft").stdout_bytes, "export with `--shape history`"),
    ):
        file.write_bytes(content)
        for command in ("import", "verify"):
            refused = run(command, file, "--key", key)
            assert refused.exit_code == 1, refused.output
            assert said in refused.output
            assert "Traceback" not in refused.output
    file.write_bytes(b"")  # Of a download that failed.
    refused = run("verify", file, "--key", key)
    assert (refused.exit_code, "holds no history" in refused.output) == (1, True)
    assert json.loads(run("import", "-", "--json", input=data).output)["present"] == 0
    file.write_bytes(data)
    assert "FILE needs --key" in run("verify", file).output
    assert (
        "--history needs the proof" in run("verify", file, "--key", key, "--history", file).output
    )
    assert "--key: a verifier key should be" in run("import", file, "--key", "x").output
    result = json.loads(run("verify", file, "--key", key, "--json").output)
    assert (result["verified"], result["histories"]) == (True, 2)
    assert run("import", tmp_path / "nothing").exit_code != 0


# OpenTelemetry.


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span's attributes as OTLP's JSON has them: each value in an object that names its type."""
    return {each["key"]: next(iter(each["value"].values())) for each in span["attributes"]}


def test_a_job_is_a_trace_and_its_stages_are_spans(
    web: Client, ended: list[str], jobs: Command, tmp_path: Path
) -> None:
    ask(web)  # It has not ended, and is no trace yet.
    file = tmp_path / "traces.jsonl"
    assert jobs("export", "--format", "otlp", "-o", str(file)).output == ""
    [line] = file.read_text().splitlines()
    [resource] = json.loads(line)["resourceSpans"]
    assert attributes(resource["resource"])["service.name"] == "helixq"
    spans = resource["scopeSpans"][0]["spans"]
    assert len(spans) == 14
    assert len({span["traceId"] for span in spans}) == len(ended)
    for job_id, (root, *stages) in zip(ended, (spans[:7], spans[7:]), strict=True):
        history = web.get(f"/api/jobs/{job_id}").json
        told = attributes(root)
        assert (root["name"], len(root["traceId"]), len(root["spanId"])) == (
            "invoke_agent helixnet",
            32,
            16,
        )
        assert (told["gen_ai.response.id"], told["helixq.digest"]) == (job_id, history["digest"])
        [asked] = json.loads(told["gen_ai.input.messages"])
        part = {"type": "text", "content": history["question"]}
        assert asked == {"role": "user", "parts": [part]}
        [answer] = json.loads(told["gen_ai.output.messages"])
        assert answer["parts"] == [{"type": "text", "content": history["attempts"][-1]["output"]}]
        assert "parentSpanId" not in root
        for process, span, attempt in zip(
            stages[::2], stages[1::2], history["attempts"], strict=True
        ):
            assert process["name"] == "process helixq"
            assert attributes(process)["messaging.message.conversation_id"] == job_id
            for below, above in ((process, root), (span, process)):
                assert below["parentSpanId"] == above["spanId"]
                assert below["traceId"] == root["traceId"]
            told = attributes(span)
            assert told["gen_ai.operation.name"] == "text_completion"
            assert told["helixq.role"] == attempt["role"]
            assert "error.type" not in told
            assert int(told["gen_ai.usage.output_tokens"]) == attempt["output_tokens"]
            assert int(told["gen_ai.request.seed"]) == attempt["seed"]
            reasons = {"values": [{"stringValue": attempt["finish_reason"]}]}
            assert told["gen_ai.response.finish_reasons"] == reasons
            for name, text in (("input", attempt["prompt"]), ("output", attempt["output"])):
                [message] = json.loads(told[f"gen_ai.{name}.messages"])
                assert message["parts"] == [{"type": "text", "content": text}]
            started = datetime.fromisoformat(attempt["started_at"]).timestamp()
            assert int(span["startTimeUnixNano"]) == pytest.approx(started * 1e9, abs=1000)
            assert span["startTimeUnixNano"] <= span["endTimeUnixNano"]


def test_ratings_are_evaluations_of_the_texts_and_erased_texts_are_left_out(
    web: Client, database: Database, ended: list[str], jobs: Command
) -> None:
    first, second = ended
    verdict = {"critique": 0, "regeneration": -1, "note": "No."}
    for body in (verdict, {"regeneration": 1}, {"note": "Unrated."}):
        assert web.post(f"/api/jobs/{first}/reviews", json=body).status_code == 201
    seal(database)
    assert web.post(f"/api/jobs/{second}/erase", json={"texts": "all"}).status_code == 200
    line = json.loads(jobs("export", "--format", "otlp").output)
    spans = line["resourceSpans"][0]["scopeSpans"][0]["spans"]
    found = [
        (attributes(span)["helixq.role"], attributes(event))
        for span in spans
        for event in span.get("events", [])
        if event["name"] == "gen_ai.evaluation.result"
    ]
    assert [
        (
            role,
            told["gen_ai.evaluation.name"],
            told["gen_ai.evaluation.score.value"],
            told.get("gen_ai.evaluation.explanation"),
        )
        for role, told in found
    ] == [
        ("critic", "critique", 0, "No."),
        ("regenerator", "regeneration", -1, "No."),
        ("regenerator", "regeneration", 1, None),
    ]
    assert {told["gen_ai.response.id"] for _, told in found} == {first}
    erased = [attributes(span) for span in spans[7:] if span["name"] != "process helixq"]
    assert not any(
        name.startswith(("gen_ai.input", "gen_ai.output.m")) for t in erased for name in t
    )
    assert int(erased[1]["gen_ai.usage.output_tokens"]) == 3


def test_an_export_with_erased_texts_is_verified_and_imported(
    web: Client,
    database: Database,
    ended: list[str],
    key: str,
    jobs: Command,
    run: Command,
    there: str,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    web.post(f"/api/jobs/{ended[0]}/reviews", json={"regeneration": -1, "note": "Mine."})
    seal(database)
    web.post(f"/api/jobs/{ended[0]}/erase", json={"texts": ["/question", "/reviews/0/note"]})
    file = tmp_path / "jobs.jsonl"
    jobs("export", "-o", str(file))
    verified = run("verify", file, "--key", key)
    assert verified.output == (
        f"Verified: 2 histories are as they were recorded in {key.partition('+')[0]}. "
        "Texts of 1 history were erased, and are not checked. 1 review or erasure had no proof.\n"
    )
    assert run("import", file, "--key", key).exit_code == 0
    assert run("verify").exit_code == 0
    path = f"/api/jobs/{ended[0]}/proof"
    review = web.get(f"{path}?review=0").text
    with serving(there, redis_server.url, migrate=False) as other:
        assert other.get(f"{path}?review=0&origin=true").text == review
        assert other.get(f"{path}?review=0").status_code == 409, "it has no entry here yet"
        # The erasure had none where it was made.
        assert other.get(f"{path}?erasure=0&origin=true").status_code == 404


def test_exports_have_the_filters_of_lists(
    web: Client, database: Database, ended: list[str], jobs: Command
) -> None:
    blue = ask(web, input="A fox?", metadata={"team": "blue"})["id"]
    finish(database, blue)
    indexing.put(database, indexing.prepare(database))
    for options, expected in (
        (["-q", "fox"], [blue]),
        (["--metadata", "team=blue", "--status", "completed", "--status", "failed"], [blue]),
        (["--max-duration", "1000", "--min-changed", "0"], [*ended, blue]),
        (["--rating", "1"], []),
    ):
        output = jobs("export", *options).output
        assert [json.loads(line)["id"] for line in output.splitlines()] == expected, options
    traces = json.loads(jobs("export", "--format", "otlp", "-q", "fox").output)
    spans = traces["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert len({span["traceId"] for span in spans}) == 1
    assert jobs("export", "--metadata", "team").exit_code == 2


def test_traces_are_sent_to_a_receiver(ended: list[str], jobs: Command, tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        command = ("export", "--format", "otlp", "--endpoint", receiver.url)
        assert jobs(*command).output == f"Sent {len(ended)} traces.\n"
        [request] = receiver.received
        assert request.headers["content-type"] == "application/x-protobuf"
        sent = ExportTraceServiceRequest.FromString(request.body)
        spans = sent.resource_spans[0].scope_spans[0].spans
        assert [len(span.span_id) for span in spans] == [8] * 14
        receiver.reply = status(503)
        refused = jobs(*command)
        assert refused.exit_code == 1
        assert "status 503, after 0 traces were sent" in refused.output
    refused = jobs("export", "--format", "otlp", "--endpoint", "http://127.0.0.1:1/v1/traces")
    assert (refused.exit_code, "does not respond" in refused.output) == (1, True)
    assert jobs("export", "--endpoint", "http://127.0.0.1:1").exit_code == 2
    assert jobs("export", "--format", "otlp", "--shape", "sft").exit_code == 2
    assert list(tmp_path.glob("*.part")) == []
