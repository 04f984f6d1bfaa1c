"""Stalled clients do not block the web."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests import servers
from tests.conftest import migrate
from tests.servers import NO_TLS, PATIENCE, Process, RedisServer, settings_for
from web.open_files import raise_limit
from web.waiting import MAX_WAITING

#: More than the web's threads, and more than the default limit of open files.
CLIENTS = 1000
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Half: "
BODY = (
    b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"input": '
)


class Web:
    """A web process without a worker."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False, verify=NO_TLS
        )

    def send(self, data: bytes, receive: int | None = None) -> socket.socket:
        """Open a connection and send this data.

        Args:
            data: what to send.
            receive: bytes that the system takes in for a reader who does not read.
        """
        connection = socket.socket()
        if receive is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", self.port))
        connection.sendall(data)
        return connection

    def serves(self) -> None:
        """Check that other requests are answered promptly."""
        assert self.http.get("/healthz").status_code == 200
        reply = self.http.post("/v1/responses", json={"input": "Why?", "background": True})
        assert reply.status_code == 202


@pytest.fixture
def web(redis_server: RedisServer, tmp_path: Path) -> Iterator[Web]:
    raise_limit()
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    migrate(url)
    environ = settings_for(url, redis_server.url, tmp_path)
    process = servers.web(environ)
    process.wait_for("listening")
    running_web = Web(process, int(environ["HELIXQ_PORT"]))
    yield running_web
    running_web.http.close()
    process.stop()


def test_a_thousand_stalled_requests_block_nothing(web: Web) -> None:
    with ExitStack() as stack:
        for number in range(CLIENTS):
            stack.enter_context(web.send((HEAD, BODY)[number % 2]))
        web.serves()
        # Stalled requests that continue are answered.
        late = stack.enter_context(web.send(HEAD))
        web.serves()
        late.sendall(b"over\r\n\r\n")
        assert late.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_stalled_readers_block_nothing(web: Web) -> None:
    for _ in range(4):
        body = {"input": "Why?", "background": True, "instructions": "long " * 50_000}
        assert web.http.post("/v1/responses", json=body).status_code == 202
    with ExitStack() as stack:
        ask = b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        readers = [stack.enter_context(web.send(ask, receive=4096)) for _ in range(300)]
        for reader in readers:  # each reply has started
            assert reader.recv(8) == b"HTTP/1.1"
        web.serves()
        rest = b""
        while part := readers[0].recv(1 << 16):
            rest += part
        assert rest.endswith(b'"has_more":false}')
        assert len(rest) > 1_000_000


def test_disconnected_readers_free_their_slots(web: Web) -> None:
    job = web.http.post("/v1/responses", json={"input": "Why?", "background": True}).json()
    path = f"/v1/responses/{job['id']}?stream=true"
    wait = (
        b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 17\r\n\r\n{"input": "Why?"}'
    )
    with ExitStack() as stack:
        for number in range(MAX_WAITING):
            stream = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            stack.enter_context(web.send((wait, stream)[number % 2]))
        give_up = time.monotonic() + PATIENCE
        while (status := _status(web, path)) == 200:
            assert time.monotonic() < give_up
    give_up = time.monotonic() + PATIENCE
    while (status := _status(web, path)) == 503:
        assert time.monotonic() < give_up
    assert status == 200


def _status(web: Web, path: str) -> int:
    with web.http.stream("GET", path) as reply:
        return reply.status_code


def test_malformed_requests_get_the_errors_of_their_endpoint(web: Web) -> None:
    def status_and_body(data: bytes) -> tuple[bytes, bytes]:
        with web.send(data) as connection:
            reply = b""
            while part := connection.recv(1 << 16):
                reply += part
        head, _, body = reply.partition(b"\r\n\r\n")
        return head.split(b" ", 2)[1], body

    start = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n"
    status, body = status_and_body(start + b"Content-Length: 1048577\r\n\r\n")
    assert (status, b'"code":"request_too_large"' in body) == (b"413", True)
    status, body = status_and_body(start + b"Content-Length: x\r\n\r\n")
    assert (status, b'"code":"bad_request"' in body) == (b"400", True)
    chunked = b"Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n"
    status, body = status_and_body(start + chunked + b"\r\nnone\r\n\r\n")
    assert (status, b'"code":"bad_request"' in body) == (b"400", True)
    old = start.replace(b"HTTP/1.1", b"HTTP/1.0") + b"Connection: keep-alive\r\n"
    status, body = status_and_body(old + chunked + b"\r\n2\r\n{}\r\n0\r\n\r\n")
    assert (status, b"Only HTTP/1.1 has Transfer-Encoding" in body) == (b"400", True)
    assert b"HTTP/1" not in body.partition(b"Only HTTP/1.1")[2], "it is one request"
    status, body = status_and_body(start + b"X: " + b"x" * (1 << 17) + b"\r\n\r\n")
    assert status == b"431"
    status, _ = status_and_body(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
    assert status == b"400"
    for path in (b"//[", b"//a:b/", b"//host/v1/responses", b"http://[/v1", b"/%ff%00", b"*"):
        status, _ = status_and_body(b"POST %s HTTP/1.1\r\nContent-Length: x\r\n\r\n" % path)
        assert status == b"400", path
    for odd in (
        b"GET http://[/v1 HTTP/1.1\r\n\r\n",
        start + b"Content-Length: %s\r\n\r\n" % (b"9" * 5000),
    ):
        assert status_and_body(odd)[0] == b"400"
    # Whatever of a request is wrong, the error has the form of its endpoint.
    for odd in (
        b"get /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models?a=\xff HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nA: \0\r\n\r\n",
        start + b"A : b\r\n\r\n",
    ):
        status, body = status_and_body(odd)
        assert (status, b'"code":"bad_request"' in body) == (b"400", True), odd
    question = b'{"input": "Why?", "background": true}'
    request = start + chunked + b"Connection: close\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    assert status_and_body(request % (len(question), question))[0] == b"202"
    large = web.http.post("/v1/responses", json={"input": "x" * (2 << 20)})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_web_at_once(web: Web, number: int) -> None:
    """The first signal waits for replies that are being sent, also to a client that does not read."""
    job = web.http.post("/v1/responses", json={"input": "Why?", "background": True}).json()
    stream = f"GET /v1/responses/{job['id']}?stream=true HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with web.send(stream.encode()) as reader:
        assert reader.recv(8) == b"HTTP/1.1"
        web.process.signal(number)
        while reader.recv(1 << 16):
            pass  # the stream ends
    web.process.signal(number)
    assert web.process.wait() == 0
    assert "Traceback" not in web.process.output
