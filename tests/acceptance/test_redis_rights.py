"""A user of Redis with no more rights than docs/deployment-databases.md gives it."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from cli.main import main
from jobs.database_url import checked
from tests import servers
from tests.acceptance.conftest import ENDED, Service
from tests.conftest import migrate, model_settings, new_database
from tests.servers import RedisServer, free_port
from web.rate_limits import RateLimits

ROOT = Path(__file__).parent.parent.parent
#: From docs/deployment-databases.md.
RIGHTS = "~helixq:* resetchannels -@all +@read +@write +@connection +@transaction +@scripting -@dangerous +info"
#: What clients of Redis may be refused without harm.
TOLD = ("client", "client|setinfo")


def test_the_documented_rights_are_the_ones_that_are_tested() -> None:
    assert f"ACL SETUSER queue on >PASSWORD {RIGHTS}" in (
        ROOT / "docs/deployment-databases.md"
    ).read_text(encoding="utf-8")


def test_the_documented_rights_are_enough(
    checkpoint: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    socket_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = socket_folder / "rights"
    folder.mkdir()
    redis_server = RedisServer(folder)
    database = new_database("sqlite", request, tmp_path)
    environ = {
        **model_settings(checkpoint),
        "HELIXQ_DATABASE_URL": database,
        "HELIXQ_REDIS_URL": f"unix://queue:secret@{folder}/redis.sock",
        "HELIXQ_DATA_DIR": str(folder),
        "HELIXQ_PORT": str(free_port()),
    }
    migrate(checked(database))
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command(*f"ACL SETUSER queue on >secret {RIGHTS}".split())
        worker = web = None
        try:
            worker, web = servers.worker(environ), servers.web(environ)
            service = Service(environ, redis_server, web, worker)
            worker.wait_for("ready: ")
            web.wait_for("listening at")
            job_id = service.submit("Why?", max_output_tokens=20)
            service.wait_for_text(job_id)
            assert service.wait(job_id)["status"] in ENDED
            with service.http() as http:
                assert http.delete(f"/v1/responses/{job_id}").status_code == 200
                assert http.get("/readyz").status_code == 200
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            limits = RateLimits(environ["HELIXQ_REDIS_URL"])
            assert [limits.hit("key", 1)[0] for _ in range(2)] == [True, False]
            limits.close()
            doctor = CliRunner().invoke(main, ["doctor", "--json"])
            assert "does not let this user" not in doctor.output
            worker.stop()
            web.stop()
            # redis-py tells Redis its version, and does without.
            assert [x for x in client.acl_log() if x["object"] not in TOLD] == []
        finally:
            for process in (worker, web):
                if process is not None:
                    process.stop()
            redis_server.stop()
