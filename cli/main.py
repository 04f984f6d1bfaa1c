"""The program's own options, and what all commands have in common. `cli.commands` lists the commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli import colour
from cli.errors import ExpectedError, explain, fail
from cli.group import Group
from cli.statuses import ExitStatus, Interrupted

if TYPE_CHECKING:
    from jobs.settings import Settings, SettingsError


class _Program(Group):
    """Loads the settings before any command, and prints expected errors as one sentence."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        except OSError as error:  # Of the help, which is printed here.
            if (sentence := explain(error)) is None:
                raise
            raise fail(sentence) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            context.obj = _load_settings()
            return super().invoke(context)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise
            status = error.status if isinstance(error, ExpectedError) else ExitStatus.FAILED
            raise fail(sentence, status) from error

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if isinstance(context.obj, Exception) and name not in WITHOUT_SETTINGS:
            raise fail(str(context.obj)) from context.obj
        return name, command, rest


def _load_settings() -> Settings | SettingsError:
    """Return the settings, or what is wrong with them."""
    # Imported here since it imports pydantic, which completion does without.
    from jobs import settings

    try:
        return settings.load()
    except settings.SettingsError as error:
        return error


#: Lines of the help are as long as the terminal, up to 120 characters.
SHOWN = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
#: The commands that run even if a setting is wrong.
WITHOUT_SETTINGS = {"completion", "doctor"}


@click.group(cls=_Program, context_settings=SHOWN)
@click.version_option(package_name="helixq", prog_name="helixq")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Use colours; by default only on a terminal. NO_COLOR and FORCE_COLOR work too.",
)
@click.pass_context
def main(context: click.Context, /, color: str) -> None:
    """Answer questions the HelixNet way: actor, critic, regenerator.

    Settings are environment variables that start with HELIXQ_; docs/settings.md lists them.
    """
    context.color = colour.choice(color)
