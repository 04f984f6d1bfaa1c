"""Following a job: its texts as they are written, and what it waits for. For `helixq ask`, `chat` and `jobs watch`."""

from __future__ import annotations

import datetime as dt
import threading
import time
import webbrowser
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cli.client import FINAL, Client
from cli.colour import ROLES
from cli.fields import Fields
from cli.plain import printable
from cli.screen import Screen
from cli.status import MOST
from cli.statuses import ExitStatus, Interrupted, of_job
from jobs.pipeline import Role, label
from jobs.quantities import about, ordinal

#: Seconds between two checks of a job's place in the queue, and between two drawings of the live line.
PLACE_INTERVAL, TICK = 2.0, 0.2
#: Seconds over which characters are counted for their rate.
RATE_WINDOW = 5.0
#: Seconds without text after which the live line says so.
SILENCE = 5.0
#: The events that bring text.
TEXT_DELTAS = ("response.reasoning_text.delta", "response.output_text.delta")


def follow(
    client: Client,
    job_id: str,
    *,
    fields: Fields | None = None,
    final: bool = False,
) -> ExitStatus:
    """Print a job's texts as they are written, or only its end; return the exit status.

    Args:
        client: of the server.
        job_id: of the job.
        fields: which fields of the response to print as JSON instead of the texts.
        final: whether to print the final answer alone.

    Raises:
        Interrupted: at Ctrl-C. The job goes on.
    """
    screen = Screen()
    screen.note(f"job {job_id}\npage {client.page(job_id)}")
    try:
        response = stream(client, job_id, screen, show=not (fields or final))
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted; the job {job_id} goes on. Follow it with `helixq jobs watch {job_id}{client.option}`, "
            f"or end it with `helixq jobs cancel {job_id}{client.option}`."
        ) from None
    if fields:
        fields.print(response, answer=answer(response), page=client.page(job_id))
    elif final and (text := answer(response)):
        screen.write(text if text.endswith("\n") else f"{text}\n")
    return of_job(response["status"])


def stream(client: Client, job_id: str, screen: Screen, *, show: bool) -> dict[str, Any]:
    """Print each stage as the model card does, token by token, if wanted; return the final response."""
    progress = _Progress(client, job_id, screen)
    num_printed = 0
    response: dict[str, Any] = {}
    with progress.live():
        for event in client.events(job_id, on_loss=progress.lost, on_return=progress.found):
            kind = event["type"]
            progress.take(event)
            if kind in FINAL:
                response = event["response"]
            elif kind == "response.in_progress" and event["response"]["run"] > 1:
                screen.note(
                    "No worker has the job's model any more; the job restarts with another model."
                )
            elif not show:
                continue
            elif kind == "response.output_item.added":
                if is_another_text(event["item"]["id"]):
                    screen.note("The worker was lost, and the text that follows is another one.")
                # The card prints two empty lines between the texts, and none after the last.
                if num_printed:
                    screen.write("\n\n\n")
                num_printed += 1
                role, number = stage_of(event["item"]["id"])
                screen.label(f"{label(role, number, progress.rounds)}:", ROLES[role])
                screen.write(" ")
            elif kind in TEXT_DELTAS:
                screen.write(event["delta"])
    if num_printed:
        screen.write("\n")
    if problem := _problem(response):
        screen.note(problem)
    if response.get("erased_at"):
        screen.note("Texts of the job were erased. They are empty here.")
    return response


class _Progress:
    """The live line of a job. A thread draws it, and asks for the job's place in the queue."""

    def __init__(self, client: Client, job_id: str, screen: Screen) -> None:
        self.rounds = 1
        self._client = client
        self._job_id = job_id
        self._screen = screen
        self._ended = threading.Event()
        self._is_queued = True
        self._is_lost = False
        self._place: dict[str, Any] = {}
        #: The stages that have begun, each with its name and the number of its characters: a piece of text may have
        #: several tokens.
        self._stages: list[tuple[str, int]] = []
        #: When text came, and how many characters of the stage there were then.
        self._times: deque[tuple[float, int]] = deque()
        self._heard_at = self._started_at = time.monotonic()

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw the live line during a block, where there is one."""
        if not self._screen.is_live:
            yield
            return
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._screen.hide()

    def take(self, event: dict[str, Any]) -> None:
        """Note what an event says."""
        kind = event["type"]
        self._heard_at = time.monotonic()
        if "response" in event:
            self._is_queued = event["response"]["status"] == "queued"
            self.rounds = event["response"]["rounds"]
        elif kind == "response.output_item.added":
            role, number = stage_of(event["item"]["id"])
            name = (
                f"{role} (round {number})"
                if self.rounds > 1 and role is not Role.ACTOR
                else str(role)
            )
            self._times.clear()
            self._stages.append((name, 0))
            self._show(self._heard_at)
        elif kind in TEXT_DELTAS:
            name, count = self._stages[-1]
            count += len(event["delta"])
            self._stages[-1] = (name, count)
            self._times.append((self._heard_at, count))

    def lost(self, seconds: float) -> None:
        """Say that the connection is lost."""
        self._is_lost = True
        self._screen.note(f"The connection is lost; reconnecting for up to {seconds:.0f} s.")

    def found(self) -> None:
        """Say that it is back."""
        self._is_lost = False
        self._screen.note("Reconnected.")

    def _run(self) -> None:
        asked_at = -PLACE_INTERVAL
        while not self._ended.wait(TICK):
            now = time.monotonic()
            if self._is_queued and not self._is_lost and now - asked_at >= PLACE_INTERVAL:
                asked_at = now
                self._place = self._client.place(self._job_id)
            if not self._ended.is_set():
                self._show(now)

    def _show(self, now: float) -> None:
        # The stage that runs is the last one.
        self._screen.show(self._line(now), keeps_end=bool(self._stages))

    def _line(self, now: float) -> str:
        elapsed = f"{now - self._started_at:.0f} s"
        if self._is_lost:
            return f"reconnecting · {elapsed}"
        if self._is_queued:
            return f"{_queued(self._place)} · {elapsed}"
        parts = [f"{name} {count} characters" for name, count in self._stages]
        if rate := self._rate(now):
            parts[-1] += f", {rate:.0f}/s"
        silent = now - self._heard_at
        if silent > SILENCE:
            parts.append(f"no text for {silent:.0f} s")
        return " · ".join([*(parts or ["started"]), elapsed])

    def _rate(self, now: float) -> float:
        while self._times and now - self._times[0][0] > RATE_WINDOW:
            self._times.popleft()
        if len(self._times) < 2:
            return 0.0
        (first, before), (last, count) = self._times[0], self._times[-1]
        return (count - before) / (last - first) if last - first > TICK else 0.0


def _queued(place: dict[str, Any]) -> str:
    if paused := place.get("paused"):
        at = dt.datetime.fromisoformat(paused["paused_at"]).astimezone()
        note = f": {paused['note'].rstrip('.')}" if paused["note"] else ""
        return printable(f"queued · paused since {at:%H:%M}{note}")
    parts = ["queued"]
    if place.get("place"):
        later = " or later" if place["place"] >= MOST else ""
        more = " or more" if place["queued"] >= MOST else ""
        parts = [f"queued, {ordinal(place['place'])}{later} of {place['queued']:,}{more}"]
    if (wait := place.get("wait")) is not None:
        parts.append(about(wait))
    if (ready := place.get("ready_workers")) is not None:
        parts.append(
            {0: "no worker is ready", 1: "1 worker is ready"}.get(
                ready, f"{ready} workers are ready"
            )
        )
    return " · ".join(parts)


def stage_of(item_id: str) -> tuple[Role, int]:
    """Return role and round of an output item."""
    _, role, number, *_ = item_id.split("_")
    return Role(role), int(number)


def is_another_text(item_id: str) -> bool:
    """Return whether an output item is of a stage that had begun another text: its id ends with an attempt's number."""
    return len(item_id.split("_")) > 5


def answer(response: dict[str, Any]) -> str | None:
    """Return the final answer of a response; None if it has none."""
    texts = [
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    ]
    return "".join(texts) if texts else None


def open_page(url: str) -> None:
    """Open a page in the user's browser, or say that there is none."""
    if not webbrowser.open(url):
        click.echo(f"No browser could be started; the page is {url}", err=True)


def _problem(response: dict[str, Any]) -> str | None:
    match response["status"]:
        case "failed":
            reason = response["error"]["message"].rstrip(".")
            return f"The job failed: {reason}." if reason else "The job failed."
        case "cancelled":
            return "The job was cancelled."
        case "incomplete":
            return "The answer was truncated at max_output_tokens, or at the model's context."
        case _:
            return None
