"""`helixq bench api`: what the web accepts and answers while many jobs wait, on both databases."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@common.count_option("--webs", 2, "Web processes.")
@common.count_option("--waiting", 10_000, "Jobs that wait at the beginning.")
@click.option(
    "--streams",
    type=click.IntRange(1, 200),
    default=200,
    show_default=True,
    help="Event streams at once, of one web.",
)
@common.seconds_option("--seconds", 10.0, "How long each measurement takes.")
@json_fields(("machine", "results"))
def api(webs: int, waiting: int, streams: int, seconds: float, fields: Fields | None) -> None:
    """Measure how fast webs accept questions and answer polls, and what event streams cost.

    Each text of the streams gets ten messages a second, and every message must arrive. The load comes from
    the same machine.
    """
    from cli.bench import measure_api

    with common.temporary_folder() as folder:
        results = measure_api.run(
            folder,
            webs=webs,
            waiting=waiting,
            streams=streams,
            seconds=seconds,
            on_progress=common.show_progress,
        )
    if fields:
        output = {"machine": common.machine(), "results": [asdict(result) for result in results]}
        fields.print(output)
        return
    click.echo(
        f"{webs} web processes, {seconds:g} seconds each, {waiting:,} jobs wait, "
        f"{streams} event streams; {common.machine()}.\n"
    )
    click.echo(
        "| database | accepted a second | processor | 99 of 100 within, at "
        f"{measure_api.ACCEPT_RATE:g} a second | polls a second | processor | 99 of 100 within, at "
        f"{measure_api.POLL_RATE:,g} a second | streams: share of a core | 99 of 100 messages within |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        click.echo(
            f"| {r.database} | {r.accepts:,.0f} | {r.accept_cost * 1000:.2f} ms "
            f"| {r.accept_late * 1000:.0f} ms | {r.polls:,.0f} | {r.poll_cost * 1000:.2f} ms "
            f"| {r.poll_late * 1000:.0f} ms | {r.stream_share:.2f} | {r.stream_late * 1000:.0f} ms |"
        )
