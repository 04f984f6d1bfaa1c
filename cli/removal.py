"""`helixq jobs erase` and `delete`."""

from __future__ import annotations

from typing import Any

import click

from cli.client import Client
from cli.each_job import print_each
from cli.fields import Command, Fields, json_fields
from cli.options import server
from cli.tables import count


@click.command(cls=Command)
@click.argument("job_id", metavar="ID")
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
    job_id: str,
    texts: tuple[str, ...],
    all_texts: bool,
    yes: bool,
    fields: Fields | None,
) -> None:
    """Erase texts of a job that has ended, with their copies in the job. What is left still verifies."""
    if bool(texts) == all_texts:
        raise click.UsageError("Give either --text or --all.")
    if not yes:
        what = "all texts" if all_texts else f"{', '.join(texts)} and its copies"
        click.confirm(f"Erase {what} of {job_id}? They cannot be restored.", abort=True, err=True)
    erased = client.erase(job_id, "all" if all_texts else list(texts))
    if fields:
        fields.print(erased, lines=True)
        return
    for pointer in erased["erased"]:
        click.echo(f"{pointer} is erased.")
    if not erased["erased"]:
        click.echo("Nothing was left to erase.")


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
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise click.UsageError(f"--metadata should be KEY=VALUE, not {pair!r}.")
        metadata[key] = value
    if job_ids:
        if not yes:
            click.confirm(f"Delete {count(len(job_ids), 'job')}?", abort=True, err=True)
        print_each(job_ids, client.delete, lambda job: f"{job['id']} is deleted.", fields)
        return
    body: dict[str, Any] = {"metadata": metadata}
    if owner is not None:
        body["owner"] = owner
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
