"""`helixq chat`: questions in a loop, and commands that begin with a slash."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import asking
from cli.client import Client
from cli.errors import ExpectedError, UnreachableError
from cli.plain import say
from cli.screen import Screen
from cli.statuses import ExitStatus, of_job
from jobs.pipeline import MAX_ROUNDS

if TYPE_CHECKING:
    from prompt_toolkit.history import History

PROMPT = "You: "
#: Begins and ends a question of several lines.
QUOTES = '"""'
#: Asks for the rest of such a question.
MORE = "...: "
COMMANDS = {
    "/help": "list the commands",
    "/rounds": f"set the rounds of critique and regeneration, 1 to {MAX_ROUNDS}: /rounds 2",
    "/last": "print the last answer again, with the address of its page",
    "/open": "open the page of the last question in a browser",
    "/quit": "end the chat, as Ctrl-D does",
}
KEYS = (
    f"A pasted block is one question, and so is the text between two {QUOTES}. Alt-Enter begins a new line. "
    "Ctrl-C cancels an answer. A question that begins with a slash needs a space before it."
)


class Chat:
    """The model card's loop: a prompt, then the three texts."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._screen = Screen()
        self._rounds = 1
        #: The last question's job, and its answer once there is one.
        self._job_id: str | None = None
        self._answer: str | None = None
        self._status = ExitStatus.DONE

    def run(self) -> ExitStatus:
        """Run the loop until the end of its input.

        Returns:
            the exit status: on a terminal 0, otherwise that of the last question that got no answer.
        """
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        read = line_editor() if is_terminal else read_plain
        while True:
            try:
                text = read()
            except KeyboardInterrupt:  # The line is given up.
                click.echo("(Ctrl-D ends the chat)", err=True)
                continue
            except EOFError:
                break
            if re.match(r"/[a-z]+(\s|$)", text):
                if text.split()[0] == "/quit":
                    break
                self._obey(*text.split())
            elif question := unquoted(text).strip():
                self._ask(question)
        return ExitStatus.DONE if is_terminal else self._status

    def _ask(self, question: str) -> None:
        self._job_id = self._answer = None
        try:
            self._job_id = self._client.submit({"input": question, "rounds": self._rounds})
            response = asking.stream(self._client, self._job_id, self._screen, show=True)
        except KeyboardInterrupt:
            self._cancel()
        except ExpectedError as error:
            unreachable = isinstance(error, UnreachableError)
            self._status = ExitStatus.UNREACHABLE if unreachable else ExitStatus.FAILED
            say(f"Error: {error}", err=True)
        else:
            self._answer = asking.answer(response)
            self._status = of_job(response["status"]) or self._status

    def _cancel(self) -> None:
        """Cancel the question that is being answered."""
        self._status = ExitStatus.CANCELLED
        if self._job_id is None:
            click.echo("\nThe question may not have been sent.", err=True)
            return
        try:
            self._client.cancel(self._job_id)
        except ExpectedError as error:
            say(f"\nError: {error}", err=True)
        else:
            click.echo("\ncancelled", err=True)

    def _obey(self, command: str, *arguments: str) -> None:
        match command, arguments:
            case "/help", ():
                columns = shutil.get_terminal_size().columns
                for name, meaning in COMMANDS.items():
                    click.echo(
                        click.wrap_text(f"{name:<8} {meaning}", columns, subsequent_indent=" " * 9)
                    )
                click.echo(click.wrap_text(KEYS, columns))
            case "/rounds", (number,) if number in {str(n + 1) for n in range(MAX_ROUNDS)}:
                self._rounds = int(number)
                click.echo(f"rounds: {number}")
            case "/rounds", ():
                click.echo(f"rounds: {self._rounds}")
            case "/last" | "/open", () if self._job_id is None:
                click.echo("Nothing was asked yet.", err=True)
            case "/last", ():
                self._screen.write(f"{self._answer or '(no answer)'}\n")
                click.echo(self._client.page(str(self._job_id)))
            case "/open", ():
                asking.open_page(self._client.page(str(self._job_id)))
            case _:
                usage = COMMANDS.get(command, "no such command; /help lists them")
                click.echo(f"{command}: {usage}", err=True)


def unquoted(text: str) -> str:
    """Return a question without the quotes around it, if there are any."""
    return text.strip().removeprefix(QUOTES).removesuffix(QUOTES) if is_open(text) else text


def is_open(text: str) -> bool:
    """Return whether a text begins with quotes."""
    return text.lstrip().startswith(QUOTES)


def is_complete(text: str) -> bool:
    """Return whether a text that may begin with quotes also ends with them."""
    stripped = text.strip()
    return not is_open(text) or (len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES))


def read_plain() -> str:
    """Read a line, or several between quotes, where no terminal is.

    Raises:
        EOFError: there is none.
    """
    try:
        text = _read_line(PROMPT)
        while not is_complete(text):
            text += f"\n{_read_line(MORE)}"
    except EOFError:
        print()
        raise
    return text


def _read_line(prompt: str) -> str:
    """Read a line as UTF-8, whatever the locale's encoding is.

    Raises:
        EOFError: there is none.
    """
    print(prompt, end="", flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    # What is no UTF-8 is refused when it is sent.
    return line.decode(errors="surrogateescape").rstrip("\r\n")


def line_editor() -> Callable[[], str]:
    """Return a function that reads a question from a terminal.

    It raises `EOFError` at Ctrl-D, and `KeyboardInterrupt` at Ctrl-C.
    """
    # Imported here because it takes a while, and only a terminal needs it.
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _accept(event: KeyPressEvent) -> None:
        if is_complete(event.current_buffer.text):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        PROMPT,
        history=_history(),
        key_bindings=bindings,
        multiline=True,
        prompt_continuation=" " * len(PROMPT),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
        # Without it, a click would be the program's, and the terminal could not select text.
        mouse_support=False,
    )
    return session.prompt


def history_file() -> Path:
    """Return the file with the questions that were asked."""
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "helixq" / "chat-history"


def _history() -> History:
    """Return the history in a file that nobody else can read, or in memory if there can be none."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        file = history_file()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        file.chmod(0o600)
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileHistory(str(file))
