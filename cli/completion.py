"""`helixq completion`: what makes a shell complete the program's commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, /, shell: str) -> None:
    """Print the script that makes a shell complete commands and options.

    Write it to a file that the shell reads: in bash ~/.local/share/bash-completion/completions/helixq, in zsh _helixq in
    a folder of $fpath, in fish ~/.config/fish/completions/helixq.fish.
    """
    completes = get_completion_class(shell)
    assert completes is not None  # noqa: S101 (click has the three)
    main = context.find_root().command
    click.echo(completes(main, {}, "helixq", "_HELIXQ_COMPLETE").source())
