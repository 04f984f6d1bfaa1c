"""The web's server in this process, with short time limits."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from jobs import settings, web_address
from jobs.models import Job, Scope
from jobs.protocol.shapes import rows
from jobs.statements import job_lists
from jobs.use_cases import exporting, keys, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER, give_schema
from tests.integration.rows import submit
from tests.integration.web.client import finish
from tests.joining import join
from tests.polling import poll
from tests.servers import PATIENCE, RedisServer, free_port
from web import create_app, server_channel, server_requests, server_responses
from web.api import exports
from web.multipart import MAX_UPLOAD
from web.server import Server
from web.services import Services
from web.v1 import feeds, sse
from web.waiting import MAX_WAITING

#: The time limits of these tests in seconds, instead of a minute.
LIMIT = 0.5
#: Counts words, and knows none.
TOKENIZER = Tokenizer(WordLevel({"?": 0}, unk_token="?")).to_str()


@contextmanager
def serving(environ: dict[str, str], turn: float = LIMIT / 10) -> Iterator[tuple[str, int]]:
    """Run the server for the duration of the block, as `serve.serve` does.

    Args:
        environ: its settings.
        turn: the maximum number of seconds of one turn of its loop.
    """
    with running(environ, turn) as (place, *_):
        yield place


@contextmanager
def running(
    environ: dict[str, str], turn: float = LIMIT / 10
) -> Iterator[tuple[tuple[str, int], Services, Server]]:
    """Do the same, with its services and itself."""
    configured = settings.load({**environ, "HELIXQ_PORT": str(free_port())})
    app = create_app(configured)
    services: Services = app.extensions["helixq"]
    give_schema(services.database.engine)
    server = Server(app, web_address.bind(configured), max_connections=100)
    server.adj.cleanup_interval = LIMIT / 5
    stopping = threading.Event()
    services.waiter.stopping = stopping.is_set

    def loop() -> None:
        while not stopping.is_set():
            server.run_once(turn)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield (configured.host, configured.port), services, server
    finally:
        stopping.set()
        server.pull_trigger()
        join(thread)
        server.task_dispatcher.shutdown()
        for opened in list(server._map.values()):
            opened.close()
        services.keys.close()
        services.database.close()
        services.progress.close()


@pytest.fixture
def environ(redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    return {"HELIXQ_DATABASE_URL": url, "HELIXQ_REDIS_URL": redis_server.url}


def test_ipv6(environ: dict[str, str]) -> None:
    with serving({**environ, "HELIXQ_HOST": "::1"}) as place:
        connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        connection.request(
            "POST", "/v1/responses", b'{"input": "Why?", "background": true}', headers
        )
        reply = connection.getresponse()
        assert (reply.status, reply.read()[:12]) == (202, b'{"id":"resp_')
        assert reply.headers["Location"].startswith("/v1/responses/")
        connection.close()


def test_what_fails_before_the_first_piece_of_a_reply_is_an_error(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece is made when the application has returned, and so has what handles its errors."""

    def fail(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("", {}, Exception("the database is gone"))

    with running(environ) as (place, services, _):
        job = submit(services.database)
        monkeypatch.setattr(feeds.Feed, "after", fail)
        monkeypatch.setattr(job_lists, "list_between", fail)
        for path, form in (
            (f"/v1/responses/{job.id}?stream=true", "application/json"),
            ("/api/jobs/export", "application/problem+json"),
        ):
            connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
            connection.request("GET", path)
            reply = connection.getresponse()
            body = json.loads(reply.read())
            assert (reply.status, reply.headers["Content-Type"]) == (503, form)
            assert reply.headers["Retry-After"] == "5"
            assert body.get("error", body)["code"] == "unavailable"
            connection.close()
        assert free_slots(services) == MAX_WAITING


def test_a_stream_whose_database_fails_breaks_off_with_one_line_in_the_log(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its reader resumes it. A traceback would tell an operator nothing more."""
    after = feeds.Feed.after

    def fail_later(self: feeds.Feed, count: int, timeout: float) -> object:
        if count:
            raise sa.exc.OperationalError("", {}, Exception("the database is gone"))
        return after(self, count, timeout)

    with running(environ) as (place, services, _):
        job = submit(services.database)
        monkeypatch.setattr(feeds.Feed, "after", fail_later)
        connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
        connection.request("GET", f"/v1/responses/{job.id}?stream=true")
        reply = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead) as broken:
            reply.read()
        assert b"response.created" in broken.value.partial
        connection.close()
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == (
        "request failed: the database does not respond: the database is gone"
    )
    assert record.exc_info is None


WAITING = b'{"input": "Why?"}'


def post(body: bytes, head: bytes = b"HTTP/1.1\r\nHost: localhost") -> bytes:
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return b"POST /v1/responses %s\r\n%s%s" % (head, kind, body)


def half_closed(place: tuple[str, int], request: bytes) -> socket.socket:
    """Send a request, and then say that nothing more will come, as `nc -N` does."""
    connection = socket.create_connection(place, PATIENCE)
    connection.sendall(request)
    connection.shutdown(socket.SHUT_WR)
    return connection


def test_a_client_that_sends_no_more_gets_its_replies(environ: dict[str, str]) -> None:
    health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    background = post(b'{"input": "Why?", "background": true}')
    for request, statuses in (
        (health, [b"200"]),
        (health + background + health, [b"200", b"202", b"200"]),
        (health.replace(b"1.1", b"1.0"), [b"200"]),
        (health.replace(b"/healthz", b"/v1/nothing"), [b"404"]),
        (b"get / HTTP/1.1\r\n\r\n", [b"400"]),
        (health[:-2], []),
    ):
        with serving(environ) as place, half_closed(place, request) as connection:
            assert re.findall(rb"HTTP/1.[01] (\d+)", read_all(connection)) == statuses, request


def test_a_client_that_sends_no_more_gets_what_it_waits_for(environ: dict[str, str]) -> None:
    with running(environ) as (place, services, _):
        runtime = Runtime({"engine": "none"}, 4096, TOKENIZER)
        workers.register(services.database, WORKER, "localhost", 1, runtime)

        def job_of(request: bytes) -> tuple[socket.socket, str]:
            before = newest(services)
            connection = half_closed(place, request)
            poll(lambda: newest(services) != before)
            return connection, str(newest(services))

        connection, job_id = job_of(post(WAITING))
        with connection:
            assert connection.recv(25, socket.MSG_WAITALL) == server_responses.CONTINUE
            finish(services.database, job_id)
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
            assert (head[:15], json.loads(body)["status"]) == (b"HTTP/1.1 200 OK", "completed")
        connection, job_id = job_of(post(b'{"input": "Why?", "stream": true}'))
        with connection:
            events = b""
            while sse.KEEPALIVE not in events:
                events += connection.recv(1 << 16)
            finish(services.database, job_id)
            assert b"response.completed" in read_all(connection)
        # HTTP/1.0 has nothing that could be sent before the reply.
        with half_closed(place, post(WAITING, b"HTTP/1.0\r\nHost: localhost")) as connection:
            assert read_all(connection).startswith(b"HTTP/1.0 202")
        assert free_slots(services) == MAX_WAITING


def test_a_client_that_has_gone_frees_its_slot_soon(environ: dict[str, str]) -> None:
    """Long before the next comment of its stream, and before the end of its job."""
    with running(environ) as (place, services, _):
        for request in (post(WAITING), post(b'{"input": "Why?", "stream": true}')):
            for sent in (request, request.replace(b"HTTP/1.1", b"HTTP/1.0")):
                connection = socket.create_connection(place, PATIENCE)
                connection.sendall(sent)
                poll(lambda: free_slots(services) == MAX_WAITING - 1)
                connection.close()
                poll(lambda: free_slots(services) == MAX_WAITING)


def newest(services: Services) -> str | None:
    with services.database.engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.max(Job.id)))


def test_odd_requests_get_one_reply_without_a_bug(environ: dict[str, str]) -> None:
    post = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    body = b'{"input": "Why?", "background": true}'
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    requests = {
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks: "202 ACCEPTED",
        # A proxy may believe the length and not the chunks: what follows would be another request.
        post
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks: "400 bad_request",
        post + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunks: "501 unsupported_encoding",
        post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + chunks: "400 bad_request",
    }
    with serving(environ) as place:
        for request, expected in requests.items():
            with socket.create_connection(place, PATIENCE) as connection:
                connection.sendall(request)
                head, _, content = read_all(connection).partition(b"\r\n\r\n")
            status, *code = expected.split(" ")
            assert head.startswith(f"HTTP/1.1 {status}".encode())
            if status != "202":
                assert json.loads(content)["error"]["code"] == code[0]
                assert ".." not in content.decode()
        # A reply without a length ends with a chunk of its own; one to HEAD has none.
        with socket.create_connection(place, PATIENCE) as connection:
            connection.sendall(b"HEAD /api/jobs/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, content = read_all(connection).partition(b"\r\n\r\n")
            assert (head[:15], content) == (b"HTTP/1.1 200 OK", b"")


def test_the_loop_never_waits_while_a_client_does(environ: dict[str, str]) -> None:
    """Clients that send several requests before they read, cut anywhere."""
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

    def ask(place: tuple[str, int], seed: int) -> int:
        random = Random(seed)
        replies = 0
        with socket.create_connection(place, PATIENCE) as connection:
            for _ in range(60):
                count = random.randint(1, 5)
                cut = random.randrange(len(request) * count)
                connection.sendall((request * count)[:cut])
                connection.sendall((request * count)[cut:])
                received = b""
                while received.count(b"HTTP/1.1 200 OK") < count or not received.endswith(b"}\n"):
                    received += connection.recv(1 << 16)
                replies += count
        return replies

    with (
        serving(environ, turn=10 * PATIENCE) as place,
        ThreadPoolExecutor(8) as clients,
    ):
        assert min(clients.map(partial(ask, place), range(8))) > 60


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Half: ", "a part of the request"),
        (
            b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
            r"\d+ of the 1000 bytes that `Content-Length` announces",
        ),
        (
            b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3e8\r\n",
            "a part of the request",
        ),
    ],
    ids=["head", "body", "chunks"],
)
def test_slow_requests_time_out(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, start: bytes, part: str
) -> None:
    monkeypatch.setattr(server_requests, "REQUEST_TIMEOUT", LIMIT)
    with serving(environ) as place, socket.create_connection(place, PATIENCE) as connection:
        began = time.monotonic()
        connection.sendall(start)
        connection.settimeout(LIMIT / 10)
        reply = b""
        while (dropped := reply_to_a_drop(connection)) != b"":
            assert time.monotonic() - began < PATIENCE
            reply += dropped or b""
        assert time.monotonic() - began >= LIMIT
    assert reply.split(b" ")[1] == b"408"
    error = json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "request_timeout"
    assert re.fullmatch(rf"Only {part} arrived in \d+ seconds\.", error["message"])


def reply_to_a_drop(connection: socket.socket) -> bytes | None:
    """Send a byte; return what the server sent, nothing if it has closed the connection, or None."""
    try:
        connection.sendall(b"x")
        return connection.recv(1 << 16)
    except TimeoutError:
        return None


def test_slashes_that_are_doubled_make_no_difference(environ: dict[str, str]) -> None:
    for path in (b"/v1//models", b"//v1///models//"):
        with serving(environ) as place, socket.create_connection(place, PATIENCE) as connection:
            connection.sendall(b"GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % path)
            assert b'"helixnet"' in read_all(connection)


@pytest.mark.parametrize("pieces", [1, 3])
def test_headers_that_are_too_large_are_refused_in_the_shape_of_their_path(
    environ: dict[str, str], pieces: int
) -> None:
    request = b"GET /v1/models?limit=1 HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * (1 << 16)
    size = -(-len(request) // pieces)
    with serving(environ) as place, socket.create_connection(place, PATIENCE) as connection:
        for start in range(0, len(request), size):
            connection.sendall(request[start : start + size])
        reply = read_all(connection)
    assert reply.split(b" ")[1] == b"431"
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"


def test_idle_connections_are_closed(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first request or after one. A connection that waits for its reply is not idle."""
    ask = (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 17\r\n\r\n{"input": "Why?"}'
    )
    with (
        running(environ) as (place, services, _),
        socket.create_connection(place, PATIENCE) as silent,
        socket.create_connection(place, PATIENCE) as idle,
        socket.create_connection(place, PATIENCE) as waits,
    ):
        waits.sendall(ask)
        poll(lambda: free_slots(services) == MAX_WAITING - 1)
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200")
        # Not before: a busy machine may take longer for a request to arrive.
        monkeypatch.setattr(server_channel, "IDLE_TIMEOUT", LIMIT)
        read_all(idle)
        assert silent.recv(1) == b""
        waits.settimeout(0.1)
        with pytest.raises(TimeoutError):
            waits.recv(1)


def begin_upload(place: tuple[str, int], length: int, body: bytes = b"") -> socket.socket:
    """Send the beginning of a request with a file, up to a part of its body."""
    connection = socket.create_connection(place, PATIENCE)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def read_all(connection: socket.socket) -> bytes:
    reply = b""
    while part := connection.recv(1 << 16):
        reply += part
    return reply


def test_an_upload_may_be_large_and_other_requests_may_not(environ: dict[str, str]) -> None:
    with serving(environ) as place:
        connection = begin_upload(place, MAX_UPLOAD + 1)
        assert b"The file is larger than 200 MiB." in read_all(connection)
        connection.close()
        form = (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            + b"x" * (3 << 20)
            + b"\r\n--x--\r\n"
        )
        for path, status in (("/v1/files", 200), ("/v1/files/", 200), ("/v1/responses", 413)):
            client = http.client.HTTPConnection(*place, timeout=PATIENCE)
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            client.request("POST", path, form, headers)
            reply = client.getresponse()
            assert reply.status == status
            reply.read()
            client.close()


def test_only_some_uploads_may_go_on_at_once(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_requests, "MAX_UPLOADS", 1)
    with running(environ) as (place, _, server), begin_upload(place, 100):
        poll(lambda: len(server.adj.uploads.requests) == 1)
        with begin_upload(place, 100) as refused:
            reply = read_all(refused)
        assert reply.startswith(b"HTTP/1.1 503")
        assert b"too_many_uploads" in reply


def test_an_upload_is_refused_before_it_is_sent(environ: dict[str, str]) -> None:
    """Without a key that allows it, nothing of it is stored, and it takes no upload's place."""
    form = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + b"{}\n" * 100_000
        + b"\r\n--x--\r\n"
    )
    with running({**environ, "HELIXQ_AUTH": "required"}) as (place, services, _):
        _, asker = keys.create(services.database, "a", [Scope.ASK])
        _, auditor = keys.create(services.database, "b", [Scope.AUDIT])

        def begin(*headers: str) -> socket.socket:
            connection = socket.create_connection(place, PATIENCE)
            lines = [
                "POST /v1/files HTTP/1.1",
                f"Host: 127.0.0.1:{place[1]}",
                "Content-Type: multipart/form-data; boundary=x",
                f"Content-Length: {len(form)}",
                "Connection: close",
                *headers,
            ]
            connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
            return connection

        for headers, status, code in (
            ((), 401, "missing_api_key"),
            (("Authorization: Bearer hq_wrong",), 401, "invalid_api_key"),
            (("Cookie: helixq_session=wrong",), 401, "missing_api_key"),
            ((f"Authorization: Bearer {auditor}",), 403, "insufficient_scope"),
            (
                (f"Authorization: Bearer {asker}", "Origin: https://evil.example"),
                403,
                "cross_site_request",
            ),
        ):
            for _ in range(server_requests.MAX_UPLOADS):
                with begin(*headers) as connection:
                    reply = read_all(connection)
                assert reply.startswith(b"HTTP/1.1 %d" % status)
                assert b'"code":"%s"' % code.encode() in reply
        with begin(f"Authorization: Bearer {asker}") as connection:
            connection.sendall(form[:50_000])
            connection.sendall(form[50_000:])
            assert read_all(connection).startswith(b"HTTP/1.1 200")
        # Clients that ask before they send, as curl does, are told to send what will be taken alone.
        with begin("Expect: 100-continue") as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 401")
        with begin(f"Authorization: Bearer {asker}", "Expect: 100-continue") as connection:
            expected = server_responses.CONTINUE
            assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
            connection.sendall(form)
            assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_a_body_is_asked_for_unless_it_is_too_large(environ: dict[str, str]) -> None:
    head = (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: x, Close\r\n"
        b"Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )
    question = b'{"input": "Why?", "background": true}'
    with serving(environ) as place:
        with socket.create_connection(place, PATIENCE) as connection:
            connection.sendall(head % (1 << 30))
            assert read_all(connection).startswith(b"HTTP/1.1 413")
        with socket.create_connection(place, PATIENCE) as connection:
            connection.sendall(head % len(question))
            expected = server_responses.CONTINUE
            assert connection.recv(len(expected), socket.MSG_WAITALL) == expected
            connection.sendall(question)
            assert read_all(connection).startswith(b"HTTP/1.1 202")


@pytest.mark.parametrize("hosts", ["", "Host: localhost\r\nHost: evil.example\r\n"])
def test_a_request_names_one_host(environ: dict[str, str], hosts: str) -> None:
    """As RFC 9112, section 3.2. Proxies and servers may take different ones of several."""
    with serving(environ) as place, socket.create_connection(place, PATIENCE) as connection:
        connection.sendall(f"GET /v1/models HTTP/1.1\r\n{hosts}\r\n".encode())
        reply = read_all(connection)
        assert reply.startswith(b"HTTP/1.1 400")
        assert b"The request is malformed: It has" in reply


def test_an_upload_that_goes_on_has_more_time(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_requests, "REQUEST_TIMEOUT", LIMIT)
    monkeypatch.setattr(server_requests, "MIN_UPLOAD_RATE", 2 / LIMIT)
    with serving(environ) as place:
        began = time.monotonic()
        with begin_upload(place, 100, b"x" * 4) as connection:
            assert b"Only 4 of the 100 bytes" in read_all(connection)
        assert time.monotonic() - began >= 3 * LIMIT


EXPORTED = 60


@pytest.fixture
def exporting_server(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[tuple[str, int], Services, Server]]:
    """A server with more to export than it buffers, in pages of one job."""
    defaults = {**(exporting.pages.__kwdefaults__ or {}), "size": 1}
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", defaults)
    with running(environ) as server:
        for _ in range(EXPORTED):
            submit(server[1].database, question="x" * 200_000)
        yield server


@contextmanager
def export_begun(place: tuple[str, int]) -> Iterator[http.client.HTTPResponse]:
    """Begin to read an export."""
    connection = http.client.HTTPConnection(*place, timeout=PATIENCE)
    connection.connect()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    connection.request("GET", "/api/jobs/export")
    reply = connection.getresponse()
    assert reply.read(1) == b"{"
    yield reply
    reply.close()
    connection.close()


def free_slots(services: Services) -> int:
    slots: Any = services.waiter._slots
    return int(slots._value)


def is_waiting(server: Server) -> bool:
    """Return whether a thread of the server waits until its reader reads.

    A full buffer alone does not tell: the thread makes its next row before it waits.
    """
    channels: Any = server.active_channels.values()
    return any(channel.outbuf_lock._waiters for channel in list(channels))


def test_a_slow_reader_of_an_export_holds_no_connection(
    exporting_server: tuple[tuple[str, int], Services, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, services, server = exporting_server
    pool: Any = services.database.engine.pool
    made: list[str] = []

    def noted(*arguments: Any) -> Iterator[dict[str, Any]]:
        for row in rows(*arguments):
            made.append(row["id"])
            yield row

    monkeypatch.setattr(exports, "rows", noted)
    with export_begun(place) as reply:
        while True:
            poll(lambda: is_waiting(server))
            before, held = len(made), pool.checkedout()
            # Else it went on meanwhile: the system has buffers, too.
            if is_waiting(server) and len(made) == before:
                break
        assert 0 < before < EXPORTED
        assert held == 0
        assert len(reply.read().splitlines()) == EXPORTED


def test_a_reader_of_an_export_that_leaves_frees_its_thread(
    exporting_server: tuple[tuple[str, int], Services, Server],
) -> None:
    place, services, _ = exporting_server
    free = free_slots(services)
    with export_begun(place):
        poll(lambda: free_slots(services) == free - 1)
    poll(lambda: free_slots(services) == free)


def test_an_export_that_breaks_off_is_an_error_to_its_reader(
    exporting_server: tuple[tuple[str, int], Services, Server],
) -> None:
    place, services, _ = exporting_server
    with export_begun(place) as reply:
        services.waiter.stopping = lambda: True
        with pytest.raises(http.client.IncompleteRead):
            reply.read()
