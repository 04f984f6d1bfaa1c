"""One server with OpenAI's completions API."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import socket
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Any

import httpx2

from jobs.pipeline import Role, Sampling
from jobs.webhooks.retries import parse_retry_after
from worker.remote import parameters
from worker.remote.description import Description, Listed
from worker.remote.errors import ServerRefusedError, ServerUnavailableError, message_of
from worker.remote.event_stream import EventStream, StreamError

log = logging.getLogger(__name__)

#: Seconds to connect; and for a reply that is no completion.
CONNECT_TIMEOUT, REPLY_TIMEOUT = 5.0, 10.0
#: Seconds for the first request to a model: some servers load it then.
WARM_UP_TIMEOUT = 600.0
#: Seconds that a stream which said that it is done may take to its end, so that its connection is kept.
MAX_WAIT_FOR_END = 2.0
#: The prompt that each role generates one token from before the worker is ready.
WARM_UP_PROMPT = "Hello"
#: Its stop string, so that a server that refuses any is known.
WARM_UP_STOP = "\n\n"
#: Statuses after which the same request may succeed.
_BUSY = (408, 409, 425, 429, 503)


class Server:
    """One address. All its coroutines run on one event loop."""

    def __init__(self, url: str, models: Mapping[Role, str], api_key: str | None) -> None:
        """
        Args:
            url: ends in ``/v1``.
            models: the model's name of each role.
            api_key: sent as a bearer token; never logged.
        """
        self.url = url
        self.models = dict(models)
        #: Parameters that it has refused, and that requests leave out.
        self.omitted: set[str] = set()
        self._api_key = api_key
        #: Streams that are done, and are read to their end.
        self._ending: set[asyncio.Task[None]] = set()
        headers = {"User-Agent": "HelixQ", "Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(REPLY_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None),
            # Without the environment's proxies, and with its SSL_CERT_FILE.
            trust_env=False,
            transport=httpx2.AsyncHTTPTransport(
                # As many connections as there are requests: the engine limits them.
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
                socket_options=_keepalive(),
            ),
        )

    async def close(self) -> None:
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._http.aclose()

    async def list_models(self) -> Listed:
        """Ask for the models. A server without a list has none.

        Raises:
            ServerUnavailableError: it does not respond.
            ServerRefusedError: it refuses the API key.
        """
        reply = await self._get(f"{self.url}/models")
        if reply.status_code in (401, 403):
            raise ServerRefusedError(reply.status_code, message_of(reply.content, self._api_key))
        if reply.status_code != 500:  # Without a list, completions tell whether it works.
            self._raise_if_unavailable(reply, reply.content)
        data = _object(reply).get("data") if reply.status_code == 200 else None
        listed = Listed.of(
            data, answered=reply.status_code == 200, software=reply.headers.get("server")
        )
        if listed.is_loading(self.models):
            raise ServerUnavailableError(f"{self.url} is loading its model")
        return listed

    async def describe(self) -> Description:
        """Ask what it serves, and generate a token with each role's model.

        So a model that is not there, and parameters that are refused, are known before any job.

        Raises:
            ServerUnavailableError: it does not respond.
            ServerRefusedError: it refuses the API key, or a model.
        """
        await self.list_models()
        self.omitted.clear()
        fingerprints = [await self._warm_up(role) for role in Role]
        # Some servers load a model at its first request, and say only then what its context is.
        listed = await self.list_models()
        about: dict[str, Any] = {"software": listed.software} if listed.software else {}
        for paths, names in listed.more():
            found = await self._about(paths)
            about |= {name: found[name] for name in names if found.get(name) is not None}
        for fingerprint in filter(None, fingerprints):
            about["system_fingerprint"] = fingerprint
        return Description.of(listed, self.models, self.omitted, about)

    async def _warm_up(self, role: Role) -> str | None:
        """Generate one token; return the server's fingerprint. Parameters that it refuses are left out from then on."""
        sampling = Sampling(max_output_tokens=1, stop=(WARM_UP_STOP,))
        while True:
            try:
                async with self.complete(
                    role, WARM_UP_PROMPT, sampling, 1, WARM_UP_TIMEOUT
                ) as stream:
                    fingerprint = None
                    async for event in stream:
                        raise_if_error(event, self._api_key)
                        fingerprint = event.get("system_fingerprint") or fingerprint
                    return None if fingerprint is None else str(fingerprint)
            except ServerRefusedError as error:
                refused = self.refused_parameters(error)
                if not refused:
                    raise
                self.omitted |= refused
                log.warning(
                    "%s refuses %s: requests go without (%s)",
                    self.url,
                    " and ".join(sorted(refused)),
                    error.message,
                )

    def refused_parameters(self, error: ServerRefusedError) -> set[str]:
        """Return the parameters that an error names, that may be left out, and that were sent."""
        return {
            name for name in parameters.OPTIONAL if name not in self.omitted and error.names(name)
        }

    @asynccontextmanager
    async def complete(
        self,
        role: Role,
        prompt: str,
        sampling: Sampling,
        max_tokens: int,
        timeout: float | None = None,
        trace_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncIterator[AsyncIterable[dict[str, Any]]]:
        """Start a completion; its events follow as they are generated.

        Leaving the context closes the connection, unless the events were read to the end: then it is kept.

        Args:
            role: whose model generates.
            prompt: the exact prompt.
            sampling: of the stage.
            max_tokens: the maximum number of new tokens.
            timeout: the maximum number of seconds between two pieces; None for no limit: a request may
                wait long at a busy server. Health checks notice one that hangs.
            trace_headers: say which trace it belongs to.

        Raises:
            ServerUnavailableError: it does not respond, or not to the end.
            ServerRefusedError: it refuses the request.
        """
        body = parameters.body(self.models[role], prompt, sampling, max_tokens, self.omitted)
        request = self._http.build_request(
            "POST",
            f"{self.url}/completions",
            # In ASCII, JSON can express any Python string, lone surrogates included.
            content=json.dumps(body).encode(),
            headers={"Accept": "text/event-stream", **trace_headers},
            timeout=httpx2.Timeout(timeout, connect=CONNECT_TIMEOUT, write=30, pool=None),
        )
        reply: httpx2.Response | None = None
        stream: EventStream | None = None
        try:
            reply = await self._http.send(request, stream=True)
            if reply.status_code != 200:
                error = await reply.aread()
                self._raise_if_unavailable(reply, error)
                raise ServerRefusedError(reply.status_code, self._refusal(reply, error))
            stream = EventStream(reply.aiter_bytes())
            yield stream
        except httpx2.RequestError as failure:
            raise self._unavailable(failure) from failure
        except StreamError as failure:
            raise ServerRefusedError(200, str(failure)) from failure
        finally:
            if reply is not None and stream is not None and stream.done:
                # The text does not wait for it.
                task = asyncio.create_task(self._end(reply, stream))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            elif reply is not None:
                await reply.aclose()

    async def _end(self, reply: httpx2.Response, stream: EventStream) -> None:
        """Read a stream that is done to its end, for a moment. Closing it before that would close its connection."""
        try:
            with suppress(TimeoutError, httpx2.RequestError):
                async with asyncio.timeout(MAX_WAIT_FOR_END):
                    await stream.read_rest()
        finally:
            await reply.aclose()

    async def count_tokens(self, role: Role, prompt: str) -> int | None:
        """Return the tokens of a prompt by the server's ``/tokenize``; None if it has none (vLLM, SGLang have)."""
        try:
            reply = await self._http.post(
                f"{self._root}/tokenize",
                content=json.dumps({"model": self.models[role], "prompt": prompt}).encode(),
            )
        except httpx2.HTTPError:
            return None
        count = _object(reply).get("count") if reply.status_code == 200 else None
        return count if isinstance(count, int) else None

    @property
    def _root(self) -> str:
        return self.url.removesuffix("/v1")

    async def _get(self, url: str) -> httpx2.Response:
        try:
            return await self._http.get(url)
        except httpx2.RequestError as failure:
            raise self._unavailable(failure) from failure

    def _unavailable(self, failure: httpx2.RequestError) -> ServerUnavailableError:
        unreachable = isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout)
        return ServerUnavailableError(
            f"{self.url}: {failure or type(failure).__name__}",
            fault=not unreachable,
            unreachable=unreachable,
        )

    async def _about(self, paths: Sequence[str]) -> dict[str, Any]:
        """Return what a server says at the first of some paths that it has; nothing if there is none."""
        for path in paths:
            with suppress(ServerUnavailableError):
                reply = await self._get(self._root + path)
                if reply.status_code == 200:
                    return _object(reply)
        return {}

    def _raise_if_unavailable(self, reply: httpx2.Response, body: bytes) -> None:
        status = reply.status_code
        if status not in _BUSY and status < 500:
            return
        retry_after = parse_retry_after(
            reply.headers.get("retry-after", ""), dt.datetime.now(dt.UTC)
        )
        message = message_of(body, self._api_key)
        raise ServerUnavailableError(
            f"{self.url} replied with {status}: {message}"
            if message
            else f"{self.url} replied with {status}",
            retry_after=retry_after,
            fault=status not in _BUSY,
        )

    def _refusal(self, reply: httpx2.Response, body: bytes) -> str:
        message = message_of(body, self._api_key)
        if reply.is_redirect:
            message = f"it redirects to {reply.headers.get('location')}"
        return message or f"status {reply.status_code}"


def raise_if_error(event: dict[str, Any], api_key: str | None) -> None:
    """Raise the error that an event of a stream is, if it is one.

    Raises:
        ServerRefusedError: the request is wrong.
        ServerUnavailableError: the server failed.
    """
    error = event.get("error")
    if not error:
        return
    message = message_of(json.dumps(event).encode(), api_key)
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500 and code not in _BUSY:
        raise ServerRefusedError(code, message)
    raise ServerUnavailableError(message, fault=True)


def _object(reply: httpx2.Response) -> dict[str, Any]:
    try:
        value = json.loads(reply.content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _keepalive() -> list[tuple[int, int, int]]:
    """Return socket options that end a connection to a machine that is gone within a minute."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # Not on all systems.
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
