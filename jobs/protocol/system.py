"""What runs and what waits, as JSON."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import Field

from jobs.models import AttemptStatus, Pause
from jobs.pipeline import Role
from jobs.protocol.base import RequestObject
from jobs.times import rfc3339
from jobs.use_cases.system import RunningWorker, System

#: What workers say that they use.
USAGE = (
    "resident_memory_bytes",
    "gpu_memory_bytes",
    "gpu_memory_used_bytes",
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_blocks",
    "kv_cache_blocks_used",
)
#: The maximum number of characters of a pause's note.
MAX_NOTE = 500


class PauseQueue(RequestObject):
    """The body of ``POST /api/system/pause``."""

    note: str | None = Field(default=None, max_length=MAX_NOTE)


def system_object(system: System, database: str) -> dict[str, Any]:
    """Return the reply of ``GET /api/system``.

    Args:
        system: what runs and what waits.
        database: the name of the kind of database.
    """
    pauses = [pause_object(pause) for pause in system.pauses]
    return {
        "at": rfc3339(system.now),
        "version": version("helixq"),
        "database": database,
        "workers": [worker_object(worker) for worker in system.workers],
        "queue": {
            "queued": system.queued,
            "paused": next((pause for pause in pauses if pause["resumed_at"] is None), None),
            "oldest_at": rfc3339(system.oldest_queued_at),
            "stages": {
                role: {"running": system.running[role], "waiting": system.waiting[role]}
                for role in Role
            },
            "owners": [
                {"owner": owner, "queued": queued, "in_progress": begun}
                for owner, (queued, begun) in system.owners.items()
            ],
        },
        "pauses": pauses,
        "attempts": {
            "last": sum(system.attempts.values()),
            "lost": system.attempts.get(AttemptStatus.LOST, 0),
            "released": system.attempts.get(AttemptStatus.RELEASED, 0),
        },
        "webhooks": {"pending": system.deliveries},
        "log": {
            "origin": system.log_origin,
            "size": system.log_size,
            "unsealed": system.unsealed,
            "checkpoint_at": rfc3339(system.checkpoint_at),
        },
    }


def pause_object(pause: Pause) -> dict[str, Any]:
    """Return a pause of the queue."""
    return {
        "paused_at": rfc3339(pause.paused_at),
        "paused_by": pause.paused_by,
        "note": pause.note,
        "resumed_at": rfc3339(pause.resumed_at),
        "resumed_by": pause.resumed_by,
    }


def worker_object(running: RunningWorker) -> dict[str, Any]:
    """Return a worker of the reply."""
    worker = running.worker
    runtime, usage = worker.runtime, worker.usage or {}
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "state": running.state,
        "started_at": rfc3339(worker.started_at),
        "ready_at": rfc3339(worker.ready_at),
        "seen_at": rfc3339(worker.seen_at),
        "running": running.running,
        "slots": runtime.get("engine_config", {}).get("slots"),
        "usage": {name: usage.get(name) for name in USAGE},
        "context": worker.context,
        "model": f"sha256:{worker.model}",
        "base": runtime.get("base", {}).get("name"),
        "adapters": {
            role: adapter.get("name") for role, adapter in runtime.get("adapters", {}).items()
        },
        "engine": runtime.get("engine"),
        "device": runtime.get("device_name") or runtime.get("device"),
        "versions": runtime.get("versions", {}),
    }
