"""The web behind a real nginx, which has the configuration of docs/deployment-proxy.md: what users notice of it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner
from openai import OpenAI
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cli import client
from cli.main import main
from cli.statuses import ExitStatus
from jobs.models import Scope
from jobs.progress import TextDeltas
from jobs.protocol.shapes import rows
from jobs.use_cases import exporting, keys, stages, workers
from jobs.use_cases.stages import Claim
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.test_web_server import free_slots, running
from tests.integration.web.client import finish
from tests.nginx import Nginx, documented, nginx
from tests.polling import poll
from tests.servers import PATIENCE, RedisServer
from web.access import COOKIE
from web.api import exports
from web.multipart import MAX_UPLOAD
from web.services import Services
from web.v1 import feeds, sse
from web.waiting import MAX_WAITING

#: Counts words, and knows none.
TOKENIZER = Tokenizer(WordLevel({"?": 0}, unk_token="?")).to_str()
#: Seconds between two comments of a silent stream, instead of 15.
KEEPALIVE = 0.2
#: Seconds without data after which a proxy gives up, instead of an hour.
READ_TIMEOUT = 2


@dataclass(frozen=True)
class Service:
    """A web that requires keys, and the proxy in front of it. The tests run the jobs."""

    web_port: int
    services: Services
    proxy: Nginx
    key: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.proxy.authority)

    @property
    def openai(self) -> OpenAI:
        """OpenAI's client. It finds the authority in the environment."""
        return OpenAI(base_url=f"{self.proxy.url}/v1", api_key=self.key, max_retries=0)

    def http(
        self, headers: Mapping[str, str] | None = None, proxy: Nginx | None = None
    ) -> httpx2.Client:
        proxy = proxy or self.proxy
        context = ssl.create_default_context(cafile=proxy.authority)
        return httpx2.Client(
            base_url=proxy.url, verify=context, headers=headers, timeout=PATIENCE, trust_env=False
        )

    def send(self, *lines: str) -> bytes:
        """Send the head of a request; return the reply, which comes though no body follows."""
        with (
            socket.create_connection(("127.0.0.1", self.proxy.port), PATIENCE) as connection,
            self.tls.wrap_socket(connection, server_hostname="localhost") as stream,
        ):
            stream.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
            reply = b""
            while part := stream.recv(1 << 16):
                reply += part
                if reply.endswith(b"}"):
                    break
        return reply

    def claim(self, job_id: str) -> Claim:
        claimed = stages.claim(self.services.database, job_id, 0, WORKER, job_timeout=60)
        assert claimed is not None
        self.services.progress.publish_change(job_id)
        return claimed

    def write(self, claim: Claim, start: int, text: str) -> None:
        """Publish a piece of a text, as a worker does."""
        deltas = TextDeltas(claim.text_id, start, [text])
        self.services.progress.publish([(claim.job_id, deltas)])


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("db")
    environ = {
        "HELIXQ_DATABASE_URL": f"sqlite:///{folder / 'jobs.sqlite3'}",
        "HELIXQ_REDIS_URL": redis_server.url,
        "HELIXQ_AUTH": "required",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "KEEPALIVE_INTERVAL", KEEPALIVE)
        with running(environ) as ((_, port), services, _), nginx(port) as proxy:
            runtime = Runtime({"engine": "none"}, 4096, TOKENIZER)
            workers.register(services.database, WORKER, "localhost", 1, runtime)
            _, key = keys.create(services.database, "laptop", [Scope.ASK])
            patch.setenv("SSL_CERT_FILE", str(proxy.authority))
            yield Service(port, services, proxy, key)


def test_texts_arrive_as_they_are_written(service: Service) -> None:
    """Each piece is written once the client has the one before."""
    with service.openai as openai, openai.responses.create(input="Why?", stream=True) as stream:
        created = next(stream)
        assert created.type == "response.created"
        claim = service.claim(created.response.id)
        for number, text in enumerate(("Because", " of", " it.")):
            service.write(claim, number, text)
            while (event := next(stream)).type != "response.reasoning_text.delta":
                pass
            assert event.delta == text


def test_a_reader_that_leaves_frees_its_place(service: Service) -> None:
    poll(lambda: free_slots(service.services) == MAX_WAITING)
    with service.openai as openai:
        stream = openai.responses.create(input="Why?", stream=True)
        next(stream)
        assert free_slots(service.services) == MAX_WAITING - 1
        stream.close()
    poll(lambda: free_slots(service.services) == MAX_WAITING)


def test_a_silent_stream_outlives_the_proxys_patience(service: Service) -> None:
    """Comments keep a stream alive. Other replies that take long need a proxy that waits for as long."""

    def impatient(site: str) -> str:
        return site.replace("proxy_read_timeout 3600s", f"proxy_read_timeout {READ_TIMEOUT}s")

    assert impatient(documented()) != documented()
    with (
        nginx(service.web_port, impatient) as proxy,
        service.http(service.bearer, proxy) as http,
        ThreadPoolExecutor(1) as other,
    ):
        body = {"input": "Why?"}
        waiting = other.submit(http.post, "/v1/responses", json=body)
        with http.stream("POST", "/v1/responses", json={**body, "stream": True}) as reply:
            lines = reply.iter_lines()
            comments = 0
            while comments * KEEPALIVE < 1.5 * READ_TIMEOUT:
                comments += next(lines) == sse.KEEPALIVE.decode().rstrip()
        assert waiting.result(PATIENCE).status_code == 504


def test_what_is_large(service: Service) -> None:
    """The web's limits count, and its errors arrive, before anything of the body was sent."""
    with service.openai as openai:
        content = b"x" * (3 << 20)
        file = openai.files.create(file=("ä😀.jsonl", content), purpose="batch")
        assert openai.files.content(file.id).content == content
    with service.http(service.bearer) as http:
        reply = http.post("/v1/responses", json={"input": "x" * (2 << 20)})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    upload = (
        "POST /v1/files HTTP/1.1",
        f"Host: {service.proxy.host}",
        "Content-Type: multipart/form-data; boundary=x",
    )
    key = f"Authorization: Bearer {service.key}"
    assert b'"code":"request_too_large"' in service.send(
        *upload, key, f"Content-Length: {MAX_UPLOAD + 1}"
    )
    assert b'"code":"missing_api_key"' in service.send(*upload, f"Content-Length: {MAX_UPLOAD}")


def test_pages_behind_tls(service: Service) -> None:
    """Cookies are for TLS alone, forms need the public address, and nobody is led away from it."""
    origin = {"Origin": service.proxy.url}
    with service.http() as browser:
        long_link = f"/jobs?q={'%C3%A4' * 1000}"
        asked = browser.get(long_link)
        assert (asked.status_code, asked.headers["Location"][:19]) == (303, "/login?next=/jobs?q")
        assert asked.headers["Strict-Transport-Security"].startswith("max-age=")
        login = browser.post(
            "/login", data={"key": service.key, "next": "/jobs?q=a"}, headers=origin
        )
        assert (login.status_code, login.headers["Location"]) == (303, "/jobs?q=a")
        assert login.headers["Set-Cookie"].startswith(f"{COOKIE}=")
        assert {"Secure", "HttpOnly", "SameSite=Lax"} <= set(
            login.headers["Set-Cookie"].split("; ")
        )
        assert browser.get(login.headers["Location"]).status_code == 200
        asked = browser.post("/", data={"question": "Why?"}, headers=origin)
        assert (asked.status_code, asked.headers["Location"][:11]) == (303, "/jobs/resp_")
        page = browser.get(asked.headers["Location"])
        assert page.status_code == 200
        assert f'<dd><a href="{asked.headers["Location"]}">{page.url}</a></dd>' in page.text
        assert "http://" not in page.text
        foreign = {
            "Origin": "https://evil.example",
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-For": "127.0.0.1",
        }
        assert browser.post("/", data={"question": "?"}, headers=foreign).status_code == 403
        described = browser.get("/openapi.json")
        assert (described.status_code, "localhost" in described.text) == (200, False)
        assert "localhost" not in browser.get("/responses").json()["error"]["message"]


def test_only_the_own_name_is_served(service: Service) -> None:
    """And browsers get HTTP/2, with no limit of six connections."""
    with service.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/healthz", headers={"Host": "evil.example"}).status_code == 421
    context = service.tls
    context.set_alpn_protocols(["h2", "http/1.1"])
    place = ("127.0.0.1", service.proxy.port)
    with (
        socket.create_connection(place, PATIENCE) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as stream,
    ):
        assert stream.selected_alpn_protocol() == "h2"
    with (
        socket.create_connection(place, PATIENCE) as connection,
        pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
    ):
        context.wrap_socket(connection, server_hostname="evil.example")


def test_an_export_arrives_as_it_is_made(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job is read once the client has the one before. A reply that breaks off is noticed."""
    defaults = {**(exporting.pages.__kwdefaults__ or {}), "size": 1}
    monkeypatch.setattr(exporting.pages, "__kwdefaults__", defaults)
    read = threading.Semaphore(1)

    def held(*arguments: Any) -> Iterator[dict[str, Any]]:
        for row in rows(*arguments):
            assert read.acquire(timeout=PATIENCE)
            yield row

    monkeypatch.setattr(exports, "rows", held)
    _, key = keys.create(service.services.database, "exporter", [Scope.ASK])
    headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "identity"}
    with service.http(headers) as http:
        body = {"input": "Why?", "background": True}
        asked = [http.post("/v1/responses", json=body).json()["id"] for _ in range(3)]
        exported = []
        with http.stream("GET", "/api/jobs/export") as reply:
            for line in reply.iter_lines():
                exported.append(json.loads(line)["id"])
                read.release()
        assert exported == asked
        with http.stream("GET", "/api/jobs/export") as reply:
            lines = reply.iter_lines()
            next(lines)
            monkeypatch.setattr(service.services.waiter, "stopping", lambda: True)
            for _ in asked:
                read.release()
            with pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
                list(lines)


def test_what_needs_no_key(service: Service) -> None:
    with service.http() as http:
        for path in ("/healthz", "/openapi.json", "/login", "/log/checkpoint"):
            assert http.get(path).status_code != 401
        for path in ("/metrics", "/api/system", "/api/stats", "/v1/models"):
            assert http.get(path).status_code == 401


def test_the_command_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    page = client.Client.page

    def answered(self: client.Client, job_id: str) -> str:
        finish(service.services.database, job_id)
        return page(self, job_id)

    monkeypatch.setattr(client.Client, "page", answered)
    monkeypatch.setenv("HELIXQ_API_KEY", service.key)
    ask = ["ask", "Why?", "--final", "--url", service.proxy.url]
    asked = CliRunner().invoke(main, ask)
    assert (asked.exit_code, asked.stdout) == (0, "A text.\n"), asked.output
    assert f"page {service.proxy.url}/jobs/resp_" in asked.stderr
    monkeypatch.delenv("SSL_CERT_FILE")
    refused = CliRunner().invoke(main, ask)
    assert refused.exit_code == ExitStatus.UNREACHABLE
    assert "SSL_CERT_FILE should name the authority" in refused.stderr
