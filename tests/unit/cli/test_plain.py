"""What commands show does nothing to a terminal, and is otherwise as it was written."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest

from cli.errors import fail
from cli.plain import printable
from cli.screen import Screen
from cli.tables import print_table
from jobs.program import PROGRAM

#: Clears the screen, in two spellings, and turns the direction of writing.
HOSTILE = "a\x1b[2Jb\x9b2Jc\u202ed\r\x07\x7f"
SHOWN = "a�[2Jb�2Jc�d���"


def test_control_characters_are_replaced() -> None:
    assert printable(HOSTILE) == SHOWN
    kept = "two\n\tlines, Où\u00a0? 東京\u3000タワー 👩\u200d💻 می\u200cخواهم"
    assert printable(kept) == kept


def test_errors_notes_and_tables_do_nothing_to_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server that is not ours words errors, and a file that is imported names owners."""
    fail(f"the server says {HOSTILE}.").show()
    Screen().note(HOSTILE)
    print_table(("owner",), [(HOSTILE,)])
    printed = capsys.readouterr()
    assert printed.err == f"Error: the server says {SHOWN}.\n{SHOWN}\n"
    assert printed.out == f"owner\n{SHOWN}\n"


def test_characters_that_a_locale_lacks_are_escaped() -> None:
    def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
        return subprocess.run(
            [*PROGRAM, *arguments], input=given, env=environ, capture_output=True, check=False
        )

    made = run("jobs", "log-key", "--new", "ł/log")
    assert made.returncode == 0
    assert b"+\\u0142/log+" in made.stdout
    assert made.stderr.startswith(b"The public key is \\u0142/log+")
    # A line that is no UTF-8 is one wrong question, and the next one is asked.
    chat = run("chat", "--url", "127.0.0.1:1", given=b"Ol\xe9?\nCaf\xc3\xa9?\n")
    assert chat.stdout == b"You: You: You: \n"
    assert chat.stderr.splitlines()[0] == b"Error: the question is not UTF-8"
    assert chat.stderr.splitlines()[1].startswith(b"Error: no server answers at")


def test_closed_and_full_streams_are_no_tracebacks() -> None:
    def run(redirections: str, *arguments: str) -> tuple[int, str]:
        command = shlex.join([*PROGRAM, *arguments])
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {redirections}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    status, said = run("<&-", "ask")
    assert (status, said.splitlines()[-1]) == (2, "Error: The question is empty.")
    assert run("<&-", "chat") == (0, "")
    assert run(">&-", "jobs", "log-key", "--new", "a/b", "--json") == (0, "")
    full = "Error: the output cannot be written (No space left on device): make room.\n"
    assert run(">/dev/full", "--help") == (1, full)
