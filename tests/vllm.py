"""A server that answers as vLLM's does, from recorded replies, and fails as it is told.

It stands for what a GPU would be needed for. The shapes of its replies are those of vLLM 0.11:
`/v1/models`, `/version`, `/tokenize` and a streamed `/v1/completions`, with its errors.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from jobs.pipeline import Role
from tests.joining import shut_down
from tests.servers import PATIENCE

BASE = "mistralai/Mistral-7B-v0.1"
MAX_MODEL_LEN = 4096
KEY = "sk-engine-secret"
#: The settings of a worker that uses it.
NAMES = {role: f"helix-{role}" for role in Role}
ADAPTERS = ",".join(f"{role}={name}" for role, name in NAMES.items())
#: Replies to one request in the place of the server.
Reply = Callable[["Handler"], None]


class VLLM:
    """The server. Each prompt that is not a warm-up gets the words of `text`."""

    def __init__(self, port: int = 0) -> None:
        self.text = [" The", " sum", " is", " 2", "."]
        #: Parameters that it refuses, as servers with a strict schema do.
        self.refused: set[str] = set()
        #: What it does at a stop string: it stops before it as vLLM does, stops after it as TGI does, or goes on.
        self.stops: Literal["before", "after", "never"] = "before"
        self.root = "/adapters"
        #: The models that another server lists, in the place of vLLM's.
        self.listed: list[dict[str, Any]] | None = None
        #: How often they were listed, and what is called at each warm-up.
        self.times_listed = 0
        self.on_warm_up: Callable[[], object] = lambda: None
        #: What other servers reply at other paths.
        self.pages: dict[str, Any] = {}
        #: The bodies of the completions that were asked for, warm-ups aside.
        self.bodies: list[dict[str, Any]] = []
        self.warm_ups: list[dict[str, Any]] = []
        #: The clients' ports of the same completions, and so their connections.
        self.ports: list[int] = []
        self.authorizations: set[str | None] = set()
        #: Of the same completions, the headers of W3C Trace Context.
        self.traces: list[tuple[str | None, str | None]] = []
        #: Replies to the next completions.
        self.replies: list[Reply] = []
        #: A completion stops after its first word and goes on when this is set.
        self.go_on = threading.Event()
        self.go_on.set()
        #: Set when a completion's connection was closed by the client.
        self.closed = threading.Event()
        #: Open connections.
        self.connections: set[socket.socket] = set()
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.http = _Server(("127.0.0.1", port), Handler)
        self.http.vllm = self
        self.port = int(self.http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings of a worker that uses it."""
        return {
            "HELIXQ_ENGINE": "openai",
            "HELIXQ_ENGINE_URL": self.url,
            "HELIXQ_ENGINE_API_KEY": KEY,
            "HELIXQ_ADAPTERS": ADAPTERS,
            **more,
        }

    def stop(self) -> None:
        """Stop, and close all connections as a process that ends does."""
        self.go_on.set()
        for connection in list(self.connections):
            with suppress(OSError):  # It has just ended.
                connection.shutdown(socket.SHUT_RDWR)
        shut_down(self.http, self._thread)


class _Server(ThreadingHTTPServer):
    vllm: VLLM
    daemon_threads = True
    #: Python's five are exceeded while its thread waits for a processor. Who connects then tries again after a second.
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes its connection is no error."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as uvicorn does
    server_version, sys_version = "uvicorn", ""
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.vllm.connections.add(self.connection)

    def finish(self) -> None:
        self.vllm.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def vllm(self) -> VLLM:
        return self.server.vllm

    def do_GET(self) -> None:
        if self.path in self.vllm.pages:
            self.send(200, self.vllm.pages[self.path])
        elif self.path == "/version":
            self.send(200, {"version": "0.11.0"})
        elif self.path == "/v1/models":
            self.vllm.times_listed += 1
            listed = self.vllm.listed
            data = list(self._models()) if listed is None else listed
            self.send(200, {"object": "list", "data": data})
        else:
            self.send(404, {"detail": "Not Found"})

    def _models(self) -> Iterator[dict[str, Any]]:
        common = {"object": "model", "created": int(time.time()), "owned_by": "vllm"}
        permission = [{"id": f"modelperm-{time.monotonic_ns():x}", "object": "model_permission"}]
        yield {
            "id": BASE,
            **common,
            "root": BASE,
            "parent": None,
            "max_model_len": MAX_MODEL_LEN,
            "permission": permission,
        }
        for role, name in NAMES.items():
            yield {
                "id": name,
                **common,
                "root": f"{self.vllm.root}/{role}",
                "parent": BASE,
                "max_model_len": None,
                "permission": permission,
            }

    def do_POST(self) -> None:
        vllm = self.vllm
        vllm.authorizations.add(self.headers.get("authorization"))
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {KEY}":
            return self.send(401, {"error": "Unauthorized"})
        if self.path == "/tokenize":
            count = len(body["prompt"].split())
            return self.send(200, {"count": count, "max_model_len": MAX_MODEL_LEN, "tokens": []})
        if refused := sorted(vllm.refused & set(body)):
            detail = [
                {"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted", "input": body[name]}
                for name in refused
            ]  # fmt: skip
            return self.send(422, {"detail": detail})
        if body["model"].removeprefix(f"{BASE}:") not in NAMES.values():
            return self.error(404, "NotFoundError", f"The model `{body['model']}` does not exist.")
        if body["prompt"] == "Hello":
            vllm.warm_ups.append(body)
            vllm.on_warm_up()
            return self.complete(body, [" there"])
        vllm.bodies.append(body)
        vllm.ports.append(self.client_address[1])
        vllm.traces.append((self.headers.get("traceparent"), self.headers.get("tracestate")))
        if vllm.replies:
            return vllm.replies.pop(0)(self)
        return self.complete(body, vllm.text)

    def complete(self, body: dict[str, Any], words: list[str]) -> None:
        """Stream a completion."""
        vllm = self.vllm
        prompt_tokens = len(body["prompt"].split())
        if prompt_tokens + body["max_tokens"] > MAX_MODEL_LEN:
            return self.error(
                400,
                "BadRequestError",
                f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, you "
                f"requested {prompt_tokens + body['max_tokens']} tokens ({prompt_tokens} in the "
                f"messages, {body['max_tokens']} in the completion). Please reduce the length of "
                "the messages or completion.",
            )
        with vllm.lock:
            vllm.in_flight += 1
            vllm.most_in_flight = max(vllm.most_in_flight, vllm.in_flight)
        try:
            self.begin()
            words, stop = self.stop_at(words, body.get("stop", []))
            sent = words[: body["max_tokens"]]
            for number, word in enumerate(sent):
                last = number == len(words) - 1
                cut = number == len(sent) - 1
                reason = "stop" if last else "length" if cut else None
                self.chunk(body, word, reason, stop if last else None)
                if number == 0:
                    self.wait_to_go_on()
            usage = {
                "prompt_tokens": prompt_tokens,
                "total_tokens": prompt_tokens + len(sent),
                "completion_tokens": len(sent),
            }
            if "stream_options" in body:
                self.event({**self.head(body), "choices": [], "usage": usage})
            self.write("data: [DONE]\n\n")
            self.write_end()
        except (BrokenPipeError, ConnectionResetError):
            vllm.closed.set()
            self.close_connection = True
        finally:
            with vllm.lock:
                vllm.in_flight -= 1

    def stop_at(self, words: list[str], stop: list[str]) -> tuple[list[str], str | None]:
        """Return the words up to the one that completes a stop string, and the string where the server names it."""
        for number in range(0 if self.vllm.stops == "never" else len(words)):
            text = "".join(words[: number + 1])
            if ends := [(text.index(each), each) for each in stop if each in text]:
                kept, found = min(ends)
                after = self.vllm.stops == "after"
                kept = len(text) if after else kept
                starts = [len("".join(words[:start])) for start in range(number + 1)]
                cut = [text[start:kept][: len(words[i])] for i, start in enumerate(starts)]
                return cut, None if after else found
        return words, None

    def wait_to_go_on(self) -> None:
        """Wait as a slow model does, and notice as vLLM does that the client has gone."""
        self.connection.settimeout(0.01)
        deadline = time.monotonic() + PATIENCE
        while not self.vllm.go_on.is_set() and time.monotonic() < deadline:
            try:
                if not self.connection.recv(1):
                    raise ConnectionResetError
            except TimeoutError:
                pass
        self.connection.settimeout(None)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def head(self, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": "cmpl-4fd1f6b2c7c5437f8d0f8c1a0a1b2c3d",
            "object": "text_completion",
            "created": 1_760_000_000,
            "model": body["model"],
        }

    def chunk(
        self, body: dict[str, Any], text: str, reason: str | None, stop: str | None = None
    ) -> None:
        choice = {
            "index": 0,
            "text": text,
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": stop,
        }
        self.event({**self.head(body), "choices": [choice], "usage": None})

    def event(self, value: dict[str, Any]) -> None:
        self.write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n")

    def write(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def write_end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def error(self, status: int, kind: str, message: str, **headers: str) -> None:
        error = {"message": message, "type": kind, "param": None, "code": status}
        self.send(status, {"error": error}, **headers)

    def send(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)


def busy(handler: Handler) -> None:
    """Refuse for now, as a proxy with a limit does."""
    handler.error(429, "RateLimitError", "Too many requests", Retry_After="1")


def fault(handler: Handler) -> None:
    handler.error(500, "InternalServerError", "EngineCore encountered an issue.")


def cut(handler: Handler, reason: str | None = None) -> None:
    """Stream a word and then close the connection, as a server that is killed does."""
    handler.begin()
    handler.chunk({"model": NAMES[Role.ACTOR]}, " The", reason)
    handler.close_connection = True


def hang(handler: Handler, reason: str | None = None) -> None:
    """Stream a word and then nothing, with the connection open."""
    cut(handler, reason)
    handler.vllm.go_on.clear()
    with suppress(ConnectionResetError):
        handler.wait_to_go_on()


def hang_when_done(handler: Handler) -> None:
    """Stream a whole text and ``[DONE]``, and then nothing, with the connection open."""
    cut(handler, "stop")
    usage = {"prompt_tokens": 3, "total_tokens": 4, "completion_tokens": 1}
    handler.event({**handler.head({"model": NAMES[Role.ACTOR]}), "choices": [], "usage": usage})
    handler.write("data: [DONE]\n\n")
    handler.vllm.go_on.clear()
    with suppress(ConnectionResetError):
        handler.wait_to_go_on()


def break_down(handler: Handler, reason: str | None = None) -> None:
    """Stream a word and then an error."""
    cut(handler, reason)
    handler.event({"error": {"message": "EngineCore died", "type": "BadRequestError", "code": 400}})


def echo_key(handler: Handler) -> None:
    """Refuse with a message that has the request's secret in it."""
    handler.error(400, "BadRequestError", f"bad header {handler.headers['authorization']}")
