"""What the benchmarks' commands share: questions, the machine's description, progress, a folder."""

from __future__ import annotations

import json
import os
import platform
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

#: The option of the seed.
seed_option = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the jobs, or of random weights."
)


def count_option(name: str, default: int, text: str, *, minimum: int = 1) -> Callable[[F], F]:
    """Return an option for a number of something, with its default and its help text."""
    kind = click.IntRange(min=minimum)
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def seconds_option(name: str, default: float, text: str) -> Callable[[F], F]:
    """Return an option for a number of seconds, with its default and its help text."""
    kind = click.FloatRange(min=0.1)
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def numbers(_: click.Context, option: click.Parameter, value: str | None) -> list[int]:
    """Return the numbers of an option such as ``1,64``, as its callback; none if it is not given."""
    if value is None:
        return []
    try:
        found = [int(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(
            f"{value!r} is not a list of numbers such as 1,64", param=option
        ) from error
    if min(found) < 1:
        raise click.BadParameter("each number must be at least 1", param=option)
    return found


def demo_questions(count: int) -> list[str]:
    """Return held-out questions with the longest numbers, half sums and half products."""
    from jobs.settings import DEMO_CHECKPOINT

    lines = (DEMO_CHECKPOINT.parent / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    questions = [
        str(row["question"]) for row in rows if row["kind"] in ("sums/3+3", "products/2×2")
    ]
    return [questions[i * len(questions) // count % len(questions)] for i in range(count)]


def machine() -> str:
    """Return the description of this machine: cores and processor."""
    names: dict[str, Any] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:  # Not Linux.
        pass
    name = next((v.strip() for k, v in names.items() if k.startswith("model name")), "")
    return f"{os.cpu_count()} cores, {name or platform.processor() or platform.machine()}"


def show_progress(text: str) -> None:
    """Print the description of the next step to stderr."""
    click.echo(f"{text} …", err=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder, and delete it at the end of the block.

    SIGTERM ends the block as Ctrl-C does, so that the processes that were started in it are stopped.
    """
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # A second one must not interrupt the cleaning up.
    raise KeyboardInterrupt
