"""Clients that ask while a storm rages, repeat what got no reply, and remember what they were told."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.acceptance.conftest import ENDED
from tests.acceptance.storm.service import StormyService
from tests.acceptance.storm.worker import BREAKS, KILLS
from tests.integration.batch_api.service import RESPONSES, line
from tests.servers import PATIENCE

#: Seconds between two requests of a client: at most.
MAX_PAUSE = 0.5
#: Seconds after which a client that loses a reply gives up waiting for it, and between two tries of one that got none.
IMPATIENCE, RETRY_DELAY = 0.01, 0.1
#: Seconds between two questions of a client that kill their workers: each takes three of them down.
KILL_INTERVAL = 60.0
#: The last events of a stream.
LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")
#: Replies to what cannot be done with a job as it is now.
REFUSED = (404, 409, 422)

#: What is asked again and again. Text, seed and all that a text depends on are fixed.
QUESTIONS: tuple[dict[str, Any], ...] = (
    {"input": "What is gravity?", "max_output_tokens": 3},
    {"input": "Why is the sky blue?", "max_output_tokens": 80, "temperature": 0},
    {"input": "How far is the moon?", "max_output_tokens": 60, "temperature": 1, "seed": 7},
    {"input": "What is an answer?", "max_output_tokens": 40, "rounds": 2, "seed": 8},
    {"input": "Who explains it?", "max_output_tokens": 8, "rounds": 3, "priority": 9},
    {"input": "What is air?", "max_output_tokens": 100, "instructions": "Be brief.", "top_p": 0.5},
)
#: Without a seed, each job would get another one.
QUESTIONS = tuple({"seed": 1, **question} for question in QUESTIONS)


@dataclass
class Asked:
    """A job that was accepted, and what its client knows of it."""

    id: str
    key: str
    body: dict[str, Any]
    #: Whether a request that was given up may still be on its way.
    was_repeated: bool = False
    is_deleted: bool = False
    is_erased: bool = False
    #: The final statuses that replies had since it was last retried.
    ends: set[str] = field(default_factory=set)
    #: Its stream, if it has been read.
    events: list[dict[str, Any]] | None = None

    def note(self, status: object) -> None:
        if status in ENDED:
            self.ends.add(str(status))


class Client:
    """One client: it does all that clients do, again and again, in an order that its seed determines."""

    def __init__(self, service: StormyService, name: str, seed: int, *, kills: bool) -> None:
        """
        Args:
            service: to ask.
            name: of the client.
            seed: of all that is random.
            kills: whether it asks what kills workers.
        """
        self._service = service
        self._kills = kills
        self._next_kill_at = 0.0
        self._name = name
        self._rng = random.Random(f"client {name} {seed}")
        self._numbers = itertools.count()
        self._aside = ThreadPoolExecutor()
        self._left: list[Future[None]] = []
        self.asked: list[Asked] = []
        #: Those that kill their workers. Nobody replays them: from then on, nothing would start a worker again.
        self.killing: list[Asked] = []
        #: The ids of the batches, and how many lines each has.
        self.batches: dict[str, int] = {}
        #: The ids of the replays.
        self.replays: list[str] = []
        #: The ids of the reviews.
        self.reviews: list[str] = []

    def run(self, is_over: threading.Event) -> None:
        """Do everything at least once, until the storm is over; then wait until everything that was begun has a reply.

        Raises:
            AssertionError: a reply was wrong, or none came.
        """
        acts = [self._ask, self._lose_a_reply, self._stream, self._cancel] * 2
        acts += [self._wait, self._ask_at_once, self._break, self._make_a_batch, self._delete]
        acts += [self._replay, self._review, self._erase, self._read]
        acts += [self._kill_workers] if self._kills else []
        while True:
            for act in self._rng.sample(acts, len(acts)):
                act()
                is_over.wait(self._rng.uniform(0, MAX_PAUSE))
            if is_over.is_set():
                break
        for future in self._left:
            future.result(3 * PATIENCE)
        self._aside.shutdown()

    # --- what it does -----------------------------------------------------------------

    def _ask(self, *, lose_reply: bool = False) -> None:
        key, body = self._key(), {**self._rng.choice(QUESTIONS), "background": True}
        reply = self._request("POST", RESPONSES, key, json=body, lose_reply=lose_reply)
        self._add(reply, key, body, was_repeated=lose_reply)

    def _lose_a_reply(self) -> None:
        self._ask(lose_reply=True)

    def _wait(self) -> None:
        """Wait for the answer, for a while."""
        key, body = self._key(), self._rng.choice(QUESTIONS)
        headers = {"Prefer": "wait=3"}
        self._add(self._request("POST", RESPONSES, key, json=body, headers=headers), key, body)

    def _ask_at_once(self) -> None:
        """Ask the same several times at once."""
        key, body = self._key(), {**self._rng.choice(QUESTIONS), "background": True}
        with ThreadPoolExecutor() as threads:
            ask = [threads.submit(self._request, "POST", RESPONSES, key, json=body) for _ in "123"]
            replies = [future.result() for future in ask]
        assert len({reply.json()["id"] for reply in replies}) == 1
        self._add(replies[0], key, body, was_repeated=True)

    def _stream(self) -> None:
        """Read a stream to its end, and leave it several times meanwhile."""
        key, body = self._key(), {**self._rng.choice(QUESTIONS), "stream": True}
        breaks = [self._rng.randint(1, 12) for _ in range(3)]
        self._left.append(self._aside.submit(self._follow, key, body, breaks))

    def _break(self) -> None:
        """Ask what fails once, and retry it."""
        key = self._key()
        body = {"input": f"What {BREAKS} {key}?", "max_output_tokens": 6, "background": True}
        asked = self._add(self._request("POST", RESPONSES, key, json=body), key, body)
        self._left.append(self._aside.submit(self._retry, asked, self._key()))

    def _kill_workers(self) -> None:
        """Ask what kills each worker that runs it."""
        if time.monotonic() < self._next_kill_at:
            return
        self._next_kill_at = time.monotonic() + KILL_INTERVAL
        key = self._key()
        body = {"input": f"What {KILLS} {key}?", "max_output_tokens": 60, "stream": True}
        self._left.append(self._aside.submit(self._follow, key, body, [3, 20, 40]))

    def _cancel(self) -> None:
        """Cancel one of the last jobs, whatever it is doing."""
        if asked := self._choose(3):
            reply = self._request("POST", f"{RESPONSES}/{asked.id}/cancel", may=(404,))
            if reply.status_code == 200:
                assert reply.json()["status"] in ENDED
                asked.note(reply.json()["status"])

    def _delete(self) -> None:
        # A request that is late would find its key unused, and be a new job.
        asked = self._choose(10)
        if asked and not asked.was_repeated:
            asked.is_deleted = True
            self._request("DELETE", f"{RESPONSES}/{asked.id}", may=(404,))

    def _make_a_batch(self) -> None:
        bodies = self._rng.choices(QUESTIONS, k=self._rng.randint(2, 6))
        is_cancelled = self._rng.random() < 0.3
        text = "".join(
            line(f"c{number}", **{k: v for k, v in body.items() if k != "priority"})
            for number, body in enumerate(bodies)
        )
        file = self._request(
            "POST",
            "/v1/files",
            self._key(),
            files={"file": ("in.jsonl", text.encode())},
            data={"purpose": "batch"},
        )
        body = {"input_file_id": file.json()["id"], "endpoint": RESPONSES}
        body["completion_window"] = "24h"
        reply = self._request("POST", "/v1/batches", self._key(), json=body, lose_reply=True)
        batch_id = reply.json()["id"]
        self.batches[batch_id] = len(bodies)
        if is_cancelled:
            self._request("POST", f"/v1/batches/{batch_id}/cancel")

    def _replay(self) -> None:
        if asked := self._choose(10):
            path = f"/api/jobs/{asked.id}/replay"
            reply = self._request("POST", path, self._key(), lose_reply=True, may=REFUSED)
            if reply.status_code == 202:
                self.replays.append(reply.json()["id"])

    def _review(self) -> None:
        if asked := self._choose(10):
            body = {"regeneration": self._rng.choice([-1, 0, 1]), "note": "A note."}
            path = f"/api/jobs/{asked.id}/reviews"
            reply = self._request("POST", path, self._key(), json=body, may=REFUSED)
            if reply.status_code == 201:
                self.reviews.append(reply.json()["id"])

    def _erase(self) -> None:
        if asked := self._choose(10):
            path, body = f"/api/jobs/{asked.id}/erase", {"texts": "all"}
            reply = self._request("POST", path, self._key(), json=body, may=REFUSED)
            asked.is_erased |= reply.status_code == 200

    def _read(self) -> None:
        path = self._rng.choice(["/jobs", "/api/stats", "/api/jobs?q=what", "/log/checkpoint"])
        self._request("GET", path, may=(404,))
        if asked := self._choose(10):
            reply = self._request("GET", f"{RESPONSES}/{asked.id}", may=(404,))
            if reply.status_code == 200 and BREAKS not in asked.body["input"]:
                asked.note(reply.json()["status"])

    # --- how it does it ---------------------------------------------------------------

    def _key(self) -> str:
        return f"{self._name}-{next(self._numbers)}"

    def _choose(self, last: int) -> Asked | None:
        """Return one of the last jobs that were asked by nobody aside."""
        index = self._rng.randint(1, last)
        return self.asked[-index] if index <= len(self.asked) else None

    def _add(
        self, reply: httpx2.Response, key: str, body: dict[str, Any], *, was_repeated: bool = False
    ) -> Asked:
        asked = Asked(reply.json()["id"], key, body, was_repeated)
        asked.note(reply.json()["status"])
        self.asked.append(asked)
        return asked

    def _request(
        self,
        method: str,
        path: str,
        key: str | None = None,
        *,
        lose_reply: bool = False,
        may: tuple[int, ...] = (),
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> httpx2.Response:
        """Request until there is a reply.

        Args:
            method: of the request.
            path: of the request.
            key: makes it safe to repeat the request.
            lose_reply: have the first request done, and do not wait for its reply.
            may: statuses of replies that may come, too.
            headers: further ones.
            content: of the request.
        """
        all_headers = {**(headers or {}), **({} if key is None else {"Idempotency-Key": key})}

        def send(http: httpx2.Client, **options: Any) -> httpx2.Response:
            return http.request(method, path, headers=all_headers, **content, **options)

        if lose_reply:
            with self._service.http() as http, suppress(httpx2.TransportError):
                send(http, timeout=IMPATIENCE)
        return _until_there_is_a_reply(self._service, send, (200, 201, 202, *may))

    def _follow(self, key: str, body: dict[str, Any], breaks: list[int]) -> None:
        """Read a stream from its beginning to its end.

        Args:
            key: of the request.
            body: of the request.
            breaks: after how many events it is left and resumed.
        """
        events: list[dict[str, Any]] = []
        give_up = time.monotonic() + 3 * PATIENCE
        while not events or events[-1]["type"] not in LAST_EVENTS:
            assert time.monotonic() < give_up, events[-1:]
            assert not self._service.is_given_up.is_set()
            most = breaks.pop() if breaks else None
            with suppress(httpx2.TransportError), self._service.http() as http:
                if events:
                    query = {"stream": "true", "starting_after": events[-1]["sequence_number"]}
                    path = f"{RESPONSES}/{events[0]['response']['id']}"
                    request = http.stream("GET", path, params=query)
                else:
                    headers = {"Idempotency-Key": key}
                    request = http.stream("POST", RESPONSES, json=body, headers=headers)
                with request as reply:
                    data = (text[6:] for text in reply.iter_lines() if text.startswith("data: {"))
                    if reply.status_code == 200:
                        for event in itertools.islice(data, most):
                            events.append(json.loads(event))  # noqa: PERF401 (kept if the rest is lost)
                    else:
                        assert reply.status_code in (429, 503), reply.read()
            time.sleep(RETRY_DELAY)  # there is no event for a server's recovery
        asked = Asked(events[0]["response"]["id"], key, body, was_repeated=True, events=events)
        asked.note(events[-1]["response"]["status"])
        (self.killing if KILLS in body["input"] else self.asked).append(asked)

    def _retry(self, asked: Asked, key: str) -> None:
        """Wait until a job has failed, and retry it."""
        path = f"{RESPONSES}/{asked.id}"
        give_up = time.monotonic() + 2 * PATIENCE
        while True:
            reply = self._request("GET", path, headers={"Prefer": "wait=2"}, may=(404,))
            if reply.status_code == 404 or reply.json()["status"] in ENDED:
                break
            assert time.monotonic() < give_up, reply.text
        if reply.status_code == 200 and reply.json()["status"] == "failed":
            self._request("POST", f"/api/jobs/{asked.id}/retry", key, may=REFUSED)


def _until_there_is_a_reply(
    service: StormyService,
    send: Callable[[httpx2.Client], httpx2.Response],
    expected: tuple[int, ...],
) -> httpx2.Response:
    give_up = time.monotonic() + 2 * PATIENCE
    while True:
        with suppress(httpx2.TransportError), service.http() as http:
            reply = send(http)
            if reply.status_code in expected:
                return reply
            assert reply.status_code in (429, 503), (reply.request.url, reply.text)
        assert time.monotonic() < give_up, "no reply"
        assert not service.is_given_up.is_set()
        time.sleep(RETRY_DELAY)  # there is no event for a server's recovery
