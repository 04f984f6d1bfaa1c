"""``python -m tests.clients``: real clients, unchanged, against a real server. `make clients` runs it.

It installs each client at the version that is pinned here, runs its script, and prints a table of what
works. The status is 1 if a cell failed.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import click

from tests.clients import clients, environments, table
from tests.clients.clients import CLIENTS, Client, Outcome
from tests.clients.server import Server, serving


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([client.name for client in CLIENTS]))
@click.option("--upgrade", is_flag=True, help="Pin the newest versions first.")
@click.option("--document", is_flag=True, help="Put the table into docs/clients.md.")
def main(names: tuple[str, ...], *, upgrade: bool, document: bool) -> None:
    """Run the matrix of some clients, or of all."""
    # A shell's background job ignores it, and so would the clients that are interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [client for client in CLIENTS if not names or client.name in names]
    if upgrade:
        environments.upgrade(chosen)
    start = time.monotonic()
    # One after the other: clients share downloads, and Node's share one environment.
    programs = {client.name: environments.create(client) for client in chosen}
    click.echo(f"{len(chosen)} clients installed in {time.monotonic() - start:.0f} s\n")
    with (
        tempfile.TemporaryDirectory(prefix="hq-") as folder,
        serving(Path(folder) / "server") as server,
        # They wait most of the time.
        ThreadPoolExecutor(max_workers=len(chosen)) as pool,
    ):
        outcomes = [
            outcome
            for each in pool.map(partial(_run, programs=programs, server=server), chosen)
            for outcome in each
        ]
    rendered = table.render(chosen, outcomes)
    click.echo(rendered)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        click.echo(f"{outcome.client}, {outcome.api}, {outcome.check}:\n  {outcome.error}\n")
    click.echo(f"{len(outcomes) - len(failed)} passed, {len(failed)} failed")
    if document:
        table.document(rendered)
    if len(chosen) == len(CLIENTS) and not table.is_documented(rendered):
        sys.exit("docs/clients.md shows another table. To replace it, run with --document.")
    sys.exit(bool(failed))


def _run(client: Client, programs: dict[str, str], server: Server) -> list[Outcome]:
    # Node looks for modules beside the script and above.
    above = environments.FOLDER / ("node" if client.is_node else client.name)
    folder = above / f"script-{client.name}"
    return list(clients.run(client, programs[client.name], server, folder))


if __name__ == "__main__":
    main()
