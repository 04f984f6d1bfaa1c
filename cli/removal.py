"""`helixq jobs erase` and `delete`."""

from __future__ import annotations

from typing import Any

import click

from cli.client import Client
from cli.each_job import print_each
from cli.errors import fail
from cli.fields import Command, Fields, json_fields
from cli.options import server
from cli.statuses import ExitStatus
from cli.tables import count


@click.command(cls=Command)
@click.argument("job_ids", metavar="[ID...]", nargs=-1)
@click.option("--owner", metavar="NAME", help="Instead of IDs: all jobs of this owner.")
@click.option(
    "--metadata",
    metavar="KEY=VALUE",
    multiple=True,
    help="Instead of IDs, or of an owner's: those with this metadata; may be repeated.",
)
@click.option(
    "--text",
    "texts",
    metavar="POINTER",
    multiple=True,
    help="A JSON pointer into the history, such as /question or /attempts/0/output; may be repeated.",
)
@click.option("--all", "all_texts", is_flag=True, help="All texts, those of reviews included.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_fields("Erased")
@server
def erase(
    client: Client,
    /,
    job_ids: tuple[str, ...],
    owner: str | None,
    metadata: tuple[str, ...],
    texts: tuple[str, ...],
    all_texts: bool,
    yes: bool,
    fields: Fields | None,
) -> None:
    """Erase texts of jobs that have ended, with their copies in the job. What is left still verifies."""
    if bool(texts) == all_texts:
        raise click.UsageError("Give either --text or --all.")
    if bool(job_ids) == (owner is not None or bool(metadata)):
        raise click.UsageError("Give either IDs, or --owner or --metadata.")
    wanted = "all" if all_texts else list(texts)
    body = {**_matching(owner, metadata), "texts": wanted}
    number = len(job_ids)
    if not job_ids and not yes:
        number = sum(step["matched"] for step in client.erase_matching({**body, "dry_run": True}))
        if not number:
            click.echo("No job matches.", err=True)
            return
    if not yes:
        what = "all texts" if all_texts else f"{', '.join(texts)} and its copies"
        whose = job_ids[0] if len(job_ids) == 1 else count(number, "job")
        click.confirm(f"Erase {what} of {whose}? They cannot be restored.", abort=True, err=True)
    if len(job_ids) == 1:
        print_each(job_ids, lambda each: client.erase(each, wanted), _said, fields)
    elif job_ids:
        print_each(job_ids, lambda each: client.erase(each, wanted), _said_of_each, fields)
    else:
        _erase_matching(client, body, fields)


def _erase_matching(client: Client, body: dict[str, Any], fields: Fields | None) -> None:
    """Erase texts of the jobs that match, and print what came of each. The exit status is 1 if one was refused."""
    matched, refused = 0, False
    for step in client.erase_matching(body):
        matched += step["matched"]
        for erased in step["erased"]:
            if fields:
                fields.print(erased, lines=True)
            else:
                click.echo(_said_of_each(erased))
        for each in step["refused"]:
            refused = True
            fail(each["message"]).show()
    if not matched:
        click.echo("No job matches.", err=True)
    if refused:
        click.get_current_context().exit(ExitStatus.FAILED)


def _said(erased: dict[str, Any]) -> str:
    pointers = [f"{pointer} is erased." for pointer in erased["erased"]]
    return "\n".join(pointers) or "Nothing was left to erase."


def _said_of_each(erased: dict[str, Any]) -> str:
    number = len(erased["erased"])
    if not number:
        return f"{erased['id']}: Nothing was left to erase."
    return f"{erased['id']}: {count(number, 'text')} {'is' if number == 1 else 'are'} erased."


def _matching(owner: str | None, metadata: tuple[str, ...]) -> dict[str, Any]:
    """Return the members of a request's body that say which jobs are meant.

    Raises:
        UsageError: a pair of metadata is none.
    """
    pairs: dict[str, str] = {}
    for item in metadata:
        key, separator, value = item.partition("=")
        if not separator:
            raise click.UsageError(f"--metadata should be KEY=VALUE, not {item!r}.")
        pairs[key] = value
    return {"metadata": pairs} if owner is None else {"metadata": pairs, "owner": owner}


@click.command(cls=Command)
@click.argument("job_ids", metavar="[ID...]", nargs=-1)
@click.option("--owner", metavar="NAME", help="Instead of IDs: all jobs of this owner.")
@click.option(
    "--metadata",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Instead of IDs: jobs with this metadata, of all owners or of --owner; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Only count them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_fields(("id", "deleted", "matched"))
@server
def delete(
    client: Client,
    /,
    job_ids: tuple[str, ...],
    owner: str | None,
    pairs: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    fields: Fields | None,
) -> None:
    """Delete jobs with their histories, whether they have ended or not. The log records each deletion."""
    matching = owner is not None or bool(pairs)
    if bool(job_ids) == matching or (job_ids and dry_run):
        raise click.UsageError(
            "Give either IDs, or --owner or --metadata, and --dry-run with these."
        )
    body = _matching(owner, pairs)
    if job_ids:
        if not yes:
            click.confirm(f"Delete {count(len(job_ids), 'job')}?", abort=True, err=True)
        print_each(job_ids, client.delete, lambda job: f"{job['id']} is deleted.", fields)
        return
    if dry_run or not yes:
        matched = client.delete_matching({**body, "dry_run": True})
        if dry_run:
            said = f"{count(matched, 'job')} would be deleted."
            _print({"matched": matched, "deleted": 0}, said, fields)
            return
        click.confirm(f"Delete {count(matched, 'job')}?", abort=True, err=True)
    deleted = client.delete_matching(body)
    said = f"{count(deleted, 'job')} {'was' if deleted == 1 else 'were'} deleted."
    _print({"matched": deleted, "deleted": deleted}, said, fields)


def _print(reply: dict[str, Any], said: str, fields: Fields | None) -> None:
    if fields:
        fields.print(reply, lines=True)
    else:
        click.echo(said)
