"""`helixq status`: what runs on a server, and what waits."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import click

from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.options import server
from cli.pausing import sentence
from cli.plain import say
from cli.tables import count
from jobs import quantities

#: Where counts of the server end (`jobs.statements.in_queue.CAP`).
MOST = 1000


@click.command(cls=Command)
@json_fields("SystemState", "ready")
@server
def command(client: Client, /, fields: Fields | None) -> None:
    """Show what runs: the web, the workers with their models, the queue and the log.

    The exit status is 1 if the server is not ready to answer questions. A server that requires keys needs one with
    the scope audit.
    """
    readiness, system = client.readiness(), client.system()
    if fields:
        fields.print({"ready": readiness, **system})
    else:
        for line in _lines(client.url, readiness, system):
            say(line)
    click.get_current_context().exit(int(readiness["status"] != "ok"))


def _lines(url: str, readiness: dict[str, Any], system: dict[str, Any]) -> list[str]:
    now = dt.datetime.fromisoformat(system["at"])
    amiss = [f"{name}: {said}" for name, said in readiness["checks"].items() if said != "ok"]
    queue, log, attempts = system["queue"], system["log"], system["attempts"]
    stages = [
        f"{role} {number['running']} running, {_capped(number['waiting'])} waiting"
        for role, number in queue["stages"].items()
        if number["running"] or number["waiting"]
    ]
    paused = queue["paused"]
    oldest = f", the oldest for {_ago(now, queue['oldest_at'])}" if queue["oldest_at"] else ""
    signed = f", signed {_ago(now, log['checkpoint_at'])} ago" if log["checkpoint_at"] else ""
    return [
        f"web      {'not ready, ' + '; '.join(amiss) if amiss else 'ready'}: {url}, "
        f"HelixQ {system['version']}, {system['database']}",
        *(line for worker in system["workers"] for line in _worker(now, worker)),
        *([] if system["workers"] else ["worker   none"]),
        f"queue    {'' if paused is None else 'paused, '}{_capped(queue['queued'])} queued{oldest}",
        *([] if paused is None else [f"         {sentence(paused)}"]),
        *(f"         {stage}" for stage in stages),
        *(
            f"         {owner['owner']}: {_capped(owner['queued'])} queued, {owner['in_progress']} in progress"
            for owner in queue["owners"]
        ),
        *([_rescues(attempts)] if attempts["last"] else []),
        f"webhooks {_capped(system['webhooks']['pending'])} to send",
        f"log      {count(log['size'], 'entry', 'entries')}{signed}, {_capped(log['unsealed'])} ended jobs to add",
    ]


def _rescues(attempts: dict[str, int]) -> str:
    lost, released = attempts["lost"], attempts["released"]
    return (
        f"attempts {lost} of the last {attempts['last']} lost with their worker, {released} given back by it; "
        "they run again"
        if lost or released
        else f"attempts none of the last {attempts['last']} lost or given back"
    )


def _worker(now: dt.datetime, worker: dict[str, Any]) -> Iterator[str]:
    state = worker["state"]
    if state == "lost":
        state = f"lost, last seen {_ago(now, worker['seen_at'])} ago"
    slots = "" if worker["slots"] is None else f" of {worker['slots']}"
    yield (
        f"worker   {worker['id']}: {state}, {worker['running']}{slots} running, {worker['engine']} on "
        f"{worker['device']}, context {worker['context']}"
    )
    yield f"         {worker['base']} ({worker['model'][7:19]})"
    if used := _usage(worker["usage"]):
        yield f"         {', '.join(used)}"


def _usage(usage: dict[str, int | None]) -> Iterator[str]:
    if (resident := usage["resident_memory_bytes"]) is not None:
        yield f"{quantities.size(resident)} of memory"
    total, used = usage["gpu_memory_bytes"], usage["gpu_memory_used_bytes"]
    if total is not None and used is not None:
        yield f"{quantities.size(used)} of {quantities.size(total)} of GPU memory"
    blocks, taken = usage["kv_cache_blocks"], usage["kv_cache_blocks_used"]
    if blocks is not None and taken is not None:
        yield f"{taken} of {blocks} blocks of the KV cache"


def _capped(number: int) -> str:
    return f"{MOST} or more" if number >= MOST else str(number)


def _ago(now: dt.datetime, time: str) -> str:
    return quantities.duration(now - dt.datetime.fromisoformat(time))
