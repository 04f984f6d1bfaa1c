"""The help of all commands, the fields of `--json`, and colours."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cli import colour
from cli.fields import Command, Fields, json_fields
from cli.help import EXAMPLES
from cli.main import main


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_the_help_is_whole_and_has_an_example(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=80).output
    assert not [
        line for line in shown.splitlines() if line.endswith("...") and not line.startswith("Usage")
    ]
    example = EXAMPLES.get(" ".join(path))
    assert (example is None) == ("Commands:" in shown)
    if example is not None:
        assert all(line in shown for line in example.split("\n"))
        assert shlex.split(example.split("|")[-1].partition("helixq ")[2])[: len(path)] == [*path]


@click.command(cls=Command)
@click.argument("question", required=False)
@json_fields(("id", "status"), "answer")
def with_fields(question: str | None, fields: Fields | None) -> None:
    found = {"id": 1, "status": "queued"}
    click.echo(f"{question} {'-' if fields is None else fields.of(found, answer=42)}")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("why", "why -"),
        ("--json why", "why {'id': 1, 'status': 'queued'}"),
        ("why --json", "why {'id': 1, 'status': 'queued'}"),
        ("--json answer,id why", "why {'answer': 42, 'id': 1}"),
        ("--json=status", "None {'status': 'queued'}"),
    ],
)
def test_fields_of_json_are_chosen(arguments: str, shown: str) -> None:
    assert CliRunner().invoke(with_fields, shlex.split(arguments)).output == f"{shown}\n"


def test_an_unknown_field_lists_those_that_there_are() -> None:
    result = CliRunner().invoke(with_fields, ["--json", "id,colour"])
    assert result.exit_code == 2
    assert "'colour': there is no such field. The fields are id, status, answer." in result.output


def test_the_environment_and_the_option_decide_about_colours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    assert (colour.choice("auto"), colour.choice("always"), colour.choice("never")) == (
        None,
        True,
        False,
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert colour.choice("auto") is True
    monkeypatch.setenv("NO_COLOR", "1")
    assert (colour.choice("auto"), colour.choice("always")) == (False, True)
