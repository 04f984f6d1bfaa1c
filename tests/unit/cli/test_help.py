"""The help of all commands, the fields of `--json`, and colours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import colour
from cli.commands import COMMANDS, GROUPS, SECTIONS
from cli.fields import Command, Fields, json_fields
from cli.main import main

SETTINGS = Path(__file__).parents[3] / "docs" / "settings.md"
PATHS = [*GROUPS, *COMMANDS]
#: Those that serve, talk with a person, print a file of another format, or print no data.
WITHOUT_JSON = {
    "chat",
    "completion",
    "jobs export",
    "jobs proof",
    "maintain",
    "up",
    "web",
    "worker",
}


def command_at(path: str) -> click.Command:
    command: click.Command = main
    for name in path.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


def test_every_command_is_in_the_list_of_its_group() -> None:
    for path, summary in [*GROUPS.items(), *((p, entry.summary) for p, entry in COMMANDS.items())]:
        shown = CliRunner().invoke(main, [*path.split()[:-1], "--help"], terminal_width=200).output
        listed = " ".join(shown[shown.index("Commands:") :].split())
        assert f"{path.split()[-1]} {summary}" in listed


@pytest.mark.parametrize("path", PATHS)
def test_the_help_is_whole_and_has_an_example(path: str) -> None:
    shown = CliRunner().invoke(main, [*path.split(), "--help"], terminal_width=80).output
    assert not [
        line for line in shown.splitlines() if line.endswith("...") and not line.startswith("Usage")
    ]
    if path in GROUPS:
        assert "Commands:" in shown
        return
    summary, example = COMMANDS[path][1:]
    assert command_at(path).get_short_help_str(limit=1000) == summary
    assert all(line in shown for line in example.split("\n"))
    assert (
        shlex.split(example.split("|")[-1].partition("helixq ")[2])[: len(path.split())]
        == path.split()
    )


@pytest.mark.parametrize("path", PATHS)
def test_the_help_is_paragraphs_without_the_indentation_of_the_source(path: str) -> None:
    shown = CliRunner().invoke(main, [*path.split(), "--help"], terminal_width=80).output
    usage, _, described = shown.partition("Options:")[0].partition("\n\n")
    assert usage.startswith("Usage: ")
    assert not re.findall(r"^(?!  \S).+$|\S {2,}\S.*$", described, re.MULTILINE)


def test_options_that_change_an_endpoint_have_no_default() -> None:
    """What an update does not name stays as it is."""
    shown = CliRunner().invoke(main, ["webhooks", "update", "--help"]).output
    assert "default" not in shown


def test_the_help_says_what_works_on_the_database() -> None:
    row = re.search(
        r"^\| `DATABASE_URL`, `DATA_DIR` \| (.*) \|$", SETTINGS.read_text(), re.MULTILINE
    )
    assert row
    on_database = set(re.findall(r"`(.+?)`", row[1])) - {"web", "worker", "maintain", "migrate"}
    for path in PATHS:
        shown = CliRunner().invoke(main, [*path.split(), "--help"], terminal_width=120).output
        says_so = "Works on the database itself, not over HTTP: HELIXQ_DATABASE_URL" in shown
        assert says_so == bool(on_database & {path, path.split()[0]}), path


def test_bench_alone_is_the_benchmark_of_the_engine() -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["bench", *arguments], terminal_width=120)
        return result.exit_code, result.output

    status, said = run("--jobs", "0", "--json")
    assert status == 2
    assert "Usage: helixq bench engine" in said.replace("main", "helixq")
    assert "'--jobs'" in said
    assert run("nonsense")[1].endswith("No such command 'nonsense'.\n")
    assert run("readers", "--readers", "x")[0] == 2
    for option in ("-h", "--help"):
        status, said = run(option)
        assert status == 0
        assert "[COMMAND]" in said
        assert "  readers " in said


def test_json_has_fields_to_choose_wherever_there_is_json() -> None:
    with_json = []
    for path in COMMANDS:
        command = command_at(path)
        for option in (option for option in command.params if "--json" in option.opts):
            assert isinstance(command, Command)
            refused = CliRunner().invoke(main, [*path.split(), "--json=id,nonsense"])
            assert refused.exit_code == 2
            listed = refused.output.partition("The fields are ")[2].rstrip(".\n").split(", ")
            assert ", ".join(listed) == ", ".join(option.type.names)  # type: ignore[attr-defined]  # it is a type of ours
            with_json.append(path)
    assert {*COMMANDS} - {*with_json} == WITHOUT_JSON


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


@pytest.mark.parametrize("arguments", ["--json id,colour", "why --json colour"])
def test_an_unknown_field_lists_those_that_there_are(arguments: str) -> None:
    result = CliRunner().invoke(with_fields, shlex.split(arguments))
    assert result.exit_code == 2
    assert "'colour': there is no such field. The fields are id, status, answer." in result.output


def test_what_is_no_field_is_not_called_one() -> None:
    result = CliRunner().invoke(with_fields, ["why", "not", "--json", "--jason"])
    assert "No such option '--jason'" in result.output
    result = CliRunner().invoke(with_fields, ["why", "not", "--json"])
    assert "Got unexpected extra argument (not)" in result.output


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


def test_every_command_of_the_program_has_its_section() -> None:
    listed = [name for names in SECTIONS.values() for name in names]
    assert sorted(listed) == sorted(name for name in PATHS if " " not in name)
