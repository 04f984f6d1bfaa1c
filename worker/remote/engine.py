"""The engine of servers elsewhere: each request becomes a streamed completion of one of them."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import AsyncIterable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from worker.engine.interface import (
    Completion,
    ContextExceededError,
    EngineError,
    FinishReason,
    Generation,
    InterruptedGenerationError,
    Request,
)
from worker.remote.errors import ServerRefusedError, ServerUnavailableError
from worker.remote.progress import Progress
from worker.remote.server import raise_if_error
from worker.remote.servers import Member, Servers

log = logging.getLogger(__name__)

#: Seconds that a request is tried, counted from its first failure, while servers are away or busy.
MAX_OUTAGE = 600.0
#: How a text ends whose request may be tried again: its stream breaks off, its server shuts down (SGLang), or vLLM fails.
_BROKEN_OFF = (None, "abort", "error")
#: Tries of a request at which servers fail.
MAX_FAULTS = 5
#: Seconds after the end of a text for its numbers of tokens to come.
MAX_WAIT_FOR_USAGE = 5.0
#: Seconds that closing waits for requests to end, and then for connections to close.
CLOSE_TIMEOUT = 5.0
#: Seconds before the second try; doubled with each, up to the second number.
FIRST_DELAY, MAX_DELAY = 0.5, 15.0
T = TypeVar("T")


class EventLoop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; return its result. Called from other threads."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def soon(self, call: Callable[[], object]) -> None:
        """Call a function on the loop, unless it is closed."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class _RemoteGeneration(Generation):
    """A generation whose cancel interrupts its task at once, without waiting for the next piece of text."""

    def __init__(self, request: Request, on_cancel: Callable[[], None]) -> None:
        super().__init__(request)
        self._on_cancel = on_cancel

    def cancel(self) -> None:
        super().cancel()
        self._on_cancel()


class OpenAIEngine:
    """Serves requests with the servers of `HELIXQ_ENGINE_URL`. It computes nothing itself."""

    name = "openai"

    def __init__(
        self,
        loop: EventLoop,
        servers: Servers,
        *,
        max_model_len: int,
        max_num_seqs: int,
        count_tokens: Callable[[str], int] | None,
        api_key: str | None,
    ) -> None:
        """Start the engine.

        Args:
            loop: runs everything. The engine stops it.
            servers: that have been started on this loop.
            max_model_len: maximum number of tokens of prompt and output.
            max_num_seqs: maximum number of requests in flight.
            count_tokens: counts a prompt's tokens as the servers do; None if only they can.
            api_key: kept out of messages.
        """
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self._loop = loop
        self._servers = servers
        self._count_tokens = count_tokens
        self._api_key = api_key
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._watching = loop.call(self._watch())

    async def _watch(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._servers.watch())

    def submit(self, request: Request) -> Generation:
        max_tokens = request.sampling.max_output_tokens
        if self._count_tokens is not None:
            max_tokens = self._room(request, self._count_tokens(request.prompt))
        task: asyncio.Task[None] | None = None

        def cancel() -> None:
            # The loop makes calls in their order, so `start` has created the task by then.
            self._loop.soon(lambda: None if task is None else task.cancel())

        def start() -> None:
            nonlocal task
            task = asyncio.create_task(self._run(generation, max_tokens))
            self._tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not generation.finished:  # It was cancelled before its first step.
                generation.finish(self._stopped(generation, Progress(generation, max_tokens)))

        generation = _RemoteGeneration(request, cancel)
        self._loop.soon(start)
        return generation

    def close(self) -> None:
        async def close() -> None:
            self._closed = True
            tasks = [*self._tasks, self._watching]
            for task in tasks:
                task.cancel()
            _, left = await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
            if left:
                log.warning("%d tasks of the engine do not end; they are left", len(left))
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._servers.close()
            except TimeoutError:
                log.warning("connections to servers do not close; they are left")

        self._loop.call(close())
        self._loop.stop()

    def _room(self, request: Request, tokens: int) -> int:
        """Return the maximum number of new tokens after a prompt.

        Raises:
            ContextExceededError: there is no room for a single one.
        """
        room = min(request.sampling.max_output_tokens, self.max_model_len - tokens)
        if room < 1:
            raise ContextExceededError(
                f"the {request.role}'s prompt has {tokens} tokens, which leaves no room in the "
                f"model's context of {self.max_model_len}"
            )
        return room

    async def _run(self, generation: Generation, max_tokens: int) -> None:
        progress = Progress(generation, max_tokens)
        outcome: Completion | EngineError
        deadline = generation.request.deadline
        limit = asyncio.timeout_at(None if deadline == math.inf else deadline)
        try:
            async with limit:
                outcome = await self._generate(generation, progress)
        except asyncio.CancelledError:
            if progress.interrupted is None or generation.cancelled:
                outcome = self._stopped(generation, progress)
            elif progress.ended:
                outcome = progress.end()
            else:
                outcome = InterruptedGenerationError(progress.interrupted)
        except TimeoutError:
            if progress.ended:
                outcome = progress.end()
            else:
                outcome = progress.completion(FinishReason.DEADLINE)
        except EngineError as error:
            outcome = error
        except Exception as error:  # whatever it is, only this request fails
            log.exception("a request failed")
            outcome = EngineError.of(error)
        generation.finish(outcome)

    def _stopped(self, generation: Generation, progress: Progress) -> Completion | EngineError:
        """Return how a generation ends whose task was cancelled."""
        if self._closed and not generation.cancelled:
            return EngineError("the engine was closed")
        return progress.completion(FinishReason.CANCELLED)

    async def _generate(self, generation: Generation, progress: Progress) -> Completion:
        """Try servers until one has generated the text."""
        failed_at: float | None = None
        faults, delay = 0, FIRST_DELAY
        avoid: Member | None = None
        while True:
            left = MAX_OUTAGE if failed_at is None else failed_at + MAX_OUTAGE - time.monotonic()
            try:
                async with asyncio.timeout(max(left, 0)):
                    member = await self._servers.pick(avoid)
            except TimeoutError as error:
                raise EngineError(f"no server responds for {MAX_OUTAGE:g} seconds") from error
            try:
                return await self._complete(generation, progress, member)
            except ServerUnavailableError as error:
                if progress.ended:
                    return progress.end()
                if progress.deltas:
                    # The text so far cannot be taken back: the stage runs again from its beginning.
                    raise InterruptedGenerationError(str(error)) from error
                failed_at = failed_at or time.monotonic()
                faults += error.fault
                wait = random.uniform(delay / 2, delay)
                if error.retry_after is not None:
                    wait = max(wait, error.retry_after)
                if faults >= MAX_FAULTS or time.monotonic() + wait > failed_at + MAX_OUTAGE:
                    raise EngineError(f"given up after several tries: {error}") from error
                log.warning("trying again in %.1f s: %s", wait, error)
                avoid, delay = member, min(2 * delay, MAX_DELAY)
                await asyncio.sleep(wait)

    async def _complete(
        self, generation: Generation, progress: Progress, member: Member
    ) -> Completion:
        """Generate with one server. A limit that leaves the prompt no room at the server is shortened once."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a coroutine runs in a task)

        def interrupt(reason: str) -> None:
            progress.interrupted = reason
            task.cancel()

        member.running[task] = interrupt
        generation.server = member.url
        try:
            try:
                return await self._stream(generation, progress, member)
            except ServerRefusedError as error:
                if progress.deltas or not error.is_about_context:
                    raise
                request = generation.request
                tokens = await member.server.count_tokens(request.role, request.prompt)
                room = None if tokens is None else self._room(request, tokens)
                if room is None or room >= progress.max_tokens:
                    raise ContextExceededError(f"{member.url} says: {error.message}") from error
                progress.max_tokens = room
                return await self._stream(generation, progress, member)
        except ServerRefusedError as error:
            if error.is_about_context:
                raise ContextExceededError(f"{member.url} says: {error.message}") from error
            if refused := member.server.refused_parameters(error):
                # It took them at the start, so the record says that it does.
                self._servers.failed(member)
                names = " and ".join(sorted(refused))
                raise InterruptedGenerationError(
                    f"{member.url} no longer takes {names}: {error.message}"
                ) from error
            raise EngineError(
                f"{member.url} replied with {error.status}: {error.message}"
            ) from error
        except ServerUnavailableError as error:
            if error.unreachable:
                self._servers.failed(member)
            else:
                member.check_now.set()  # It may have been replaced by another one.
            raise
        finally:
            del member.running[task]

    async def _stream(
        self, generation: Generation, progress: Progress, member: Member
    ) -> Completion:
        request = generation.request
        progress.begin()
        try:
            async with member.server.complete(
                request.role,
                request.prompt,
                request.sampling,
                progress.max_tokens,
                trace_headers=request.trace_headers,
            ) as stream:
                await self._read(stream, progress)
        except ServerRefusedError:
            if not progress.ended:
                raise
        if progress.ended:
            return progress.end()
        reason = progress.finish_reason
        if reason in _BROKEN_OFF:
            raise ServerUnavailableError(f"{member.url} ended the text before its end", fault=True)
        raise EngineError(f"{member.url} ended the text: {reason}")

    async def _read(self, stream: AsyncIterable[dict[str, Any]], progress: Progress) -> None:
        """Read the events of a stream to its end, or for a moment after that of the text."""
        try:
            async with asyncio.timeout(None) as limit:
                async for event in stream:
                    raise_if_error(event, self._api_key)
                    if not progress.take(event):
                        return
                    if limit.when() is None and (progress.ended or progress.finish_reason):
                        limit.reschedule(asyncio.get_running_loop().time() + MAX_WAIT_FOR_USAGE)
        except TimeoutError:
            url = progress.generation.server
            log.warning("%s does not close the stream of a text that has ended", url)
