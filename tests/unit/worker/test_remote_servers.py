"""The checks of servers elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from jobs.pipeline import Role
from tests.servers import PATIENCE
from worker.remote.server import Server
from worker.remote.servers import Servers


@pytest.mark.parametrize("turns", range(6))
def test_the_checks_end_when_a_server_fails_just_before(turns: int) -> None:
    """However many turns of the event loop before."""

    async def fail_and_cancel() -> bool:
        server = Server("http://127.0.0.1:1/v1", dict.fromkeys(Role, "model"), None)
        servers = Servers([server], lambda _: None)
        [member] = servers._members
        watching = asyncio.create_task(servers.watch())
        for _ in range(10):
            await asyncio.sleep(0)  # It waits for the next check.
        servers.failed(member)
        for _ in range(turns):
            await asyncio.sleep(0)
        watching.cancel()
        done, _ = await asyncio.wait([watching], timeout=PATIENCE)
        await servers.close()
        return bool(done)

    assert asyncio.run(fail_and_cancel())
