"""Tasks: questions with known answers, and patterns that parse answers and verdicts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import UserError


class TaskError(UserError):
    """The questions or patterns cannot be used. The message is one sentence."""


@dataclass(frozen=True)
class Question:
    """A question and its only right answer."""

    question: str
    answer: str
    #: The group that it is counted in besides the whole, or "". What is before a slash is a group
    #: too: ``sums/2+3`` is counted in ``sums`` and, more finely, in ``sums/2+3``.
    kind: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The groups that it is counted in, from the largest."""
        coarse, slash, _ = self.kind.partition("/")
        return tuple(filter(None, (coarse, self.kind if slash else "")))


@dataclass(frozen=True)
class Task:
    """Questions, and the patterns that parse texts about them."""

    questions: tuple[Question, ...]
    #: Finds the answer in a text: the last match, or its first group. None takes the whole text.
    answer: re.Pattern[str] | None
    #: Finds in a critique that it takes the answer to be right. None: verdicts are not read.
    approval: re.Pattern[str] | None

    def is_right(self, question: Question, text: str) -> bool:
        """Whether a text gives the question's answer, to the character."""
        return self.read(text) == question.answer.strip()

    def read(self, text: str) -> str | None:
        """Return the answer that a text gives, or None where it gives none."""
        if self.answer is None:
            return text.strip()
        matches = list(self.answer.finditer(text))
        if not matches:
            return None
        return str(matches[-1][1 if self.answer.groups else 0]).strip()


def load(path: Path, *, answer: str | None = None, approval: str | None = None) -> Task:
    """Read a task from JSON lines: ``{"question": …, "answer": …}``, with optional ``kind``
    (see `Question`).

    Args:
        path: the file.
        answer: a regular expression that finds the answer in a text; its last match counts, or
            that match's first group. Without it the whole text, stripped, is the answer.
        approval: a regular expression that a critique matches if it takes the answer to be right.

    Raises:
        TaskError: the file or a pattern cannot be used.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise TaskError(f"the questions in {path} cannot be read: {reason}") from error
    questions = tuple(
        _question(line, f"line {number} of {path}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not questions:
        raise TaskError(f"there are no questions in {path}")
    return Task(questions, _pattern(answer), _pattern(approval))


def _question(line: str, where: str) -> Question:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise TaskError(f'{where} is not an object such as {{"question": "…", "answer": "…"}}')
    if unknown := sorted(set(row) - {"question", "answer", "kind"}):
        raise TaskError(f"{where} has a field {unknown[0]!r}; question, answer and kind are known")
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise TaskError(f"{where} needs a text in {field!r}")
    if not isinstance(row.get("kind", ""), str):
        raise TaskError(f"{where} needs a text in 'kind', or none")
    return Question(**row)


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise TaskError(f"{text!r} is not a regular expression: {error}") from error
