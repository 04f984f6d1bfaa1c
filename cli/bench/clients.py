"""Clients that ask whole jobs of a service and follow them, as many as it takes or at an even rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import httpx2

from cli.errors import ExpectedError

#: Of this number of jobs, one is read as an event stream, and one is cancelled after its first poll.
STREAM_EVERY, CANCEL_EVERY = 10, 25
#: Maximum seconds for a reply, and for a job.
TIMEOUT = 600.0
_ENDED = ("completed", "incomplete", "cancelled")


@asynccontextmanager
async def _together() -> AsyncIterator[asyncio.TaskGroup]:
    """Yield a group of tasks; the first one that fails ends the others, and its error is raised alone."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
        if isinstance(error, httpx2.TransportError):
            raise ExpectedError(
                f"the web does not reply: {error or type(error).__name__}"
            ) from error
        raise error from None


class Clients:
    """Clients of one service. Questions and streams have connections of their own; polls share kept ones."""

    def __init__(self, url: str, bodies: Iterator[dict[str, Any]]) -> None:
        """
        Args:
            url: of the web.
            bodies: of the requests, without end.
        """
        self._url = url
        self._bodies = bodies
        self._asked = 0
        #: The ids of the jobs, in the order in which they were asked.
        self.ids: list[str] = []
        #: Seconds that replies to questions and to polls took, each with its time.
        self.questions: list[tuple[float, float]] = []
        self.polls: list[tuple[float, float]] = []

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            limits = (httpx2.Limits(max_keepalive_connections=0), httpx2.Limits())
            self._fresh, self._kept = [
                await stack.enter_async_context(
                    httpx2.AsyncClient(
                        base_url=self._url, timeout=TIMEOUT, trust_env=False, limits=limit
                    )
                )
                for limit in limits
            ]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def keep_busy(self, at_once: int, jobs: int) -> None:
        """Ask a number of jobs, and keep ``at_once`` of them in the service until the last ones end."""
        left = iter(range(jobs))

        async def client() -> None:
            for _ in left:
                await self._ask(cancels=False)

        async with _together() as group:
            for _ in range(at_once):
                group.create_task(client())

    async def ask_evenly(self, rate: Callable[[], float], seconds: float) -> None:
        """Ask a number of questions a second, whatever the replies take; then wait for the last jobs.

        Args:
            rate: returns the number, which may change.
            seconds: how long to ask.
        """
        at = time.monotonic()
        end = at + seconds
        async with _together() as group:
            while at < end:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                group.create_task(self._ask(cancels=True))
                at += 1 / rate()

    async def _ask(self, *, cancels: bool) -> None:
        number, self._asked = self._asked, self._asked + 1
        sent = time.monotonic()
        body = {**next(self._bodies), "background": True}
        reply = await self._fresh.post("/v1/responses", json=body)
        if reply.status_code != 202:
            raise ExpectedError(
                f"a question was refused with status {reply.status_code}: {reply.text}"
            )
        self.questions.append((sent, time.monotonic() - sent))
        job_id = reply.json()["id"]
        self.ids.append(job_id)
        if number % STREAM_EVERY == 0:
            await self._read(job_id)
        else:
            await self._poll(job_id, reply, cancels=cancels and number % CANCEL_EVERY == 1)

    async def _poll(self, job_id: str, reply: httpx2.Response, *, cancels: bool) -> None:
        """Poll a job as often as the replies ask for, from the one that accepted it on."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            await asyncio.sleep(float(reply.headers["Retry-After"]))
            sent = time.monotonic()
            reply = await self._kept.get(f"/v1/responses/{job_id}")
            self.polls.append((sent, time.monotonic() - sent))
            status = reply.json()["status"]
            if status in _ENDED:
                return
            if status == "failed":
                raise ExpectedError(f"the job {job_id} failed: {reply.json()['error']}")
            if cancels:
                await self._kept.post(f"/v1/responses/{job_id}/cancel")
        raise ExpectedError(f"the job {job_id} did not end within {TIMEOUT:g} seconds")

    async def _read(self, job_id: str) -> None:
        """Read a job's event stream to its end."""
        last = ""
        async with self._fresh.stream("GET", f"/v1/responses/{job_id}?stream=true") as reply:
            async for line in reply.aiter_lines():
                if line.startswith("event: "):
                    last = line.removeprefix("event: response.")
        if last not in _ENDED:
            raise ExpectedError(f"the event stream of {job_id} ended with {last!r}")
