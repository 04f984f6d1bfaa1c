"""Registering workers, their heartbeats and stops, and finding those that are ready."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Worker, WorkerState
from jobs.statements import leases, workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What a worker serves. It is stored with everything that the worker did."""

    description: dict[str, Any]
    context: int
    #: The text of ``tokenizer.json``; empty if only the server that generates has it.
    tokenizer: str

    @cached_property
    def model(self) -> str:
        """SHA-256 over what a job's texts depend on: workers with the same one share jobs.

        That is the contents of base and adapters, dtype and quantization, how text becomes tokens, and the
        engine, since each samples in its own way. Names and hosts change no text. Devices and
        software versions may round differently, and the context only says where a text is cut,
        which its attempt records: workers that differ in these alone share jobs.

        Where a server generates, nobody here knows its weights. What it says of them takes their place
        (``served``), and which parameters it does not take.
        """
        description = self.description
        adapters = description.get("adapters", {})
        identity = {
            "base": description.get("base", {}).get("digest"),
            "adapters": {role: adapter.get("digest") for role, adapter in adapters.items()},
            "dtype": description.get("dtype"),
            "quantization": description.get("quantization"),
            "split_special_tokens": description.get("split_special_tokens", False),
            "engine": description.get("engine"),
        }
        if "served" in description:
            identity["served"] = description["served"]
            identity["omitted_parameters"] = description.get("omitted_parameters")
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


#: The digest that a worker without a tokenizer registers.
_NO_TOKENIZER = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Serving:
    """What decides whether a question fits a worker."""

    context: int
    tokenizer_digest: str
    #: Whether special tokens in a prompt are text; ``tokenizer.json`` does not say it.
    split_special_tokens: bool

    @property
    def has_tokenizer(self) -> bool:
        """Whether tokens can be counted. If not, only the server that generates can."""
        return self.tokenizer_digest != _NO_TOKENIZER


def register(database: Database, worker_id: str, host: str, pid: int, runtime: Runtime) -> None:
    """Register a worker that is loading, what it will serve, and its tokenizer."""
    digest = hashlib.sha256(runtime.tokenizer.encode()).hexdigest()
    with database.write() as connection:
        workers.add_tokenizer(connection, digest, zlib.compress(runtime.tokenizer.encode()))
        workers.add(
            connection,
            id=worker_id,
            host=host,
            pid=pid,
            runtime=runtime.description,
            model=runtime.model,
            context=runtime.context,
            tokenizer_digest=digest,
        )


def register_again(
    database: Database, worker_id: str, host: str, pid: int, runtime: Runtime
) -> None:
    """Register a worker that is ready and has no row.

    The database was restored to a time before its start, or a failover lost what was committed last; or the worker
    was silent for so long that its row was deleted.
    """
    try:
        register(database, worker_id, host, pid, runtime)
    except sa.exc.IntegrityError:
        return  # Another thread did it.
    set_state(database, worker_id, WorkerState.READY)
    log.warning("the database did not know this worker any more; it registered again")


def set_runtime(database: Database, worker_id: str, runtime: Runtime) -> None:
    """Describe what a worker serves. Its model stays the one that it was registered with."""
    with database.write() as connection:
        workers.set_runtime(connection, worker_id, runtime.description)


def set_state(database: Database, worker_id: str, state: WorkerState) -> None:
    """Set a worker's state."""
    with database.write() as connection:
        workers.set_state(connection, worker_id, state)


def heartbeat(
    database: Database,
    worker_id: str,
    running: Collection[tuple[str, int]],
    usage: Mapping[str, int] | None = None,
) -> bool:
    """Note that a worker is alive, and extend its leases on the stages that it is running.

    Args:
        database: of the jobs.
        worker_id: of the worker.
        running: (job id, lease token) of the stages that its threads are running. A lease that no
            thread knows of expires, as after a claim whose reply was lost while the worker stopped.
        usage: what it uses, by name (`jobs.protocol.schemas.system.WorkerUsage`); None if it is not known.

    Returns:
        False if the worker has no row: it can claim nothing. See `register_again`.
    """
    with database.write() as connection:
        is_registered = workers.set_seen(connection, worker_id, usage)
        if running:
            leases.extend(connection, worker_id, running)
        return is_registered


def held_leases(database: Database, worker_id: str) -> set[tuple[str, int]]:
    """Return (job id, lease token) of the stages that a worker should continue. It must stop all others."""
    with database.read() as connection:
        return leases.held_by(connection, worker_id)


def list_ready(database: Database) -> list[Worker]:
    """Return the workers that are ready and alive."""
    with database.read_session() as session:
        return workers.list_ready(session)


def any_loading(database: Database) -> bool:
    """Return whether a worker is loading its model."""
    with database.read() as connection:
        return workers.any_loading(connection)


def find_by_process(database: Database, host: str, pid: int) -> Worker | None:
    """Return the worker that a process registered, or None if it has not yet."""
    with database.read_session() as session:
        return workers.find_by_process(session, host, pid)


def list_serving(database: Database) -> list[Serving]:
    """Return what the workers that are ready serve, without duplicates.

    While none is ready, return what the newest worker serves; nothing if no worker was ever started.
    """
    with database.read() as connection:
        rows = workers.serving(connection)
    serving = [
        Serving(row.context, row.tokenizer_digest, row.runtime.get("split_special_tokens", False))
        for row in rows
    ]
    return list(dict.fromkeys(serving))


def get_tokenizer(database: Database, digest: str) -> str:
    """Return the text of a registered ``tokenizer.json``."""
    with database.read() as connection:
        return zlib.decompress(workers.get_tokenizer(connection, digest)).decode()
