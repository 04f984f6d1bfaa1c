"""Options that several commands have."""

from __future__ import annotations

import datetime as dt

import click
import pytest
from click.testing import CliRunner

from cli.client import Client
from cli.options import TIME, read_question, server
from jobs.settings import Settings


@click.command()
@server
def command(client: Client) -> None:
    click.echo(client.url)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("example.com", "http://example.com"),
        ("https://example.com", "https://example.com"),
        ("https://example.com/v1", "https://example.com"),
        ("127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
    ],
)
def test_a_server_is_named_by_its_url_or_its_host_and_port(given: str, url: str) -> None:
    assert CliRunner().invoke(command, ["--url", given], obj=Settings()).output == f"{url}\n"


@pytest.mark.parametrize(
    "given",
    ["http://[::1", "ftp://example.com", "http://", "example.com:port", "a b", "localhost:0"],
)
def test_what_is_no_url_of_a_server_is_refused(given: str) -> None:
    result = CliRunner().invoke(command, ["--url", given], obj=Settings())
    assert result.exit_code == 2
    assert "is not the URL of a server" in result.output


def test_a_question_in_another_encoding_is_refused() -> None:
    with pytest.raises(click.UsageError, match="not UTF-8"):
        read_question("What is \udcff?")


def test_a_time_may_be_how_long_ago_it_was() -> None:
    now = dt.datetime.now(dt.UTC)
    for text, ago in (("90h", {"hours": 90}), ("7d", {"days": 7}), ("2w", {"weeks": 2})):
        moment = dt.datetime.fromisoformat(TIME.convert(text, None, None))
        assert abs(now - moment - dt.timedelta(**ago)) < dt.timedelta(minutes=5)
    for text in ("2026-01-31", "2026-01-31T12:00Z", "1767225600", "7 d", "d", ""):
        assert TIME.convert(text, None, None) == text, "the server says what is wrong"
