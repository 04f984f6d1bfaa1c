"""The engine of servers elsewhere: each request becomes a streamed completion of one of them."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
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
from worker.engine.tokenization.stop_strings import StopStrings
from worker.remote.errors import RefusedError, UnavailableError
from worker.remote.server import raise_if_error
from worker.remote.servers import Member, Servers

log = logging.getLogger(__name__)

#: Seconds that a request is tried, counted from its first failure, while servers are away or busy.
MAX_OUTAGE = 600.0
#: Tries of a request at which servers fail.
MAX_FAULTS = 5
#: Seconds before the second try; doubled with each, up to the second number.
FIRST_DELAY, MAX_DELAY = 0.5, 15.0
#: Servers' words for why a text ended: OpenAI's, and TGI's.
_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP_STRING,
    "length": FinishReason.LENGTH,
}

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


@dataclass
class _Progress:
    """What is known of a request's text so far."""

    max_tokens: int
    deltas: list[str] = field(default_factory=list)
    first_token_at: float | None = None
    finish_reason: str | None = None
    #: Looks for the stop strings, if there are any.
    stop: StopStrings | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    #: Why it must not go on, if its server does not respond any more.
    interrupted: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.stop is not None and self.stop.found

    def completion(self, reason: FinishReason) -> Completion:
        if self.stop is not None and (held := self.stop.finish()):
            self.deltas.append(held)
        prompt_tokens = _number(self.usage.get("prompt_tokens"))
        output_tokens = _number(self.usage.get("completion_tokens"))
        return Completion(
            text="".join(self.deltas),
            deltas=self.deltas,
            prompt_tokens=prompt_tokens or 0,
            output_tokens=output_tokens or 0,
            finish_reason=reason,
            max_output_tokens=self.max_tokens,
            first_token_at=self.first_token_at,
            tokens_known=prompt_tokens is not None and output_tokens is not None,
        )


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
                generation.finish(self._stopped(generation, _Progress(max_tokens)))

        generation = _RemoteGeneration(request, cancel)
        self._loop.soon(start)
        return generation

    def close(self) -> None:
        async def close() -> None:
            self._closed = True
            tasks = [*self._tasks, self._watching]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._servers.close()

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
        progress = _Progress(max_tokens)
        outcome: Completion | EngineError
        deadline = generation.request.deadline
        limit = asyncio.timeout_at(None if deadline == math.inf else deadline)
        try:
            async with limit:
                outcome = await self._generate(generation, progress)
        except asyncio.CancelledError:
            if progress.interrupted is not None and not generation.cancelled:
                outcome = InterruptedGenerationError(progress.interrupted)
            else:
                outcome = self._stopped(generation, progress)
        except TimeoutError:
            outcome = progress.completion(FinishReason.DEADLINE)
        except EngineError as error:
            outcome = error
        except Exception as error:  # whatever it is, only this request fails
            log.exception("a request failed")
            outcome = EngineError(f"{type(error).__name__}: {error}")
        generation.finish(outcome)

    def _stopped(self, generation: Generation, progress: _Progress) -> Completion | EngineError:
        """Return how a generation ends whose task was cancelled."""
        if self._closed and not generation.cancelled:
            return EngineError("the engine was closed")
        return progress.completion(FinishReason.CANCELLED)

    async def _generate(self, generation: Generation, progress: _Progress) -> Completion:
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
            except UnavailableError as error:
                if progress.stopped:
                    return progress.completion(FinishReason.STOP_STRING)
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
        self, generation: Generation, progress: _Progress, member: Member
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
            except RefusedError as error:
                if progress.deltas or not error.is_about_context:
                    raise
                request = generation.request
                tokens = await member.server.count_tokens(request.role, request.prompt)
                room = None if tokens is None else self._room(request, tokens)
                if room is None or room >= progress.max_tokens:
                    raise ContextExceededError(f"{member.url} says: {error.message}") from error
                progress.max_tokens = room
                return await self._stream(generation, progress, member)
        except RefusedError as error:
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
        except UnavailableError as error:
            if error.unreachable:
                self._servers.failed(member)
            else:
                member.check_now.set()  # It may have been replaced by another one.
            raise
        finally:
            del member.running[task]

    async def _stream(
        self, generation: Generation, progress: _Progress, member: Member
    ) -> Completion:
        request = generation.request
        progress.finish_reason = None
        progress.stop = StopStrings(request.sampling.stop) if request.sampling.stop else None
        async with member.server.complete(
            request.role,
            request.prompt,
            request.sampling,
            progress.max_tokens,
            trace_headers=request.trace_headers,
        ) as stream:
            async for event in stream:
                raise_if_error(event, self._api_key)
                if not self._take(event, generation, progress):
                    break
        if progress.stopped:
            return progress.completion(FinishReason.STOP_STRING)
        reason = progress.finish_reason
        if reason is None or reason == "abort":
            raise UnavailableError(f"{member.url} ended the text before its end", fault=True)
        if reason not in _FINISH_REASONS:
            raise EngineError(f"{member.url} ended the text: {reason}")
        if progress.stop is not None:
            self._emit(progress.stop.finish(), generation, progress)
        return progress.completion(_FINISH_REASONS[reason])

    def _take(self, event: dict[str, Any], generation: Generation, progress: _Progress) -> bool:
        """Take the text, the reason of its end, and the numbers of tokens from an event of a stream.

        Returns:
            whether to go on. TGI and `transformers serve` return the stop string, too, and then end. A server that goes
            on after it knows no stop strings; what it generates is not needed.
        """
        if isinstance(event.get("usage"), dict):
            progress.usage = event["usage"]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if progress.first_token_at is None:
                progress.first_token_at = time.monotonic()
            if text := _valid(choice.get("text") or ""):
                if progress.stopped:
                    return False
                before = text if progress.stop is None else progress.stop.push(text)
                self._emit(before, generation, progress)
            progress.finish_reason = choice.get("finish_reason") or progress.finish_reason
            # vLLM and SGLang name the string. Others say "stop" of a stop token, too.
            if isinstance(choice.get("stop_reason") or choice.get("matched_stop"), str):
                progress.finish_reason = "stop_sequence"
        return True

    def _emit(self, text: str, generation: Generation, progress: _Progress) -> None:
        if text:
            progress.deltas.append(text)
            generation.emit(text)


def _valid(text: str) -> str:
    """Return a text with lone surrogates, which no database takes, replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
