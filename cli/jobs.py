"""`helixq jobs`: list, show, watch, cancel, retry and replay the jobs of a server.

Exports are in `cli.exports`, imports in `cli.imports`, proofs in `cli.proofs` and `cli.trust`, reviews in
`cli.reviewing`, and erasures and deletions in `cli.removal`.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import shutil
import sys
from collections import deque
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import click

from cli import asking
from cli.client import Client
from cli.each_job import EachJob, print_each
from cli.fields import Command, Fields, json_fields
from cli.options import TIME, filter_parameters, job_filters, server
from cli.plain import printable, say
from cli.statuses import Interrupted
from cli.tables import count, fitted
from jobs.enums import Order
from jobs.pipeline import Role, label
from jobs.tlog.salted import is_erased

#: Columns of a question in a list, at least, and of an owner.
MIN_QUESTION, OWNER = 20, 12
#: The number of jobs at the beginning of a list of which several owners make it name owners.
FIRST = 100
#: How the text of a finished attempt ended, unless it ended by itself.
ENDS = {"length": "truncated at its token limit", "stop_string": "ended at a stop string"}


@click.command("list", cls=Command)
@job_filters
@click.option(
    "--order",
    type=click.Choice([order.value for order in Order]),
    help="desc, the newest first (the default without -q), or asc; relevance (the default with -q); changed or duration: "
    "of jobs that have ended, the most changed or the longest first.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many jobs."
)
@json_fields("ListedJob")
@server
def list_(
    client: Client,
    /,
    limit: int,
    fields: Fields | None,
    **filters: Any,
) -> None:
    """List jobs, newest first, or those that match a query. Most filters find only jobs that have ended."""
    parameters = filter_parameters(**filters)
    jobs = client.list_jobs(parameters, limit)
    if fields:
        fields.print_each(jobs)
        return
    columns = shutil.get_terminal_size((120, 24)).columns
    some = list(islice(jobs, FIRST))
    names_owners = len({job["owner"] for job in some}) > 1
    for job in chain(some, jobs):
        click.echo(row(job, columns, names_owners=names_owners))
        if job["snippets"]:
            click.echo(f"    {_snippet(job['snippets'][0])}")
    if not some:
        click.echo("No job matches." if parameters else "There are no jobs.", err=True)


def _snippet(snippet: dict[str, Any]) -> str:
    """Return a snippet in one line, with what matches in bold where the terminal can."""
    parts = (
        click.style(text, bold=True) if part["match"] else text
        for part in snippet["parts"]
        for text in [printable(part["text"]).replace("\n", " ")]
    )
    return f"{snippet['field']}: {''.join(parts)}"


@click.command(cls=Command)
@click.argument("job_id", metavar="ID")
@json_fields("History", "page")
@server
def show(client: Client, /, job_id: str, fields: Fields | None) -> None:
    """Show a job and the attempts at its stages."""
    history, page = client.history(job_id), client.page(job_id)
    if fields:
        fields.print(history, page=page)
        return
    for name in (
        "id",
        "status",
        "owner",
        "key",
        "created_at",
        "started_at",
        "finished_at",
        "model",
    ):
        if history[name] is not None:
            say(f"{name.removesuffix('_at') + ':':<11}{history[name]}")
    for name, value in _facts(history):
        say(f"{name + ':':<11}{value}")
    if replay := history["replay"]:
        click.echo(f"replay:    of {replay['of']}: {_comparison(history)}")
    if history["error"]:
        click.echo(f"error:     {_text(history['error']['message'])}")
    click.echo(f"\nQUESTION: {_text(history['question'])}")
    for attempt in history["attempts"]:
        click.echo(f"\n{_heading(history, attempt)}")
        if attempt["output"] is not None:
            click.echo(_text(attempt["output"]))
    for review in history["reviews"]:
        click.echo(f"\n{_review_heading(review)}")
        if review["note"] is not None:
            click.echo(_text(review["note"]))
        if review["corrected_answer"] is not None:
            click.echo(f"CORRECTED ANSWER: {_text(review['corrected_answer'])}")


@click.command(cls=Command)
@click.argument("job_id", metavar="ID")
@json_fields("ResponseObject", "answer", "page")
@click.option("--final", is_flag=True, help="Print only the final answer.")
@server
def watch(client: Client, /, job_id: str, fields: Fields | None, final: bool) -> None:
    """Follow a job to its end, and print its texts as they are written. Ctrl-C does not end the job."""
    if final and fields:
        raise click.UsageError("Give either --final or --json.")
    status = asking.follow(client, job_id, fields=fields, final=final)
    sys.exit(status)


@click.command(cls=Command)
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@json_fields("ResponseObject")
@server
def cancel(client: Client, /, job_ids: tuple[str, ...], fields: Fields | None) -> None:
    """Cancel jobs. One that has ended stays as it is."""
    print_each(job_ids, client.cancel, _standing, fields)


@click.command(cls=Command)
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@json_fields("Summary")
@server
def retry(client: Client, /, job_ids: tuple[str, ...], fields: Fields | None) -> None:
    """Continue failed jobs from their first unfinished stage."""
    print_each(job_ids, client.retry, _standing, fields)


def _standing(job: dict[str, Any]) -> str:
    return f"{job['id']} is {job['status']}."


@click.command(cls=Command)
@click.argument("job_ids", metavar="[ID...]", nargs=-1)
@click.option(
    "--since",
    metavar="TIME",
    type=TIME,
    help="Instead of IDs: completed jobs created from then on.",
)
@click.option(
    "--until",
    metavar="TIME",
    type=TIME,
    help="Instead of IDs, or with --since: created before then.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), help="Only this many of them, chosen at random."
)
@json_fields("Replay", "id")
@server
def replay(
    client: Client,
    /,
    job_ids: tuple[str, ...],
    sample: int | None,
    fields: Fields | None,
    **times: str | None,
) -> None:
    """Run jobs again as new jobs, and compare the texts. The exit status is 1 if one differs."""
    between = {name: time for name, time in times.items() if time is not None}
    if bool(job_ids) == bool(between) or (sample and not between):
        raise click.UsageError("Give either IDs, or --since or --until, and --sample with these.")
    ids = list(job_ids) or _completed(client, between)
    if sample and sample < len(ids):
        ids = random.SystemRandom().sample(ids, sample)
    each = EachJob()
    all_identical = True
    running: deque[str] = deque()
    try:
        # All are submitted before the first is waited for: the engine batches them.
        running.extend(each.results(ids, client.replay))
        while running:
            for _ in client.events(running[0]):
                pass
            history = client.history(running[0])
            report = history["replay"]
            all_identical &= report["identical"] is True
            if fields:
                fields.print({"id": history["id"], **report}, lines=True)
            else:
                click.echo(f"{report['of']}, replayed as {history['id']}: {_comparison(history)}")
            running.popleft()
    except KeyboardInterrupt:
        if not running:
            raise
        verb = "goes" if len(running) == 1 else "go"
        raise Interrupted(
            f"Interrupted; {count(len(running), 'replay')} {verb} on, and `helixq jobs show ID` compares the "
            f"texts: {' '.join(running)}"
        ) from None
    sys.exit(each.failed or not all_identical)


def _completed(client: Client, between: dict[str, str]) -> list[str]:
    """Return the ids of completed jobs that are no replays themselves."""
    jobs = client.list_jobs({**between, "status": "completed"})
    return [job["id"] for job in jobs if job["replay_of"] is None]


def _comparison(history: dict[str, Any]) -> str:
    """Return what a replay showed, in one line."""
    report = history["replay"]
    changed = ", ".join(change["field"] for change in report["changed"])
    if report["identical"]:
        return f"identical, and the worker differs in: {changed}" if changed else "identical"
    if (difference := report["difference"]) is None:
        return f"not compared, since it was deleted, texts were erased, or the replay is {history['status']}"
    stage = difference["role"]
    if history["rounds"] > 1 and stage != Role.ACTOR:
        stage = f"{stage} of round {difference['round']}"
    old, new = (
        printable(json.dumps(difference[k], ensure_ascii=False)) for k in ("original", "replay")
    )
    return (
        f"the {difference['field']} of the {stage} differs from character {difference['at']} on: "
        f"{old} became {new}; the worker differs in: {changed or 'nothing'}"
    )


def row(job: dict[str, Any], columns: int, *, names_owners: bool) -> str:
    """Return a job in a line of a list: where it is narrow, without duration and time; where it is narrower, in two."""
    created = dt.datetime.fromisoformat(job["created_at"])
    duration = "-"
    if job["finished_at"]:
        seconds = (dt.datetime.fromisoformat(job["finished_at"]) - created).total_seconds()
        duration = f"{seconds:.1f} s"
    question = " ".join(_text(job["question"]).split())
    cells = [
        f"{job['id']:<37}",
        f"{job['status']:<11}",
        *([f"{fitted(printable(job['owner']), OWNER):<{OWNER}}"] if names_owners else []),
        f"{created:%Y-%m-%d %H:%M}Z",
        f"{duration:>9}",
    ]

    def left() -> int:
        return columns - len("  ".join(cells)) - 2

    while left() < MIN_QUESTION and len(cells) > 2:
        cells.pop()
    if left() < MIN_QUESTION:
        first = "  ".join(cells).rstrip()
        if len(first) <= columns:
            return f"{first}\n  {fitted(question, columns - 2)}"
        head = f"{job['id']}\n  {job['status']}  "
        return head + fitted(question, columns - len(job["status"]) - 4)
    return f"{'  '.join(cells)}  {fitted(question, left())}"


def _facts(history: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what else is known of a job, with names."""
    if attempts := history["attempts"]:
        for role, adapter in attempts[-1]["worker"].get("adapters", {}).items():
            said = (adapter.get("name"), adapter.get("digest"))
            yield "adapter", f"{role} = {printable(', '.join(filter(None, said)))}"
    if metadata := history["metadata"]:
        pairs = (f"{name} = {value}" for name, value in metadata.items())
        yield "metadata", _text(metadata if is_erased(metadata) else "; ".join(pairs))
    if history["log"] is not None:
        place = f"entry {history['log']['index']}"
        if origin := history["origin"]:
            place += f"; imported from {origin['log']}, entry {origin['index']}"
        yield "log", place
    for erasure in history["erasures"]:
        yield "erased", f"{erasure['at']} by {erasure['by']}: {', '.join(erasure['texts'])}"


def _heading(history: dict[str, Any], attempt: dict[str, Any]) -> str:
    parts = [label(Role(attempt["role"]), attempt["round"], history["rounds"])]
    if history["run"] > 1:
        parts.append(f"run {attempt['run']}")
    if attempt["number"] > 1:
        parts.append(f"attempt {attempt['number']}")
    if attempt["status"] != "finished":
        parts.append(attempt["status"])
    elif attempt["finish_reason"] in ENDS:
        parts.append(ENDS[attempt["finish_reason"]])
    if attempt["output_tokens"] is not None:
        parts.append(f"{attempt['output_tokens']} tokens")
    return ", ".join(parts)


def _review_heading(review: dict[str, Any]) -> str:
    parts = [f"REVIEW by {_text(review['reviewer'])}, {review['created_at']}"]
    parts += [
        f"{name} {rating:+d}" if rating else f"{name} 0"
        for name in ("critique", "regeneration")
        if (rating := review[name]) is not None
    ]
    if review["tags"]:
        tags = review["tags"]
        parts.append(f"tags {_text(tags if is_erased(tags) else ', '.join(tags))}")
    return ", ".join(parts)


def _text(text: str | dict[str, Any]) -> str:
    """Return a text of a history for a terminal."""
    return printable(text) if isinstance(text, str) else "(erased)"
