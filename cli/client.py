"""A client of a running server, for the commands that need one."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import httpx2

from cli.errors import ExpectedError, UnreachableError
from jobs.http_clients import make_client

#: Seconds between attempts to reconnect.
RECONNECT_DELAY = 1.0
#: Seconds that a server may be unreachable before the client gives up.
RECONNECT_TIMEOUT = 60.0
#: The maximum number of jobs of one page.
PAGE = 100
#: The events that end a stream.
FINAL = ("response.completed", "response.incomplete", "response.failed")


class Client:
    """Calls one server."""

    def __init__(self, url: str, api_key: str | None = None, *, option: str = "") -> None:
        """
        Args:
            url: of the server.
            api_key: to send with each request.
            option: the option that names the same server in another command, with a space before it, if it needs one.
        """
        self.url = url.rstrip("/")
        self.option = option
        self._http = make_client(
            base_url=self.url,
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx2.Timeout(30, read=60),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def page(self, job_id: str) -> str:
        """Return the address of a job's page."""
        return f"{self.url}/jobs/{_checked(job_id)}"

    def submit(self, body: dict[str, Any]) -> str:
        """Submit a question and return the job's id.

        If the reply is lost, the question is sent again. Its idempotency key makes sure that it is asked once.
        """
        question = {**body, "background": True}
        headers = {"Idempotency-Key": secrets.token_urlsafe()}
        for is_last in (False, False, True):
            try:
                reply = self._call("POST", "/v1/responses", json=question, headers=headers)
            except httpx2.TransportError as error:
                if is_last or isinstance(error, httpx2.ConnectError):
                    raise self._unreachable(error) from error
                time.sleep(RECONNECT_DELAY)  # The server may be restarting.
            except UnicodeEncodeError as error:
                raise ExpectedError("the question is not UTF-8") from error
            except ValueError as error:
                raise ExpectedError(f"the question cannot be sent: {error}") from error
            else:
                return str(reply["id"])
        raise AssertionError("the last attempt returns or raises")

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job, and return its response."""
        return self._reach("POST", f"/v1/responses/{_checked(job_id)}/cancel")

    def list_jobs(
        self, parameters: dict[str, str], limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the jobs of a list, page by page.

        Args:
            parameters: of ``GET /api/jobs``.
            limit: the maximum number of jobs; None for all.
        """
        left = sys.maxsize if limit is None else limit
        options: dict[str, Any] = {"params": {**parameters, "limit": min(left, PAGE)}}
        path = "/api/jobs"
        while True:
            page = self._reach("GET", path, **options)
            yield from page["data"][:left]
            left -= len(page["data"])
            if left <= 0 or page["next"] is None:
                return
            path, options = page["next"], {}

    def place(self, job_id: str) -> dict[str, Any]:
        """Return a job's place in the queue; nothing if it cannot be had."""
        try:
            return self._call("GET", f"/api/jobs/{_checked(job_id)}/place")
        except (ExpectedError, httpx2.TransportError):
            return {}

    def readiness(self) -> dict[str, Any]:
        """Return what the server can reach, whether it is ready or not."""
        try:
            data: dict[str, Any] = self._http.get("/readyz").json()
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise ExpectedError(f"{self.url} is not a HelixQ server: check the URL") from error
        return data

    def system(self) -> dict[str, Any]:
        """Return what runs and what waits."""
        return self._reach("GET", "/api/system")

    def pause(self, note: str | None) -> dict[str, Any]:
        """Pause the queue; return the pause, and whether it is new."""
        return self._reach("POST", "/api/system/pause", json={"note": note})

    def resume(self) -> dict[str, Any]:
        """Resume the queue; return the last pause, and whether it has ended now."""
        return self._reach("POST", "/api/system/resume")

    def replay(self, job_id: str) -> str:
        """Submit a job again; return the id of the job that replays it."""
        return str(self._reach("POST", f"/api/jobs/{_checked(job_id)}/replay")["id"])

    def retry(self, job_id: str) -> dict[str, Any]:
        """Let a failed job go on, and return its summary."""
        return self._reach("POST", f"/api/jobs/{_checked(job_id)}/retry")

    def history(self, job_id: str) -> dict[str, Any]:
        """Return the history of a job."""
        return self._reach("GET", f"/api/jobs/{_checked(job_id)}")

    def review(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Add a review of a job; return it."""
        return self._reach("POST", f"/api/jobs/{_checked(job_id)}/reviews", json=body)

    def review_queue(self, parameters: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return jobs to review next."""
        data: list[dict[str, Any]] = self._reach("GET", "/api/reviews/queue", params=parameters)[
            "data"
        ]
        return data

    def agreement(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return how far reviewers agree."""
        return self._reach("GET", "/api/reviews/agreement", params=parameters)

    def statistics(self, parameters: Mapping[str, str]) -> dict[str, Any]:
        """Return statistics of jobs that have ended."""
        return self._reach("GET", "/api/stats", params=parameters)

    def erase(self, job_id: str, texts: list[str] | str) -> dict[str, Any]:
        """Erase texts of a job; return which were."""
        return self._reach("POST", f"/api/jobs/{_checked(job_id)}/erase", json={"texts": texts})

    def erase_matching(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the steps of erasing texts of the jobs that a filter matches, or with ``dry_run`` of counting them."""
        after = None
        while True:
            step = self._reach("POST", "/api/jobs/erase", json={**body, "after": after})
            yield step
            if (after := step["after"]) is None:
                return

    def delete(self, job_id: str) -> dict[str, Any]:
        """Delete a job; return its id, and that it is deleted."""
        return self._reach("DELETE", f"/api/jobs/{_checked(job_id)}")

    def delete_matching(self, body: dict[str, Any]) -> int:
        """Delete the jobs that a filter matches, or with ``dry_run`` only count them; return their number."""
        count, after = 0, None
        while True:
            step = self._reach("POST", "/api/jobs/delete", json={**body, "after": after})
            count += int(step["matched"])
            if (after := step["after"]) is None:
                return count

    def export(self, parameters: Mapping[str, str]) -> Iterator[bytes]:
        """Yield the file that an export is.

        Raises:
            ExpectedError: the server cannot be reached, or breaks off before the end of the file.
        """
        begun = False
        try:
            with self._http.stream("GET", "/api/jobs/export", params=parameters) as reply:
                if reply.status_code != 200:
                    reply.read()
                    raise _error(reply)
                begun = True
                yield from reply.iter_bytes()
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            if not begun:
                raise self._unreachable(error) from error
            raise ExpectedError(
                f"the export was cut off and is incomplete ({error}): run it again"
            ) from error

    def proof(self, job_id: str, **parameters: str) -> str:
        """Return the proof that a job, a ``review`` or an ``erasure`` of it is in the transparency log."""
        try:
            return self._request(
                "GET", f"/api/jobs/{_checked(job_id)}/proof", params=parameters
            ).text
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def events(
        self,
        job_id: str,
        *,
        on_loss: Callable[[float], None] = lambda _seconds: None,
        on_return: Callable[[], None] = lambda: None,
    ) -> Iterator[dict[str, Any]]:
        """Follow a job's events to the end, reconnecting when needed.

        Args:
            job_id: of the job.
            on_loss: called when the connection is lost, with the seconds for which it is tried again.
            on_return: called when it is back.

        Raises:
            UnreachableError: the server is unreachable for longer than `RECONNECT_TIMEOUT` seconds.
        """
        last = -1
        lost_at: float | None = None
        while True:
            try:
                for event in self._events(job_id, last):
                    if lost_at is not None:
                        lost_at = None
                        on_return()
                    if event is None:
                        continue
                    last = event["sequence_number"]
                    yield event
                    if event["type"] in FINAL:
                        return
                # The server closed the stream: it is shutting down, or there are no more events.
                response = self._call("GET", f"/v1/responses/{_checked(job_id)}")
                if response["status"] not in ("queued", "in_progress"):
                    yield {"type": FINAL[0], "response": response}
                    return
            except (httpx2.TransportError, UnreachableError) as error:
                if lost_at is None:
                    lost_at = time.monotonic()
                    on_loss(RECONNECT_TIMEOUT)
                elif time.monotonic() - lost_at > RECONNECT_TIMEOUT:
                    raise self._unreachable(error) from error
            time.sleep(RECONNECT_DELAY)  # The server may be restarting.

    def _events(self, job_id: str, after: int) -> Iterator[dict[str, Any] | None]:
        """Yield None once the stream has begun, and then its events."""
        params = {"stream": "true", "starting_after": str(after)}
        with self._http.stream("GET", f"/v1/responses/{_checked(job_id)}", params=params) as reply:
            if reply.status_code != 200:
                reply.read()
                raise _error(reply)
            yield None
            for event in httpx2.EventSource(reply):
                yield json.loads(event.data)

    def _reach(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """As `_call`. A server that does not answer is an `ExpectedError`."""
        try:
            return self._call(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        reply = self._request(method, path, **options)
        try:
            data: dict[str, Any] = reply.json()
        except ValueError as error:
            raise ExpectedError(_strange(reply)) from error
        return data

    def _request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        reply = self._http.request(method, path, **options)
        if reply.status_code >= 400:
            raise _error(reply)
        return reply

    def _unreachable(self, error: Exception) -> UnreachableError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return UnreachableError(
                f"{self.url} cannot be trusted ({error}): SSL_CERT_FILE should name the authority that signed its "
                "certificate, and the URL should have a name that the certificate has"
            )
        return UnreachableError(
            f"no server answers at {self.url} ({error}): start one with `make run` or "
            "`helixq up`, or give another address with --url"
        )


def _error(reply: httpx2.Response) -> ExpectedError:
    try:
        data = reply.json()
        message = str(data["detail"] if "detail" in data else data["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = _strange(reply)
    else:
        if reply.status_code == 401:
            # What follows the first sentence is for those who write HTTP clients.
            message = f"{message.partition('. ')[0].rstrip('.')}. Set HELIXQ_API_KEY to a key that `helixq keys create` made."
    return UnreachableError(message) if reply.status_code >= 500 else ExpectedError(message)


def _strange(reply: httpx2.Response) -> str:
    return f"the server responded with status {reply.status_code}, but not as HelixQ does: check the URL"


def _checked(job_id: str) -> str:
    """Return the id of a job. What is none could name another path.

    Raises:
        ExpectedError: it is none.
    """
    if not re.fullmatch("resp_[0-9a-z]+", job_id):
        raise ExpectedError(f"{job_id!r} is not the id of a job: these begin with `resp_`")
    return job_id
