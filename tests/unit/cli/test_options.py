"""Options that several commands have."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from cli.options import server


@click.command()
@server
def command(url: str | None) -> None:
    click.echo(url)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("example.com", "http://example.com"),
        ("https://example.com", "https://example.com"),
    ],
)
def test_a_server_is_named_by_its_url_or_its_host_and_port(given: str, url: str) -> None:
    assert CliRunner().invoke(command, ["--url", given]).output == f"{url}\n"
