"""Sends one webhook: a POST to an address that was checked, with limits on all that comes back."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

import httpcore2

from jobs.webhooks import retries, targets
from jobs.webhooks.outcome import Outcome
from jobs.webhooks.targets import Network, Target

#: Seconds that one attempt may take in all: resolving, connecting, sending and the reply.
TIMEOUT = 15.0
#: Seconds to connect to one address of a name, so that the next one gets its turn.
_CONNECT_TIMEOUT = 5.0
#: Addresses of a name that are tried.
_MAX_ADDRESSES = 3
#: Bytes of a reply's body that are read before the connection is closed. They are not kept.
_MAX_BODY = 1 << 14
#: Statuses whose ``Retry-After`` counts.
_BUSY = (429, 503)


class _NotSentError(Exception):
    """No address of a name may be connected to."""


async def post(
    url: str, headers: Mapping[str, str], body: bytes, *, allowed: Collection[Network]
) -> Outcome:
    """Send a webhook once; return what came of it. Redirects are not followed.

    Args:
        url: of the receiver.
        headers: those of the signature.
        body: JSON.
        allowed: networks with addresses that are allowed though they are not public.
    """
    start = time.monotonic()
    status: int | None = None
    retry_after: float | None = None
    error: str | None = None
    try:
        async with asyncio.timeout(TIMEOUT):
            target = targets.parse(url)
            backend = _CheckedBackend(target, allowed)
            # A connection for each webhook: one that was kept open may be gone, which nobody notices
            # before the request is lost.
            async with (
                httpcore2.AsyncConnectionPool(
                    ssl_context=_ssl_context(), network_backend=backend
                ) as pool,
                pool.stream(
                    b"POST",
                    httpcore2.URL(
                        scheme=target.scheme.encode(),
                        host=target.host.encode(),
                        port=target.port,
                        target=target.target.encode(),
                    ),
                    headers=_headers(target, headers, body),
                    content=body,
                ) as reply,
            ):
                status = reply.status
                if status in _BUSY:
                    retry_after = _retry_after(reply.headers)
                received = 0
                async for part in reply.aiter_stream():
                    received += len(part)
                    if received > _MAX_BODY:
                        break
    except TimeoutError:
        error = f"no reply within {TIMEOUT:g} seconds"
    except _NotSentError as refused:
        error = str(refused)
    except targets.TargetError as wrong:
        error = str(wrong)
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as failure:
        error = f"the connection failed: {failure or type(failure).__name__}"
    if status is not None:
        error = _status_error(status)
    return Outcome(status, error, time.monotonic() - start, retry_after)


def _status_error(status: int) -> str | None:
    """Return why a status is no success; None if it is."""
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"the receiver replied with {status}: redirects are not followed"
    return f"the receiver replied with {status}"


def _headers(target: Target, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, bytes]]:
    host = f"[{target.host}]" if ":" in target.host else target.host
    default = 443 if target.is_encrypted else 80
    all_headers = {
        "Host": host if target.port == default else f"{host}:{target.port}",
        "User-Agent": "HelixQ",
        "Accept": "*/*",
        "Connection": "close",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **headers,
    }
    return [(name.encode(), value.encode()) for name, value in all_headers.items()]


def _retry_after(headers: Iterable[tuple[bytes, bytes]]) -> float | None:
    for name, value in headers:
        if name.lower() == b"retry-after":
            return retries.parse_retry_after(value.decode("latin-1"), dt.datetime.now(dt.UTC))
    return None


@cache
def _ssl_context() -> ssl.SSLContext:
    """Return the context of all connections: certificates are verified by the system's authorities."""
    return httpcore2.default_ssl_context()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses of a target that may be connected to.

    The name is resolved once, and what is connected to is the address that was checked, so that a name
    cannot lead elsewhere in between (DNS rebinding).
    """

    def __init__(self, target: Target, allowed: Collection[Network]) -> None:
        self._target = target
        self._allowed = allowed
        self._backend = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        failure: Exception | None = None
        for address in (await self._addresses(host, port))[:_MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(
                    address, port, _CONNECT_TIMEOUT, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise httpcore2.ConnectError(f"{host} does not respond") from failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Resolve a name; return its addresses that may be connected to."""
        try:
            addresses = await _resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"the name {host} cannot be resolved") from error
        reasons: list[str] = []
        permitted: list[str] = []
        for text in addresses:
            address = targets.parse_address(text)
            reason = "it is not an address"
            if address is not None:
                refused = targets.refusal(
                    address, self._allowed, encrypted=self._target.is_encrypted
                )
                if refused is None:
                    permitted.append(text)
                    continue
                reason = refused
            reasons.append(reason)
        if not permitted:
            raise _NotSentError(f"not sent: {reasons[0]}" if reasons else f"{host} has no address")
        return permitted


async def _resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, or of any spelling of an address that the system knows.

    A resolver may take long and cannot be interrupted. So it gets a daemon thread, and no executor, for
    whose threads Python waits when it exits.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[str]] = loop.create_future()

    def finish(addresses: list[str] | None, error: Exception | None) -> None:
        if result.done():
            return  # Nobody waits any more.
        if addresses is None:
            result.set_exception(error or OSError())
        else:
            result.set_result(addresses)

    def run() -> None:
        addresses, failure = None, None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        except (OSError, UnicodeError) as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(finish, addresses, failure)

    threading.Thread(target=run, name="resolver", daemon=True).start()
    return await result
