"""The messages and codes that docs/troubleshooting.md quotes are those of the program."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("cli", "jobs", "migrations", "web", "worker")
#: What varies in a text: a field of an f-string, or of the text of a logging call.
VARIES = "\0"


@cache
def texts() -> tuple[str, ...]:
    """Return all texts in the program's source, with `VARIES` for what is filled in."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    return tuple(text for file in files for text in texts_of(ast.parse(file.read_bytes())))


def texts_of(tree: ast.AST) -> Iterator[str]:
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documentation:
                yield re.sub(r"%[sd]|%\.\df", VARIES, node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else VARIES
                for part in node.values
            )


def quoted() -> list[str]:
    """Return what the first column of each table quotes."""
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (.*?) \|", page, re.MULTILINE)
    return [piece for cell in cells for piece in re.findall(r"`([^`]+)`", cell)]


def is_the_programs(quotation: str) -> bool:
    """Whether the program has a message, with texts of any length for each `…`, or a code."""
    if " " not in quotation:
        return quotation in texts()
    pattern = re.compile(".*".join(map(re.escape, quotation.split("…"))))
    return any(pattern.search(text) for text in texts())


def test_quoted_messages_are_the_programs() -> None:
    quotations = quoted()
    assert len(quotations) > 40
    assert [q for q in quotations if not is_the_programs(q)] == []


def test_a_message_that_the_program_does_not_have_is_found() -> None:
    assert not is_the_programs("the database is tired (…): let it sleep")
    assert not is_the_programs("queue_tired")
