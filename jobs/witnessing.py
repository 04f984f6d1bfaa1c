"""The duty that asks witnesses to cosign the log's checkpoints, each on a thread of its own: one that is away delays nobody."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence

from jobs.database import Database
from jobs.duties import JITTER, Duty, DutyThread
from jobs.setting_values import Witness
from jobs.tlog.cosignature import Cosigner, read_reply, request
from jobs.tlog.note import NoteError
from jobs.use_cases import witnessing
from jobs.use_cases.witnessing import Asking

log = logging.getLogger(__name__)

#: Seconds between two checks for a checkpoint that a witness has not cosigned.
INTERVAL = 1.0
#: Seconds that a witness may take for each piece of its reply, and for all of it.
TIMEOUT, MAX_TIME = 5.0, 15.0
#: Seconds for which a process keeps a witness to itself: longer than all its requests take.
LEASE = 60.0
#: The maximum number of bytes of a reply.
MAX_REPLY = 1 << 16
#: How often a witness is asked again at once after it replied that it has cosigned a tree of another size.
MAX_CONFLICTS = 2
#: What a status means. The messages follow the name of the witness.
_REASONS = {
    403: "does not trust the key that signs this log",
    404: "does not know this log: let its operator add the log's name and public key",
    422: "found that the log does not continue what it has cosigned before",
}


class WitnessError(Exception):
    """A witness has not cosigned. The message follows its name."""


class Witnessing:
    """The witnesses that a process asks."""

    def __init__(self, database: Database, witnesses: Sequence[Witness]) -> None:
        """
        Args:
            database: of the log.
            witnesses: to ask; none in most deployments.
        """
        self.threads = [WitnessThread(database, witness) for witness in witnesses]

    def start(self) -> None:
        """Begin to ask them."""
        for thread in self.threads:
            thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """End it; return whether all replies that were waited for have come.

        Args:
            timeout: the maximum number of seconds to wait for each; None for no maximum.
        """
        for thread in self.threads:
            thread.stopped.set()
        ended = [thread.stop(timeout) for thread in self.threads]
        return all(ended)


class WitnessThread(DutyThread):
    """Asks one witness."""

    def __init__(self, database: Database, witness: Witness) -> None:
        self._database = database
        self._url = f"{witness.url.rstrip('/')}/add-checkpoint"
        self._key = Cosigner.parse(witness.key)
        #: Why it does not cosign, so that it is said once.
        self._failure: str | None = None
        from jobs.http_clients import make_client  # Here, since most processes ask no witness.

        self._http = make_client(timeout=TIMEOUT)
        super().__init__(
            f"witness {self._key.name}",
            [Duty(INTERVAL, self.ask)],
            jitter=JITTER,
            finish=self._http.close,
        )

    def ask(self) -> None:
        """Let the witness cosign the newest checkpoint, if it has not."""
        label = self._key.label
        asking = witnessing.begin_asking(self._database, label, LEASE)
        if asking is None:
            return
        for _ in range(MAX_CONFLICTS + 1):
            try:
                line = self._post(asking)
            except _ConflictError as error:
                asking = asking._replace(old_size=error.size)
                reason = "changes its mind about what it has cosigned"
                if error.size > asking.size:
                    reason = f"has cosigned {error.size} entries, and the log has {asking.size}: it was set back"
                    break
            except WitnessError as error:
                reason = str(error)
                break
            else:
                witnessing.cosigned(self._database, label, asking.size, line)
                if self._failure is not None:
                    log.info("the witness %s cosigns the log again", self._key.name)
                self._failure = None
                return
        if reason != self._failure:
            log.warning("the witness %s %s", self._key.name, reason)
        self._failure = reason
        size = min(asking.old_size, asking.size)
        witnessing.failed(self._database, label, size, asking.failures + 1)

    def _post(self, asking: Asking) -> str:
        """Ask the witness; return its cosignature.

        Raises:
            WitnessError: it has not cosigned.
        """
        proof = witnessing.prove_consistency(self._database, asking.old_size, asking.size)
        body = request(asking.old_size, proof, asking.note)
        status, reply = self._reply(body)
        if status == 409 and re.fullmatch(r"(0|[1-9][0-9]{0,18})\n?", reply):
            raise _ConflictError(int(reply))
        if status != 200:
            raise WitnessError(_REASONS.get(status, f"replied with the status {status}"))
        try:
            return read_reply(asking.note, reply, self._key)
        except NoteError as error:
            raise WitnessError(f"cannot be trusted: {error}") from error

    def _reply(self, body: bytes) -> tuple[int, str]:
        """Send a request; return status and text of the reply.

        Raises:
            WitnessError: there is none.
        """
        import httpx2

        end, data = time.monotonic() + MAX_TIME, b""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        try:
            with self._http.stream("POST", self._url, content=body, headers=headers) as reply:
                for piece in reply.iter_bytes():
                    data += piece
                    if len(data) > MAX_REPLY or time.monotonic() > end:
                        raise WitnessError("sends a reply without end")
                return reply.status_code, data.decode(errors="replace")
        except httpx2.HTTPError as error:
            kind = type(error).__name__
            raise WitnessError(f"does not respond ({str(error) or kind})") from error


class _ConflictError(Exception):
    """The witness has cosigned a tree of another size."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size
