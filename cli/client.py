"""A client of a running server, for the commands that ask."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, Self

import httpx2

from cli.errors import ExpectedError

#: Seconds between tries after a connection was lost half way.
RECONNECT_DELAY = 1.0


class Client:
    """Speaks to one server's ``/v1``."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._http = httpx2.Client(
            base_url=f"{self._url}/v1", timeout=httpx2.Timeout(30, read=60), trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit(self, body: dict[str, Any]) -> str:
        """Submit a question and return the job's id."""
        reply = self._call("POST", "/responses", json={**body, "background": True})
        return str(reply["id"])

    def cancel(self, job_id: str) -> None:
        self._call("POST", f"/responses/{job_id}/cancel")

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Follow a job's events to the end, over lost connections."""
        last = -1
        while True:
            try:
                for event in self._events(job_id, last):
                    last = event["sequence_number"]
                    yield event
                    if "response" in event and event["type"] in FINAL:
                        return
            except httpx2.TransportError:
                pass  # the next try says if the server is gone for good
            time.sleep(RECONNECT_DELAY)  # the server may be starting again

    def _events(self, job_id: str, after: int) -> Iterator[dict[str, Any]]:
        params = {"stream": "true", "starting_after": str(after)}
        path = f"/responses/{job_id}"
        try:
            with self._http.stream("GET", path, params=params) as reply:
                if reply.status_code >= 500:
                    return  # the database may be back in a moment
                if reply.status_code != 200:
                    reply.read()
                    raise ExpectedError(_message(reply))
                for event in httpx2.EventSource(reply):
                    yield json.loads(event.data)
        except httpx2.ConnectError as error:
            raise self._unreachable(error) from error

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            reply = self._http.request(method, path, **options)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if reply.status_code >= 400:
            raise ExpectedError(_message(reply))
        data: dict[str, Any] = reply.json()
        return data

    def _unreachable(self, error: Exception) -> ExpectedError:
        return ExpectedError(
            f"no server answers at {self._url} ({error}): start one with `make run` or "
            "`helixq up`, or name one with --url"
        )


#: The events that end a stream.
FINAL = ("response.completed", "response.incomplete", "response.failed")


def _message(reply: httpx2.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered {reply.status_code}, which no HelixQ server does"
