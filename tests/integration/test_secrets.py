"""Nothing that is secret gets out where it does not belong: into logs, errors, metrics or outputs.

Each secret and each private text is a word that is found nowhere else.
"""

from __future__ import annotations

import io
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery.exceptions import Ignore
from click.testing import CliRunner

from cli.main import main
from jobs import logs, settings
from jobs.database import Database
from jobs.models import Scope
from jobs.progress import Progress
from jobs.tlog.note import Signer
from jobs.use_cases import keys, workers
from jobs.use_cases.workers import Runtime
from tests import servers
from tests.conftest import WORKER, model_settings
from tests.integration.web.client import serving
from tests.servers import RedisServer, free_port
from worker.engine.interface import Completion, FinishReason, Generation, Request
from worker.progress_publisher import ProgressPublisher
from worker.stage_runner import StageRunner


@pytest.fixture
def environ(checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """Settings with secrets wherever one can be. Nothing listens where they lead."""
    port = free_port()
    return {
        **model_settings(checkpoint),
        "HELIXQ_DATABASE_URL": f"postgresql://helixq:{word()}@127.0.0.1:{port}/x?connect_timeout=2",
        "HELIXQ_REDIS_URL": f"redis://:{word()}@127.0.0.1:{port}/0",
        "HELIXQ_LOG_KEY": Signer.generate("example.com/log").to_text(),
        "HELIXQ_API_KEY": f"hq_{word()}",
        "HELIXQ_OTLP_ENDPOINT": f"http://user:{word()}@127.0.0.1:{port}/v1/traces",
        "HELIXQ_DATA_DIR": str(tmp_path),
        "HELIXQ_PORT": str(free_port()),
        "HELIXQ_HOST": "127.0.0.1",
    }


def word() -> str:
    return f"Secret{secrets.token_hex(8)}"


def words(environ: dict[str, str]) -> list[str]:
    """Return the secrets of settings."""
    found = [part for value in environ.values() for part in value.replace("@", ":").split(":")]
    found = [part.removeprefix("hq_") for part in found if "Secret" in part]
    # The last part of a signer key is its private seed, in Base64, which may have plus signs too.
    return [*found, environ["HELIXQ_LOG_KEY"].split("+", 4)[4]]


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged, at the levels and in the form of the programs."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    logs.configure("text", "test")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    buffer = io.StringIO()
    handler.setStream(buffer)
    yield buffer
    root.handlers[:] = handlers
    root.setLevel(level)


def test_settings_do_not_show_their_secrets(environ: dict[str, str]) -> None:
    given = settings.load(environ)
    assert len(words(environ)) == 5
    for shown in (repr(given), str(given)):
        assert "port=" in shown
        assert not any(secret in shown for secret in words(environ))
    for name in environ:
        # Whatever is wrong, the value is not repeated.
        for wrong in (
            f"{word()} x:y@[",
            f"redis://:{word()}@[/0",
            f"postgresql://a:{word()}@h:x/d",
        ):
            with pytest.raises(settings.SettingsError) as caught:
                settings.load(
                    {**environ, name: wrong, "HELIXQ_ENGINE": "reference", "HELIXQ_X": ""}
                )
            assert "Secret" not in str(caught.value)


def test_commands_that_fail_name_no_secret(environ: dict[str, str], written: io.StringIO) -> None:
    for arguments in (
        ["doctor"],
        ["doctor", "--json"],
        ["status"],
        ["ask", "Why?"],
        ["jobs", "list"],
        ["keys", "list"],
        ["migrate"],
        ["jobs", "verify"],
        ["webhooks", "list"],
    ):
        result = CliRunner().invoke(main, arguments, env=environ)
        assert result.exit_code != 0, arguments
        said = result.output + str(result.exception) + written.getvalue()
        assert len(said) > 20
        for secret in words(environ):
            assert secret not in said, arguments


def test_processes_whose_servers_are_away_log_no_secret(environ: dict[str, str]) -> None:
    processes = [
        servers.forked(program, environ=environ) for program in ("worker", "web", "maintain")
    ]
    try:
        processes[0].wait_for("waiting for the database")
        processes[1].wait_for("database")
        processes[2].wait_for("database")
    finally:
        for process in processes:
            process.stop()
    for process in processes:
        assert len(process.output) > 20
        for secret in words(environ):
            assert secret not in process.output


def test_replies_and_logs_of_a_web_have_no_secret(
    database_url: str, redis_server: RedisServer, written: io.StringIO
) -> None:
    log_key = Signer.generate("example.com/log").to_text()
    with serving(
        database_url,
        redis_server.url,
        AUTH="required",
        LOG_KEY=log_key,
        WEBHOOK_ALLOWED_NETWORKS="127.0.0.0/8",
    ) as web:
        app = web.application
        app.config["PROPAGATE_EXCEPTIONS"] = False
        database = app.extensions["helixq"].database
        _, secret = keys.create(database, "admin", [Scope.ADMIN])
        headers = {"Authorization": f"Bearer {secret}"}
        made = web.post(
            "/v1/webhook_endpoints",
            json={"url": "http://127.0.0.1:9999/", "name": "a", "event_types": ["response.failed"]},
            headers=headers,
        ).json
        private = [secret[3:], log_key.split("+", 4)[4], made["signing_secret"][6:]]
        login = web.post("/login", data={"key": secret})
        private.append(login.headers["Set-Cookie"].split(";")[0].partition("=")[2])

        def fail(**_: Any) -> None:
            raise RuntimeError(f"{app.extensions['helixq'].settings!r} {database.engine!r}")

        app.view_functions["api.get_statistics"] = fail
        said = ""
        for method, path in (
            *(("GET", p) for p in ("/metrics", "/api/system", "/system", "/api/stats", "/readyz")),
            *(("GET", p) for p in ("/v1/webhook_endpoints", "/", "/jobs", "/openapi.json")),
            ("POST", f"/v1/webhook_endpoints/{made['id']}/test"),
            ("GET", "/v1/nothing"),
        ):
            body = {"json": {"event_type": "response.failed"}} if method == "POST" else {}
            reply = web.open(path, method=method, headers=headers, **body)
            said += reply.text + str(reply.headers)
        with database.engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE api_keys RENAME TO gone"))
        for path in ("/v1/models", "/jobs"):
            said += web.get(path, headers={"Authorization": f"Bearer {secret}x"}).text
        logged = written.getvalue()
        assert "request failed" in logged
        assert "RuntimeError" not in said
        for each in private:
            assert each not in said + logged


class FailingEngine:
    """An engine that returns a word, and breaks at prompts with another."""

    name = "failing"
    max_num_seqs = 1
    max_model_len = 4096

    def submit(self, request: Request) -> Generation:
        if "PrivateFailing" in request.prompt:
            raise RuntimeError("it broke")
        generation = Generation(request)
        generation.finish(
            Completion(
                text="PrivateAnswer",
                deltas=["PrivateAnswer"],
                prompt_tokens=1,
                output_tokens=1,
                finish_reason=FinishReason.STOP,
                max_output_tokens=1,
                first_token_at=time.monotonic(),
            )
        )
        return generation

    def close(self) -> None:
        pass


def test_what_people_ask_is_not_logged(
    checkpoint: Path,
    database_url: str,
    redis_server: RedisServer,
    progress: Progress,
    written: io.StringIO,
) -> None:
    """Neither when it is answered nor when anything fails."""
    tokenizer = (checkpoint / "base" / "tokenizer.json").read_text()
    database = Database(database_url)
    workers.register(database, WORKER, "localhost", 1, Runtime({"engine": "none"}, 4096, tokenizer))
    with serving(database_url, redis_server.url, migrate=False) as web:
        web.application.config["PROPAGATE_EXCEPTIONS"] = False

        def ask(kind: str) -> Any:
            return web.post(
                "/v1/responses",
                json={
                    "input": f"Private{kind}Question",
                    "instructions": f"Private{kind}Instructions",
                    "metadata": {"a": f"Private{kind}Metadata"},
                    "background": True,
                },
                headers={"Idempotency-Key": f"Private{kind}Key"},
            )

        publisher = ProgressPublisher(progress)
        runner = StageRunner(database, FailingEngine(), publisher, WORKER, job_timeout=60)
        answered, failing = ask("Good").json["id"], ask("Failing").json["id"]
        for stage_index in range(3):
            runner.run(answered, stage_index)
        with pytest.raises(Ignore):
            runner.run(failing, 0)
        publisher.stop()
        web.get("/api/jobs", query_string={"q": '"PrivateQuery'})
        web.get("/v1/responses/PrivatePath")
        web.post("/v1/responses", data=b'{"input": "PrivateBroken', content_type="application/json")
        # The database refuses a row, and says which.
        refuse_jobs(database)
        refused = ask("Refused")
    database.close()
    assert refused.status_code == 500
    assert "Private" not in refused.text
    logged = written.getvalue()
    for line in (f"{answered}: regenerator", f"{failing}: failed", "request failed"):
        assert line in logged
    assert "Refused" in logged, "the reason is"
    assert "Private" not in logged


def refuse_jobs(database: Database) -> None:
    with database.engine.begin() as connection:
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql(
                "CREATE TRIGGER refuse BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'Refused'); END"
            )
        else:
            connection.exec_driver_sql(
                'ALTER TABLE jobs ADD CONSTRAINT "Refused" CHECK (priority < 0) NOT VALID'
            )
