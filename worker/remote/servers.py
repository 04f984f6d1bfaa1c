"""Several servers of the same models: which of them are healthy, and which runs the fewest requests."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from worker.remote.description import Description
from worker.remote.errors import RemoteError, ServerRefusedError, ServerUnavailableError
from worker.remote.server import Server

log = logging.getLogger(__name__)

#: Seconds between two checks of a server.
CHECK_INTERVAL = 5.0
#: Seconds between a failed connection and a check, so that a server is not checked all the time.
MIN_CHECK_INTERVAL = 0.2
#: Failed checks in a row after which a server counts as hanging: its requests are interrupted.
MAX_FAILED_CHECKS = 3
#: Seconds between two warnings that no server responds.
LOG_INTERVAL = 10.0


class Member:
    """One of the servers, and its state."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.usable = False
        #: Whether it responds, but serves other models than the worker has registered.
        self.differs = False
        self.failed_checks = 0
        #: Set to have it checked at once.
        self.check_now = asyncio.Event()
        #: The requests that it runs; each is interrupted by a call.
        self.running: dict[object, Callable[[str], None]] = {}

    @property
    def url(self) -> str:
        return self.server.url


class Servers:
    """The servers of one worker. All its coroutines run on one event loop."""

    def __init__(self, servers: Sequence[Server], on_changed: Callable[[str], None]) -> None:
        """
        Args:
            servers: at least one.
            on_changed: called once no server serves any longer what `start` returned.
        """
        self._members = [Member(server) for server in servers]
        self._on_changed = on_changed
        self._identity: Any = None
        self._descriptions: dict[str, Description] = {}
        self._usable = asyncio.Condition()
        self._reported_change = False

    @property
    def descriptions(self) -> dict[str, Description]:
        """What each server said when it was last found usable, by its address."""
        return dict(self._descriptions)

    async def start(self) -> Description:
        """Wait until a server responds; return what the first one says. The others must say the same.

        Raises:
            RemoteError: a server refuses the API key or a model, or two serve different models.
        """
        logged_at = float("-inf")
        loop = asyncio.get_running_loop()
        while True:
            found = await asyncio.gather(*(self._describe(member) for member in self._members))
            described = [d for d in found if isinstance(d, Description)]
            for member, outcome in zip(self._members, found, strict=True):
                if isinstance(outcome, Description):
                    self._check_same(member, outcome, described[0])
                    member.usable = True
                    self._descriptions[member.url] = outcome
            if described:
                self._identity = described[0].identity
                for outcome in found:
                    if isinstance(outcome, ServerUnavailableError):
                        log.warning("a server is not used until it responds: %s", outcome)
                return described[0]
            if loop.time() - logged_at >= LOG_INTERVAL:
                reasons = "; ".join(str(outcome) for outcome in found)
                log.warning("waiting for the server of HELIXQ_ENGINE_URL: %s", reasons)
                logged_at = loop.time()
            await asyncio.sleep(1)

    async def _describe(self, member: Member) -> Description | ServerUnavailableError:
        try:
            return await member.server.describe()
        except ServerUnavailableError as error:
            return error
        except ServerRefusedError as error:
            if error.status in (401, 403):
                raise RemoteError(
                    f"{member.url} refuses the API key ({error.status}: {error.message}); "
                    "check HELIXQ_ENGINE_API_KEY"
                ) from error
            raise RemoteError(
                f"{member.url} refuses a request ({error.status}: {error.message}); "
                "check HELIXQ_ENGINE_URL and the names in HELIXQ_ADAPTERS"
            ) from error

    def _check_same(self, member: Member, description: Description, first: Description) -> None:
        if description.identity != first.identity:
            raise RemoteError(
                f"The servers of HELIXQ_ENGINE_URL serve different models: {member.url} says "
                f"{description.identity}, and another one says {first.identity}"
            )

    async def watch(self) -> None:
        """Check all servers at intervals, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for member in self._members:
                group.create_task(self._watch(member))

    async def _watch(self, member: Member) -> None:
        while True:
            # `asyncio.wait_for` of Python 3.11 returns, and forgets a cancellation, if that comes
            # just after the event: the checks would never end.
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await member.check_now.wait()
                await asyncio.sleep(MIN_CHECK_INTERVAL)
            member.check_now.clear()
            await self._check(member)
            async with self._usable:
                self._usable.notify_all()
            if self._reported_change or any(other.usable for other in self._members):
                continue
            if changed := [other.url for other in self._members if other.differs]:
                self._reported_change = True
                self._on_changed(f"{' and '.join(changed)} serves another model than at the start")

    async def _check(self, member: Member) -> None:
        """Check one server: whether it responds, and with the models that the worker has registered."""
        try:
            if member.usable:
                listed = await member.server.list_models()
                served = listed.served(member.server.models)
                expected = {role: of for role, of in self._identity[0].items() if role != "base"}
                same = served == expected or not listed.answered
            else:
                description = await member.server.describe()
                same = description.identity == self._identity
                if not same and not description.listed:
                    raise ServerUnavailableError(f"{member.url} does not list its models")
                if same:
                    self._descriptions[member.url] = description
        except Exception as error:
            # Whatever it is: without the checks nobody would see that servers end, and that they are back.
            if not isinstance(error, ServerUnavailableError | ServerRefusedError):
                log.exception("%s could not be checked", member.url)
            member.failed_checks += 1
            if member.failed_checks == MAX_FAILED_CHECKS:
                log.warning("a server is not used until it responds: %s", error)
                member.usable = False
                for interrupt in list(member.running.values()):
                    interrupt(f"{member.url} does not respond")
            return
        member.failed_checks = 0
        if same and not member.usable:
            log.info("%s is used", member.url)
        if not same and not member.differs:
            log.error("%s serves another model than at the start, and is not used", member.url)
        member.usable, member.differs = same, not same

    def failed(self, member: Member) -> None:
        """Take a server out until it responds: a connection to it failed."""
        if member.usable:
            log.warning("%s cannot be connected to, and is not used until it can", member.url)
        member.usable = False
        member.check_now.set()

    async def pick(self, avoid: Member | None) -> Member:
        """Return the usable server that runs the fewest of this worker's requests; wait until there is one.

        Args:
            avoid: a server that comes last, since it has just failed.
        """
        async with self._usable:
            while not (usable := [m for m in self._members if m.usable]):
                await self._usable.wait()
        return min(usable, key=lambda m: (m is avoid, len(m.running), random.random()))

    async def close(self) -> None:
        for member in self._members:
            await member.server.close()
