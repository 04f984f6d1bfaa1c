"""Groups of commands that import a command when it is asked for, as click's documentation describes it.

The names of commands and their help come from `cli.commands`.
"""

from __future__ import annotations

from importlib import import_module
from inspect import cleandoc
from typing import Any

import click
from click.shell_completion import CompletionItem

from cli.commands import COMMANDS, DEFAULTS, GROUPS, ON_DATABASE, ON_DATABASE_HELP, SECTIONS


class Group(click.Group):
    """The commands and groups whose names in `cli.commands` begin with the group's own."""

    def __init__(self, name: str | None = None, *, path: str = "", **options: Any) -> None:
        """
        Args:
            name: of the group.
            path: its name in `cli.commands`; empty for the program.
            options: those of `click.Group`.
        """
        self._default = DEFAULTS.get(path)
        if self._default is not None:
            options |= {"no_args_is_help": False, "subcommand_metavar": "[COMMAND] [ARGS]..."}
        super().__init__(name, **options)
        self._prefix = f"{path} " if path else ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command before its options, if the group has one and no command is named."""
        names_none = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        # A shell that completes the first word completes the name of a command.
        if self._default is not None and names_none and (args or not ctx.resilient_parsing):
            args = [self._default, *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's)
        """Return the names of the group's commands."""
        return sorted(
            path.removeprefix(self._prefix)
            for path in (*COMMANDS, *GROUPS)
            if path.startswith(self._prefix) and " " not in path.removeprefix(self._prefix)
        )

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 (click's)
        cmd_name: str,
    ) -> click.Command | None:
        """Return a command, imported the first time; None if there is none of the name."""
        path = self._prefix + cmd_name
        if cmd_name not in self.commands:
            if path in GROUPS:
                self.add_command(Group(cmd_name, path=path, help=_help(path, GROUPS[path])))
            elif path in COMMANDS:
                self.add_command(_load(path), cmd_name)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the whole first sentence of its help."""
        sections = {"Commands": self.list_commands(ctx)} if self._prefix else SECTIONS
        for title, names in sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, self._summary(name)) for name in names])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, or the group's options."""
        return [
            CompletionItem(name, help=self._summary(name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)

    def _summary(self, name: str) -> str:
        path = self._prefix + name
        return GROUPS[path] if path in GROUPS else COMMANDS[path].summary


def _help(path: str, own: str) -> str:
    """Return the help of a command or group, with the sentence on the database if it belongs there."""
    group, _, _ = path.partition(" ")
    if not ON_DATABASE & {group, path} or ON_DATABASE_HELP in own:
        return own
    # Before Python 3.13, a docstring has the indentation of its source.
    return f"{cleandoc(own)}\n\n{ON_DATABASE_HELP}"


def _load(path: str) -> click.Command:
    """Import a command, and show its example below its help."""
    entry = COMMANDS[path]
    module, name = entry.where.split(":")
    command: click.Command = getattr(import_module(module), name)
    command.help = _help(path, command.help or "")
    # The mark keeps the lines as they are.
    command.epilog = "\b\nExample:\n" + "\n".join(f"  {line}" for line in entry.example.split("\n"))
    return command
