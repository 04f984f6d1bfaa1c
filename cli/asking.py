"""`helixq ask` and `helixq chat`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cli.client import FINAL, Client
from cli.errors import ExpectedError
from jobs.pipeline import LABELS, Role


def follow(client: Client, job_id: str, *, as_json: bool) -> int:
    """Stream a job's texts, or print its response at the end; return the exit status.

    An interrupt does not cancel the job.
    """
    click.echo(f"job {job_id}", err=True)
    try:
        response = _print(client, job_id, show=not as_json)
    except KeyboardInterrupt:
        raise ExpectedError(f"interrupted; the job {job_id} continues") from None
    if as_json:
        click.echo(json.dumps(response, ensure_ascii=False, indent=2))
    return 0 if _problem(response) is None else 1


def chat(client: Client) -> None:
    """Run the model card's loop: a prompt, then the three texts.

    Ctrl-C cancels the question that is being answered, and Ctrl-D ends the loop.
    """
    while True:
        try:
            question = input("You: ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question.strip():
            continue
        try:
            _answer(client, question)
        except ExpectedError as error:
            print(f"Error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\ncancelled", file=sys.stderr)


def _answer(client: Client, question: str) -> None:
    job_id = client.submit({"input": question})
    try:
        _print(client, job_id, show=True)
    except KeyboardInterrupt:
        client.cancel(job_id)
        raise


def _print(client: Client, job_id: str, *, show: bool) -> dict[str, Any]:
    """Print each stage as the model card does, token by token; return the final response."""
    num_printed = 0
    response: dict[str, Any] = {}
    for event in client.events(job_id):
        kind = event["type"]
        if kind in FINAL:
            response = event["response"]
        elif not show:
            continue
        elif kind == "response.in_progress" and event["response"]["run"] > 1:
            _write("\n" * bool(num_printed))
            click.echo(
                "No worker has the job's model any more; the job restarts with another model.",
                err=True,
            )
        elif kind == "response.output_item.added":
            # The card prints two empty lines between the texts, and none after the last.
            if num_printed:
                _write("\n\n\n")
            num_printed += 1
            _write(f"{LABELS[_role(event['item']['id'])]}: ")
        elif kind in ("response.reasoning_text.delta", "response.output_text.delta"):
            _write(event["delta"])
    if num_printed:
        _write("\n")
    if problem := _problem(response):
        click.echo(problem, err=True)
    return response


def _role(item_id: str) -> Role:
    return Role(item_id.split("_")[1])


def _problem(response: dict[str, Any]) -> str | None:
    match response["status"]:
        case "failed":
            return f"The job failed: {response['error']['message']}."
        case "cancelled":
            return "The job was cancelled."
        case _:
            return None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
