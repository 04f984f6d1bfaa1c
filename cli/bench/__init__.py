"""`helixq bench`: measurements against a baseline in the same run. Each command has a module."""

from __future__ import annotations

import click

from cli.bench.api import api
from cli.bench.batch import batch
from cli.bench.engine import engine
from cli.bench.history import history
from cli.bench.idle import idle
from cli.bench.lora import lora
from cli.bench.readers import readers
from cli.bench.service import service
from cli.bench.track import track
from cli.help import Group


@click.group(cls=Group)
def bench() -> None:
    """Run benchmarks, each against a baseline."""


for command in (api, batch, engine, history, idle, lora, readers, service, track):
    bench.add_command(command)
