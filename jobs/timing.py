"""How often workers show that they are alive, and what follows if they do not. All in seconds."""

from __future__ import annotations

#: Between two heartbeats of a worker.
HEARTBEAT_INTERVAL = 5.0
#: For which a claim or a heartbeat extends a lease. With a sweep at `SWEEP_INTERVAL`, the stages of a
#: crashed worker are back well within the promised 30.
LEASE = 15.0
#: Between two sweeps of a worker.
SWEEP_INTERVAL = 5.0
#: After its last heartbeat, for which a worker counts as alive.
ALIVE_FOR = 20.0
