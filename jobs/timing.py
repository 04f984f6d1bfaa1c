"""How often workers show that they are alive, and what follows if they do not. All in seconds."""

from __future__ import annotations

#: Seconds between two heartbeats of a worker.
HEARTBEAT_INTERVAL = 5.0
#: Seconds for which a claim or a heartbeat extends a lease. With a sweep every `SWEEP_INTERVAL`, the stages of a
#: crashed worker return to the queue well within the promised 30 seconds.
LEASE = 15.0
#: Seconds between two sweeps of a worker.
SWEEP_INTERVAL = 5.0
#: Seconds after its last heartbeat for which a worker counts as alive.
ALIVE_FOR = 20.0

#: Seconds by which a time in the database lies later than any that is written now, if the clock was set back since.
FUTURE_MARGIN = 5.0

#: For durations that are set in days.
SECONDS_PER_DAY = 86_400.0
